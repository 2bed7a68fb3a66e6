//! The feed against a model: random writers, a reader that knows nothing but the changes, and after each batch the copy
//! equals what the batch's snapshot sees: by what triggers have written down of each row, for every batch; by the tables
//! themselves, every now and then. In between the server crashes, with commits that were not flushed.

use super::feed_writers::{Manner, RECORD, SCHEMA, TABLES, write};
use pgquorum_tests::{Plain, Replayed, await_until, free_ports, server_directory};
use postgres::Client;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MANNER: Manner = Manner { weak: true, prepared: true, partitions: true };
const WRITERS: u64 = 6;
const CRASHES: u32 = 3;
/// In each life of the server; the environment's CHANGES asks for another number.
const CHANGES: u64 = 25_000;
/// After so many changes the copy is compared with the tables. Then the writers' statements that need a table for themselves
/// wait.
const LOOK_EVERY: u64 = 250;
const SOON: Duration = Duration::from_secs(60);

const CONF: &str = "
    shared_preload_libraries = 'pgquorum'
    max_prepared_transactions = 50
    pgquorum.segment_size = 1
    wal_writer_delay = 500ms
    deadlock_timeout = 100ms
    max_connections = 40";

fn start_writers(server: &Plain, seed: u64, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let writer = |number: u64| {
        let mut client = server.connect().expect("a session of a writer");
        let stop = Arc::clone(stop);
        std::thread::spawn(move || {
            let mut random = SmallRng::seed_from_u64(seed * 100 + number);
            // It ends with the server.
            let _ = write(&mut client, &mut random, &format!("w{seed}_{number}_"), &stop, MANNER);
        })
    };
    (0..WRITERS).map(writer).collect()
}

/// Reads and compares until so many changes were replayed. A reading ends anywhere in a batch, or after several.
fn follow(server: &Plain, copy: &mut Replayed, changes: u64) {
    let mut client = server.connect().expect("a session of the reader");
    let (target, until) = (copy.changes + changes, Instant::now() + SOON * 10);
    let mut looked_at = copy.changes;
    while copy.changes < target {
        assert!(Instant::now() < until, "only {} changes by now", copy.changes);
        client.query_one("SELECT quorum.wait('shop', $1, '5 s')", &[&copy.position]).expect("waiting");
        copy.read(&mut client, 3000, i64::MAX).expect("reading");
        if copy.changes >= looked_at + LOOK_EVERY {
            compare(&mut client, copy);
            looked_at = copy.changes;
        }
    }
}

/// A snapshot that is older than the last batch is taken again, and so are locks that were in the way of writers' own.
fn compare(client: &mut Client, copy: &mut Replayed) {
    await_until(SOON, "a snapshot that goes with a batch", || match copy.compare(client, &TABLES) {
        Ok(()) => Ok(()),
        Err(error) if error.code().is_some_and(|code| ["PQ004", "40P01"].contains(&code.code())) => {
            Err(error.to_string())
        }
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
    server.sql("CREATE EXTENSION pgquorum");
    server.sql(SCHEMA);
    server.sql(RECORD);
    // Open from beginning to end: it delays nobody (who does not change the table itself), and comes when it is committed.
    server.sql("BEGIN; INSERT INTO account VALUES (-1, 0, 'stuck'); PREPARE TRANSACTION 'stuck'");

    let mut copy = Replayed::checked("shop");
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
        eprintln!(
            "life {life}: {} changes in {} batches, at {}; {} times a partition came or went",
            copy.changes,
            copy.batches_compared(),
            copy.position,
            copy.partitions
        );
    }
    let key = ("public.account".to_owned(), "{\"id\": -1}".to_owned());
    assert!(!copy.rows.contains_key(&key), "what is not committed is not there");
    server.sql("COMMIT PREPARED 'stuck'");
    let mut client = server.connect().expect("a session");
    compare(&mut client, &mut copy);
    assert!(copy.rows.contains_key(&key), "a prepared transaction comes when it is committed");
    let batches = copy.batches_listed(&mut client).expect("the batches");
    assert_eq!(copy.batches_compared(), batches, "each batch was compared");
    assert!(changes < CHANGES || copy.partitions > 10, "a partition went and came back");
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
