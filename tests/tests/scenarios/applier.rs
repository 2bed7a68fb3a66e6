//! One cluster follows another over the replication interface: a copy, changes of all kinds, a leader that dies on either side,
//! a remote that is down, a wrong login.

use pgquorum_tests::{PATIENCE, Pair, await_until, pgquorum_reading, request};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const TABLES: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, note text, amount numeric(20, 4), tags text[], at timestamptz, \
     doc jsonb, flag boolean, f double precision, bin bytea); \
     CREATE TABLE pairs (a text, b int, flag boolean, v text, PRIMARY KEY (a, b, flag)); \
     CREATE TABLE hot (id bigint PRIMARY KEY, n bigint)";
const PASSWORD: &str = "correct horse battery";
const ALL: [&str; 4] = ["orders", "pairs", "hot", "\"odd one\""];

/// Sends a request to the leader of the cluster that follows.
fn ask(pair: &Pair, method: &str, command: &str, body: Option<&Value>) -> (u16, Value) {
    let leader = pair.target.leader();
    pair.target.send(leader, method, &format!("/_api/replication/{command}"), body)
}

fn ok(pair: &Pair, method: &str, command: &str, body: Option<&Value>) -> Value {
    let (status, answer) = ask(pair, method, command, body);
    assert_eq!(status, 200, "{method} {command}: {answer}");
    answer
}

/// Waits until the applier's state is as wanted.
fn await_state(pair: &Pair, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    await_until(PATIENCE, what, || {
        let leader = pair.target.status().leader.ok_or("no leader")?;
        let port = pair.target.node(leader).api_port();
        match request(port, "GET", "/_api/replication/applier-state", None) {
            Ok((200, state)) if wanted(&state["state"]) => Ok(state["state"].clone()),
            Ok((status, state)) => Err(format!("{status} {state}")),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// Waits until all tables hold the same on both sides.
fn await_same(pair: &Pair) {
    let sum = |table: &str| {
        format!(
            "SELECT count(*) || ' rows, ' || coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '-') FROM {table} AS t"
        )
    };
    for table in ALL {
        let there = pair.source.ask(pair.source.leader(), &sum(table));
        await_until(PATIENCE * 2, &format!("{table} is as it is there"), || {
            let leader = pair.target.status().leader.ok_or("no leader")?;
            let here = pair.target.try_ask(leader, &sum(table))?;
            if here == there {
                Ok(())
            } else {
                Err(format!("{here}, not {there}; {}", ask(pair, "GET", "applier-state", None).1))
            }
        });
    }
}

/// Changes of all kinds.
fn change(pair: &Pair, round: u32) {
    let from = round * 1000;
    pair.source.sql(&format!(
        "INSERT INTO orders SELECT {from} + g, 'note ' || g || E' \"ä\\n', g * 12345678901234.5678, ARRAY['a,b', NULL, 'c'], \
             '2026-01-02 03:04:05.678+02', json_build_object('n', 123456789012345678901234567890.12345, 'g', g), g % 2 = 0, \
             'NaN', '\\xdeadbeef' FROM generate_series(1, 50) AS g; \
         UPDATE orders SET note = NULL, doc = NULL WHERE id % 5 = 0; \
         UPDATE orders SET id = id + 500 WHERE id = {from} + 7; \
         DELETE FROM orders WHERE id = {from} + 8; \
         INSERT INTO pairs VALUES ('x,y {round}', 1, true, 'v'), ('%', {round}, false, ''), ('', -{round}, true, NULL) \
             ON CONFLICT DO NOTHING; \
         UPDATE pairs SET a = a || '/ö' WHERE b = 1; DELETE FROM pairs WHERE a = '%'; \
         INSERT INTO \"odd one\" VALUES ({round}, 'k', 'f') ON CONFLICT DO NOTHING"
    ));
    pair.source.sql("BEGIN; DELETE FROM hot WHERE id < 0; INSERT INTO hot VALUES (-1, 1), (-2, 2); SAVEPOINT s; \
                     INSERT INTO hot VALUES (-3, 3); ROLLBACK TO s; UPDATE hot SET n = n + 1 WHERE id = -2; COMMIT");
}

#[test]
fn a_cluster_follows_another_over_the_replication_interface() {
    let pair = Pair::start((1, 3), TABLES);
    // A table that only the source has, with columns that are called like attributes.
    pair.source.sql("CREATE TABLE \"odd one\" (id int PRIMARY KEY, _key text, \"_from\" text)");
    let source = pair.source.node(pair.source.leader());
    let port = source.api_port();
    let (status, answer) = request(port, "PUT", "/_api/replication/logger-start", None).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    for table in ALL {
        pair.source.sql(&format!("SELECT quorum.track('{table}', channel => '_logger')"));
    }
    change(&pair, 0);
    // The first of its nodes is never there.
    let endpoint = format!("tcp://127.0.0.1:1,tcp://127.0.0.1:{port}");
    let login = json!({"endpoint": endpoint});

    // A copy: what was here goes, the table that is missing is made.
    pair.target.sql("INSERT INTO hot VALUES (77, 77); INSERT INTO pairs VALUES ('gone', 1, true, 'x')");
    let synced = ok(&pair, "PUT", "sync", Some(&login));
    assert_eq!(synced["collections"].as_array().map(Vec::len), Some(4), "{synced}");
    await_same(&pair);
    // The same by comparison, which touches no row that is as it should be.
    pair.target.sql("DELETE FROM orders WHERE id = 3; UPDATE orders SET note = 'x' WHERE id = 4; INSERT INTO hot VALUES (78, 78)");
    let untouched = "SELECT xmin::text || id FROM orders WHERE id = 2";
    let before = pair.target.ask(pair.target.leader(), untouched);
    let synced = ok(&pair, "PUT", "sync", Some(&json!({"endpoint": endpoint, "incremental": true})));
    await_same(&pair);
    assert_eq!(pair.target.ask(pair.target.leader(), untouched), before);
    assert_eq!(ask(&pair, "PUT", "applier-start", None).1["errorNum"], 1410, "it is not configured");

    // It is followed from there.
    let settings = json!({"endpoint": endpoint, "idleMinWaitTime": 0.05, "idleMaxWaitTime": 0.2, "connectionRetryWaitTime": 0.2,
        "username": "repl", "password": "hush hush hush"});
    let shown = ok(&pair, "PUT", "applier-config", Some(&settings));
    assert!(!shown.to_string().contains("hush") && shown["username"] == "repl", "{shown}");
    let tick = synced["lastLogTick"].as_str().expect("a tick");
    ok(&pair, "PUT", &format!("applier-start?from={tick}"), None);
    assert_eq!(ask(&pair, "PUT", "applier-config", Some(&settings)).1["errorNum"], 1411);
    assert_eq!(ask(&pair, "PUT", "sync", Some(&login)).1["errorNum"], 1411);
    change(&pair, 1);
    pair.source.sql("TRUNCATE pairs; INSERT INTO pairs VALUES ('after', 1, false, 'x')");
    change(&pair, 2);
    await_same(&pair);
    // A transaction that is too large to be held in memory, and one of as many changes that is given up.
    pair.source.sql("INSERT INTO hot SELECT g, g FROM generate_series(100000000, 100060000) AS g");
    await_same(&pair);

    // The leader of the one that follows dies in the middle.
    let stop = Arc::new(AtomicBool::new(false));
    let (told, dsn) = (Arc::clone(&stop), pair.source.status().dsn);
    let writer = std::thread::spawn(move || {
        let mut client = postgres::Client::connect(&dsn, postgres::NoTls).expect("a session");
        let mut done = 0_u64;
        while !told.load(Ordering::Relaxed) {
            let next = done * 3;
            let sql = format!(
                "BEGIN; INSERT INTO hot VALUES ({next}, 0), ({next} + 1, 0), ({next} + 2, 0); \
                 UPDATE hot SET n = n + 1 WHERE id = {next} - 30; DELETE FROM hot WHERE id = {next} - 300; COMMIT"
            );
            client.batch_execute(&sql).expect("a transaction");
            done += 1;
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        done
    });
    let applied =
        |state: &Value| state["lastAppliedContinuousTick"].as_str().and_then(|text| text.parse::<u64>().ok());
    let first = await_state(&pair, "ticks", |state| applied(state).is_some());
    let moves = |than: Option<u64>| await_state(&pair, "further ticks", move |state| applied(state) > than);
    let second = moves(applied(&first));
    let leader = pair.target.leader();
    pair.target.kill(leader, None);
    pair.target.await_leader(Some(leader));
    moves(applied(&second));
    pair.target.start_node(leader);
    moves(applied(&await_state(&pair, "ticks", |_| true)));
    stop.store(true, Ordering::Relaxed);
    assert!(writer.join().expect("the writer") > 2);
    await_same(&pair);

    // Stopped, nothing more comes; started, it goes on where it was.
    let stopped = ok(&pair, "PUT", "applier-stop", None);
    assert_eq!(
        (&stopped["state"]["running"], &stopped["state"]["phase"]),
        (&json!(false), &json!("inactive"))
    );
    let before = pair.target.ask(pair.target.leader(), "SELECT count(*)::text FROM orders");
    change(&pair, 3);
    pair.target.await_replicas(2);
    assert_eq!(pair.target.ask(pair.target.leader(), "SELECT count(*)::text FROM orders"), before);
    ok(&pair, "PUT", "applier-start", None);
    await_same(&pair);

    // A table that comes later: its rows are not in the log.
    pair.source.sql("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)");
    pair.source.sql("SELECT quorum.track('late', channel => '_logger'); INSERT INTO late VALUES (2)");
    let stopped = await_state(&pair, "a table that is new", |state| state["running"] == false);
    assert_eq!(stopped["lastError"]["errorNum"], 1203, "{stopped}");
    let message = stopped["lastError"]["errorMessage"].as_str().expect("a message");
    assert!(message.contains("collection late") && message.contains("make-follower"), "{message}");
    pair.target.sql("CREATE TABLE late (id int PRIMARY KEY)");
    ok(&pair, "PUT", "applier-config", Some(&json!({"skipCreateDrop": true})));
    ok(&pair, "PUT", "applier-start", None);
    await_until(PATIENCE, "a row of the new table", || {
        let leader = pair.target.leader();
        let rows = pair.target.try_ask(leader, "SELECT string_agg(id::text, ',') FROM late")?;
        if rows == "2" { Ok(()) } else { Err(rows) }
    });

    // The remote is down for a while.
    let node = pair.source.leader();
    pair.source.kill(node, None);
    // While it dies it may still answer that its database is gone.
    let down = await_state(&pair, "a remote that does not answer", |state| {
        state["progress"]["failedConnects"] != 0 && state["lastError"]["errorNum"] == 1400
    });
    assert_eq!(down["running"], true, "{down}");
    pair.source.start_node(node);
    pair.source.await_leader(None);
    change(&pair, 4);
    await_same(&pair);
    let up = await_state(&pair, "a remote that answers", |state| state["lastError"]["errorNum"] == 0);
    assert_eq!(up["progress"]["failedConnects"], 0, "{up}");

    // Somebody has to log in there by now, and the login is wrong; then it is right.
    let api = pair.source.node(pair.source.leader()).api;
    let file = pair.source.dir().join("password");
    std::fs::write(&file, PASSWORD).expect("the password");
    let file = file.display().to_string();
    let add = |name: &str, role: &str, login: &[&str]| {
        let args = ["user", "add", name, "--role", role, "--url", &api];
        pgquorum_reading(&format!("{PASSWORD}\n"), args.iter().chain(login)).expect("user add");
    };
    add("root", "admin", &[]);
    add("repl", "replication_sync", &["--login", "root", "--login-password-file", &file]);
    let refused = await_state(&pair, "a login that is refused", |state| state["running"] == false);
    assert_eq!(refused["lastError"]["errorNum"], 1402, "{refused}");
    let message = refused["lastError"]["errorMessage"].as_str().expect("a message");
    assert!(message.contains("username and password"), "{message}");
    let right = json!({"password": PASSWORD});
    ok(&pair, "PUT", "applier-config", Some(&right));
    ok(&pair, "PUT", "applier-start", None);
    pair.source.sql("INSERT INTO hot VALUES (-77, 1)");
    await_same(&pair);

    // Anew from nothing.
    ok(&pair, "DELETE", "applier-state", None);
    let follower = json!({"endpoint": endpoint, "username": "repl", "password": PASSWORD,
        "idleMinWaitTime": 0.05, "idleMaxWaitTime": 0.2, "restrictType": "exclude", "restrictCollections": ["pairs"]});
    pair.target.sql("DELETE FROM hot; DELETE FROM pairs");
    let made = ok(&pair, "PUT", "make-follower", Some(&follower));
    assert_eq!(
        (&made["state"]["running"], &made["state"]["totalResyncs"]),
        (&json!(true), &json!(1)),
        "{made}"
    );
    pair.source.sql("INSERT INTO hot VALUES (-78, 1); INSERT INTO pairs VALUES ('excluded', 1, true, 'x')");
    let excluded =
        await_state(&pair, "an event that is excluded", |state| state["totalOperationsExcluded"] != 0);
    assert_eq!(excluded["lastError"]["errorNum"], 0, "{excluded}");
    pair.target.sql("DELETE FROM pairs");
    pair.source.sql("DELETE FROM pairs");
    await_same(&pair);
}

#[test]
fn keys_are_compared_with_the_rights_of_the_tables_owner() {
    let pair = Pair::start((1, 1), "");
    pair.source
        .sql("CREATE TABLE keyed (id text PRIMARY KEY, v int); INSERT INTO keyed VALUES ('a', 1), ('b', 2)");
    // No value of such a type can be made by anybody else.
    pair.target.sql(
        "CREATE ROLE somebody; CREATE DOMAIN owned AS text CHECK (current_user = 'somebody'); \
         CREATE TABLE keyed (id owned PRIMARY KEY, v int); ALTER TABLE keyed OWNER TO somebody; \
         GRANT USAGE ON SCHEMA public TO somebody",
    );
    let source = pair.source.node(pair.source.leader());
    let port = source.api_port();
    let (status, answer) = request(port, "PUT", "/_api/replication/logger-start", None).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    pair.source.sql("SELECT quorum.track('keyed', channel => '_logger')");
    let remote = json!({"endpoint": format!("tcp://127.0.0.1:{port}"), "incremental": true});
    let rows = "SELECT string_agg(concat_ws(' ', id::text, v), ', ' ORDER BY id::text) FROM keyed";
    ok(&pair, "PUT", "sync", Some(&remote));
    assert_eq!(pair.target.ask(1, rows), "a 1, b 2");
    // What is not seen there goes.
    pair.source.sql("DELETE FROM keyed WHERE id = 'a'; UPDATE keyed SET v = 3");
    ok(&pair, "PUT", "sync", Some(&remote));
    assert_eq!(pair.target.ask(1, rows), "b 3");
}
