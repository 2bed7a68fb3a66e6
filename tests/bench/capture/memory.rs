//! Memory of a backend whose transaction writes ten million rows, above what it needs where nothing is captured.
//!
//! PostgreSQL keeps 12 bytes in memory for each row that a statement has a row trigger to call for, until the statement
//! ends, whatever the trigger does. So the rows are written by statements of [`PER_STATEMENT`] rows, and once more by a
//! single statement, beside a trigger that does nothing.

use super::systems::{Fleet, Kind, Table, memory};
use crate::Options;
use crate::line::{Line, Must, Samples, rounded};
use crate::usage::status_bytes;
use postgres::Client;
use serde_json::json;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

pub const NAME: &str = "capture-memory";

/// Above `pgquorum.capture_memory`.
const MUST_MB: f64 = 64.0;
const MB: f64 = (1 << 20) as f64;

const ROWS: u64 = 10_000_000;
const PER_STATEMENT: u64 = 100_000;
const CONF: &str = "shared_buffers = 64MB\nmax_wal_size = 1GB\nautovacuum = off\nsynchronous_commit = off\n";
const TABLES: [Table; 1] = [Table { name: "many", has_key: true }];
const MAKE: &str = "CREATE TABLE many (id bigint PRIMARY KEY, n integer NOT NULL)";
const IDLE: &str = "CREATE FUNCTION idle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
                    CREATE TRIGGER idle AFTER INSERT ON many FOR EACH ROW EXECUTE FUNCTION idle()";

pub fn run(_: &Options) -> bool {
    let kinds = [Kind::Plain, Kind::Captured, Kind::Control];
    let mut fleet = Fleet::start(memory(), &kinds, CONF, &TABLES, |system| {
        system.sql(MAKE);
        if system.kind == Kind::Control {
            system.sql(IDLE);
        }
    });
    let limit =
        fleet.systems[1].ask("SELECT pg_size_bytes(current_setting('pgquorum.capture_memory'))::text");
    let limit = limit.parse::<f64>().expect("a number of bytes") / MB;
    let mut seen = [[0.0; 3]; 2];
    for (steps, seen) in [PER_STATEMENT, ROWS].iter().zip(&mut seen) {
        for (system, seen) in fleet.systems.iter_mut().zip(seen) {
            *seen = most(system.connect(), *steps) / MB;
            eprintln!("{NAME}, {} rows a statement, {}: {seen:.0} MB", steps, system.kind.name());
            system.sql("TRUNCATE many; CHECKPOINT");
        }
    }
    let above = |at: usize| seen[at][1] - seen[at][0];
    let samples = Samples::from(vec![above(0)]);
    let line = Line {
        bench: NAME,
        unit: "MB",
        samples: &samples,
        ratio: seen[0][1] / seen[0][0],
        against: "a backend where nothing is captured; largest anonymous memory, ten million rows in one transaction",
        must: Must::AtMost(limit + MUST_MB),
        judged: above(0),
        kept: true,
        more: json!({
            "capture_memory_mb": rounded(limit), "plain_mb": rounded(seen[0][0]), "captured_mb": rounded(seen[0][1]),
            "single_statement_mb": rounded(above(1)), "single_statement_idle_trigger_mb": rounded(seen[1][2] - seen[1][0]),
        }),
    };
    line.print()
}

/// The most anonymous memory that the session's backend had, in bytes.
fn most(mut session: Client, per_statement: u64) -> f64 {
    let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).expect("a number").get(0);
    let (over, ended) = mpsc::channel::<()>();
    let watcher = thread::spawn(move || {
        let mut largest = 0;
        loop {
            largest = largest.max(status_bytes(pid, "RssAnon").unwrap_or(0));
            // Until the other end is dropped.
            if ended.recv_timeout(Duration::from_millis(10)) == Err(RecvTimeoutError::Disconnected) {
                return largest;
            }
        }
    });
    let written = write(&mut session, per_statement);
    drop(over);
    let largest = watcher.join().expect("the watcher does not panic");
    written.unwrap_or_else(|e| panic!("{NAME}: {e:?}"));
    largest as f64
}

fn write(session: &mut Client, per_statement: u64) -> Result<(), postgres::Error> {
    let mut transaction = session.transaction()?;
    for first in (1..=ROWS).step_by(per_statement as usize) {
        let last = first + per_statement - 1;
        transaction.batch_execute(&format!(
            "INSERT INTO many SELECT g, 1 FROM generate_series({first}, {last}) g"
        ))?;
    }
    transaction.commit()
}
