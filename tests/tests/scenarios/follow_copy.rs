//! One cluster follows another: the copy, the changes after it, and what was in the tables before.

use pgquorum_tests::{PATIENCE, Pair, await_until, pgquorum};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const TABLES: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint, amount numeric, note text, at timestamptz DEFAULT now()); \
                      CREATE TABLE items (a int, b text, price double precision, data jsonb, raw bytea, PRIMARY KEY (a, b)); \
                      CREATE TABLE other (id int PRIMARY KEY)";

fn fill(pair: &Pair, rows: usize) {
    pair.source.sql(&format!(
        "INSERT INTO orders SELECT g, g % 97, g * 1.5, CASE WHEN g % 5 = 0 THEN NULL ELSE repeat(E'x\\ty\\n\\\\.', g % 7) END \
           FROM generate_series(1, {rows}) AS g; \
         INSERT INTO items SELECT g, 'b' || g, g / 3.0, jsonb_build_object('n', g), decode(md5(g::text), 'hex') \
           FROM generate_series(1, {rows}) AS g; \
         INSERT INTO other SELECT generate_series(1, 100)"
    ));
}

#[test]
fn tables_are_copied_under_writes_and_followed() {
    let pair = Arc::new(Pair::start((1, 1), TABLES));
    fill(&pair, 20_000);
    pair.track(&["orders", "items", "other"]);
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let (pair, stop, written) = (Arc::clone(&pair), Arc::clone(&stop), Arc::clone(&written));
            std::thread::spawn(move || {
                let mut client = pair.source.connect(1).expect("a session");
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let new = 1_000_000 + round * 2 + writer;
                    let old = round * 7 % 20_000 + 1;
                    client
                        .batch_execute(&format!(
                            "BEGIN; INSERT INTO orders VALUES ({new}, {round}, 1, 'new'); \
                             UPDATE orders SET note = 'changed ' || {round}, amount = amount + 1 WHERE id = {old}; \
                             UPDATE items SET price = {round} WHERE a = {old}; \
                             DELETE FROM orders WHERE id = {new} - 50; COMMIT"
                        ))
                        .expect("a transaction");
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    pair.subscribe(&json!({"jobs": 2}));
    pair.await_state("following", None);
    pair.await_progress();
    // One that is larger than a batch.
    pair.source.sql("UPDATE orders SET note = repeat('large', 100) WHERE id BETWEEN 100 AND 9000");
    await_until(PATIENCE, "transactions beside the copy", || match written.load(Ordering::Relaxed) {
        enough if enough > 20 => Ok(()),
        few => Err(few.to_string()),
    });
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
    pair.source.sql("TRUNCATE other; INSERT INTO other VALUES (7)");
    pair.await_applied();
    for table in ["orders", "items", "other"] {
        pair.assert_same(table);
    }
    let (status, tables) = pair.target.get(1, "/subscriptions/mirror/tables");
    assert_eq!(
        (status, &tables[1]["table"], &tables[1]["state"]),
        (200, &json!("orders"), &json!("following")),
        "{tables}"
    );
    assert!(tables[1]["rows"].as_u64().is_some_and(|rows| rows >= 20_000), "{tables}");
    // The source keeps no more log than is needed.
    let follower = "SELECT (tick = (SELECT last_tick FROM quorum.channel_state))::text FROM quorum.follower";
    await_until(PATIENCE, "the follower at the end", || match pair.source.try_ask(1, follower)?.as_str() {
        "true" => Ok(()),
        other => Err(other.to_owned()),
    });
    // A table that is tracked later is copied, too.
    pair.source.sql("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late SELECT generate_series(1, 10)");
    pair.target.sql("CREATE TABLE late (id int PRIMARY KEY)");
    pair.track(&["late"]);
    await_until(PATIENCE, "the new table", || {
        match pair.target.try_ask(1, "SELECT count(*)::text FROM late")?.as_str() {
            "10" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    pair.source.sql("INSERT INTO late VALUES (11)");
    pair.await_applied();
    pair.assert_same("late");
}

#[test]
fn rows_that_are_there_stop_a_table_go_or_stay() {
    for (copy, expected) in [("error", "-1"), ("truncate", "1,2,3"), ("merge", "-1,1,2,3")] {
        let pair = Pair::start(
            (1, 1),
            "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE u (id int PRIMARY KEY)",
        );
        pair.source.sql(
            "INSERT INTO t SELECT g, 'source' FROM generate_series(1, 3) AS g; INSERT INTO u VALUES (1)",
        );
        let there = if copy == "error" {
            "INSERT INTO t VALUES (-1, 'here')"
        } else {
            "INSERT INTO t VALUES (-1, 'here'), (2, 'here')"
        };
        pair.target.sql(there);
        pair.track(&["t", "u"]);
        pair.subscribe(&json!({"copy": copy}));
        pair.await_state("following", None);
        let ids = pair.target.ask(1, "SELECT string_agg(id::text, ',' ORDER BY id) FROM t");
        assert_eq!(ids, expected, "{copy}");
        let tables = pair.target.get(1, "/subscriptions/mirror/tables").1;
        let state = if copy == "error" { "stopped" } else { "following" };
        assert_eq!(
            (&tables[0]["state"], &tables[1]["state"]),
            (&json!(state), &json!("following")),
            "{tables}"
        );
        pair.source.sql("INSERT INTO t VALUES (4, 'later'); INSERT INTO u VALUES (2)");
        pair.await_applied();
        pair.assert_same("u");
        if copy == "error" {
            // A person has looked at it.
            pair.target.sql("DELETE FROM t");
            let path = "/subscriptions/mirror/tables/public.t/resume";
            let (status, answer) = pair.target.post(1, path, Some(&json!({"copy": true})));
            assert_eq!((status, &answer["state"]), (200, &json!("copy")), "{answer}");
            await_until(PATIENCE, "the rows", || {
                match pair.target.try_ask(1, "SELECT count(*)::text FROM t")?.as_str() {
                    "4" => Ok(()),
                    other => Err(other.to_owned()),
                }
            });
            pair.source.sql("INSERT INTO t VALUES (5, 'last')");
            pair.await_applied();
        }
        if copy != "merge" {
            pair.assert_same("t");
        }
    }
}

#[test]
fn only_what_was_asked_for_is_followed_and_from_where() {
    let pair = Pair::start((1, 1), TABLES);
    fill(&pair, 100);
    pair.track(&["orders", "items", "other"]);
    pair.source.sql("INSERT INTO other VALUES (1001)");
    let position = pair.source.ask(1, "SELECT quorum.cut('shop')");
    pair.source.sql("INSERT INTO other VALUES (1002)");
    pair.source.ask(1, "SELECT quorum.cut('shop')");
    // A part of the tables, without their rows, from a position on.
    pair.subscribe(&json!({"tables": ["public.other"], "copy": "none", "start": position}));
    pair.await_state("following", None);
    pair.source.sql("INSERT INTO other VALUES (1003); INSERT INTO orders VALUES (5000, 1, 1, 'x')");
    pair.await_applied();
    assert_eq!(pair.target.ask(1, "SELECT string_agg(id::text, ',' ORDER BY id) FROM other"), "1002,1003");
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM orders"), "0");
    // It rests, and goes on where it was.
    let url = format!("http://127.0.0.1:{}", pair.target.node(1).api_port());
    let cli = |args: &[&str]| {
        let found = pgquorum(args.iter().copied().chain(["--url", &url]));
        assert_eq!(found.code, 0, "{args:?}: {}", found.said);
    };
    cli(&["subscriptions", "disable", "mirror"]);
    pair.await_rest();
    pair.source.sql("INSERT INTO other VALUES (1004)");
    pair.source.ask(1, "SELECT quorum.cut('shop')");
    assert_eq!(pair.target.ask(1, "SELECT max(id)::text FROM other"), "1003");
    assert_eq!(pair.state().expect("its state")["state"], "disabled");
    cli(&["subscriptions", "enable", "mirror"]);
    pair.await_applied();
    assert_eq!(pair.target.ask(1, "SELECT max(id)::text FROM other"), "1004");
    // It ends, here and at the source.
    cli(&["unsubscribe", "mirror"]);
    await_until(PATIENCE, "no follower", || {
        match pair.source.try_ask(1, "SELECT count(*)::text FROM quorum.follower")?.as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    assert_eq!(pair.target.get(1, "/subscriptions").1, json!([]));
    // From now on.
    let remote = pair.remote()[0].as_str().expect("an address").to_owned();
    pair.source.sql("INSERT INTO other VALUES (1005)");
    cli(&["subscribe", "mirror", "--remote", &remote, "--channel", "shop", "--copy", "none", "--wait"]);
    pair.source.sql("INSERT INTO other VALUES (1006)");
    pair.await_applied();
    assert_eq!(
        pair.target.ask(1, "SELECT string_agg(id::text, ',' ORDER BY id) FROM other WHERE id > 1003"),
        "1004,1006"
    );
}
