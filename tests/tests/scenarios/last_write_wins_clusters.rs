//! Two clusters that follow each other, each by its sidecar: the first copy, writers on both sides, and what keeps one from
//! going on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgquorum_tests::{Cluster, PATIENCE, Pair, await_until};
use serde_json::{Value, json};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

fn post(cluster: &Cluster, path: &str, body: &Value) {
    let (status, answer) = cluster.post(cluster.leader(), path, Some(body));
    assert_eq!(status, 200, "{path} {body}: {answer}");
}

/// Writes until it is told to stop, and says how many transactions it was.
fn write(cluster: &Cluster, who: &str, stop: &AtomicBool) -> i32 {
    let mut client = cluster.connect(cluster.leader()).expect("a session");
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return round;
        }
        let (one, other) = (round * 7 % 40, round * 11 % 40);
        let sql = match round % 3 {
            0 => format!(
                "INSERT INTO t VALUES ({one}, '{who}{round}') ON CONFLICT (id) DO UPDATE SET v = excluded.v"
            ),
            1 => format!("UPDATE t SET v = '{who}{round}' WHERE id IN ({one}, {other})"),
            _ => format!("DELETE FROM t WHERE id = {other}"),
        };
        if let Err(error) = client.batch_execute(&sql) {
            let code = error.code().map_or("none", |code| code.code()).to_owned();
            // The last one: no lease for a moment, and nothing was committed.
            assert!(["40P01", "40001", "25006"].contains(&code.as_str()), "{error:?}");
        }
    }
    0
}

fn await_same(pair: &Pair) {
    let sum =
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(x::text, '|' ORDER BY x.id)), '-') FROM t AS x";
    await_until(PATIENCE * 2, "the same rows on both sides", || {
        let there = pair.source.try_ask(pair.source.leader(), sum)?;
        let here = pair.target.try_ask(pair.target.leader(), sum)?;
        if there == here { Ok(()) } else { Err(format!("{there}, {here}")) }
    });
}

#[test]
fn two_clusters_write_the_same_rows() {
    let pair = Arc::new(Pair::start((1, 1), TABLE));
    pair.source.sql("INSERT INTO t SELECT g, 'first' FROM generate_series(1, 30) AS g");
    pair.track(&["t"]);
    // A table that is not tracked here stops, and says what to do.
    pair.subscribe(&json!({"policy": "last_write_wins"}));
    let tables = || pair.target.get(pair.target.leader(), "/subscriptions/mirror/tables").1;
    await_until(PATIENCE, "the table stops", || match tables() {
        found if found[0]["state"] == "stopped" && found[0]["code"] == "PQ020" => Ok(()),
        other => Err(other.to_string()),
    });
    post(&pair.target, "/channels", &json!({"name": "back"}));
    post(&pair.target, "/channels/back/tables", &json!({"table": "t"}));
    post(&pair.target, "/subscriptions/mirror/tables/public.t/resume", &json!({"copy": true}));
    pair.await_state("following", None);
    await_same(&pair);
    let back: Vec<String> = pair
        .target
        .status()
        .nodes
        .iter()
        .map(|node| format!("http://127.0.0.1:{}", node.api_port()))
        .collect();
    post(
        &pair.source,
        "/subscriptions",
        &json!({"name": "back", "remote": back, "channel": "back", "copy": "none", "policy": "last_write_wins"}),
    );
    let state = || pair.source.get(pair.source.leader(), "/subscriptions/back").1;
    await_until(PATIENCE, "the way back", || match state() {
        found if found["state"] == "following" => Ok(()),
        other => Err(other.to_string()),
    });
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [("source", true), ("target", false)]
        .into_iter()
        .map(|(who, at_source)| {
            let (pair, stop) = (Arc::clone(&pair), Arc::clone(&stop));
            std::thread::spawn(move || write(if at_source { &pair.source } else { &pair.target }, who, &stop))
        })
        .collect();
    let conflicts = || Ok::<i64, String>(pair.state()?["conflicts"].as_i64().unwrap_or(0));
    await_until(PATIENCE * 2, "conflicts", || match conflicts()? {
        found if found >= 20 => Ok(()),
        few => Err(few.to_string()),
    });
    stop.store(true, Ordering::Relaxed);
    let rounds: Vec<i32> = writers.into_iter().map(|writer| writer.join().expect("a writer")).collect();
    await_same(&pair);
    println!("{rounds:?} transactions, {:?} conflicts", conflicts());
    for (state, who) in [(pair.state().expect("a state"), "target"), (state(), "source")] {
        assert_eq!((&state["rejected"], &state["tables_stopped"]), (&json!(0), &json!(0)), "{who}: {state}");
    }
    // A write that is far ahead is waited for, and said.
    let mut client = pair.source.connect(pair.source.leader()).expect("a session");
    pgquorum_tests::run(
        &mut client,
        "SELECT set_config('pgquorum.origin', 'rome', false), set_config('pgquorum.origin_commit_time', (now() + interval '1 day')::text, false)",
    );
    let (status, answer) = pair.target.send(
        pair.target.leader(),
        "PATCH",
        "/subscriptions/mirror",
        Some(&json!({"forward": true})),
    );
    assert_eq!(status, 200, "{answer}");
    pgquorum_tests::run(&mut client, "INSERT INTO t VALUES (100, 'rome')");
    let state = pair.await_state("waiting", Some("PQ021"));
    assert!(state["detail"].as_str().is_some_and(|detail| detail.contains("rome")), "{state}");
    pgquorum_tests::run(&mut client, "RESET pgquorum.origin; RESET pgquorum.origin_commit_time");
}
