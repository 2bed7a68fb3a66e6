//! Everybody writes the same rows, changes come late, and in the end all have the same.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use pgquorum_tests::{Applier, LogServer, rows, run, text};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::apply_statements::assert_tidy;
use super::last_write_wins::{is_to_be_tried_again, pull, settle, versions};

const TABLE: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text, doc text); ALTER TABLE t ALTER doc SET STORAGE EXTERNAL;
    SELECT quorum.track('t', 'c')";

/// So few rows that all of them are written by all, all the time.
const IDS: i32 = 12;

fn servers(names: &[&str]) -> Vec<LogServer> {
    names
        .iter()
        .map(|name| {
            let server = LogServer::start("");
            run(&mut server.connect(), &format!("SELECT quorum.set_origin_name('{name}'); {TABLE}"));
            server
        })
        .collect()
}

/// A subscription of its own name, so that a database may have several.
fn follow(source: &LogServer, target: &LogServer, name: &str, forward: bool) -> Applier {
    let (mut source, mut target) = (source.connect(), target.connect());
    let end = text(&mut source, "SELECT quorum.cut('c')");
    let sql = format!(
        "SELECT quorum.subscribe('{name}', '{{http://127.0.0.1:1}}', 'c', copy => 'none', start => $1, policy => 'last_write_wins',
                forward => {forward})"
    );
    let id: i32 = target.query_one(&sql, &[&end]).expect("a subscription").get(0);
    let mut applier = Applier { id, source, target, batch_bytes: 64 * 1024 };
    applier.find_tables();
    applier.add_schemas();
    applier
}

fn transaction(random: &mut StdRng, who: &str, number: usize) -> String {
    let mut sql = String::from("BEGIN;");
    for _ in 0..random.random_range(1..5) {
        let (id, other) = (random.random_range(1..=IDS), random.random_range(1..=IDS));
        sql += &match random.random_range(0..12) {
            0..=2 => format!("INSERT INTO t VALUES ({id}, '{who}{number}', '-') ON CONFLICT DO NOTHING;"),
            3 | 4 => format!("UPDATE t SET v = '{who}{number}' WHERE id = {id};"),
            5 => format!("UPDATE t SET doc = repeat('{who}{number} ', 1000) WHERE id = {id};"),
            6 | 7 => format!("DELETE FROM t WHERE id = {id};"),
            8 => format!(
                "UPDATE t SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM t WHERE id = {other});"
            ),
            9 => format!(
                "DELETE FROM t WHERE id = {id}; INSERT INTO t VALUES ({id}, '{who}{number}', 'again');"
            ),
            10 => format!("SAVEPOINT s; DELETE FROM t WHERE id > {id}; ROLLBACK TO s;"),
            _ => format!("UPDATE t SET v = v || '{who}' WHERE id % 3 = {};", id % 3),
        };
    }
    sql + if random.random_range(0..8) == 0 { "ROLLBACK" } else { "COMMIT" }
}

fn write(server: &LogServer, who: &str, seed: u64, transactions: usize) {
    let mut client = server.connect();
    let mut random = StdRng::seed_from_u64(seed);
    for number in 0..transactions {
        if let Err(error) = client.batch_execute(&transaction(&mut random, who, number)) {
            // Deadlocks and collisions are part of it, refusals of ours are not.
            let code = error.code().map_or("none", |code| code.code()).to_owned();
            assert!(is_to_be_tried_again(&error) || code == "23505", "{error:?}");
            let _ = client.batch_execute("ROLLBACK");
        }
    }
}

/// Writers everywhere, and meanwhile everybody follows; then all of it arrives, and all are the same.
fn all_are_the_same_in_the_end(all: &[LogServer], appliers: &mut [Applier], transactions: usize) {
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(26);
    println!("SEED={seed}");
    let written = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let written = &written;
        for applier in appliers.iter_mut() {
            scope.spawn(move || {
                while !written.load(SeqCst) {
                    pull(applier);
                }
            });
        }
        let writers: Vec<_> = (0..2 * all.len())
            .map(|at| {
                let who = char::from(b'a' + at as u8).to_string();
                let server = &all[at / 2];
                scope.spawn(move || write(server, &who, seed * 100 + at as u64, transactions))
            })
            .collect();
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        written.store(true, SeqCst);
        ended.into_iter().for_each(|ended| ended.expect("a writer"));
    });
    settle(&mut appliers.iter_mut().collect::<Vec<_>>());
    let mut seen = Vec::new();
    for server in all {
        let client = &mut server.connect();
        let conflicts = text(client, "SELECT coalesce(sum(count), 0)::text FROM quorum.conflicts");
        let rejected = text(client, "SELECT count(*)::text FROM quorum.rejected_changes");
        let stopped =
            text(client, "SELECT count(*)::text FROM quorum.subscription_tables WHERE state <> 'following'");
        println!("{}: {conflicts} conflicts", text(client, "SELECT quorum.origin_name()"));
        assert_eq!((rejected.as_str(), stopped.as_str()), ("0", "0"));
        seen.push((rows(client, "t"), versions(client, "t"), conflicts));
        assert_tidy(server);
    }
    for (at, other) in seen.iter().enumerate().skip(1) {
        let short =
            |rows: &str| rows.lines().map(|row| row.chars().take(60).collect::<String>()).collect::<Vec<_>>();
        assert_eq!(short(&other.0), short(&seen[0].0), "rows of server {at}");
        assert!(other.0 == seen[0].0, "large values of server {at} differ");
        assert_eq!(other.1, seen[0].1, "versions of server {at}");
    }
    assert!(seen.iter().all(|(.., conflicts)| conflicts != "0"), "there was nothing to be weighed");
}

#[test]
fn two_that_follow_each_other() {
    let all = servers(&["berlin", "paris"]);
    let mut appliers = [follow(&all[0], &all[1], "s", false), follow(&all[1], &all[0], "s", false)];
    all_are_the_same_in_the_end(&all, &mut appliers, 300);
}

#[test]
fn three_in_a_ring() {
    let all = servers(&["berlin", "paris", "rome"]);
    let mut appliers: Vec<Applier> =
        (0..3).map(|at| follow(&all[at], &all[(at + 1) % 3], "s", true)).collect();
    all_are_the_same_in_the_end(&all, &mut appliers, 150);
}

#[test]
fn a_hub_and_its_leaves() {
    let all = servers(&["hub", "east", "west"]);
    let mut appliers = [
        follow(&all[1], &all[0], "east", false),
        follow(&all[2], &all[0], "west", false),
        follow(&all[0], &all[1], "hub", true),
        follow(&all[0], &all[2], "hub", true),
    ];
    all_are_the_same_in_the_end(&all, &mut appliers, 150);
}

#[test]
fn three_that_follow_each_other_by_all_ways() {
    let all = servers(&["berlin", "paris", "rome"]);
    let mut appliers: Vec<Applier> = [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)]
        .iter()
        .map(|(from, to)| follow(&all[*from], &all[*to], &format!("from_{from}"), true))
        .collect();
    all_are_the_same_in_the_end(&all, &mut appliers, 80);
}
