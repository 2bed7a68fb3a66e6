//! What the snapshot of each batch sees of tracked tables. A server keeps the snapshot of a batch, but not the rows that it
//! saw. So triggers of the test's own write down each change of a row in a table, in the transaction that makes the change,
//! and PostgreSQL says which snapshots see which transactions.
//!
//! The table is `recorded (seq, xid, "table", before, after, dropped)`: `before` is the `id` that a row had, `after` the row
//! as it is now, `dropped` a column that all rows of the table have lost. Whoever changes a row waits for the transaction
//! that changed it before, so in the order of `seq` the last entry that a snapshot sees of a row says what it sees.

use crate::replayed::{Rows, columns, key_of};
use postgres::{Client, Error};
use serde_json::{Map, Value};
use std::collections::VecDeque;

/// For each entry that one of these batches is the first to see, the batch. `$1` is the snapshot of the batch before.
const ENTRIES: &str = "
    WITH batch AS MATERIALIZED (
        SELECT b.tick, b.snapshot::pg_snapshot AS snapshot
        FROM unnest($2::bigint[], $3::text[]) AS b (tick, snapshot))
    SELECT seen.tick, r.\"table\", r.before, r.after::text, r.dropped
    FROM recorded AS r
    CROSS JOIN LATERAL (SELECT min(b.tick) FROM batch AS b WHERE pg_visible_in_snapshot(r.xid, b.snapshot)) AS seen (tick)
    WHERE (r.xid >= pg_snapshot_xmax($1::text::pg_snapshot)
           OR r.xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot))))
      AND seen.tick IS NOT NULL
    ORDER BY r.seq";

/// The tables that list the batches between two ticks.
const BATCH_TABLES: &str = "
    SELECT b.batches::regclass::text
    FROM quorum.batch_segment AS b JOIN quorum.channel AS c ON c.id = b.channel
    WHERE c.name = $1 AND b.first_tick <= $3::bigint
      AND NOT EXISTS (SELECT FROM quorum.batch_segment AS n
                      WHERE n.channel = b.channel AND n.number > b.number AND n.first_tick <= $2::bigint + 1)
    ORDER BY b.number";

/// Sees no transaction.
const NOTHING: &str = "1:1:";

/// A batch, and what its snapshot sees more than the one before.
#[derive(Debug)]
pub struct Batch {
    pub last_tick: i64,
    snapshot: String,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    table: String,
    before: Option<i32>,
    after: Option<Map<String, Value>>,
    dropped: Option<String>,
}

/// What the snapshot of the batch sees up to which it was brought.
#[derive(Clone, Debug)]
pub struct Recorded {
    rows: Rows,
    snapshot: String,
    batches: usize,
}

impl Recorded {
    /// Before the first batch.
    pub fn new() -> Recorded {
        Recorded { rows: Rows::new(), snapshot: NOTHING.to_owned(), batches: 0 }
    }

    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// How many batches it was brought through.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// The batches that end above one tick and not above another; they must be the next ones. Any node that shows them may be
    /// asked.
    ///
    /// # Errors
    /// The server refuses, or is gone.
    pub fn ahead(
        &self,
        client: &mut Client,
        channel: &str,
        above: i64,
        up_to: i64,
    ) -> Result<VecDeque<Batch>, Error> {
        let mut batches = batches(client, channel, above, up_to)?;
        if batches.is_empty() {
            return Ok(batches);
        }
        let ticks: Vec<i64> = batches.iter().map(|batch| batch.last_tick).collect();
        let snapshots: Vec<String> = batches.iter().map(|batch| batch.snapshot.clone()).collect();
        // Before the table is analysed, nothing tells the planner that few of its rows are that new.
        client.batch_execute("SET enable_seqscan = off")?;
        for row in client.query(ENTRIES, &[&self.snapshot, &ticks, &snapshots])? {
            let (tick, after): (i64, Option<String>) = (row.get(0), row.get(3));
            let at = ticks.binary_search(&tick).expect("one of the batches that were given");
            batches[at].entries.push(Entry {
                table: row.get(1),
                before: row.get(2),
                after: after.map(|after| columns(&after)),
                dropped: row.get(4),
            });
        }
        Ok(batches)
    }

    /// Goes on to the end of the next batch.
    pub fn advance(&mut self, batch: Batch) {
        for Entry { table, before, after, dropped } in batch.entries {
            if let Some(column) = dropped {
                let of_table = self.rows.iter_mut().filter(|((of, _), _)| *of == table);
                of_table.for_each(|(_, row)| drop(row.remove(&column)));
            }
            if let Some(id) = before {
                self.rows.remove(&(table.clone(), format!("{{\"id\": {id}}}")));
            }
            if let Some(row) = after {
                self.rows.insert((table, key_of(&row)), row);
            }
        }
        self.snapshot = batch.snapshot;
        self.batches += 1;
    }
}

/// The batches of a channel that end above one tick and not above another, without their entries.
///
/// # Errors
/// The server refuses, or is gone.
pub fn batches(client: &mut Client, channel: &str, above: i64, up_to: i64) -> Result<VecDeque<Batch>, Error> {
    let mut batches = VecDeque::new();
    for table in client.query(BATCH_TABLES, &[&channel, &above, &up_to])? {
        let table: String = table.get(0);
        // Of a batch in several rows, the last one has its snapshot.
        let sql = format!(
            "SELECT last_tick, snapshot FROM {table}
             WHERE last_tick > $1 AND last_tick <= $2 AND snapshot IS NOT NULL ORDER BY last_tick"
        );
        let rows = client.query(&sql, &[&above, &up_to])?;
        batches.extend(rows.iter().map(|row| Batch {
            last_tick: row.get(0),
            snapshot: row.get(1),
            entries: Vec::new(),
        }));
    }
    Ok(batches)
}
