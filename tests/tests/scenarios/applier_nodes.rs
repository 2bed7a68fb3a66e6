//! The applier follows a cluster of three nodes by the addresses of all of them, and goes on with another one when the leader
//! there, which it names first, is dead.

use pgquorum_tests::{PATIENCE, Pair, await_until};
use serde_json::{Value, json};

fn ok(pair: &Pair, method: &str, command: &str, body: Option<&Value>) -> Value {
    let path = format!("/_api/replication/{command}");
    let (status, answer) = pair.target.send(pair.target.leader(), method, &path, body);
    assert_eq!(status, 200, "{method} {command}: {answer}");
    answer
}

fn await_rows(pair: &Pair, expected: &str) {
    let leader = pair.target.leader();
    let sql = "SELECT string_agg(DISTINCT note, ', ' ORDER BY note) || ': ' || count(*) FROM orders";
    await_until(PATIENCE * 2, expected, || match pair.target.try_ask(leader, sql)? {
        rows if rows == expected => Ok(()),
        rows => Err(format!("{rows}; {}", ok(pair, "GET", "applier-state", None))),
    });
}

fn insert(pair: &Pair, note: &str, from: u32) {
    pair.source.sql(&format!(
        "INSERT INTO orders SELECT g, '{note}' FROM generate_series({from}, {from} + 99) AS g"
    ));
}

#[test]
fn the_applier_goes_on_with_another_node_of_its_remote() {
    let pair = Pair::start((3, 1), "CREATE TABLE orders (id bigint PRIMARY KEY, note text)");
    let first = pair.source.leader();
    let (status, answer) = pair.source.send(first, "PUT", "/_api/replication/logger-start", None);
    assert_eq!(status, 200, "{answer}");
    pair.source.sql("SELECT quorum.track('orders', channel => '_logger')");
    insert(&pair, "a copied", 1);
    let mut nodes = pair.source.status().nodes;
    nodes.sort_by_key(|node| node.id != first);
    let endpoints: Vec<String> =
        nodes.iter().map(|node| format!("tcp://127.0.0.1:{}", node.api_port())).collect();
    let settings = json!({"endpoint": endpoints.join(","), "idleMinWaitTime": 0.05, "idleMaxWaitTime": 0.2,
        "connectionRetryWaitTime": 0.2});
    ok(&pair, "PUT", "make-follower", Some(&settings));
    insert(&pair, "b followed", 1000);
    await_rows(&pair, "a copied, b followed: 200");

    // While it follows.
    pair.source.kill(first, None);
    pair.source.await_leader(Some(first));
    insert(&pair, "c by the next", 2000);
    await_rows(&pair, "a copied, b followed, c by the next: 300");
    // And from the beginning: the first one that it asks is not there.
    ok(&pair, "PUT", "applier-stop", None);
    insert(&pair, "d meanwhile", 3000);
    ok(&pair, "PUT", "applier-start", None);
    await_rows(&pair, "a copied, b followed, c by the next, d meanwhile: 400");
    let state = ok(&pair, "GET", "applier-state", None);
    assert_eq!(
        (&state["state"]["running"], &state["state"]["totalResyncs"]),
        (&json!(true), &json!(1)),
        "{state}"
    );
    // A copy, which only the new leader can give.
    pair.target.sql("DELETE FROM orders");
    ok(&pair, "PUT", "make-follower", Some(&settings));
    await_rows(&pair, "a copied, b followed, c by the next, d meanwhile: 400");
    pair.source.start_node(first);
    pair.source.await_replicas(2);
    insert(&pair, "e by three", 4000);
    await_rows(&pair, "a copied, b followed, c by the next, d meanwhile, e by three: 500");
}
