//! Only some tables, from a time on, and a source that is pruned while it is followed.

use pgquorum_tests::{LineStream, PATIENCE, Pair, await_until};
use serde_json::{Value, json};

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY)";

fn ids(pair: &Pair, table: &str) -> Result<String, String> {
    pair.target
        .try_ask(1, &format!("SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '-') FROM {table}"))
}

fn await_ids(pair: &Pair, table: &str, expected: &str) {
    await_until(PATIENCE, &format!("{table}: {expected}"), || match ids(pair, table)? {
        found if found == expected => Ok(()),
        found => Err(format!("{found}; {:?}", pair.tables())),
    });
}

#[test]
fn tables_and_the_beginning_are_chosen_and_chosen_anew() {
    let pair = Pair::start((1, 1), TABLES);
    let prepared = json!({"max_prepared_transactions": "10"});
    assert_eq!(pair.source.send(1, "PATCH", "/db-config", Some(&prepared)).0, 200);
    await_until(PATIENCE, "the parameter waits for a restart", || {
        let (_, now) = pair.source.get(1, "/db-config");
        if now["restart-required"].to_string().contains("max_prepared") {
            Ok(())
        } else {
            Err(now.to_string())
        }
    });
    pair.source.stop(1);
    pair.source.start_node(1);
    pair.track(&["a", "b", "c"]);
    // Only what was committed at a time or later, whatever was then in the table. Transactions that were prepared before that, and
    // committed among the others, do not hide these.
    pair.source.sql("INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1)");
    pair.source.sql("UPDATE a SET id = 3 WHERE id = 2");
    let mut preparer = pair.source.connect(1).expect("a session");
    for old in 1..=6 {
        let insert = format!("BEGIN; INSERT INTO c VALUES ({old}); PREPARE TRANSACTION 'old {old}'");
        preparer.batch_execute(&insert).expect("a prepared transaction");
    }
    let time = pair.source.ask(1, "SELECT clock_timestamp()::text");
    pair.source.sql("BEGIN; INSERT INTO a VALUES (10); INSERT INTO b VALUES (10); COMMIT");
    for old in 1..=6 {
        preparer.batch_execute(&format!("COMMIT PREPARED 'old {old}'")).expect("its commit");
        pair.source.sql(&format!("INSERT INTO a VALUES ({})", 10 + old));
    }
    pair.source.sql("DELETE FROM b WHERE id = 10");
    pair.subscribe(&json!({"copy": "none", "start": time, "tables": ["public.a", "public.b"]}));
    await_ids(&pair, "a", "10,11,12,13,14,15,16");
    pair.await_applied();
    assert_eq!((ids(&pair, "b"), ids(&pair, "c")), (Ok("-".to_owned()), Ok("-".to_owned())));
    let state = pair.state().expect("its state");
    assert_eq!((&state["tables_known"], &state["tables_stopped"]), (&json!(2), &json!(0)), "{state}");
    // At a time after everything: nothing, and from then on all.
    assert_eq!(pair.target.send(1, "DELETE", "/subscriptions/mirror", None).0, 200);
    pair.target.sql("TRUNCATE a, b, c");
    let time = pair.source.ask(1, "SELECT (clock_timestamp() + interval '1 hour')::text");
    pair.subscribe(&json!({"copy": "none", "start": time}));
    pair.await_state("following", None);
    pair.source.sql("INSERT INTO a VALUES (17)");
    await_ids(&pair, "a", "17");

    // Some tables with their rows; then others.
    assert_eq!(pair.target.send(1, "DELETE", "/subscriptions/mirror", None).0, 200);
    pair.target.sql("TRUNCATE a, b, c");
    pair.subscribe(&json!({"tables": ["public.a"]}));
    await_ids(&pair, "a", "1,3,10,11,12,13,14,15,16,17");
    pair.alter(&json!({"tables": ["public.a", "public.b", "public.none"]}));
    await_ids(&pair, "b", "1");
    let message = pair.await_table("none", "stopped", Some("PQ016"));
    assert!(message.contains("does not track"), "{message:?}");
    pair.alter(&json!({"tables": ["public.b"]}));
    let known = || -> Value {
        pair.tables().map_or(Value::Null, |all| all.iter().map(|t| t["table"].clone()).collect())
    };
    assert_eq!(known(), json!(["b"]));
    pair.source.sql("INSERT INTO a VALUES (18); INSERT INTO b VALUES (7); INSERT INTO c VALUES (7)");
    await_ids(&pair, "b", "1,7");
    assert_eq!(
        (ids(&pair, "a"), ids(&pair, "c")),
        (Ok("1,3,10,11,12,13,14,15,16,17".to_owned()), Ok("-".to_owned()))
    );
    // All again: what was left out is copied, where nothing is in the way.
    pair.alter(&json!({"tables": null}));
    await_ids(&pair, "c", "1,2,3,4,5,6,7");
    pair.await_table("a", "stopped", Some("55000"));
    pair.target.sql("TRUNCATE a");
    pair.resume("a", true);
    pair.await_table("a", "following", None);
    pair.source.sql("DELETE FROM a WHERE id < 4; INSERT INTO c VALUES (8)");
    pair.await_applied();
    ["a", "b", "c"].iter().for_each(|table| pair.assert_same(table));
}

/// A position behind changes is only good when these have their ticks already: batches are made when somebody reads.
#[test]
fn what_was_committed_before_the_beginning_does_not_come_although_it_is_in_no_batch_yet() {
    let pair = Pair::start((1, 1), TABLES);
    pair.track(&["a", "b", "c"]);
    // Ten seconds between two batches, as long as somebody reads; so this one keeps the rows out of a batch.
    pair.source.sql("ALTER SYSTEM SET pgquorum.batch_interval = '10s'");
    pair.source.sql("SELECT pg_reload_conf()");
    await_until(PATIENCE, "the interval", || {
        match pair.source.ask(1, "SHOW pgquorum.batch_interval").as_str() {
            "10s" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    let port = pair.source.node(1).api_port();
    let reader = LineStream::open(port, "/channels/shop/stream?after=now", "application/x-ndjson");
    let _reader = reader.expect("a stream");
    for (start, id) in [(json!("now"), 1), (Value::Null, 2)] {
        pair.source.sql(&format!("INSERT INTO a VALUES ({id})"));
        let time = || json!(pair.source.ask(1, "SELECT clock_timestamp()::text"));
        let start = if start.is_null() { time() } else { start };
        pair.subscribe(&json!({"copy": "none", "start": start}));
        pair.await_state("following", None);
        pair.source.sql(&format!("INSERT INTO b VALUES ({id})"));
        await_ids(&pair, "b", &id.to_string());
        assert_eq!(ids(&pair, "a"), Ok("-".to_owned()), "a beginning at {start}");
        assert_eq!(pair.target.send(1, "DELETE", "/subscriptions/mirror", None).0, 200);
        pair.target.sql("TRUNCATE b");
    }
}

#[test]
fn a_source_that_is_pruned_while_it_is_followed_is_followed_on_or_copied_anew() {
    let pair = Pair::start((1, 1), TABLES);
    pair.source.sql("INSERT INTO a SELECT generate_series(1, 3)");
    pair.track(&["a", "b", "c"]);
    pair.subscribe(&json!({}));
    await_ids(&pair, "a", "1,2,3");
    // A row of its own shows whether it is copied anew.
    pair.target.sql("INSERT INTO a VALUES (-1)");
    let prune = |id: u32| {
        pair.await_applied();
        assert_eq!(pair.source.post(1, "/channels/shop/prune", None).0, 200);
        pair.source.sql(&format!("INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id})"));
    };
    prune(4);
    await_ids(&pair, "b", "4");
    prune(5);
    await_ids(&pair, "b", "4,5");
    assert_eq!(ids(&pair, "a"), Ok("-1,1,2,3,4,5".to_owned()));
    pair.await_state("following", None);
    // From now on it is, and for those that it has missed as well.
    pair.alter(&json!({"on_purged": "reload"}));
    await_ids(&pair, "a", "1,2,3,4,5");
    pair.target.sql("INSERT INTO a VALUES (-1)");
    prune(6);
    await_ids(&pair, "a", "1,2,3,4,5,6");
    pair.await_state("following", None);
    pair.source.sql("INSERT INTO a VALUES (7); DELETE FROM b");
    pair.await_applied();
    ["a", "b", "c"].iter().for_each(|table| pair.assert_same(table));
}
