//! Versions of rows against the log: random writers, among them some that apply changes from elsewhere, with clocks of
//! their own; the server crashes in between. Then `quorum.row_version` says of each row exactly what the log says of the
//! last change of it, and nothing else.

use super::feed_writers::{Manner, SCHEMA, TABLES, write};
use pgquorum_change::{Change, Decoder, Image, OldImage, Op, Schema, Value, by_name, key_hash};
use pgquorum_tests::{Plain, await_until, free_ports, run, server_directory, text};
use postgres::Client;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

const MANNER: Manner = Manner { weak: true, prepared: true, partitions: false };
const CRASHES: u32 = 2;
/// In each life of the server; the environment's CHANGES asks for another number.
const CHANGES: u64 = 4_000;
const SOON: Duration = Duration::from_secs(60);

const CONF: &str = "
    shared_preload_libraries = 'pgquorum'
    max_prepared_transactions = 50
    pgquorum.segment_size = 64
    pgquorum.tombstone_age = 2000000000
    deadlock_timeout = 100ms
    max_connections = 40";

/// What a session sets before it writes: most write for themselves. One is behind, and one far ahead of this server's clock.
const ORIGINS: [&str; 6] = [
    "",
    "",
    "",
    "SET pgquorum.capture_memory = '64kB'",
    "SET pgquorum.origin = 'bern'; SET pgquorum.origin_commit_time = '2020-02-02 02:02:02+00'",
    "SET pgquorum.origin = 'zürich'; SET pgquorum.origin_commit_time = '2100-01-01 00:00:00+00'",
];

/// What is known of a row: the time, the origin (empty: here), and whether it was deleted.
type Version = (i64, String, bool);
/// By table and number of the key.
type Versions = BTreeMap<(String, String), Version>;

fn start_writers(server: &Plain, seed: u64, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let writer = |(number, origin): (usize, &&str)| {
        let mut client = server.connect().expect("a session of a writer");
        client.batch_execute(origin).expect("the origin");
        let stop = Arc::clone(stop);
        std::thread::spawn(move || {
            let mut random = SmallRng::seed_from_u64(seed * 100 + number as u64);
            // It ends with the server.
            let _ = write(&mut client, &mut random, &format!("w{seed}_{number}_"), &stop, MANNER);
        })
    };
    ORIGINS.iter().enumerate().map(writer).collect()
}

/// The log, replayed up to its end.
struct Log {
    versions: Versions,
    /// When tables were emptied last.
    emptied: BTreeMap<String, Version>,
    changes: u64,
    /// How often a change replaced a version that had a later time.
    backwards: Vec<String>,
}

/// A key's number as `uuid` shows it.
fn uuid(key: [u8; 16]) -> String {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The number of the key among these values.
fn number(image: Image, schema: &Schema, whole: bool) -> String {
    let values: Vec<Value> = image.values().collect();
    let places = if whole { schema.key.clone() } else { (0..schema.key.len()).collect() };
    let names: Vec<&str> = schema.key.iter().map(|at| schema.columns[*at].name.as_str()).collect();
    let texts = by_name(&names).into_iter().map(|at| match &values[places[at]] {
        Value::Text(text) => text.to_vec(),
        other => panic!("{other:?} in a key"),
    });
    uuid(key_hash(texts))
}

impl Log {
    fn read(client: &mut Client) -> Log {
        let mut log =
            Log { versions: Versions::new(), emptied: BTreeMap::new(), changes: 0, backwards: Vec::new() };
        let sql = "SELECT id, schema_name, table_name, columns::text FROM quorum.schema_version";
        let schemas: BTreeMap<u64, Schema> = client
            .query(sql, &[])
            .expect("schema versions")
            .iter()
            .map(|row| {
                let id = row.get::<_, i64>(0).unsigned_abs();
                (id, Schema::new(id, row.get(1), row.get(2), row.get(3)).expect("a schema"))
            })
            .collect();
        let sql = "SELECT data FROM quorum.read_log('shop', 'start', 2147483647) ORDER BY last_tick";
        let mut decoder = Decoder::new();
        let mut at: (i64, String, bool) = (0, String::new(), true);
        for row in client
            .query("SELECT quorum.cut('shop')", &[])
            .and_then(|_| client.query(sql, &[]))
            .expect("the log")
        {
            let data: Vec<u8> = row.get(0);
            let mut found = decoder.feed(&data).expect("a good chunk");
            if let Some(header) = found.header {
                let time = header.origin_commit_us.unwrap_or(header.commit_us);
                at = (time, header.origin.unwrap_or("").to_owned(), header.origin_commit_us.is_none());
            }
            while let Some(change) = found.next().expect("a good change") {
                log.replay(&change, &schemas[&change.schema_version], &at);
            }
        }
        log
    }

    fn replay(&mut self, change: &Change, schema: &Schema, (time, origin, own_clock): &(i64, String, bool)) {
        self.changes += 1;
        let table = format!("{}.{}", schema.schema, schema.table);
        let old = change.old.map(|old| match old {
            OldImage::Key(image) => number(image, schema, false),
            OldImage::Full(image) => number(image, schema, true),
        });
        let new = change.new.map(|image| number(image, schema, true));
        match change.op {
            Op::Ddl => return,
            Op::Truncate => {
                self.versions.retain(|(of, _), _| *of != table);
                self.emptied.insert(table, (*time, origin.clone(), true));
                return;
            }
            _ => {}
        }
        let stays = old == new;
        for (key, deleted) in [(old.filter(|_| !stays), true), (new, false)] {
            let Some(key) = key else { continue };
            let before = self.versions.insert((table.clone(), key.clone()), (*time, origin.clone(), deleted));
            let before = before.as_ref().or(self.emptied.get(&table)).map(|before| before.0);
            // Of the same transaction at most.
            if *own_clock && before.is_some_and(|before| before > *time) {
                self.backwards.push(format!("{table} {key}: {time} after {before:?}"));
            }
        }
    }
}

/// What the tables say.
fn kept(client: &mut Client) -> Versions {
    let sql = "SELECT format('%s.%s', n.nspname, r.relname), v.key::text, v.commit_us, coalesce(o.name, ''), v.deleted
               FROM quorum.row_version AS v JOIN quorum.versioned_table AS t ON t.keeping = v.keeping
               JOIN pg_class AS r ON r.oid = t.relid JOIN pg_namespace AS n ON n.oid = r.relnamespace
               LEFT JOIN quorum.origin AS o ON o.id = v.origin";
    let rows = client.query(sql, &[]).expect("the versions");
    rows.iter().map(|row| ((row.get(0), row.get(1)), (row.get(2), row.get(3), row.get(4)))).collect()
}

fn emptied(client: &mut Client) -> BTreeMap<String, Version> {
    let sql = "SELECT format('%s.%s', v.schema, v.\"table\"), (extract(epoch FROM v.truncated_at) * 1000000)::bigint,
                      coalesce(v.truncated_origin, '')
               FROM quorum.versioned_tables AS v WHERE v.truncated_at IS NOT NULL";
    let rows = client.query(sql, &[]).expect("the tables");
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2), true))).collect()
}

/// From the environment.
fn from_environment(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn versions_say_what_the_log_says() {
    let (seed, changes) = (from_environment("SEED", 20_261_126), from_environment("CHANGES", CHANGES));
    eprintln!("SEED={seed} CHANGES={changes}");
    let (dir, [port]) = (server_directory("row-versions"), free_ports());
    let mut server = Plain::init(&dir.join("data"), port, CONF);
    server.sql("CREATE EXTENSION pgquorum");
    server.sql(SCHEMA);
    // The same with all that can be recorded of old rows.
    server.sql(
        "SELECT quorum.untrack('account'), quorum.untrack('part');
         SELECT quorum.track('account', 'shop', old_image => 'none'), quorum.track('part', 'shop', old_image => 'full');
         SELECT quorum.keep_versions(x) FROM unnest('{account,entry,part}'::regclass[]) AS x",
    );
    // Which tables had rows that are there, and deleted ones.
    let mut seen = BTreeSet::new();
    for life in 0..=CRASHES {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = start_writers(&server, seed + u64::from(life), &stop);
        let target = changes * u64::from(life + 1);
        let mut client = server.connect().expect("a session");
        await_until(SOON * 5, "so many changes", || {
            let tick = text(&mut client, "SELECT split_part(quorum.cut('shop'), ':', 2)");
            if tick.parse::<u64>().expect("a tick") < target { Err(tick) } else { Ok(()) }
        });
        if life == CRASHES {
            stop.store(true, SeqCst);
        } else {
            server.crash();
        }
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
        finish_prepared(&server);
        let mut client = server.connect().expect("a session");
        let log = Log::read(&mut client);
        let kept = kept(&mut client);
        let tombstones = kept.values().filter(|version| version.2).count();
        eprintln!("life {life}: {} changes, {} versions, {tombstones} tombstones", log.changes, kept.len());
        let differ: Vec<_> =
            log.versions.iter().filter(|(key, version)| kept.get(*key) != Some(*version)).take(5).collect();
        let known: Vec<_> = differ.iter().map(|(key, _)| kept.get(*key)).collect();
        assert_eq!(differ, [], "the log says, and this is kept: {known:?}");
        let extra: Vec<_> = kept.keys().filter(|key| !log.versions.contains_key(*key)).take(5).collect();
        assert_eq!(extra, Vec::<&(String, String)>::new(), "the log does not say so");
        assert_eq!(log.emptied, emptied(&mut client), "when tables were emptied");
        assert_eq!(log.backwards, Vec::<String>::new(), "a commit is later than what it replaces");
        // A table may have been emptied last of all.
        seen.extend(kept.iter().map(|((table, _), version)| (table.clone(), version.2)));
        seen.extend(log.emptied.into_keys().map(|table| (format!("emptied {table}"), true)));
    }
    for table in TABLES {
        assert!(
            seen.contains(&(table.to_owned(), false)) && seen.contains(&(table.to_owned(), true)),
            "{table}: {seen:?}"
        );
    }
    assert!(seen.contains(&("emptied public.part".to_owned(), true)), "{seen:?}");
    server.remove();
    let _ = std::fs::remove_dir_all(dir);
}

/// What a crash or the end left prepared.
fn finish_prepared(server: &Plain) {
    let mut client = server.connect().expect("a session");
    let left = client.query("SELECT gid FROM pg_prepared_xacts", &[]).expect("the list");
    for (row, commit) in left.iter().zip([true, false].into_iter().cycle()) {
        let (verb, gid): (&str, String) = (if commit { "COMMIT" } else { "ROLLBACK" }, row.get(0));
        run(&mut client, &format!("{verb} PREPARED '{gid}'"));
    }
}
