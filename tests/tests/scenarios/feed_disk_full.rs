//! The disk under a channel's server is full for a while: what was refused is not in the feed, what was committed is.

use super::feed_writers::Stops;
use pgquorum_tests::{
    Plain, Replayed, StalledDisk, await_until, free_ports, server_directory, server_directory_below, skipped,
};
use postgres::Client;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const TABLES: [&str; 1] = ["public.t"];
const SOON: Duration = Duration::from_secs(180);
/// Room for an empty database with its WAL, and for what is written before the disk is filled.
const MIB: u64 = 320;
const CONF: &str = "
    shared_preload_libraries = 'pgquorum'
    pgquorum.segment_size = 1
    max_wal_size = 64MB
    min_wal_size = 32MB
    autovacuum = off";

/// What writers count.
#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    committed: AtomicU64,
    refused: AtomicU64,
}

/// Transactions of several rows that grow the table and the log, whatever becomes of them and of the server.
fn write(server: &Plain, counts: &Counts, number: u64) {
    let mut session: Option<Client> = None;
    for round in 0_u64.. {
        if counts.stop.load(SeqCst) {
            return;
        }
        let Some(client) = session.as_mut().filter(|client| !client.is_closed()) else {
            session = server.connect().ok();
            if session.is_none() {
                std::thread::sleep(Duration::from_millis(50));
            }
            continue;
        };
        // Keys that the writers share; long values that do not shrink.
        let first = (round * 7 + number * 3) % 500;
        let written = client.batch_execute(&format!(
            "INSERT INTO t SELECT i, {round}, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 30) WHERE i > 0)
             FROM generate_series({first}, {first} + 4) AS i ON CONFLICT (id) DO UPDATE SET n = excluded.n, note = excluded.note"
        ));
        match written {
            Ok(()) => counts.committed.fetch_add(1, SeqCst),
            Err(error) if error.as_db_error().is_some() => counts.refused.fetch_add(1, SeqCst),
            Err(_) => 0,
        };
    }
}

fn grows(what: &str, count: &AtomicU64) {
    let before = count.load(SeqCst);
    await_until(SOON, what, || match count.load(SeqCst) {
        now if now >= before + 20 => Ok(()),
        now => Err(format!("{} more", now - before)),
    });
}

fn compare(server: &Plain, copy: &mut Replayed) {
    await_until(SOON, "the copy equals a snapshot", || {
        let mut client = server.connect().map_err(|e| e.to_string())?;
        copy.compare(&mut client, &TABLES).map_err(|e| format!("{e:?}"))
    });
}

/// Moves WAL to another disk, where there is room: writes are refused then, and the server lives.
fn move_wal(server: &mut Plain, to: &Path) {
    server.kill();
    let wal = server.dir().join("pg_wal");
    let copied = std::process::Command::new("cp").arg("-a").arg(&wal).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp {}", wal.display());
    std::fs::remove_dir_all(&wal).expect("removing what was copied");
    std::os::unix::fs::symlink(to, &wal).expect("a link to WAL");
    server.crash();
}

#[track_caller]
fn goes_on_after_a_full_disk(name: &str, wal_apart: bool) {
    if let Some(why) = StalledDisk::refused() {
        skipped(&why);
        return;
    }
    let (dir, [port]) = (server_directory(name), free_ports());
    let mounted = server_directory_below(&dir, "disk");
    let disk = StalledDisk::of_size(&mounted, MIB);
    let mut server = Plain::init(&mounted.join("data"), port, CONF);
    if wal_apart {
        move_wal(&mut server, &dir.join("wal"));
    }
    server.sql(
        "CREATE EXTENSION pgquorum; CREATE TABLE t (id int PRIMARY KEY, n int, note text);
         SELECT quorum.create_channel('shop'); SELECT quorum.track('t', 'shop')",
    );
    let mut copy = Replayed::new("shop");
    let counts = Counts::default();
    std::thread::scope(|scope| {
        let _stops = Stops(&counts.stop);
        let (server_of, counts_of) = (&server, &counts);
        for number in 0..3 {
            scope.spawn(move || write(server_of, counts_of, number));
        }
        grows("transactions that are committed", &counts.committed);
        compare(&server, &mut copy);
        disk.fill();
        if wal_apart {
            grows("transactions that the full disk refuses", &counts.refused);
        } else {
            // It cannot write WAL, and ends.
            await_until(SOON, "the server is down", || {
                server.connect().map_or(Ok(()), |_| Err("it runs".to_owned()))
            });
        }
        disk.empty();
        if wal_apart {
            grows("transactions that are committed again", &counts.committed);
            compare(&server, &mut copy);
        }
    });
    if !wal_apart {
        server.crash();
        server.sql("INSERT INTO t VALUES (-1, 0, 'after the crash')");
    }
    compare(&server, &mut copy);
    assert!(copy.changes > 100, "{} changes", copy.changes);
    server.remove();
    drop(disk);
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn writes_that_a_full_disk_refuses_are_not_in_the_feed() {
    goes_on_after_a_full_disk("feed-disk-full", true);
}

#[test]
fn the_feed_goes_on_after_a_server_that_could_not_write_wal() {
    goes_on_after_a_full_disk("feed-wal-full", false);
}
