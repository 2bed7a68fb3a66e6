//! The feed against a model: random writers, a reader that knows nothing but the changes, and after each batch the copy
//! equals what the batch's snapshot sees. In between the server crashes, with commits that were not flushed.

use pgquorum_tests::{Plain, Replayed, await_until, free_ports, server_directory};
use postgres::Client;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TABLES: [&str; 3] = ["public.account", "public.entry", "public.part"];
const WRITERS: u64 = 6;
const KEYS: i32 = 60;
const CRASHES: u32 = 3;
/// In each life of the server; the environment's CHANGES asks for another number.
const CHANGES: u64 = 25_000;
const SOON: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    CREATE EXTENSION pgquorum;
    CREATE TABLE account (id int PRIMARY KEY, n int NOT NULL, note text);
    CREATE TABLE entry (id int PRIMARY KEY, account int REFERENCES account ON UPDATE CASCADE ON DELETE CASCADE, n int);
    CREATE TABLE part (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
    CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (MINVALUE) TO (30);
    CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (30) TO (MAXVALUE);
    SELECT quorum.create_channel('shop');
    SELECT quorum.track('account', 'shop'), quorum.track('entry', 'shop'), quorum.track('part', 'shop')";

const CONF: &str = "
    shared_preload_libraries = 'pgquorum'
    max_prepared_transactions = 50
    pgquorum.segment_size = 1
    wal_writer_delay = 500ms
    deadlock_timeout = 100ms
    max_connections = 40";

/// One statement of a transaction. Those that fail roll back to the savepoint before them.
fn statement(random: &mut SmallRng) -> String {
    let (a, b, n) =
        (random.random_range(0..KEYS), random.random_range(0..KEYS), random.random_range(0..1000));
    match random.random_range(0..12) {
        0 | 1 => format!(
            "INSERT INTO account VALUES ({a}, {n}, repeat('x', {n} * {n} / 100)) ON CONFLICT (id) DO UPDATE SET n = account.n + 1"
        ),
        2 => format!("UPDATE account SET n = n + {n} WHERE id BETWEEN {a} AND {a} + 5"),
        3 => format!("UPDATE account SET id = {b} WHERE id = {a}"),
        4 => format!("DELETE FROM account WHERE id = {a}"),
        5 => format!(
            "INSERT INTO entry SELECT i, {a}, {n} FROM generate_series({b} * 10, {b} * 10 + 4) AS i ON CONFLICT DO NOTHING"
        ),
        6 => format!("UPDATE entry SET n = n + 1, account = {b} WHERE account = {a}"),
        7 => format!("DELETE FROM entry WHERE id % {KEYS} = {a}"),
        8 => format!("INSERT INTO part VALUES ({a}, {n}) ON CONFLICT (id) DO UPDATE SET n = excluded.n"),
        9 => format!("UPDATE part SET id = {b} WHERE id = {a}"),
        10 => format!("DELETE FROM part WHERE id = {a}"),
        _ => format!("UPDATE account SET note = md5(note) WHERE id = {a}"),
    }
}

/// Runs transactions until an error that is not one of the statements' own: the server is gone.
fn write(
    client: &mut Client,
    random: &mut SmallRng,
    name: &str,
    stop: &AtomicBool,
) -> Result<(), postgres::Error> {
    client.batch_execute("SET statement_timeout = '20s'")?;
    for round in 0.. {
        if stop.load(SeqCst) {
            break;
        }
        let level = if random.random_bool(0.5) { "on" } else { "off" };
        client.batch_execute(&format!("BEGIN; SET LOCAL synchronous_commit = {level}"))?;
        for _ in 0..random.random_range(1..6) {
            client.batch_execute("SAVEPOINT s")?;
            let kept = match client.batch_execute(&statement(random)) {
                Ok(()) => random.random_bool(0.8),
                Err(error) if error.as_db_error().is_some() && !client.is_closed() => false,
                Err(error) => return Err(error),
            };
            client.batch_execute(if kept { "RELEASE s" } else { "ROLLBACK TO s" })?;
        }
        let end = match random.random_range(0..20) {
            0..14 => "COMMIT".to_owned(),
            14..16 => "ROLLBACK".to_owned(),
            16 => format!("PREPARE TRANSACTION '{name}{round}'; ROLLBACK PREPARED '{name}{round}'"),
            _ => format!(
                "PREPARE TRANSACTION '{name}{round}'; SELECT quorum.cut('shop'); COMMIT PREPARED '{name}{round}'"
            ),
        };
        for step in end.split("; ") {
            client.batch_execute(step)?;
        }
    }
    Ok(())
}

fn start_writers(server: &Plain, seed: u64, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let writer = |number: u64| {
        let mut client = server.connect().expect("a session of a writer");
        let stop = Arc::clone(stop);
        std::thread::spawn(move || {
            let mut random = SmallRng::seed_from_u64(seed * 100 + number);
            // It ends with the server.
            let _ = write(&mut client, &mut random, &format!("w{seed}_{number}_"), &stop);
        })
    };
    (0..WRITERS).map(writer).collect()
}

/// Reads and compares until so many changes were replayed.
fn follow(server: &Plain, copy: &mut Replayed, changes: u64) {
    let mut client = server.connect().expect("a session of the reader");
    let (target, until) = (copy.changes + changes, Instant::now() + SOON * 10);
    while copy.changes < target {
        assert!(Instant::now() < until, "only {} changes by now", copy.changes);
        client.query_one("SELECT quorum.wait('shop', $1, '5 s')", &[&copy.position]).expect("waiting");
        copy.read(&mut client, 3000, i64::MAX).expect("reading");
        compare(&mut client, copy);
    }
}

/// A snapshot that is older than the last batch is taken again.
fn compare(client: &mut Client, copy: &mut Replayed) {
    await_until(SOON, "a snapshot that goes with a batch", || match copy.compare(client, &TABLES) {
        Ok(()) => Ok(()),
        Err(error) if error.code().is_some_and(|code| code.code() == "PQ004") => Err(error.to_string()),
        Err(error) => panic!("{error:?}"),
    });
}

/// From the environment.
fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn a_copy_made_from_the_feed_equals_what_each_snapshot_sees() {
    let (seed, changes) = (number("SEED", 20_260_601), number("CHANGES", CHANGES));
    eprintln!("SEED={seed} CHANGES={changes}");
    let (dir, [port]) = (server_directory("feed-model"), free_ports());
    let mut server = Plain::init(&dir.join("data"), port, CONF);
    server.sql(SCHEMA);
    // Open from beginning to end: it delays nobody, and comes when it is committed.
    server.sql("BEGIN; INSERT INTO account VALUES (-1, 0, 'stuck'); PREPARE TRANSACTION 'stuck'");

    let mut copy = Replayed::new("shop");
    for life in 0..=CRASHES {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = start_writers(&server, seed + u64::from(life), &stop);
        follow(&server, &mut copy, changes);
        if life == CRASHES {
            stop.store(true, SeqCst);
        } else {
            server.crash();
        }
        for writer in writers {
            writer.join().expect("a writer");
        }
        finish_prepared(&server);
        let mut client = server.connect().expect("a session");
        compare(&mut client, &mut copy);
        eprintln!("life {life}: {} changes, at {}", copy.changes, copy.position);
    }
    let key = ("public.account".to_owned(), "{\"id\": -1}".to_owned());
    assert!(!copy.rows.contains_key(&key), "what is not committed is not there");
    server.sql("COMMIT PREPARED 'stuck'");
    let mut client = server.connect().expect("a session");
    compare(&mut client, &mut copy);
    assert!(copy.rows.contains_key(&key), "a prepared transaction comes when it is committed");
    let segments: i64 =
        client.query_one("SELECT segments FROM quorum.channel_state", &[]).expect("the state").get(0);
    assert!(changes < CHANGES || segments > 1, "segments were closed on the way");
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

/// What a crash left prepared, but for the one that is kept on purpose.
fn finish_prepared(server: &Plain) {
    let mut client = server.connect().expect("a session");
    let left = client.query("SELECT gid FROM pg_prepared_xacts WHERE gid <> 'stuck'", &[]).expect("the list");
    for (row, commit) in left.iter().zip([true, false].into_iter().cycle()) {
        let (verb, gid): (&str, String) = (if commit { "COMMIT" } else { "ROLLBACK" }, row.get(0));
        client.batch_execute(&format!("{verb} PREPARED '{gid}'")).expect("finishing a prepared transaction");
    }
}
