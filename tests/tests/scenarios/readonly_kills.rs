//! Sessions are killed in the middle of their statements, again and again under load: the server starts anew each time, and
//! what was learned is in order.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_tests::{
    LearningServer, PATIENCE, Plain, await_served, await_until, hash_of, is_served, known, run, text,
};
use postgres::Client;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

const ROUNDS: usize = 30;
const CLIENTS: u64 = 6;

/// Ends the threads, also when a check has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn seed() -> u64 {
    let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| u64::from(std::process::id()))
}

/// Statements of all kinds that are new, known, forgotten, changed, withdrawn; sessions end when the server does.
fn load(server: &Plain, seed: u64, stop: &AtomicBool, done: &AtomicU64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut session: Option<Client> = None;
    while !stop.load(SeqCst) {
        let Some(client) = session.as_mut().filter(|client| !client.is_closed()) else {
            session = server.connect().ok();
            continue;
        };
        let number: u32 = random.random_range(0..2000);
        let statement = match random.random_range(0..100) {
            0..50 => format!("SELECT {number} AS new_{number}"),
            50..65 => "SELECT count(*) FROM t WHERE f(id) > 1".to_owned(),
            65..75 => "SELECT lies()".to_owned(),
            75..85 => format!("SELECT nextval('s') AS next_{}", number % 50),
            85..88 => "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN $1; END'".to_owned(),
            88..91 => "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END'".to_owned(),
            91..93 => "BEGIN; CREATE FUNCTION g() RETURNS int LANGUAGE sql AS 'SELECT 1'; SELECT g(); ROLLBACK".to_owned(),
            93..97 => "SELECT count(*) FROM quorum.readonly_statements".to_owned(),
            97..99 => "SELECT quorum.served_statements()".to_owned(),
            _ => "SELECT quorum.take_learned(100)".to_owned(),
        };
        // Two sessions may replace the function at once; one of them fails then.
        if random.random_bool(0.5) {
            let _ = client.batch_execute(&statement);
        } else {
            let _ = client.query(&statement, &[]);
        }
        done.fetch_add(1, SeqCst);
    }
}

/// SIGKILL to a client's session or, now and then, to a worker of ours.
fn kill_one(server: &Plain, random: &mut SmallRng) {
    let workers = random.random_bool(0.2);
    let sql = if workers {
        "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pgquorum%'"
    } else {
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state = 'active'"
    };
    let pid: i32 = await_until(PATIENCE, "a process to kill", || {
        let mut client = server.connect().map_err(|e| format!("{e:?}"))?;
        let rows = client.query(sql, &[]).map_err(|e| format!("{e:?}"))?;
        if rows.is_empty() {
            return Err("none".to_owned());
        }
        Ok(rows[random.random_range(0..rows.len())].get(0))
    });
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

#[test]
fn sessions_that_are_killed_leave_the_table_in_order() {
    let seed = seed();
    eprintln!("SEED={seed}");
    let servers = LearningServer::start("pgquorum.statements_max = 500\nlog_min_messages = error");
    {
        let c = &mut servers.connect();
        run(
            c,
            "CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 20); CREATE SEQUENCE s; CREATE TABLE told (n int);
             INSERT INTO told VALUES (1);
             CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN $1; END';
             CREATE FUNCTION lies() RETURNS bigint LANGUAGE plpgsql STABLE AS
                 'BEGIN IF EXISTS (SELECT FROM told) THEN PERFORM nextval(''s''); END IF; RETURN 1; END'",
        );
        run(c, "SELECT 1 AS kept");
        await_served(c, "SELECT 1 AS kept");
    }
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let stop_all = Stop(&stop);
        for number in 0..CLIENTS {
            let (server, stop, done) = (&servers.primary, &stop, &done);
            scope.spawn(move || load(server, seed + number, stop, done));
        }
        let mut random = SmallRng::seed_from_u64(seed);
        for round in 0..ROUNDS {
            let (before, some) = (done.load(SeqCst), random.random_range(20..400));
            await_until(PATIENCE, "clients go on", || match done.load(SeqCst) {
                now if now > before + some => Ok(()),
                now => Err(format!("{} statements", now - before)),
            });
            kill_one(&servers.primary, &mut random);
            // Whoever connects again finds it in order.
            await_until(PATIENCE, "the server is there again", || {
                let mut client = servers.primary.connect().map_err(|e| format!("{e:?}"))?;
                check(&mut client, round).map_err(|e| format!("{e:?}"))
            });
        }
        drop(stop_all);
    });
    let c = &mut servers.connect();
    assert!(
        is_served(c, "SELECT 1 AS kept") || known(c, "SELECT 1 AS kept").is_empty(),
        "it was harmless all the time"
    );
    run(c, "SELECT lies()");
    assert!(!is_served(c, "SELECT lies()"), "{:?}", known(c, "SELECT lies()"));
    run(c, "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN $1; END'");
    run(c, "SELECT count(*) FROM t WHERE f(id) > 1");
    await_served(c, "SELECT count(*) FROM t WHERE f(id) > 1");
    let rows: i64 =
        text(c, "SELECT count(*)::text FROM quorum.readonly_statement").parse().expect("a number");
    assert!(rows <= 500, "{rows}");
    let log = servers.primary.log();
    let signals: Vec<&str> = log.lines().filter(|line| line.contains("was terminated by signal")).collect();
    assert!(signals.iter().all(|line| line.contains("signal 9: Killed")), "{signals:?}");
    assert!(!log.contains("PANIC") && !log.contains("TRAP"), "{log}");
}

/// Nothing is served that writes, and no row is there twice. An error is one of a session that was ended once more.
fn check(client: &mut Client, round: usize) -> Result<(), postgres::Error> {
    let row = client.query_one("SELECT quorum.served_statements()", &[])?;
    let served: Vec<String> = row.get(0);
    let writes = (0..50).map(|n| hash_of(&format!("SELECT nextval('s') AS next_{n}")));
    let wrong: Vec<String> = writes.filter(|hash| served.contains(hash)).collect();
    assert!(wrong.is_empty(), "round {round}: {wrong:?} are served");
    let twice = "SELECT count(*) FROM (SELECT FROM quorum.readonly_statements GROUP BY hash, search_path HAVING count(*) > 1) x";
    let twice: i64 = client.query_one(twice, &[])?.get(0);
    assert_eq!(twice, 0, "round {round}: rows that are there twice");
    // A function that writes by its definition is not served, whatever has become of the sessions that saw it change.
    let both =
        "SELECT provolatile = 'v' AND $1 = ANY (quorum.served_statements()) FROM pg_proc WHERE proname = 'f'";
    let both: bool = client.query_one(both, &[&hash_of("SELECT count(*) FROM t WHERE f(id) > 1")])?.get(0);
    assert!(!both, "round {round}: the function is VOLATILE, and its statement served");
    Ok(())
}
