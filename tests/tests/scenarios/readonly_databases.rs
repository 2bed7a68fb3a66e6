//! More databases that learn all the time than there are workers to save what they learn: each has its turn.

use pgquorum_tests::{LearningServer, PATIENCE, await_served, await_until, is_served, known, run};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

const DATABASES: usize = 12;

/// Ends the threads, also when a check has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn each_database_has_its_turn() {
    let servers = LearningServer::with_standby("");
    let mut admin = servers.connect();
    let names: Vec<String> = (0..DATABASES).map(|n| format!("one_of_many_{n}")).collect();
    for name in &names {
        run(&mut admin, &format!("CREATE DATABASE {name}"));
        let mut client = servers.primary.connect_to(name).expect("a session");
        run(
            &mut client,
            "CREATE EXTENSION pgquorum; CREATE SEQUENCE s; CREATE TABLE told (n int);
             CREATE FUNCTION lies() RETURNS bigint LANGUAGE plpgsql STABLE AS
                 'BEGIN IF EXISTS (SELECT FROM told) THEN PERFORM nextval(''s''); END IF; RETURN 1; END'",
        );
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop_all = Stop(&stop);
        let mut threads = Vec::new();
        for name in &names {
            let (mut client, stop) = (servers.primary.connect_to(name).expect("a session"), &stop);
            // Something to be saved all the time, in each of them.
            threads.push(scope.spawn(move || {
                for round in 0_u64.. {
                    if stop.load(SeqCst) {
                        return;
                    }
                    run(&mut client, &format!("SELECT 1 AS always_{}", round % 500));
                    run(&mut client, "SELECT pg_sleep(0.01)");
                }
            }));
        }
        for (number, name) in names.iter().enumerate() {
            let mut client = servers.primary.connect_to(name).expect("a session");
            let begin = Instant::now();
            run(&mut client, "SELECT lies()");
            await_served(&mut client, "SELECT lies()");
            eprintln!("{name} serves what it learned after {} ms", begin.elapsed().as_millis());
            if number % 3 == 0 {
                servers.await_replayed();
                let mut standby = servers.standby().connect_to(name).expect("a session on the standby");
                await_served(&mut standby, "SELECT lies()");
                run(&mut client, "INSERT INTO told VALUES (1)");
                let begin = Instant::now();
                run(&mut client, "SELECT lies()");
                assert!(!is_served(&mut client, "SELECT lies()"));
                await_until(PATIENCE, "the standby does not serve it any more", || {
                    if is_served(&mut standby, "SELECT lies()") {
                        Err(format!("{:?}", known(&mut standby, "SELECT lies()")))
                    } else {
                        Ok(())
                    }
                });
                eprintln!("{name}: withdrawn on the standby after {} ms", begin.elapsed().as_millis());
            }
        }
        drop(stop_all);
        for thread in threads {
            thread.join().expect("no client has seen an error");
        }
    });
}
