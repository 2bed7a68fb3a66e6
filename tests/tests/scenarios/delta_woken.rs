//! A worker that rests was woken to be brought to its director's end, and its sidecar dies: it rests again.

use pgquorum_tests::{PATIENCE, Pair, await_until, request};
use serde_json::{Value, json};

const SYNC: &str = "/rest/v5/cluster/shop/database/sync?wait=60s";

#[test]
fn a_worker_rests_again_whatever_becomes_of_who_woke_it() {
    let pair = Pair::start((1, 1), "CREATE TABLE t (id int PRIMARY KEY)");
    pair.track(&["t"]);
    pair.subscribe(&json!({}));
    pair.await_state("following", None);
    let rest = json!({"enabled": false});
    assert_eq!(pair.target.send(1, "PATCH", "/subscriptions/mirror", Some(&rest)).0, 200);
    pair.await_state("disabled", None);
    pair.await_rest();
    pair.source.sql("INSERT INTO t VALUES (1)");
    let port = pair.target.node(1).api_port();
    let woken = |expected: &str| {
        await_until(PATIENCE, &format!("woken is {expected}"), || {
            match pair.target.try_ask(1, "SELECT woken::text FROM quorum.subscription")? {
                found if found == expected => Ok(()),
                other => Err(other),
            }
        });
    };
    // Nothing can be applied.
    let mut locker = pair.target.connect(1).expect("a session");
    locker.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").expect("a lock");
    let asked = std::thread::spawn(move || request(port, "POST", SYNC, None));
    woken("true");
    pair.target.kill(1, Some("sidecar"));
    let _ = asked.join().expect("no answer comes");
    pair.target.start_node(1);
    pair.target.await_leader(None);
    pair.await_state("disabled", None);
    woken("false");
    drop(locker);
    // The next time nobody dies.
    let results = await_until(PATIENCE, "it is brought to the end", || {
        match request(port, "POST", SYNC, None).map_err(|error| error.to_string())? {
            (200, results) => Ok(results),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(
        results.as_array().is_some_and(|all| all.iter().all(|one: &Value| one["success"] == true)),
        "{results}"
    );
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM t"), "1");
    pair.await_state("disabled", None);
    pair.await_rest();
    // Who is enabled by a person meanwhile stays so.
    pair.source.sql("INSERT INTO t VALUES (2)");
    let mut locker = pair.target.connect(1).expect("a session");
    locker.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").expect("a lock");
    let asked = std::thread::spawn(move || request(port, "POST", SYNC, None));
    woken("true");
    let go_on = json!({"enabled": true});
    assert_eq!(pair.target.send(1, "PATCH", "/subscriptions/mirror", Some(&go_on)).0, 200);
    drop(locker);
    let (status, answer) = asked.join().expect("an answer").expect("an answer");
    assert_eq!(status, 200, "{answer}");
    pair.await_state("following", None);
}
