//! A commit that waits for its standbys is never called a success before they have it, whatever is done to it.

use pgquorum_tests::{Cluster, Node, PATIENCE, await_until};
use postgres::error::SqlState;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the server's log says of a wait that somebody wanted to end.
const HELD: &str = "a commit goes on waiting for its standbys";

/// A statement under way in a session of its own.
struct Writer {
    pid: i32,
    thread: JoinHandle<(Result<(), postgres::Error>, postgres::Client)>,
}

impl Writer {
    /// Runs the preparation, then the statement in the background; returns when its commit waits.
    fn start(cluster: &Cluster, node: u64, preparation: &str, statement: &str) -> Writer {
        let mut client = cluster.connect(node).expect("a session on the leader");
        client.batch_execute(preparation).unwrap_or_else(|e| panic!("{preparation}: {e:?}"));
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).expect("its process").get(0);
        let text = statement.to_owned();
        let thread = std::thread::spawn(move || (client.batch_execute(&text), client));
        let writer = Writer { pid, thread };
        await_until(PATIENCE, &format!("the commit of {statement} waits"), || {
            if writer.waits(cluster, node) { Ok(()) } else { Err("it does not".to_owned()) }
        });
        writer
    }

    fn waits(&self, cluster: &Cluster, node: u64) -> bool {
        let sql = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {}", self.pid);
        cluster.try_ask(node, &sql).is_ok_and(|event| event == "SyncRep")
    }

    fn end(self) -> (Result<(), postgres::Error>, postgres::Client) {
        self.thread.join().expect("the writer")
    }
}

fn followers(cluster: &Cluster, leader: u64) -> Vec<u64> {
    cluster.status().nodes.iter().map(|n| n.id).filter(|id| *id != leader).collect()
}

/// The servers of the standbys stand still; their sidecars go on, so the leader keeps its lease.
fn freeze_standbys(cluster: &Cluster, leader: u64) {
    for id in followers(cluster, leader) {
        cluster.freeze(id, Some("postgres"));
    }
}

fn thaw_standbys(cluster: &Cluster, leader: u64) {
    for id in followers(cluster, leader) {
        cluster.thaw(id, Some("postgres"));
    }
}

fn in_log(node: &Node, what: &str) -> usize {
    let log = node.data_dir.with_file_name("state").join("postgres.log");
    std::fs::read_to_string(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display())).matches(what).count()
}

fn await_in_log(node: &Node, what: &str, times: usize) {
    await_until(PATIENCE, &format!("{times} times in the log: {what}"), || match in_log(node, what) {
        seen if seen >= times => Ok(()),
        seen => Err(seen.to_string()),
    });
}

/// Nobody was answered, and nobody sees anything.
fn assert_all_wait(cluster: &Cluster, leader: u64, writers: &[Writer]) {
    assert_eq!(cluster.ask(leader, "SELECT count(*)::text FROM t"), "0", "rows that no other node has");
    for writer in writers {
        // Whoever was told to end it looks around for a moment.
        await_until(PATIENCE, &format!("process {} waits", writer.pid), || {
            assert!(!writer.thread.is_finished(), "process {} was answered", writer.pid);
            if writer.waits(cluster, leader) { Ok(()) } else { Err("it does not".to_owned()) }
        });
    }
}

#[test]
fn a_waiting_commit_cannot_be_ended() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let leader = cluster.leader();
    let node = cluster.node(leader);
    cluster.sql(
        "CREATE TABLE t (n int); CREATE PROCEDURE slow() LANGUAGE plpgsql \
         AS $$ BEGIN INSERT INTO t VALUES (3); COMMIT; END $$",
    );
    freeze_standbys(&cluster, leader);
    let start = |preparation: &str, statement: &str| Writer::start(&cluster, leader, preparation, statement);
    let writers = [
        start("", "INSERT INTO t VALUES (1)"),
        start("", "INSERT INTO t VALUES (2)"),
        // PostgreSQL ends the statement's timeout before the commit of a plain statement, but not before this one.
        start("SET statement_timeout = '4s'", "CALL slow()"),
        // With this the warning by which a wait is known would not be made at all.
        start("SET log_min_messages = 'panic'", "INSERT INTO t VALUES (4)"),
        start("SET log_min_messages = 'log'; BEGIN; INSERT INTO t VALUES (5)", "COMMIT"),
    ];
    let [one, two, _, four, five] = &writers;
    for cancelled in [one, four, five] {
        cluster.ask(leader, &format!("SELECT pg_cancel_backend({})::text", cancelled.pid));
    }
    cluster.ask(leader, &format!("SELECT pg_terminate_backend({})::text", two.pid));
    await_in_log(&node, HELD, 5);
    // And again, now that they wait in our hands.
    for writer in &writers {
        cluster.ask(leader, &format!("SELECT pg_cancel_backend({})::text", writer.pid));
    }
    cluster.ask(leader, &format!("SELECT pg_terminate_backend({})::text", two.pid));
    assert_all_wait(&cluster, leader, &writers);

    thaw_standbys(&cluster, leader);
    let terminated = two.pid;
    for writer in writers {
        let pid = writer.pid;
        let (answer, mut client) = writer.end();
        if pid == terminated {
            // The answer goes out, the end right behind it; this client may show the end alone.
            let end = answer.err().map(|e| e.code() == Some(&SqlState::ADMIN_SHUTDOWN));
            assert!(end.unwrap_or(true) && client.simple_query("SELECT 1").is_err(), "it was told to end");
        } else {
            answer.unwrap_or_else(|e| panic!("process {pid}: a commit that is safe is a success: {e:?}"));
            client.simple_query("SELECT 1").expect("the cancel was for the commit, not for what comes later");
        }
    }
    assert_eq!(cluster.ask(leader, "SELECT count(*)::text FROM t"), "5");
    cluster.await_replicas(2);
    for id in followers(&cluster, leader) {
        cluster.await_replayed(id);
        assert_eq!(cluster.ask(id, "SELECT count(*)::text FROM t"), "5");
    }
    assert_eq!(in_log(&node, "canceling"), 0, "nothing was cancelled, so the log does not say so");
}

/// The acknowledgement and the request to end the wait come at the same moment, again and again: the commit is a success, and
/// nobody is told that it may not be replicated.
#[test]
fn an_acknowledged_commit_is_not_called_cancelled() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let leader = cluster.leader();
    let node = cluster.node(leader);
    cluster.sql("CREATE TABLE t (n int)");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let mut client = cluster.connect(leader).expect("a session on the leader");
            let over = &over;
            scope.spawn(move || {
                while !over.load(Relaxed) {
                    // The request may also come before the commit: then there is nothing to be said of it.
                    if let Err(error) = client.batch_execute("INSERT INTO t VALUES (1)") {
                        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error:?}");
                    }
                }
            });
        }
        let mut client = cluster.connect(leader).expect("a session on the leader");
        let end = Instant::now() + Duration::from_secs(30);
        // On a slow machine for longer, until there were enough of them.
        let goes_on =
            |held: usize| held < 3000 && Instant::now() < if held > 100 { end } else { end + PATIENCE };
        while goes_on(in_log(&node, HELD)) {
            let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            (0..200).for_each(|_| client.batch_execute(cancel).expect("requests to cancel"));
        }
        over.store(true, Relaxed);
    });
    assert!(in_log(&node, HELD) > 100, "waits were to be cancelled");
    assert_eq!(in_log(&node, "canceling wait"), 0, "an acknowledged commit was called cancelled");
}

#[test]
fn a_prepared_transaction_waits_too() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let (code, answer) = cluster.send(
        cluster.leader(),
        "PATCH",
        "/db-config",
        Some(&serde_json::json!({"max_prepared_transactions": "5"})),
    );
    assert_eq!(code, 200, "{answer}");
    // On all nodes: a standby with less than its primary has would not start.
    await_until(PATIENCE, "the parameter waits for a restart everywhere", || {
        let (_, now) = cluster.get(cluster.leader(), "/db-config");
        let waiting = now["restart-required"].as_object().into_iter().flatten();
        let count = waiting.filter(|(_, names)| names.to_string().contains("max_prepared")).count();
        if count == 3 { Ok(()) } else { Err(now.to_string()) }
    });
    cluster.down();
    cluster.up(3);
    cluster.await_replicas(2);
    let leader = cluster.leader();
    cluster.sql("CREATE TABLE t (n int)");
    cluster.sql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'before'");
    freeze_standbys(&cluster, leader);
    let writers = [
        Writer::start(&cluster, leader, "BEGIN; INSERT INTO t VALUES (2)", "PREPARE TRANSACTION 'within'"),
        Writer::start(&cluster, leader, "SET log_min_messages = 'panic'", "COMMIT PREPARED 'before'"),
    ];
    for writer in &writers {
        cluster.ask(leader, &format!("SELECT pg_cancel_backend({})::text", writer.pid));
    }
    await_in_log(&cluster.node(leader), HELD, 2);
    assert_all_wait(&cluster, leader, &writers);
    thaw_standbys(&cluster, leader);
    for writer in writers {
        writer.end().0.expect("a success when the standbys have it");
    }
    assert_eq!(cluster.ask(leader, "SELECT string_agg(gid, ' ') FROM pg_prepared_xacts"), "within");
    assert_eq!(cluster.ask(leader, "SELECT count(*)::text FROM t"), "1");
}

#[test]
fn only_the_cluster_says_who_acknowledges() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let leader = cluster.leader();
    let node = cluster.node(leader);
    cluster.sql("CREATE TABLE t (n int)");
    let rule = cluster.ask(leader, "SHOW synchronous_standby_names");
    freeze_standbys(&cluster, leader);
    let writers = [Writer::start(&cluster, leader, "", "INSERT INTO t VALUES (1)")];
    let mut client = cluster.connect(leader).expect("a session on the leader");
    for statement in [
        "ALTER SYSTEM SET synchronous_standby_names = ''",
        "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'",
        "ALTER SYSTEM SET pgquorum.acknowledgement_rule = ''",
        "ALTER SYSTEM SET pgquorum.fence = off",
    ] {
        let refused = client.batch_execute(statement).expect_err(statement);
        assert_eq!(refused.code(), Some(&SqlState::CANT_CHANGE_RUNTIME_PARAM), "{statement}: {refused:?}");
    }
    // By hand, in the files that PostgreSQL reads after ours; and then without ours.
    let conf = node.data_dir.join("postgresql.conf");
    let auto = node.data_dir.join("postgresql.auto.conf");
    let before = [&conf, &auto].map(|file| std::fs::read_to_string(file).expect("a configuration file"));
    let bad = "synchronous_standby_names = ''\n";
    for (conf_now, auto_now) in [
        (format!("{}{bad}", before[0]), before[1].clone()),
        (before[0].clone(), format!("{}{bad}", before[1])),
        (before[0].replace("include 'pgquorum.conf'", ""), before[1].clone()),
    ] {
        std::fs::write(&conf, conf_now).expect("writing postgresql.conf");
        std::fs::write(&auto, auto_now).expect("writing postgresql.auto.conf");
        reload(&cluster, leader);
        assert_eq!(cluster.ask(leader, "SHOW synchronous_standby_names"), rule);
        assert_all_wait(&cluster, leader, &writers);
    }
    std::fs::write(&conf, &before[0]).expect("writing postgresql.conf");
    std::fs::write(&auto, &before[1]).expect("writing postgresql.auto.conf");
    reload(&cluster, leader);
    thaw_standbys(&cluster, leader);
    for writer in writers {
        writer.end().0.expect("a success when the standbys have it");
    }
    // The cluster itself still changes it.
    cluster.configure(serde_json::json!({"quorum-replication": false, "replication-factor": 2}));
    await_until(PATIENCE, "the cluster's own rule", || {
        let now = cluster.ask(leader, "SHOW synchronous_standby_names");
        if now != rule && now.starts_with("ANY 2 ") { Ok(()) } else { Err(now) }
    });
}

/// Every process has read the configuration when a new one has: the postmaster tells the others before it forks.
fn reload(cluster: &Cluster, node: u64) {
    let loaded = "SELECT pg_conf_load_time()::text";
    let before = cluster.ask(node, loaded);
    cluster.ask(node, "SELECT pg_reload_conf()::text");
    await_until(PATIENCE, "the configuration is read again", || match cluster.try_ask(node, loaded)? {
        now if now != before => Ok(()),
        now => Err(now),
    });
    // Whether commits wait is a flag of the checkpointer, which has read it before it begins another checkpoint.
    cluster.ask(node, "SELECT pg_reload_conf()::text");
    cluster.connect(node).expect("a session").batch_execute("CHECKPOINT").expect("a checkpoint");
}

/// Cancel, then a failover.
#[test]
fn a_cancelled_commit_that_a_failover_takes_back_was_never_a_success() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let old = cluster.leader();
    cluster.sql("CREATE TABLE t (n int)");
    freeze_standbys(&cluster, old);
    let writer = Writer::start(&cluster, old, "", "INSERT INTO t VALUES (1)");
    cluster.ask(old, &format!("SELECT pg_cancel_backend({})::text", writer.pid));
    await_in_log(&cluster.node(old), HELD, 1);
    cluster.kill(old, None);
    let (answer, _) = writer.end();
    assert!(answer.is_err(), "a commit that no standby has was called a success");
    for id in (1..=3).filter(|id| *id != old) {
        cluster.thaw(id, Some("postgres"));
    }
    let new = cluster.await_leader(Some(old));
    cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.await_replayed(old);
    let rows = cluster.ask(new, "SELECT count(*)::text FROM t");
    assert_eq!(
        cluster.ask(old, "SELECT count(*)::text FROM t"),
        rows,
        "the nodes agree on what became of it"
    );
}

fn assert_unknown(answer: Result<(), postgres::Error>) {
    let error = answer.expect_err("a commit that no standby has was called a success");
    let code = error.code().unwrap_or_else(|| panic!("the client is told what happened: {error:?}"));
    assert_says_unknown(code, &error);
}

fn assert_says_unknown(code: &SqlState, error: &postgres::Error) {
    assert_eq!(*code, SqlState::TRANSACTION_RESOLUTION_UNKNOWN, "{error:?}");
    let message = error.as_db_error().map(|e| e.message()).unwrap_or_default();
    assert!(message.contains("outcome of the commit is unknown"), "{error:?}");
}

#[test]
fn when_the_lease_runs_out_the_outcome_is_unknown() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let leader = cluster.leader();
    cluster.sql("CREATE TABLE t (n int)");
    // Between the answer and the end of the server there is time for the answer, also on a slow machine.
    cluster.sql("ALTER SYSTEM SET pgquorum.fence_grace = '5s'");
    reload(&cluster, leader);
    freeze_standbys(&cluster, leader);
    let writer = Writer::start(&cluster, leader, "", "INSERT INTO t VALUES (1)");
    // Nobody renews the lease.
    cluster.freeze(leader, Some("sidecar"));
    assert_unknown(writer.end().0);
    thaw_standbys(&cluster, leader);
    cluster.thaw(leader, Some("sidecar"));
    cluster.await_replicas(2);
    cluster.assert_one_writable();
}

#[test]
fn when_the_lease_is_revoked_the_outcome_is_unknown() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let leader = cluster.leader();
    cluster.sql("CREATE TABLE t (n int)");
    freeze_standbys(&cluster, leader);
    let writer = Writer::start(&cluster, leader, "", "INSERT INTO t VALUES (1)");
    // The leader's sidecar hears nobody, gives up its place and stops the server soon after: 150 ms after the client was told.
    for id in followers(&cluster, leader) {
        cluster.freeze(id, Some("sidecar"));
    }
    let error = writer.end().0.expect_err("a commit that no standby has was called a success");
    // Where the session was held up for so long, its connection breaks without a word, and that is no success either.
    if let Some(code) = error.code().filter(|code| **code != SqlState::CRASH_SHUTDOWN) {
        assert_says_unknown(code, &error);
    }
    for id in followers(&cluster, leader) {
        cluster.thaw(id, None);
    }
    cluster.await_replicas(2);
    cluster.assert_one_writable();
}

/// A fast shutdown waits for every session, and this one for standbys that do not come.
#[test]
fn a_shutdown_does_not_hang_on_a_waiting_commit() {
    let cluster = Cluster::start(3);
    let leader = cluster.leader();
    cluster.sql("CREATE TABLE t (n int)");
    freeze_standbys(&cluster, leader);
    let writer = Writer::start(&cluster, leader, "", "INSERT INTO t VALUES (1)");
    let began = std::time::Instant::now();
    cluster.stop(leader);
    // The sidecar's own patience with a fast shutdown is 30 s.
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    assert!(writer.end().0.is_err(), "a commit that no standby has was called a success");
    thaw_standbys(&cluster, leader);
    cluster.start_node(leader);
    cluster.await_replicas(2);
}

#[test]
fn a_server_with_a_rule_of_somebody_else_does_not_start() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let node = cluster.node(cluster.follower());
    let conf = node.data_dir.join("postgresql.conf");
    let before = std::fs::read_to_string(&conf).expect("postgresql.conf");
    std::fs::write(&conf, format!("{before}synchronous_standby_names = ''\n"))
        .expect("writing postgresql.conf");
    cluster.kill(node.id, Some("postgres"));
    await_in_log(&node, "synchronous_standby_names is \"\", which is not what the sidecar set", 1);
    assert!(cluster.connect(node.id).is_err(), "the server runs");
    std::fs::write(&conf, before).expect("writing postgresql.conf");
    cluster.await_replicas(2);
}
