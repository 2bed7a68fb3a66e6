//! A subscription without a sidecar: the source's log is read over SQL and handed to `quorum.apply` at the target.

use crate::{LogServer, text};
use pgquorum_change::{LogRow, take_row};
use postgres::Client;
use postgres::error::SqlState;

/// What calls of `quorum.apply` have said and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// `EPOCH:TICK`.
    pub position: String,
    pub in_transaction: bool,
    pub one_by_one: bool,
    pub transactions: i64,
    pub changes: i64,
    pub conflicts: i64,
    pub rejected: i64,
}

/// A subscription of `target` to the channel `c` of `source`, and its two sessions.
pub struct Applier {
    pub id: i32,
    pub source: Client,
    pub target: Client,
    /// How much is given to one call, at least one frame.
    pub batch_bytes: usize,
}

/// A log row as a frame.
#[derive(Clone)]
pub struct Frame {
    pub row: LogRow,
    pub bytes: Vec<u8>,
}

/// Position of the frame `P` that announces rows after a tick.
#[must_use]
pub fn piece_frame(after: u64, rows: &[Frame]) -> Vec<u8> {
    let to = rows.last().map_or((0, 0), |last| (last.row.epoch, last.row.last_tick));
    let mut frame = vec![b'P', 24, 0, 0, 0];
    for number in [after, to.0, to.1] {
        frame.extend_from_slice(&number.to_le_bytes());
    }
    frame
}

impl Applier {
    /// Subscribes, from the present end of the source's channel on. `settings`: more arguments of `quorum.subscribe`, each
    /// with a comma before it.
    ///
    /// # Panics
    /// It is refused.
    pub fn new(source: &LogServer, target: &LogServer, settings: &str) -> Applier {
        let (mut source, mut target) = (source.connect(), target.connect());
        let end = text(&mut source, "SELECT quorum.cut('c')");
        let origin = text(&mut source, "SELECT quorum.origin_name()");
        let tables = text(&mut source, TRACKED);
        let sql = format!(
            "SELECT quorum.subscribe('s', '{{http://127.0.0.1:1}}', 'c', copy => 'none', start => $1{settings})"
        );
        let id: i32 = target.query_one(&sql, &[&end]).expect("a subscription").get(0);
        let sql = "SELECT quorum.subscription_tables_found($1, $2, $3::text::jsonb)";
        target.execute(sql, &[&id, &origin, &tables]).expect("tables");
        Applier { id, source, target, batch_bytes: 64 * 1024 }
    }

    /// Tells the target what the source tracks now.
    ///
    /// # Panics
    /// It is refused.
    pub fn find_tables(&mut self) {
        let origin = text(&mut self.source, "SELECT quorum.origin_name()");
        let tables = text(&mut self.source, TRACKED);
        let sql = "SELECT quorum.subscription_tables_found($1, $2, $3::text::jsonb)";
        self.target.execute(sql, &[&self.id, &origin, &tables]).expect("tables");
    }

    /// All that the source's channel has after a position.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn frames(&mut self, after: &str) -> Vec<Frame> {
        text(&mut self.source, "SELECT quorum.cut('c')");
        let packs = self.source.query("SELECT quorum.read_packed('c', $1, 1000000000)", &[&after]);
        let mut frames = Vec::new();
        for pack in packs.expect("the log") {
            let pack: &[u8] = pack.get(0);
            let mut rest = pack;
            while !rest.is_empty() {
                let before = rest;
                let (row, _) = take_row(&mut rest).expect("whole rows");
                frames.push(Frame { row, bytes: before[..before.len() - rest.len()].to_vec() });
            }
        }
        frames
    }

    /// One call of `quorum.apply`, after giving it the schema versions that it asks for. In a transaction, only where it
    /// knows them.
    ///
    /// # Errors
    /// The server's.
    pub fn call(&mut self, batch: &[u8], only: Option<&str>) -> Result<Applied, postgres::Error> {
        let sql = "SELECT coalesce(epoch || ':' || tick, ''), in_transaction, one_by_one, transactions, changes, conflicts, rejected
                   FROM quorum.apply($1, $2, $3)";
        let row = self.target.query_one(sql, &[&self.id, &batch, &only])?;
        Ok(Applied {
            position: row.get(0),
            in_transaction: row.get(1),
            one_by_one: row.get(2),
            transactions: row.get(3),
            changes: row.get(4),
            conflicts: row.get(5),
            rejected: row.get(6),
        })
    }

    /// Gives the target all schema versions of the source.
    ///
    /// # Panics
    /// It is refused.
    pub fn add_schemas(&mut self) {
        let schemas = text(
            &mut self.source,
            "SELECT coalesce(jsonb_agg(jsonb_build_object('id', id, 'schema', schema_name, 'table', table_name, 'columns', columns)),
                    '[]')::text FROM quorum.schema_version",
        );
        let sql = "SELECT quorum.add_schemas($1, $2::text::jsonb)";
        self.target.execute(sql, &[&self.id, &schemas]).expect("schemas");
    }

    /// Applies rows in one transaction, in as many calls as `batch_bytes` makes of them.
    ///
    /// # Errors
    /// The server's; the transaction is rolled back.
    pub fn transaction(
        &mut self,
        after: u64,
        rows: &[Frame],
        only: Option<&str>,
    ) -> Result<Applied, postgres::Error> {
        self.target.batch_execute("BEGIN")?;
        let result = self.calls(after, rows, only);
        let end = if result.is_ok() { "COMMIT" } else { "ROLLBACK" };
        self.target.batch_execute(end)?;
        result
    }

    fn calls(&mut self, after: u64, rows: &[Frame], only: Option<&str>) -> Result<Applied, postgres::Error> {
        let mut batch = piece_frame(after, rows);
        let mut all = Applied::default();
        for (at, frame) in rows.iter().enumerate() {
            batch.extend_from_slice(&frame.bytes);
            if batch.len() >= self.batch_bytes || at + 1 == rows.len() {
                let one = self.call(&batch, only)?;
                all = Applied {
                    transactions: all.transactions + one.transactions,
                    changes: all.changes + one.changes,
                    conflicts: all.conflicts + one.conflicts,
                    rejected: all.rejected + one.rejected,
                    ..one
                };
                batch.clear();
            }
        }
        Ok(all)
    }

    /// Applies all that the source has, as the sidecar would: one by one where the target says so.
    ///
    /// # Errors
    /// The server's.
    pub fn try_pull(&mut self, only: Option<&str>) -> Result<Applied, postgres::Error> {
        let now = self.call(&[], only)?;
        let rows = self.frames(&now.position);
        let mut sum = Applied { transactions: 0, ..now.clone() };
        let mut after = tick(&now.position);
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let length = if now.one_by_one {
                rest.iter().position(|frame| frame.row.flags & 2 != 0).map_or(rest.len(), |last| last + 1)
            } else {
                rest.len()
            };
            let result = match self.transaction(after, &rest[..length], only) {
                Err(error) if error.code() == Some(&SqlState::from_code("PQ010")) => {
                    self.add_schemas();
                    self.transaction(after, &rest[..length], only)
                }
                other => other,
            };
            let one = result?;
            sum.transactions += one.transactions;
            sum.changes += one.changes;
            sum.conflicts += one.conflicts;
            sum.rejected += one.rejected;
            sum.position.clone_from(&one.position);
            after = tick(&one.position);
            rest = &rest[length..];
        }
        Ok(sum)
    }

    /// The same where nothing is refused.
    ///
    /// # Panics
    /// It is.
    pub fn pull(&mut self) -> Applied {
        self.try_pull(None).unwrap_or_else(|error| panic!("applying: {error:?}"))
    }

    /// Runs statements at the source, applies them, and sees that these tables are the same on both sides.
    ///
    /// # Panics
    /// They are not.
    pub fn follow(&mut self, sql: &str, tables: &[&str]) -> Applied {
        crate::run(&mut self.source, sql);
        let applied = self.pull();
        for table in tables {
            self.assert_same(table, sql);
        }
        applied
    }

    /// # Panics
    /// The table differs.
    pub fn assert_same(&mut self, table: &str, what: &str) {
        let (there, here) = (rows(&mut self.source, table), rows(&mut self.target, table));
        assert!(there == here, "{table} after {what}:\n{}\nis not\n{}", shortened(&here), shortened(&there));
    }
}

const TRACKED: &str = "SELECT coalesce(jsonb_agg(jsonb_build_object('schema', n.nspname, 'table', c.relname)), '[]')::text
    FROM quorum.tracked_table AS t JOIN pg_class AS c ON c.oid = t.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace";

fn tick(position: &str) -> u64 {
    position.split(':').nth(1).and_then(|tick| tick.parse().ok()).expect("EPOCH:TICK")
}

/// All rows of a table as text, in order.
///
/// # Panics
/// It cannot be read.
pub fn rows(client: &mut Client, table: &str) -> String {
    text(
        client,
        &format!(
            "SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE \"C\"), '') FROM {table} AS t"
        ),
    )
}

fn shortened(text: &str) -> String {
    text.chars().take(2000).collect()
}
