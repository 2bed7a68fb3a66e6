//! From file numbers to the names of tables, by the catalogs of this node's own server: it has replayed what is lost.

use super::decode::{Changes, Committed, File};
use crate::postgres::config::PostgresConfig;
use crate::postgres::error::{Result, sql};
use crate::postgres::session::{Manner, Session};
use pgquorum_agent::lost::{LostTable, LostTransaction};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The first number that is not of PostgreSQL's own relations.
const FIRST_NORMAL: u32 = 16384;
/// Large objects and their owners: catalogs that hold users' data.
const LARGE_OBJECTS: [u32; 2] = [2613, 2995];
/// What ANALYZE writes: statistics, and the TOAST tables of both kinds.
const STATISTICS: [u32; 4] = [2619, 3429, 2840, 3430];
/// Tables of one transaction that are listed.
const TABLES_MAX: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Relation {
    oid: u32,
    name: String,
    /// The cluster's own tables.
    ours: bool,
    kind: u8,
    /// A table of PostgreSQL's own.
    catalog: bool,
}

impl Relation {
    fn is_table(&self) -> bool {
        matches!(self.kind, b'r' | b'm' | b'p')
    }
}

/// What the numbers in the WAL mean.
#[derive(Debug, Default)]
pub struct Names {
    databases: HashMap<u32, String>,
    files: HashMap<File, Relation>,
    /// By database and oid.
    oids: HashMap<(u32, u32), Relation>,
    /// Files that are gone, and the table that had them.
    former: HashMap<File, (u32, u32)>,
    /// Databases that could not be asked, and why.
    pub problems: Vec<String>,
}

/// Everything about the relations that these transactions touched, from this node's own server.
pub async fn look_up(config: &PostgresConfig, committed: &[Committed]) -> Result<Names> {
    let mut names = Names::default();
    let local = Session::local(config, Manner::default()).await?;
    let what = "looking databases up by their numbers";
    let rows = local.query("SELECT oid::int8, datname::text, datallowconn FROM pg_database", &[]).await;
    let mut wanted: BTreeMap<u32, BTreeSet<i64>> = BTreeMap::new();
    for changes in committed.iter().map(|c| &c.changes) {
        for (database, file) in changes.rows.keys().chain(&changes.made) {
            let of = wanted.entry(*database).or_default();
            of.insert(i64::from(*file));
            of.extend(changes.described.iter().map(|oid| i64::from(*oid)));
        }
    }
    for row in rows.map_err(sql(what))? {
        let oid = u32::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        let (name, open): (String, bool) = (row.get(1), row.get(2));
        if let Some(numbers) = wanted.get(&oid).filter(|_| open) {
            let numbers: Vec<i64> = numbers.iter().copied().collect();
            if let Err(error) = look_up_in(&mut names, config, oid, &name, &numbers).await {
                names.problems.push(error.to_string());
            }
        }
        names.databases.insert(oid, name);
    }
    names.find_former(committed);
    Ok(names)
}

async fn look_up_in(
    names: &mut Names,
    config: &PostgresConfig,
    database: u32,
    name: &str,
    numbers: &[i64],
) -> Result<()> {
    let there = PostgresConfig { admin_database: name.to_owned(), ..config.clone() };
    let session = Session::local(&there, Manner::default()).await?;
    let question = "SELECT c.oid::int8, COALESCE(pg_relation_filenode(c.oid), 0)::int8, n.nspname::text, \
                    c.relname::text, ascii(c.relkind::text) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                    WHERE c.oid::int8 = ANY($1) OR pg_relation_filenode(c.oid)::int8 = ANY($1)";
    let rows = session.query(question, &[&numbers]).await;
    for row in rows.map_err(sql(format!("looking relations up in database {name}")))? {
        let number = |i: usize| u32::try_from(row.get::<_, i64>(i)).unwrap_or(0);
        let (oid, file) = (number(0), number(1));
        let (schema, relation): (String, String) = (row.get(2), row.get(3));
        let kind = u8::try_from(row.get::<_, i32>(4)).unwrap_or(0);
        let (ours, catalog) = (schema == "quorum", oid < FIRST_NORMAL);
        let relation = Relation { oid, name: format!("{schema}.{relation}"), ours, kind, catalog };
        names.files.insert((database, file), relation.clone());
        names.oids.insert((database, oid), relation);
    }
    Ok(())
}

impl Names {
    /// A transaction that made a file and changed the description of one table made it for that table.
    fn find_former(&mut self, committed: &[Committed]) {
        for changes in committed.iter().map(|c| &c.changes) {
            for file in changes.made.iter().filter(|f| !self.files.contains_key(f)) {
                let table = |oid: &&u32| self.oids.get(&(file.0, **oid)).is_some_and(Relation::is_table);
                let mut tables = changes.described.iter().filter(table);
                if let (Some(oid), None) = (tables.next(), tables.next()) {
                    self.former.insert(*file, (file.0, *oid));
                }
            }
        }
    }

    fn relation(&self, file: File) -> Option<&Relation> {
        // A relation keeps its first file's number as its oid.
        let former = self.former.get(&file).copied().unwrap_or(file);
        self.files.get(&file).or_else(|| self.oids.get(&former))
    }

    /// What a transaction did in words; `None` if it is no client's business.
    pub fn describe(&self, committed: &Committed) -> Option<LostTransaction> {
        let mut tables: BTreeMap<(String, String), LostTable> = BTreeMap::new();
        let mut schema_changed = false;
        let Changes { rows, made, seen, .. } = &committed.changes;
        for (&file, rows) in rows {
            if file.0 == 0 {
                schema_changed = true;
                continue;
            }
            let relation = self.relation(file);
            // A catalog that was rewritten has another file; as long as it has its first one, the numbers are the same.
            let oid = relation.map_or(file.1, |r| r.oid);
            match relation {
                _ if STATISTICS.contains(&oid) => {}
                _ if oid < FIRST_NORMAL && !LARGE_OBJECTS.contains(&oid) => schema_changed = true,
                Some(r) if r.ours || !(r.is_table() || r.catalog) => {}
                _ => {
                    let table = self.table(&mut tables, file);
                    table.inserted += rows.inserted;
                    table.updated += rows.updated;
                    table.deleted += rows.deleted;
                }
            }
        }
        for &file in made {
            match self.relation(file) {
                Some(r) if r.is_table() && !r.ours && !r.catalog => {
                    self.table(&mut tables, file).new_file = true
                }
                _ => {}
            }
        }
        // Of one that wrote before all that was read nothing is known; it may have been a client's.
        if tables.is_empty() && !schema_changed && *seen {
            return None;
        }
        let more_tables = tables.len().saturating_sub(TABLES_MAX);
        let tables = tables.into_values().take(TABLES_MAX).collect();
        let (xid, committed_at) = (committed.xid, committed.at.clone());
        Some(LostTransaction { xid, committed_at, tables, more_tables, schema_changed })
    }

    fn table<'a>(
        &self,
        tables: &'a mut BTreeMap<(String, String), LostTable>,
        file: File,
    ) -> &'a mut LostTable {
        let database = self.databases.get(&file.0).cloned().unwrap_or_else(|| format!("database {}", file.0));
        let name = self.relation(file).map_or_else(|| format!("file {}", file.1), |r| r.name.clone());
        let name: String = name.chars().take(130).collect();
        let new = LostTable { database: database.clone(), table: name.clone(), ..LostTable::default() };
        tables.entry((database, name)).or_insert(new)
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::Decoder;
    use super::*;

    fn relation(name: &str, kind: u8) -> Relation {
        let (name, ours) = (name.to_owned(), name.starts_with("quorum."));
        Relation { oid: FIRST_NORMAL, name, ours, kind, catalog: false }
    }

    fn catalog(oid: u32, name: &str, kind: u8) -> Relation {
        Relation { oid, name: format!("pg_catalog.{name}"), ours: false, kind, catalog: true }
    }

    fn names(committed: &[Committed]) -> Names {
        let mut names = Names::default();
        names.databases.insert(5, "postgres".to_owned());
        for (oid, file, name, kind) in [
            (16384, 16384, "public.a", b'r'),
            (16387, 16387, "pg_toast.pg_toast_16384", b't'),
            (16391, 16402, "public.b", b'r'),
            (16398, 16398, "quorum.event", b'r'),
        ] {
            names.files.insert((5, file), relation(name, kind));
            names.oids.insert((5, oid), relation(name, kind));
        }
        names.find_former(committed);
        names
    }

    #[test]
    fn tables_are_named_by_their_present_and_former_files() {
        let mut decoder = Decoder::default();
        include_str!("sample.txt").lines().for_each(|line| decoder.feed(line));
        let names = names(&decoder.committed);
        let told = |xid| names.describe(decoder.committed.iter().find(|c| c.xid == xid).unwrap());
        let rows = told(726).unwrap().tables;
        assert_eq!(
            (rows.len(), rows[0].table.as_str(), rows[0].inserted),
            (1, "public.a", 31),
            "no TOAST table"
        );
        let copied = told(730).unwrap().tables;
        assert_eq!(
            (copied[0].table.as_str(), copied[0].inserted),
            ("public.b", 500),
            "its first file is gone"
        );
        let truncated = told(731).unwrap().tables;
        assert_eq!((truncated[0].table.as_str(), truncated[0].new_file), ("public.b", true));
        assert_eq!(
            told(734).unwrap().tables[0].table,
            "public.b",
            "the file that the truncation made is gone too"
        );
        assert_eq!(told(732), None, "the cluster's own tables are nobody's loss");
    }

    #[test]
    fn catalogs_are_schema_changes_and_statistics_are_nothing() {
        let committed = |files: &[File]| Committed {
            xid: 7,
            at: String::new(),
            changes: Changes {
                rows: files.iter().map(|f| (*f, Rows { inserted: 1, ..Rows::default() })).collect(),
                seen: true,
                ..Changes::default()
            },
        };
        use super::super::decode::Rows;
        let mut names = names(&[]);
        assert_eq!(names.describe(&committed(&[(5, 2619), (5, 2840)])), None);
        assert!(names.describe(&committed(&[(5, 1259)])).unwrap().schema_changed);
        assert!(names.describe(&committed(&[(0, 1262)])).unwrap().schema_changed);
        assert_eq!(names.describe(&committed(&[(5, 99_999)])).unwrap().tables[0].table, "file 99999");
        assert_eq!(names.describe(&committed(&[(5, 2613)])).unwrap().tables[0].table, "file 2613");
        // VACUUM FULL gives them files with other numbers.
        names.files.insert((5, 20_001), catalog(2619, "pg_statistic", b'r'));
        names.files.insert((5, 20_002), catalog(2613, "pg_largeobject", b'r'));
        names.files.insert((5, 20_003), catalog(1255, "pg_proc", b'r'));
        assert_eq!(names.describe(&committed(&[(5, 20_001)])), None);
        let blobs = names.describe(&committed(&[(5, 20_002)])).unwrap();
        assert_eq!(
            (blobs.tables[0].table.as_str(), blobs.schema_changed),
            ("pg_catalog.pg_largeobject", false)
        );
        assert!(names.describe(&committed(&[(5, 20_003)])).unwrap().schema_changed);
    }

    #[test]
    fn of_a_transaction_that_wrote_before_all_that_is_read_nothing_is_hidden() {
        let of = |seen| Committed {
            xid: 7,
            at: "2026-01-01T00:00:00Z".to_owned(),
            changes: Changes { seen, ..Changes::default() },
        };
        let told = names(&[]).describe(&of(false)).unwrap();
        assert!(told.xid == 7 && told.tables.is_empty() && !told.schema_changed);
        assert_eq!(names(&[]).describe(&of(true)), None, "it wrote no rows");
    }
}
