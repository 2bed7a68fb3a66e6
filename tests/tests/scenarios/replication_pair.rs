//! Two clusters follow each other over the replication interface: tables for whole documents are the same on both sides, and
//! nothing comes back to where it was made.

use pgquorum_tests::{Cluster, PATIENCE, Pair, await_until, get_with};
use serde_json::{Value, json};

const TABLES: &str = "CREATE TABLE people (_key text PRIMARY KEY, data jsonb); \
    CREATE TABLE knows (_key text PRIMARY KEY, _from text, _to text, data jsonb)";

fn ok(cluster: &Cluster, line: &str, body: Option<&Value>) -> Value {
    let (method, path) = line.split_once(' ').expect("method and path");
    let (status, answer) = cluster.send(cluster.leader(), method, path, body);
    assert_eq!(status, 200, "{line}: {answer}");
    answer
}

fn port(cluster: &Cluster) -> u16 {
    cluster.node(cluster.leader()).api_port()
}

/// The end of the log, with everything in front of it that was committed.
fn end(cluster: &Cluster) -> String {
    ok(cluster, "PUT /_admin/wal/flush", None);
    let state = ok(cluster, "GET /_api/replication/logger-state", None);
    state["state"]["lastLogTick"].as_str().expect("a tick").to_owned()
}

/// Keys of documents that were written behind a tick, whoever wrote them.
fn written(cluster: &Cluster, from: &str) -> Vec<String> {
    let path = format!("/_api/replication/logger-follow?from={from}&chunkSize=4000000");
    let answer = get_with(PATIENCE, port(cluster), &path, &[]).expect("an answer");
    let text = match &answer.body {
        Value::String(text) => text.clone(),
        one => one.to_string(),
    };
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let mut keys: Vec<String> = lines
        .filter(|line| line["type"] == 2300)
        .map(|line| line["key"].as_str().expect("a key").to_owned())
        .collect();
    keys.sort();
    keys
}

fn await_same(pair: &Pair) {
    for table in ["people", "knows"] {
        let all =
            format!("SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '-') FROM {table} AS t");
        await_until(PATIENCE, &format!("{table} is the same on both sides"), || {
            let there = pair.source.try_ask(pair.source.leader(), &all)?;
            let here = pair.target.try_ask(pair.target.leader(), &all)?;
            if here == there {
                return Ok(());
            }
            Err(format!(
                "{here}, not {there}; {}",
                ok(&pair.target, "GET /_api/replication/applier-state", None)
            ))
        });
    }
}

#[test]
fn two_clusters_follow_each_other_with_whole_documents() {
    let pair = Pair::start((1, 1), TABLES);
    for cluster in [&pair.source, &pair.target] {
        ok(cluster, "PUT /_api/replication/logger-start", None);
        cluster.sql("SELECT quorum.track(t, channel => '_logger') FROM unnest(ARRAY['people', 'knows']::regclass[]) AS t");
    }
    pair.source.sql(
        "INSERT INTO people VALUES ('ann', '{\"name\": \"Ann\", \"n\": 12345678901234567890.125, \"_key\": \"no\"}'), ('bob', '[1]'), \
             ('x,y', NULL); \
         INSERT INTO knows VALUES ('1', 'people/ann', 'people/bob', '{\"since\": 449.49106478873813}')",
    );
    let settings = |of: &Cluster| json!({"endpoint": format!("tcp://127.0.0.1:{}", port(of)), "idleMinWaitTime": 0.05, "idleMaxWaitTime": 0.2});
    ok(&pair.target, "PUT /_api/replication/make-follower", Some(&settings(&pair.source)));
    await_same(&pair);
    pair.source.sql(
        "UPDATE people SET data = data || '{\"tags\": [1, {\"x\": null}]}' WHERE _key = 'ann'; DELETE FROM people WHERE _key = 'bob'; \
         UPDATE knows SET _to = 'people/eve', data = NULL; INSERT INTO people VALUES ('eve', '{\"n\": 1e200}')",
    );
    await_same(&pair);

    // And the other way.
    let (here, there) = (end(&pair.target), end(&pair.source));
    ok(&pair.source, "PUT /_api/replication/applier-config", Some(&settings(&pair.target)));
    ok(&pair.source, &format!("PUT /_api/replication/applier-start?from={here}"), None);
    pair.source
        .sql("INSERT INTO people VALUES ('s1', '{}'), ('s2', '{}'); INSERT INTO people VALUES ('s3', '{}')");
    pair.target.sql("INSERT INTO people VALUES ('t1', '{}'); INSERT INTO people VALUES ('t2', '{}')");
    let count = "SELECT count(*)::text FROM people WHERE _key ~ '^[st][0-9]'";
    for cluster in [&pair.source, &pair.target] {
        await_until(PATIENCE, "rows of both", || match cluster.try_ask(cluster.leader(), count)? {
            rows if rows == "5" => Ok(()),
            rows => Err(format!("{rows}; {}", ok(cluster, "GET /_api/replication/applier-state", None))),
        });
    }
    await_same(&pair);
    // What each has is in the other's log by now. When both have read that, each was written once on either side.
    for (cluster, remote) in [(&pair.source, &pair.target), (&pair.target, &pair.source)] {
        let tick = |text: &str| text.parse::<u64>().expect("a tick");
        let end = tick(&end(remote));
        await_until(PATIENCE, "the end of the other's log", || {
            let state = ok(cluster, "GET /_api/replication/applier-state", None)["state"].clone();
            let here = state["lastAppliedContinuousTick"].as_str().map(tick);
            if here.is_some_and(|here| here >= end) { Ok(()) } else { Err(state.to_string()) }
        });
    }
    for (cluster, from) in [(&pair.source, &there), (&pair.target, &here)] {
        end(cluster);
        assert_eq!(written(cluster, from), ["s1", "s2", "s3", "t1", "t2"]);
    }
}
