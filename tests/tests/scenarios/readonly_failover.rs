//! What was learned outlives the node that learned it, and what standbys learn is the whole cluster's.

use pgquorum_tests::{
    Cluster, PATIENCE, await_answer, await_known, await_served, await_until, hash_of, is_served, known, run,
    served,
};
use postgres::Client;
use serde_json::json;

fn session(cluster: &Cluster, id: u64) -> Client {
    await_until(PATIENCE, &format!("a session on node {id}"), || {
        cluster.connect(id).map_err(|e| format!("{e:?}"))
    })
}

/// Waits until a node serves all of these over HTTP.
fn await_listed(cluster: &Cluster, id: u64, statements: &[&str]) {
    await_until(PATIENCE, &format!("node {id} serves {statements:?}"), || {
        let (status, hashes) = cluster.get(id, "/sql/readonly");
        let listed = hashes.as_array().ok_or_else(|| format!("{status} {hashes}"))?;
        let missing: Vec<_> = statements.iter().filter(|s| !listed.contains(&json!(hash_of(s)))).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("without {missing:?}")) }
    });
}

#[test]
fn the_new_leader_serves_what_the_old_one_had_learned() {
    let cluster = Cluster::start_steady(3);
    cluster.await_replicas(2);
    let old = cluster.leader();
    let standbys: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let at_leader = "SELECT id FROM orders WHERE id = 1";
    let (at_first, at_second) = ("SELECT n FROM orders WHERE n = 1", "SELECT n, id FROM orders");
    {
        let mut c = session(&cluster, old);
        run(&mut c, "CREATE TABLE orders (id int, n int); CREATE SEQUENCE s");
        for _ in 0..70 {
            run(&mut c, at_leader);
        }
        run(&mut c, "SELECT nextval('s')");
        for id in &standbys {
            cluster.await_replayed(*id);
        }
        for (id, statement) in standbys.iter().zip([at_first, at_second]) {
            run(&mut session(&cluster, *id), statement);
        }
        // Each node's own, on every node.
        for id in 1..=3 {
            await_listed(&cluster, id, &[at_leader, at_first, at_second]);
        }
        let rows = known(&mut c, at_first);
        assert!(rows.len() == 1 && rows[0].how == "proven", "{rows:?}");
        await_known(&mut c, at_leader, "planned more than once, it has a query id", |row| {
            row.query_id.is_some()
        });
        // Counts are saved about once a second.
        let saved = "SELECT bool_or(calls >= 64)::text FROM quorum.readonly_statement \
                     WHERE statement = 'select id from orders where id = $'";
        await_answer(&mut c, PATIENCE, saved, "true");
    }
    cluster.kill(old, None);
    let new = cluster.await_leader(Some(old));
    let mut c = session(&cluster, new);
    // At once: they are rows of its table.
    let all = served(&mut c);
    for statement in [at_leader, at_first, at_second] {
        assert!(all.contains(&hash_of(statement)), "{statement}: {:?}", known(&mut c, statement));
    }
    assert!(!all.contains(&hash_of("SELECT nextval('s')")));
    await_listed(&cluster, new, &[at_leader, at_first, at_second]);
    await_known(&mut c, at_leader, "its calls are kept", |row| row.calls >= 64);

    // The former standby learns as a primary does, and the former primary as a standby.
    run(&mut c, "SELECT 1 AS after_the_failover");
    await_served(&mut c, "SELECT 1 AS after_the_failover");
    cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.await_replayed(old);
    run(&mut session(&cluster, old), "SELECT 2 AS by_the_former_primary");
    for id in 1..=3 {
        await_listed(
            &cluster,
            id,
            &[at_leader, "SELECT 1 AS after_the_failover", "SELECT 2 AS by_the_former_primary"],
        );
    }
    // Everything stops, everything starts, everything is known.
    cluster.down();
    cluster.up(3);
    cluster.await_replicas(2);
    let all = served(&mut session(&cluster, cluster.leader()));
    for statement in [at_leader, at_first, at_second, "SELECT 2 AS by_the_former_primary"] {
        assert!(all.contains(&hash_of(statement)), "{statement}");
    }
}

/// The leader dies before it was told what its standbys have just learned; one of them is its successor. Nobody knows for
/// certain what the old one had changed last, so their word counts when the statement has run again.
#[test]
fn what_only_standbys_knew_when_the_leader_died_is_served() {
    let cluster = Cluster::start_steady(3);
    cluster.await_replicas(2);
    let old = cluster.leader();
    cluster.sql("CREATE TABLE orders (id int, n int)");
    let standbys: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let mut sessions: Vec<Client> = Vec::new();
    for id in &standbys {
        cluster.await_replayed(*id);
        sessions.push(session(&cluster, *id));
    }
    let statements: Vec<String> =
        (0..20).map(|n| format!("SELECT id AS only_here_{n} FROM orders")).collect();
    cluster.freeze(old, Some("sidecar"));
    for (number, statement) in statements.iter().enumerate() {
        run(&mut sessions[number % 2], statement);
    }
    cluster.kill(old, None);
    let new = cluster.await_leader(Some(old));
    drop(sessions);
    let other = standbys.iter().copied().find(|id| *id != new).expect("a second standby");
    let (mut c, mut s) = (session(&cluster, new), session(&cluster, other));
    for (number, statement) in statements.iter().enumerate() {
        await_until(PATIENCE, statement, || {
            run(if number % 2 == 0 { &mut c } else { &mut s }, statement);
            if is_served(&mut c, statement) { Ok(()) } else { Err(format!("{:?}", known(&mut c, statement))) }
        });
    }
    for id in &standbys {
        await_listed(&cluster, *id, &statements.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// A standby proves it by what it has replayed; meanwhile the primary has changed what it means.
#[test]
fn a_standbys_proof_that_is_out_of_date_is_not_taken() {
    let cluster = Cluster::start_steady(3);
    cluster.await_replicas(2);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let mut c = session(&cluster, leader);
    run(
        &mut c,
        "CREATE TABLE t (id int); CREATE FUNCTION f(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1'",
    );
    cluster.await_replayed(follower);
    let mut s = session(&cluster, follower);
    // The standby does not hear of what is replaced for a while, and learns many statements that use it.
    run(&mut s, "SELECT pg_wal_replay_pause()");
    await_until(PATIENCE, "replay stands still", || {
        match pgquorum_tests::text(&mut s, "SELECT pg_get_wal_replay_pause_state()") {
            state if state == "paused" => Ok(()),
            state => Err(state),
        }
    });
    run(
        &mut c,
        "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO t VALUES ($1) RETURNING id'",
    );
    let statements: Vec<String> = (0..10).map(|n| format!("SELECT f({n}) AS late_{n}")).collect();
    for statement in &statements {
        run(&mut s, statement);
    }
    run(&mut s, "SELECT 1 AS harmless");
    // Reported at the same time or later than those.
    await_served(&mut c, "SELECT 1 AS harmless");
    for statement in &statements {
        assert!(!is_served(&mut c, statement), "{:?}", known(&mut c, statement));
    }
    run(&mut s, "SELECT pg_wal_replay_resume()");
    cluster.await_replayed(follower);
    for statement in &statements {
        assert!(!is_served(&mut s, statement), "{:?}", known(&mut s, statement));
    }
}
