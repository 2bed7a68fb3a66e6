//! A copy of tracked tables that is made from a channel's changes alone, and compared with what snapshots see.

use crate::recorded::{self, Batch, Recorded};
use postgres::{Client, Error, Row};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

/// Rows by table and key, which is a JSON text. A column that is null is left out: it may have been added since.
pub type Rows = BTreeMap<(String, String), Map<String, Value>>;

/// Where a reader is, and what it made of the changes up to there.
#[derive(Clone, Debug)]
pub struct Replayed {
    pub channel: String,
    pub position: String,
    pub tick: i64,
    pub rows: Rows,
    /// The transaction of the last change.
    transaction: String,
    /// Transactions whose last change was seen: none of them may come back.
    over: HashSet<String>,
    pub changes: u64,
    /// How often a partition came to a table, or went.
    pub partitions: u64,
    /// Tables to which one came, or from which one went: the log does not say with which rows, so they are to be copied anew.
    anew: BTreeSet<String>,
    /// What the batches' snapshots see.
    recorded: Option<Recorded>,
}

impl Replayed {
    /// Begins with a channel's first change.
    pub fn new(channel: &str) -> Replayed {
        Replayed {
            channel: channel.to_owned(),
            position: "start".to_owned(),
            tick: 0,
            rows: Rows::new(),
            transaction: String::new(),
            over: HashSet::new(),
            changes: 0,
            partitions: 0,
            anew: BTreeSet::new(),
            recorded: None,
        }
    }

    /// The same, and where a batch ends the copy must equal what the batch's snapshot sees, by the table `recorded` of the
    /// server.
    pub fn checked(channel: &str) -> Replayed {
        Replayed { recorded: Some(Recorded::new()), ..Replayed::new(channel) }
    }

    /// With the end of how many batches it was compared.
    pub fn batches_compared(&self) -> usize {
        self.recorded.as_ref().map_or(0, Recorded::batches)
    }

    /// How many batches end up to its position, by what a server lists.
    ///
    /// # Errors
    /// The server refuses, or is gone.
    pub fn batches_listed(&self, client: &mut Client) -> Result<usize, Error> {
        Ok(recorded::batches(client, &self.channel, 0, self.tick)?.len())
    }

    /// Reads what there is after its position, at most so many changes, and replays it. How many there were.
    ///
    /// # Errors
    /// The server refuses, or is gone; nothing was replayed then.
    ///
    /// # Panics
    /// A gap, a repetition, a transaction in two pieces, a change that does not fit the copy, or a copy that differs from what
    /// a batch's snapshot sees.
    pub fn read(&mut self, client: &mut Client, limit: i32, up_to: i64) -> Result<usize, Error> {
        let sql =
            "SELECT position, tick, transaction::text, op, \"table\", key::text, new::text, unchanged, sql
                   FROM quorum.changes($1, $2, $3) WHERE tick <= $4";
        let rows = client.query(sql, &[&self.channel, &self.position, &limit, &up_to])?;
        let mut batches = match (&self.recorded, rows.last()) {
            (Some(recorded), Some(last)) => recorded.ahead(client, &self.channel, self.tick, last.get(1))?,
            _ => VecDeque::new(),
        };
        for row in &rows {
            self.replay(row);
            if batches.front().is_some_and(|batch| batch.last_tick == self.tick) {
                batches.pop_front().into_iter().for_each(|batch| self.check(batch));
            }
        }
        let passed = batches.front().map(|batch| batch.last_tick);
        assert_eq!(passed, None, "{}: a batch ends where no change does", self.position);
        Ok(rows.len())
    }

    /// The copy is at the end of this batch.
    fn check(&mut self, batch: Batch) {
        let Some(mut recorded) = self.recorded.take() else { return };
        recorded.advance(batch);
        self.must_equal(recorded.rows(), "the batch's snapshot");
        self.recorded = Some(recorded);
    }

    fn replay(&mut self, row: &Row) {
        let (position, tick): (String, i64) = (row.get(0), row.get(1));
        assert_eq!(tick, self.tick + 1, "ticks are dense; after {} came {position}", self.position);
        let transaction: String = row.get(2);
        if transaction != self.transaction {
            let before = std::mem::replace(&mut self.transaction, transaction.clone());
            self.over.insert(before);
            assert!(!self.over.contains(&transaction), "transaction {transaction} came back at {position}");
        }
        let (op, table): (String, String) = (row.get(3), row.get(4));
        let (key, new): (Option<String>, Option<String>) = (row.get(5), row.get(6));
        let unchanged: Vec<String> = row.get::<_, Option<Vec<String>>>(7).unwrap_or_default();
        let old = || (table.clone(), key.clone().unwrap_or_default());
        match op.as_str() {
            "ddl" => {
                let sql: String = row.get::<_, Option<String>>(8).unwrap_or_default();
                // What a column had is gone with it, though no row is mentioned.
                if let Some((_, dropped)) = sql.split_once("DROP COLUMN ") {
                    let of_table = self.rows.iter_mut().filter(|((of, _), _)| *of == table);
                    of_table.for_each(|(_, row)| drop(row.remove(dropped)));
                }
                if sql.contains("ATTACH PARTITION") || sql.contains("DETACH PARTITION") {
                    self.partitions += 1;
                    self.anew.insert(table);
                }
            }
            _ if self.anew.contains(&table) => {}
            "insert" => {
                assert!(unchanged.is_empty(), "{position}: an insert says all");
                let before = self.rows.insert(old(), columns(&new.expect("an insert has a row")));
                assert_eq!(before, None, "{position}: {:?} is inserted and was there", old());
            }
            "update" => {
                let before = self.rows.remove(&old());
                let before =
                    before.unwrap_or_else(|| panic!("{position}: {:?} is updated and was not there", old()));
                let mut new = columns(&new.expect("an update has a row"));
                new.extend(before.into_iter().filter(|(name, _)| unchanged.contains(name)));
                let key = key_of(&new);
                let clash = self.rows.insert((table.clone(), key.clone()), new);
                assert_eq!(clash, None, "{position}: {table} {key} is moved to and was there");
            }
            "delete" => {
                assert!(
                    self.rows.remove(&old()).is_some(),
                    "{position}: {:?} is deleted and was not there",
                    old()
                );
            }
            "truncate" => self.rows.retain(|(of, _), _| *of != table),
            other => panic!("{position}: {other}"),
        }
        self.position = position;
        self.tick = tick;
        self.changes += 1;
    }

    /// Compares with what a snapshot sees: takes one whose position is known, reads up to there, looks.
    ///
    /// # Errors
    /// The server refuses (PQ004, 40P01: try again), or is gone.
    ///
    /// # Panics
    /// They differ.
    pub fn compare(&mut self, client: &mut Client, tables: &[&str]) -> Result<(), Error> {
        let mut transaction =
            client.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start()?;
        // As a copy must: a table that is emptied or changed after the snapshot would be seen as it is then, and so would one
        // that gets another partition, for which a weaker lock is no hindrance.
        transaction
            .batch_execute(&format!("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE", tables.join(", ")))?;
        let end: String = transaction.query_one("SELECT quorum.dump_start($1)", &[&self.channel])?.get(0);
        let mut seen = Rows::new();
        for table in tables {
            let sql = format!("SELECT to_jsonb(t)::text FROM {table} AS t");
            for row in transaction.query(&sql, &[])? {
                let row = columns(row.get(0));
                seen.insert(((*table).to_owned(), key_of(&row)), row);
            }
        }
        transaction.commit()?;
        let (_, up_to) = end.split_once(':').expect("EPOCH:TICK");
        let up_to: i64 = up_to.parse().expect("a tick");
        while self.tick < up_to {
            assert!(self.read(client, 5000, up_to)? > 0, "changes up to {end}, after {}", self.position);
        }
        assert!(self.tick <= up_to, "the copy is at {} and the snapshot at {end}", self.position);
        self.must_equal(&seen, "a snapshot");
        Ok(())
    }

    /// Compares with what a snapshot sees whose position is the copy's own. What is to be copied anew is copied from there.
    fn must_equal(&mut self, seen: &Rows, whose: &str) {
        let anew = std::mem::take(&mut self.anew);
        if !anew.is_empty() {
            self.rows.retain(|(table, _), _| !anew.contains(table));
            let copied = seen.iter().filter(|((table, _), _)| anew.contains(table));
            self.rows.extend(copied.map(|(key, row)| (key.clone(), row.clone())));
        }
        if self.rows != *seen {
            let missing: Vec<_> =
                seen.iter().filter(|(k, v)| self.rows.get(*k) != Some(*v)).take(5).collect();
            let extra: Vec<_> = self.rows.iter().filter(|(k, v)| seen.get(*k) != Some(*v)).take(5).collect();
            panic!("at {} the copy differs; {whose} sees {missing:?}, the copy has {extra:?}", self.position);
        }
    }
}

pub fn columns(row: &str) -> Map<String, Value> {
    let Ok(Value::Object(mut row)) = serde_json::from_str(row) else { panic!("no JSON object: {row}") };
    row.retain(|_, value| !value.is_null());
    row
}

/// The tables of these tests have the key `id`.
pub fn key_of(row: &Map<String, Value>) -> String {
    format!("{{\"id\": {}}}", row["id"])
}
