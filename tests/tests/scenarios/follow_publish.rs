//! A cluster has another one follow it: set up from here, over failures of both, and ended from here.

use pgquorum_tests::{PATIENCE, Pair, await_until, free_ports, pgquorum, request};
use serde_json::{Value, json};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";

/// The publication as the source's leader shows it.
fn publication(pair: &Pair) -> Result<Value, String> {
    let leader = pair.source.status().leader.ok_or("no leader")?;
    match request(pair.source.node(leader).api_port(), "GET", "/publications/mirror", None) {
        Ok((200, state)) => Ok(state),
        other => Err(format!("{other:?}")),
    }
}

fn await_publication(pair: &Pair, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    await_until(PATIENCE * 2, what, || {
        let found = publication(pair)?;
        if fits(&found) { Ok(found) } else { Err(found.to_string()) }
    })
}

fn change(pair: &Pair, body: &Value) {
    let (status, answer) =
        pair.source.send(pair.source.leader(), "PATCH", "/publications/mirror", Some(body));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn another_cluster_follows_because_this_one_wants_it() {
    let pair = Pair::start((3, 1), TABLES);
    pair.source.sql("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 100) AS g");
    pair.track(&["t"]);
    let [nobody] = free_ports();
    let url = pair.source.node(pair.source.leader()).api;
    let target = format!("http://127.0.0.1:{}", pair.target.node(1).api_port());
    let nobody = format!("http://127.0.0.1:{nobody}");
    let publish =
        ["publish", "mirror", "--remote", &nobody, "--channel", "shop", "--copy", "truncate", "--url", &url];
    let made = pgquorum([&publish[..], &["--filter", "public.t=id <= 50 OR note = 'all'"]].concat());
    assert_eq!(made.code, 0, "{}", made.said);
    // Nobody is there; then somebody is.
    await_publication(&pair, "nobody answers", |found| {
        found["state"] == "waiting" && found["code"] == "unreachable"
    });
    change(&pair, &json!({"remote": [nobody, target]}));
    await_publication(&pair, "it is there", |found| found["state"] == "established");
    pair.await_state("following", None);
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM t"), "50");
    pair.source.sql("INSERT INTO t VALUES (200, 'all'), (201, 'some')");
    pair.await_applied();
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM t"), "51");
    await_publication(&pair, "how it is there", |found| found["there_state"] == "following");
    // The same name again is refused; no answer has a secret.
    let body = json!({"name": "mirror", "remote": ["http://x:1"], "channel": "shop", "secret": "s3cret"});
    let (status, answer) = pair.source.post(pair.source.leader(), "/publications", Some(&body));
    assert_eq!((status, &answer["code"]), (409, &json!("already_exists")), "{answer}");
    assert!(!answer.to_string().contains("s3cret"), "{answer}");
    // Another leader sees to it from now on: what was ended there is told, and made again when that is wanted.
    let old = pair.source.leader();
    pair.source.kill(old, None);
    pair.source.await_leader(Some(old));
    await_publication(&pair, "the new leader has it", |found| found["state"] == "established");
    pair.source.sql("INSERT INTO t VALUES (202, 'all')");
    pair.await_applied();
    assert_eq!(pair.target.send(1, "DELETE", "/subscriptions/mirror", None).0, 200);
    await_publication(&pair, "it was ended there", |found| found["code"] == "ended_there");
    change(&pair, &json!({"own_login": null}));
    await_publication(&pair, "it is there again", |found| found["state"] == "established");
    pair.await_state("following", None);
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM t"), "52");
    // The other cluster cannot be told that it is over: that is said, and tried until it can.
    pair.target.stop(1);
    let (status, answer) =
        pair.source.send(pair.source.leader(), "DELETE", "/publications/mirror?wait=60s", None);
    assert_eq!(
        (status, &answer["ended"], &answer["code"]),
        (200, &json!(false), &json!("unreachable")),
        "{answer}"
    );
    await_publication(&pair, "it is still there", |found| found["state"] == "removing");
    pair.target.start_node(1);
    pair.target.await_leader(None);
    await_until(PATIENCE * 2, "it is over", || match (publication(&pair), pair.state()) {
        (Err(here), Err(there)) if here.contains("unknown_publication") && there.contains("404") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(pair.target.ask(1, "SELECT count(*)::text FROM t"), "52", "the rows stay");
}
