//! What is no longer harmless goes from what every node serves, at once, and whoever waits for news is told.

use pgquorum_tests::{Cluster, PATIENCE, await_until, get_with, hash_of, is_served, run, server_error, text};
use postgres::Client;
use serde_json::json;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PATH: &str = "/sql/readonly";
/// From what was done until the last node's REST has it. Replication takes milliseconds, and standbys report what they have
/// seen every two seconds; machines are busy. Who is not told learns of it when his wait is over, after 30 s.
const TOLD: Duration = Duration::from_secs(25);

/// Whether a node serves it over HTTP, and the tag of its answer.
fn listed(port: u16, statement: &str) -> Result<(bool, String), String> {
    let answer = get_with(PATIENCE, port, PATH, &[]).map_err(|e| e.to_string())?;
    let hashes = answer.body.as_array().ok_or_else(|| format!("{answer:?}"))?;
    let tag = answer.field("etag").ok_or_else(|| format!("{answer:?}"))?;
    Ok((hashes.contains(&json!(hash_of(statement))), tag.to_owned()))
}

fn await_listed(ports: &[u16], statement: &str) {
    for port in ports {
        await_until(PATIENCE, &format!("port {port} serves {statement}"), || {
            match listed(*port, statement)? {
                (true, _) => Ok(()),
                (false, tag) => Err(tag),
            }
        });
    }
}

/// Asks as a driver does, with the tag it has, until the statement is gone; how long after the start that was.
fn wait_until_gone(port: u16, statement: &str) -> JoinHandle<Instant> {
    let hash = json!(hash_of(statement));
    let (mut there, mut tag) = listed(port, statement).expect("an answer");
    assert!(there, "port {port} serves {statement}");
    thread::spawn(move || {
        let begin = Instant::now();
        while there {
            assert!(begin.elapsed() < PATIENCE, "port {port} goes on serving it");
            let answer = get_with(PATIENCE, port, &format!("{PATH}?wait=30s"), &[("if-none-match", &tag)]);
            let answer = answer.unwrap_or_else(|e| panic!("port {port}: {e}"));
            if answer.status == 200 {
                there = answer.body.as_array().is_some_and(|hashes| hashes.contains(&hash));
                tag = answer.field("etag").expect("a tag").to_owned();
            }
        }
        Instant::now()
    })
}

/// Does it, and wants every node to have stopped serving the statement before anybody's wait is over.
fn gone_everywhere(ports: &[u16], statement: &str, act: impl FnOnce()) {
    await_listed(ports, statement);
    let waiting: Vec<_> = ports.iter().map(|port| (port, wait_until_gone(*port, statement))).collect();
    act();
    let done = Instant::now();
    for (port, thread) in waiting {
        let at = thread.join().expect("it ends");
        let after = at.saturating_duration_since(done);
        eprintln!("port {port}: {} ms later: {statement}", after.as_millis());
        assert!(after < TOLD, "port {port} served {statement} for {after:?}");
    }
}

#[test]
fn every_node_stops_serving_what_is_no_longer_harmless() {
    let cluster = Cluster::start_steady(3);
    cluster.await_replicas(2);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let ports: Vec<u16> = cluster.status().nodes.iter().map(|node| node.api_port()).collect();
    let mut session = cluster.connect(leader).expect("a session on the leader");
    let c = &mut session;
    run(
        c,
        "CREATE TABLE t (id int); CREATE TABLE told (n int); CREATE SEQUENCE s;
         CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
         CREATE VIEW w AS SELECT 1::bigint AS n;
         CREATE FUNCTION lies() RETURNS bigint LANGUAGE plpgsql STABLE AS
             'BEGIN IF EXISTS (SELECT FROM told) THEN PERFORM nextval(''s''); END IF; RETURN 1; END'",
    );
    let statements =
        ["SELECT f()", "SELECT f() + 1", "SELECT n FROM w", "SELECT lies()", "SELECT lies() + 1"];
    for statement in statements.into_iter().chain(["SELECT 1 AS other"]) {
        run(c, statement);
    }
    await_listed(&ports, "SELECT 1 AS other");
    gone_everywhere(&ports, "SELECT f()", || {
        run(
            c,
            "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO t VALUES (1) RETURNING id'",
        );
        // On the primary there is no moment at all in between.
        assert!(!is_served(c, "SELECT f()") && !is_served(c, "SELECT f() + 1"));
    });
    gone_everywhere(&ports, "SELECT n FROM w", || {
        run(c, "CREATE OR REPLACE VIEW w AS SELECT nextval('s') AS n");
    });
    gone_everywhere(&ports, "SELECT lies()", || {
        run(c, "INSERT INTO told VALUES (1)");
        run(c, "SELECT lies()");
        assert!(!is_served(c, "SELECT lies()"));
    });
    // Seen by a standby alone: there at once, everywhere as soon as it has told the leader.
    let mut standby: Client = cluster.connect(follower).expect("a session on a follower");
    cluster.await_replayed(follower);
    gone_everywhere(&ports, "SELECT lies() + 1", || {
        assert_eq!(server_error(&mut standby, "SELECT lies() + 1").as_deref(), Some("25006"));
        assert!(!is_served(&mut standby, "SELECT lies() + 1"));
    });
    // Whichever node has seen it, the administrator finds it on the leader, once.
    for statement in ["SELECT lies()", "SELECT lies() + 1"] {
        let events = format!(
            "SELECT count(*)::text FROM quorum.event
             WHERE kind = 'statement-withdrawn' AND details ->> 'hash' = '{}'",
            hash_of(statement)
        );
        assert_eq!(text(c, &events), "1", "{statement}");
    }
    // All the time nothing else went.
    for port in &ports {
        assert_eq!(listed(*port, "SELECT 1 AS other").map(|(there, _)| there), Ok(true), "port {port}");
    }
}

#[test]
fn forgetting_reaches_every_node() {
    let cluster = Cluster::start_steady(3);
    cluster.await_replicas(2);
    let ports: Vec<u16> = cluster.status().nodes.iter().map(|node| node.api_port()).collect();
    let mut session = cluster.connect(cluster.leader()).expect("a session on the leader");
    let c = &mut session;
    run(c, "SELECT 1 AS forgotten");
    gone_everywhere(&ports, "SELECT 1 AS forgotten", || run(c, "SELECT quorum.forget_statements()"));
    // Standbys do not bring back what they had learned themselves before.
    run(c, "SELECT 1 AS settled");
    await_listed(&ports, "SELECT 1 AS settled");
    for port in &ports {
        assert_eq!(listed(*port, "SELECT 1 AS forgotten").map(|(there, _)| there), Ok(false), "port {port}");
    }
}
