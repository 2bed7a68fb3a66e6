//! The extension comes and goes while clients run statements: they notice nothing, and it learns again.

use pgquorum_tests::{LearningServer, PATIENCE, await_served, await_until, is_served, run, served};
use postgres::Client;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

const ROUNDS: usize = 20;
/// So many texts of each client's own: all clients' together have room in memory, and are soon saved. In a full one a statement
/// is learned when it comes for the second time, and what is looked for here may come once.
const TEXTS: u64 = 100;

/// Ends the threads, also when a check has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn clients_do_not_notice_that_the_extension_comes_and_goes() {
    let servers = LearningServer::start("");
    let admin = &mut servers.connect();
    run(
        admin,
        "CREATE TABLE t (id int); CREATE SEQUENCE s; CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN 1; END'",
    );
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let stop_all = Stop(&stop);
        let mut threads = Vec::new();
        for number in 0..4 {
            let (mut client, stop, done) = (servers.connect(), &stop, &done);
            threads.push(scope.spawn(move || {
                let prepared = client.prepare("SELECT f(), count(*) FROM t").expect("it is right");
                let mut round = 0_u64;
                while !stop.load(SeqCst) {
                    round += 1;
                    run(&mut client, "SELECT id FROM t");
                    run(&mut client, &format!("SELECT 1 AS by_{number}_{}", round % TEXTS));
                    run(&mut client, "SELECT nextval('s')");
                    client.query(&prepared, &[]).expect("a row");
                    done.fetch_add(1, SeqCst);
                }
            }));
        }
        for round in 0..ROUNDS {
            let how =
                if round % 2 == 0 { "DROP EXTENSION pgquorum" } else { "DROP EXTENSION pgquorum CASCADE" };
            run(admin, how);
            let before = done.load(SeqCst);
            // Learned by the sessions while there is no table.
            await_until(PATIENCE, "clients go on", || match done.load(SeqCst) {
                now if now > before + 4 => Ok(()),
                now => Err(now.to_string()),
            });
            run(admin, "CREATE EXTENSION pgquorum");
            if round % 4 == 3 {
                await_served(admin, "SELECT id FROM t");
                await_served(admin, "SELECT f(), count(*) FROM t");
                assert!(!is_served(admin, "SELECT nextval('s')"));
            }
        }
        // A drop that is rolled back has not happened.
        await_served(admin, "SELECT id FROM t");
        run(admin, "BEGIN; DROP EXTENSION pgquorum; ROLLBACK");
        assert!(is_served(admin, "SELECT id FROM t"));
        drop(stop_all);
        for thread in threads {
            thread.join().expect("no client has seen an error");
        }
    });
    // A database that goes while it is learned from.
    run(admin, "CREATE DATABASE short");
    let mut inside = servers.primary.connect_to("short").expect("a session");
    run(&mut inside, "CREATE EXTENSION pgquorum");
    run(&mut inside, "SELECT 1 AS inside");
    drop(inside);
    run(admin, "DROP DATABASE short WITH (FORCE)");
    // One that comes from a template has what the template had learned, and no more.
    run(admin, "CREATE DATABASE mould");
    let mut mould = servers.primary.connect_to("mould").expect("a session");
    run(&mut mould, "CREATE EXTENSION pgquorum; CREATE TABLE u (id int)");
    run(&mut mould, "SELECT id FROM u");
    await_served(&mut mould, "SELECT id FROM u");
    drop(mould);
    run(admin, "CREATE DATABASE cast_one TEMPLATE mould");
    let mut copy = servers.primary.connect_to("cast_one").expect("a session");
    assert!(is_served(&mut copy, "SELECT id FROM u"), "{:?}", served(&mut copy));
    run(&mut copy, "DROP TABLE u; CREATE SEQUENCE v; CREATE VIEW u AS SELECT nextval('v') AS id");
    assert!(!is_served(&mut copy, "SELECT id FROM u"));
    let mut mould = servers.primary.connect_to("mould").expect("a session");
    assert!(is_served(&mut mould, "SELECT id FROM u"), "the other database's table is what it was");
    let log = servers.primary.log();
    assert!(!log.contains("PANIC") && !log.contains("was terminated by signal"), "{log}");
}

/// What is saved only little by little, for longer than PostgreSQL waits for those who are in a database.
fn learn_much(client: &mut Client, round: usize) {
    run(client, "SELECT id FROM u");
    for number in 0..2000 {
        run(client, &format!("SELECT 1 AS much_{round}_{number}"));
    }
    await_served(client, "SELECT id FROM u");
}

#[test]
fn whoever_wants_a_database_for_himself_is_not_hindered_by_what_is_saved_there() {
    let servers = LearningServer::start("");
    let admin = &mut servers.connect();
    // Nothing else is to be saved on this server, and so the worker stays.
    run(admin, "DROP EXTENSION pgquorum");
    run(admin, "CREATE ROLE nobody");
    run(admin, "CREATE DATABASE brief");
    let mut inside = servers.primary.connect_to("brief").expect("a session");
    run(&mut inside, "CREATE EXTENSION pgquorum; CREATE TABLE u (id int)");
    learn_much(&mut inside, 1);
    drop(inside);
    // Who may not do it sends nobody away.
    run(admin, "SET ROLE nobody");
    let error = admin.batch_execute("DROP DATABASE brief").expect_err("it is somebody else's");
    assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{error:?}");
    run(admin, "RESET ROLE");
    assert_eq!(savers(admin), 1);
    run(admin, "CREATE DATABASE copy TEMPLATE brief");
    // It comes back by itself.
    await_saver(admin);
    run(admin, "ALTER DATABASE brief RENAME TO short");
    let mut inside = servers.primary.connect_to("short").expect("a session");
    learn_much(&mut inside, 2);
    drop(inside);
    run(admin, "SET allow_in_place_tablespaces = on");
    run(admin, "CREATE TABLESPACE elsewhere LOCATION ''");
    run(admin, "ALTER DATABASE short SET TABLESPACE elsewhere");
    run(admin, "DROP DATABASE short");
    let mut copy = servers.primary.connect_to("copy").expect("a session");
    learn_much(&mut copy, 3);
    drop(copy);
    run(admin, "DROP DATABASE IF EXISTS copy");
    run(admin, "DROP DATABASE IF EXISTS short");
    // A worker that was sent away later is back: others would have been before it.
    run(admin, "CREATE DATABASE later");
    let mut later = servers.primary.connect_to("later").expect("a session");
    run(&mut later, "CREATE EXTENSION pgquorum; CREATE TABLE u (id int)");
    learn_much(&mut later, 4);
    drop(later);
    run(admin, "ALTER DATABASE later RENAME TO latest");
    await_saver(admin);
    let log = servers.primary.log();
    assert!(!log.contains("does not exist"), "nobody looks for what was dropped: {log}");
}

fn await_saver(client: &mut Client) {
    await_until(PATIENCE, "a worker that saves", || match savers(client) {
        0 => Err("there is none".to_owned()),
        _ => Ok(()),
    });
}

/// Workers that save, wherever.
fn savers(client: &mut Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pgquorum statements'";
    client.query_one(sql, &[]).expect("it can be read").get(0)
}
