//! How fast changes reach those who read them.

pub mod latency;
pub mod stream;
pub mod throughput;

use crate::capture::systems::{CHANNEL, Kind, System, Table, receive, track};
use pgquorum_tests::{Cluster, Node, PATIENCE, await_until};
use postgres::Client;
use std::io::{Error, Read};
use std::process::Child;
use stream::{BINARY, CHANGE, Frames, Lines, NDJSON, Stream};

/// A session of the leader's database, in which these tables are captured from now on.
pub fn capture(cluster: &Cluster, make_tables: &str, tables: &[Table]) -> Client {
    let mut session = cluster.connect(cluster.leader()).expect("a session on the leader");
    let mut run = |sql: &str| session.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    run(make_tables);
    run(&track(tables));
    session
}

/// Reads so many changes after a position; the position of the last one is not needed by anybody.
pub fn read_lines(node: &Node, after: &str, count: u64) -> Result<(), Error> {
    let mut stream = Stream::open(node.api_port(), CHANNEL, NDJSON, after)?;
    let (mut lines, mut seen, mut failed) = (Lines::default(), 0, None);
    while seen < count {
        let bytes = stream.read()?;
        let open = !bytes.is_empty();
        lines.push(bytes, |line| {
            seen += u64::from(line.starts_with(CHANGE));
            if line.starts_with(b"{\"type\":\"error\"") {
                failed = Some(String::from_utf8_lossy(line).into_owned());
            }
        });
        if let Some(line) = failed {
            return Err(Error::other(line));
        }
        ended(open, seen, count)?;
    }
    Ok(())
}

/// The same in the binary form.
pub fn read_frames(node: &Node, after: &str, count: u64) -> Result<(), Error> {
    let mut stream = Stream::open(node.api_port(), CHANNEL, BINARY, after)?;
    let mut frames = Frames::default();
    while frames.changes < count {
        let bytes = stream.read()?;
        let open = !bytes.is_empty();
        frames.push(bytes)?;
        ended(open, frames.changes, count)?;
    }
    Ok(())
}

fn ended(open: bool, seen: u64, count: u64) -> Result<(), Error> {
    if open { Ok(()) } else { Err(Error::other(format!("the stream ended after {seen} of {count} changes"))) }
}

/// The peer: `pg_recvlogical` with a wal2json slot, whose lines are read here.
pub struct Peer(Child);

impl Peer {
    pub fn start(system: &System, slot: &str) -> Peer {
        assert_eq!(system.kind, Kind::Wal2json, "nobody else has slots");
        Peer(receive(&system.dsn(), slot, "-", &["-F", "0", "-s", "1"]))
    }

    /// Gives each line to `each` until that says that it was the last one.
    pub fn lines(&mut self, mut each: impl FnMut(&[u8]) -> bool) -> Result<(), Error> {
        let mut from = self.0.stdout.take().ok_or_else(|| Error::other("it is being read"))?;
        let (mut buffer, mut lines, mut last) = (vec![0; 256 * 1024], Lines::default(), false);
        while !last {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                return Err(Error::other("pg_recvlogical ended"));
            }
            lines.push(&buffer[..n], |line| last |= each(line));
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Drops a slot as soon as its reader has gone.
pub fn drop_slot(system: &mut System, slot: &str) {
    let sql = format!("SELECT active::text FROM pg_replication_slots WHERE slot_name = '{slot}'");
    await_until(PATIENCE, "the slot to be free", || match system.ask(&sql).as_str() {
        "false" => Ok(()),
        other => Err(other.to_owned()),
    });
    system.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
}
