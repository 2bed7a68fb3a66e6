//! Writes changes: those of one kind that follow each other in one statement.

use super::events::{Change, Collection, Op};
use super::fault::{Fault, Kind, Result};
use super::here::{Done, Here, Writer};
use super::keys;
use super::tables::Table;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How many lines and bytes one statement gets.
const LINES: usize = 1000;
const BYTES: usize = 1 << 20;

/// Tables as the present run knows them.
pub struct Tables {
    here: Arc<Here>,
    ours: bool,
    known: HashMap<String, Arc<Table>>,
    /// Statements, by table, attributes and whether rows are compared.
    statements: HashMap<(u32, Vec<String>, bool), Arc<str>>,
}

impl Tables {
    /// `ours`: the remote is one of ours.
    pub fn new(here: Arc<Here>, ours: bool) -> Tables {
        Tables { here, ours, known: HashMap::new(), statements: HashMap::new() }
    }

    /// The table of a collection; `None`: there is none here.
    pub async fn find(&mut self, collection: &str) -> Result<Option<Arc<Table>>> {
        if let Some(table) = self.known.get(collection) {
            return Ok(Some(Arc::clone(table)));
        }
        let Some((schema, name)) = keys::table_of(collection, self.ours) else { return Ok(None) };
        let Some(table) = self.here.table(&schema, &name, self.ours).await? else { return Ok(None) };
        let table = Arc::new(table);
        self.known.insert(collection.to_owned(), Arc::clone(&table));
        Ok(Some(table))
    }

    async fn need(&mut self, collection: &str) -> Result<Arc<Table>> {
        self.find(collection).await?.ok_or_else(|| {
            let label =
                keys::table_of(collection, self.ours).map(|(schema, name)| format!("{schema}.{name}"));
            let message = format!(
                "collection {collection} has no table here ({}). Create it, or have all tables copied (PUT \
                 /_api/replication/make-follower), or leave it out (restrictType, restrictCollections)",
                label.unwrap_or_else(|| "and its name can be none of a table".to_owned())
            );
            Fault::event(1203, message)
        })
    }

    /// Forgets what tables look like: they may have been changed.
    pub fn forget(&mut self) {
        self.known.clear();
        self.statements.clear();
    }

    fn upsert(&mut self, table: &Table, attributes: &[String], differing: bool) -> Result<Arc<str>> {
        let key = (table.relation, attributes.to_vec(), differing);
        if let Some(statement) = self.statements.get(&key) {
            return Ok(Arc::clone(statement));
        }
        let statement: Arc<str> = table.upsert(attributes, differing)?.into();
        // Documents of others may have any attributes.
        if self.statements.len() >= 1000 {
            self.statements.clear();
        }
        self.statements.insert(key, Arc::clone(&statement));
        Ok(statement)
    }

    /// Writes changes, all of them or, with an error, some. `differing`: rows that are as they should be are left alone.
    pub async fn write(&mut self, writer: &Writer, changes: &[Change], differing: bool) -> Result<Done> {
        let mut done = Done { events: changes.len() as u64, ..Done::default() };
        let mut rest = changes;
        while let Some(first) = rest.first() {
            let (group, after) = rest.split_at(group_of(rest));
            rest = after;
            let Collection::Name(collection) = &first.collection else {
                return Err(Fault::invalid("an event of a collection that no inventory has"));
            };
            self.write_group(writer, collection, group, differing).await?;
            match first.op {
                Op::Upsert(_) => done.documents += group.len() as u64,
                Op::Remove => done.removals += group.len() as u64,
            }
        }
        Ok(done)
    }

    async fn write_group(
        &mut self,
        writer: &Writer,
        collection: &str,
        group: &[Change],
        differing: bool,
    ) -> Result<()> {
        let Some(first) = group.first() else { return Ok(()) };
        let mut table = self.need(collection).await?;
        let keys = group.iter().map(|change| table.key(change)).collect::<Result<Vec<String>>>()?;
        match &first.op {
            Op::Upsert(attributes) => {
                table.check_keys(group)?;
                let statement = match self.upsert(&table, attributes, differing) {
                    // The table may have been given the column meanwhile.
                    Err(fault) if fault.kind == Kind::Event => {
                        self.forget();
                        table = self.need(collection).await?;
                        self.upsert(&table, attributes, differing)?
                    }
                    statement => statement?,
                };
                let lines: Vec<&str> = group.iter().map(|change| change.line.as_str()).collect();
                writer.write(&table, &statement, &lines).await?;
            }
            Op::Remove => {
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                writer.write(&table, &table.removal(), &keys).await?;
            }
        }
        Ok(())
    }

    /// Writes changes, passing over those that do not fit as long as `left` says so. Gives what was written, and how many were
    /// passed over is taken from `left`.
    pub async fn write_what_fits(
        &mut self,
        writer: &Writer,
        changes: &[Change],
        left: &mut u64,
    ) -> Result<Done> {
        let mut done = Done::default();
        for change in changes {
            writer.run("SAVEPOINT change").await?;
            match self.write(writer, std::slice::from_ref(change), false).await {
                Ok(one) => {
                    writer.run("RELEASE SAVEPOINT change").await?;
                    done.events += one.events;
                    done.documents += one.documents;
                    done.removals += one.removals;
                }
                Err(fault) if fault.kind == Kind::Event && *left > 0 => {
                    writer.run("ROLLBACK TO SAVEPOINT change; RELEASE SAVEPOINT change").await?;
                    *left -= 1;
                    done.events += 1;
                    done.excluded += 1;
                    tracing::warn!(
                        tick = change.tick,
                        number = fault.number,
                        left = *left,
                        "the applier passes over an event that does not fit"
                    );
                }
                Err(fault) => return Err(fault.at(place(change))),
            }
        }
        Ok(done)
    }

    /// Deletes all rows of a collection's table.
    pub async fn empty(&mut self, writer: &Writer, collection: &str) -> Result<u64> {
        let table = self.need(collection).await?;
        writer.write(&table, &table.emptying(), &[]).await
    }
}

/// Where a change is that does not fit.
pub fn place(change: &Change) -> String {
    let collection = match &change.collection {
        Collection::Name(name) | Collection::Id(name) => name,
    };
    format!("tick {}, collection {collection}, key {}", change.tick, change.key)
}

/// How many changes from the first on are of its kind, and of different documents.
fn group_of(changes: &[Change]) -> usize {
    let Some(first) = changes.first() else { return 0 };
    let (mut keys, mut bytes, mut count) = (HashSet::new(), 0, 0);
    for change in changes {
        bytes += change.line.len();
        let same = change.collection == first.collection && change.op == first.op;
        let room = count < LINES && (count == 0 || bytes <= BYTES);
        if !same || !room || !keys.insert(change.key.as_str()) {
            break;
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(table: &str, key: &str, op: Op) -> Change {
        Change {
            tick: 1,
            collection: Collection::Name(table.to_owned()),
            key: key.to_owned(),
            op,
            line: "{}".to_owned(),
        }
    }

    #[test]
    fn a_group_is_of_one_kind_and_of_different_rows() {
        let upsert = |names: &[&str]| Op::Upsert(names.iter().map(|&name| name.to_owned()).collect());
        let changes = [
            change("t", "1", upsert(&["a"])),
            change("t", "2", upsert(&["a"])),
            change("t", "1", upsert(&["a"])),
            change("t", "3", upsert(&["a", "b"])),
            change("u", "3", upsert(&["a", "b"])),
            change("u", "3", Op::Remove),
            change("u", "4", Op::Remove),
        ];
        let mut sizes = Vec::new();
        let mut rest = &changes[..];
        while !rest.is_empty() {
            let size = group_of(rest);
            sizes.push(size);
            rest = &rest[size..];
        }
        assert_eq!(sizes, [2, 1, 1, 1, 2]);
        let many: Vec<Change> = (0..2500).map(|n| change("t", &n.to_string(), Op::Remove)).collect();
        assert_eq!(group_of(&many), LINES);
        let large = Change { line: "x".repeat(2 * BYTES), ..change("t", "1", Op::Remove) };
        assert_eq!(group_of(&[large.clone(), large]), 1);
    }
}
