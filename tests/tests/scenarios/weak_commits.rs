//! Nobody lowers the cluster's durability for himself, unless an administrator allows it.

use pgquorum_tests::{Cluster, PATIENCE, await_until};
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};
use serde_json::json;

/// A session of the ordinary role `app` on the leader.
fn app(cluster: &Cluster, options: &str) -> Client {
    let node = cluster.node(cluster.leader());
    let mut config = Config::new();
    config.host(&node.db_host).port(node.db_port).user("app").password("app").dbname("shop").options(options);
    config.connect(NoTls).expect("a session of app")
}

fn assert_refused(client: &mut Client, statements: &str) {
    let refused = client.batch_execute(statements).expect_err(statements);
    assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statements}: {refused:?}");
    let error = refused.as_db_error().expect("an answer of the server");
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("pgquorum.allow_weak_commits"), "the hint says what to do: {error:?}");
    client.batch_execute("ROLLBACK").expect("the session goes on");
}

fn rows(cluster: &Cluster) -> i64 {
    app(cluster, "").query_one("SELECT count(*) FROM t", &[]).expect("the rows").get(0)
}

fn counted(cluster: &Cluster) -> String {
    cluster.ask(
        cluster.leader(),
        "SELECT coalesce(string_agg(database || ' ' || role || ' ' || commits, ', '), 'none') FROM quorum.weak_commits()",
    )
}

#[test]
fn a_weak_commit_needs_permission() {
    let cluster = Cluster::start_steady(3);
    cluster.sql("CREATE ROLE app LOGIN PASSWORD 'app'");
    cluster.sql("CREATE DATABASE shop OWNER app");
    let mut client = app(&cluster, "");
    client
        .batch_execute(
            "CREATE TABLE t (n int);
             SET check_function_bodies = off;
             CREATE FUNCTION f() RETURNS void LANGUAGE sql SET synchronous_commit = off AS 'INSERT INTO t VALUES (0)';
             RESET check_function_bodies",
        )
        .expect("with the cluster's own level");

    // In the session itself: at once.
    for statements in [
        "SET synchronous_commit = off",
        "SET synchronous_commit = local",
        "SET synchronous_commit = remote_write",
        "BEGIN; INSERT INTO t VALUES (0); SET LOCAL synchronous_commit = off; COMMIT",
        "SELECT set_config('synchronous_commit', 'off', false)",
        "SELECT f()",
        "CREATE FUNCTION g() RETURNS void LANGUAGE sql SET synchronous_commit = off AS 'INSERT INTO t VALUES (0)'",
        "SET pgquorum.allow_weak_commits = on",
    ] {
        let refused = client.batch_execute(statements).expect_err(statements);
        assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statements}: {refused:?}");
        client.batch_execute("ROLLBACK").expect("the session goes on");
    }
    assert_refused(&mut client, "SET synchronous_commit = off");
    client
        .batch_execute("SET synchronous_commit = remote_apply; RESET synchronous_commit")
        .expect("not weaker");

    // Set before the session was there: at commit. Reading goes on.
    let by_options = app(&cluster, "-c synchronous_commit=off");
    client.batch_execute("ALTER ROLE app SET synchronous_commit = local").expect("anybody's right");
    let by_role = app(&cluster, "");
    client.batch_execute("ALTER ROLE app RESET synchronous_commit").expect("anybody's right");
    client
        .batch_execute("ALTER DATABASE shop SET synchronous_commit = remote_write")
        .expect("the owner's right");
    let by_database = app(&cluster, "");
    client.batch_execute("ALTER DATABASE shop RESET synchronous_commit").expect("the owner's right");
    for mut weak in [by_options, by_role, by_database] {
        weak.batch_execute("SELECT count(*) FROM t").expect("reading is nobody's loss");
        assert_refused(&mut weak, "INSERT INTO t VALUES (0)");
        assert_refused(&mut weak, "BEGIN; INSERT INTO t VALUES (0); COMMIT");
        weak.batch_execute("SET synchronous_commit = on; INSERT INTO t VALUES (1)")
            .expect("as the cluster wants it");
    }
    assert_eq!(rows(&cluster), 3, "what was refused is not there");
    assert_eq!(counted(&cluster), "none");

    // Allowed for the role, then for the database only.
    cluster.sql("ALTER ROLE app SET pgquorum.allow_weak_commits = on");
    let mut allowed = app(&cluster, "-c synchronous_commit=off");
    allowed.batch_execute("INSERT INTO t VALUES (2)").expect("allowed for the role");
    allowed
        .batch_execute("SET synchronous_commit = local; INSERT INTO t VALUES (2)")
        .expect("allowed for the role");
    allowed.batch_execute("SELECT f()").expect("allowed for the role");
    assert_eq!(counted(&cluster), "shop app 3");
    cluster.sql("ALTER ROLE app RESET pgquorum.allow_weak_commits");
    cluster.sql("ALTER DATABASE shop SET pgquorum.allow_weak_commits = on");
    app(&cluster, "-c synchronous_commit=off")
        .batch_execute("INSERT INTO t VALUES (2)")
        .expect("for the database");
    assert_eq!(counted(&cluster), "shop app 4");
    cluster.sql("ALTER DATABASE shop RESET pgquorum.allow_weak_commits");

    // A superuser has to say it too.
    let mut superuser = cluster.connect(cluster.leader()).expect("a session of the superuser");
    assert_refused(&mut superuser, "SET synchronous_commit = off");
    superuser
        .batch_execute(
            "SET pgquorum.allow_weak_commits = on; SET synchronous_commit = off; CREATE TABLE mine ()",
        )
        .expect("a superuser may allow it to himself");
    assert_eq!(counted(&cluster), "shop app 4, postgres postgres 1");
    let series = "pgquorum_weak_commits_total{database=\"shop\",role=\"app\"} 4";
    await_until(PATIENCE, series, || {
        let (_, metrics) = cluster.get(cluster.leader(), "/metrics");
        let metrics = metrics.as_str().unwrap_or_default();
        if metrics.lines().any(|line| line == series) { Ok(()) } else { Err(metrics.to_owned()) }
    });

    // The cluster's own work goes on, and where nobody is waited for nothing is weak.
    cluster.configure(json!({"quorum-replication": false, "replication-factor": 0}));
    await_until(PATIENCE, "commits wait for nobody", || {
        match client.batch_execute("SET synchronous_commit = off") {
            Ok(()) => Ok(()),
            Err(error) => Err(format!("{error:?}")),
        }
    });
    client.batch_execute("INSERT INTO t VALUES (3)").expect("nobody is waited for");
    assert_eq!(counted(&cluster), "shop app 4, postgres postgres 1");
    cluster.configure(json!({"quorum-replication": true}));
    await_until(PATIENCE, "commits wait again", || match client.batch_execute("INSERT INTO t VALUES (4)") {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    client
        .batch_execute("SET synchronous_commit = on; INSERT INTO t VALUES (5)")
        .expect("and commits that wait");
}
