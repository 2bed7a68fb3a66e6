//! A single server with the extension and a channel, and its log read row by row: for tests of what is captured.

use crate::{Plain, free_ports, run, server_directory};
use pgquorum_change::{Decoder, Schema, json};
use postgres::Client;
use std::collections::HashMap;
use std::path::PathBuf;

/// The server; it and its data go when this is dropped.
pub struct LogServer {
    pub server: Plain,
    root: PathBuf,
}

impl LogServer {
    /// A server with a channel `c`, its settings as given beside what the extension needs.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn start(conf: &str) -> LogServer {
        let root = server_directory("pgquorum-log-");
        let [port] = free_ports();
        let conf = format!(
            "shared_preload_libraries = 'pgquorum'\nmax_prepared_transactions = 10\nfsync = off\n{conf}"
        );
        let server = Plain::init(&root.join("data"), port, &conf);
        server.sql("CREATE EXTENSION pgquorum; SELECT quorum.create_channel('c')");
        LogServer { server, root }
    }

    /// # Panics
    /// There is no session to be had.
    pub fn connect(&self) -> Client {
        self.server.connect().expect("a session")
    }
}

impl Drop for LogServer {
    fn drop(&mut self) {
        self.server.kill();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// What the transactions that committed since the last call left in the log of the only channel, in order: each change
/// as JSON, without the schema `public`.
///
/// # Panics
/// The log is not as it must be.
pub fn take_log(client: &mut Client) -> Vec<String> {
    let lines = read_log(client);
    // Only a test may do this: what is read is thrown away.
    client.batch_execute("DELETE FROM quorum_log.log_1_1").expect("the log is emptied");
    lines
}

fn read_log(client: &mut Client) -> Vec<String> {
    let schemas =
        client.query("SELECT id, schema_name, table_name, columns::text FROM quorum.schema_version", &[]);
    let schemas: HashMap<u64, Schema> = schemas
        .expect("schema versions")
        .iter()
        .map(|row| {
            let id = u64::try_from(row.get::<_, i64>(0)).expect("a number");
            (id, Schema::new(id, row.get(1), row.get(2), row.get(3)).expect("a schema"))
        })
        .collect();
    let rows = client.query(
        "SELECT part, changes, flags, data, xid::text FROM quorum_log.log_1_1 ORDER BY order_lsn, xid, part",
        &[],
    );
    let mut decoder = Decoder::new();
    let (mut lines, mut begins) = (Vec::new(), true);
    for row in rows.expect("the log") {
        let (part, changes, flags): (i32, i32, i32) = (row.get(0), row.get(1), row.get(2));
        let mut found = decoder.feed(row.get::<_, &[u8]>(3)).expect("a good chunk");
        assert_eq!(
            (found.part as i32, found.last),
            (part, flags & 2 != 0),
            "the row says what its chunk says"
        );
        assert_eq!((part == 0, flags & 1 != 0), (begins, begins), "transactions do not mix");
        begins = found.last;
        let mut seen = 0;
        while let Some(change) = found.next().expect("a good change") {
            let mut line = Vec::new();
            json::object(&mut line, &change, &schemas[&change.schema_version]);
            lines.push(String::from_utf8(line).expect("UTF-8").replace("\"schema\":\"public\",", ""));
            seen += 1;
        }
        assert_eq!(seen, changes, "as many changes end in a row as it says");
    }
    assert!(begins, "the last transaction is whole");
    lines
}

/// Runs statements and compares what they leave in the log.
///
/// # Panics
/// A statement fails, or the log holds something else.
pub fn expect_log(client: &mut Client, sql: &str, lines: &[&str]) {
    run(client, sql);
    assert_eq!(take_log(client), lines, "{sql}");
}
