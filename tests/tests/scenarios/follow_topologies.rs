//! Clusters that all write and follow each other, each by its sidecar: a ring, a hub with two leaves, and all by all ways, at the
//! same time in three databases of the same clusters. One is killed in the middle. In the end all have the same rows, and know
//! the same of who wrote them.

use super::last_write_wins::versions;
use pgquorum_tests::{Follow, PATIENCE, Several, await_answer, await_until, text};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

const CLUSTERS: usize = 3;
const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, doc text); ALTER TABLE t ALTER doc SET STORAGE EXTERNAL;
    CREATE TABLE pairs (a int, b text, v numeric, PRIMARY KEY (a, b));
    CREATE TABLE parts (kind int, id int, v text, PRIMARY KEY (kind, id)) PARTITION BY LIST (kind);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES IN (1, 2); CREATE TABLE parts_other PARTITION OF parts DEFAULT";
const TRACKED: [&str; 3] = ["t", "pairs", "parts"];

/// So few rows that all of them are written by all, all the time.
const IDS: i32 = 10;
/// Of each writer; there is one in each database of each cluster.
const TRANSACTIONS: usize = 90;

const fn follow(source: usize, target: usize, forward: bool) -> Follow {
    Follow { source, target, forward }
}

/// Database, and who follows whom in it.
const TOPOLOGIES: [(&str, &[Follow]); 3] = [
    ("ring", &[follow(0, 1, true), follow(1, 2, true), follow(2, 0, true)]),
    ("hub", &[follow(1, 0, false), follow(2, 0, false), follow(0, 1, true), follow(0, 2, true)]),
    (
        "mesh",
        &[
            follow(0, 1, true),
            follow(1, 0, true),
            follow(1, 2, true),
            follow(2, 1, true),
            follow(0, 2, true),
            follow(2, 0, true),
        ],
    ),
];

/// Subscriptions and tables that do not follow, and changes that were left out.
const ODD: &str = "SELECT concat_ws(' ',
    (SELECT string_agg(concat_ws(' ', name, state, code, detail), '; ') FROM quorum.subscription_state WHERE state <> 'following'),
    (SELECT string_agg(concat_ws(' ', subscription, \"table\", state, code, message), '; ') FROM quorum.subscription_tables
     WHERE state <> 'following'), (SELECT string_agg(r::text, '; ') FROM quorum.rejected_changes AS r))";

/// How far all writers together are.
#[derive(Default)]
struct Progress {
    committed: AtomicUsize,
    /// The cluster that was killed is up again.
    healed: AtomicBool,
}

fn statement(random: &mut StdRng, mark: &str) -> String {
    let (id, other) = (random.random_range(1..=IDS), random.random_range(1..=IDS));
    let (kind, another) = (random.random_range(1..=4), random.random_range(1..=4));
    match random.random_range(0..14) {
        0 | 1 => format!(
            "INSERT INTO t VALUES ({id}, '{mark}', '-') ON CONFLICT (id) DO UPDATE SET v = excluded.v"
        ),
        2 => format!("UPDATE t SET v = '{mark}' WHERE id = {id}"),
        3 => format!("UPDATE t SET doc = repeat('{mark} ', 1000) WHERE id = {id}"),
        4 => format!("DELETE FROM t WHERE id = {id}"),
        5 => format!(
            "UPDATE t SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM t WHERE id = {other})"
        ),
        6 | 7 => {
            format!(
                "INSERT INTO pairs VALUES ({kind}, 'b{id}', {other}) ON CONFLICT (a, b) DO UPDATE SET v = pairs.v + 1"
            )
        }
        8 => format!(
            "UPDATE pairs SET b = 'b{other}' WHERE a = {kind} AND b = 'b{id}' AND NOT EXISTS (SELECT FROM pairs WHERE a = {kind} AND b = 'b{other}')"
        ),
        9 => format!("DELETE FROM pairs WHERE a = {kind} AND b > 'b{id}'"),
        10 | 11 => format!(
            "INSERT INTO parts VALUES ({kind}, {id}, '{mark}') ON CONFLICT (kind, id) DO UPDATE SET v = excluded.v"
        ),
        // To another partition, as often as not.
        12 => format!(
            "UPDATE parts SET kind = {another}, v = '{mark}' WHERE kind = {kind} AND id = {id} \
             AND NOT EXISTS (SELECT FROM parts WHERE kind = {another} AND id = {id})"
        ),
        _ => format!("DELETE FROM parts WHERE kind = {kind} AND id = {id}"),
    }
}

fn transaction(random: &mut StdRng, mark: &str) -> String {
    let count = random.random_range(1..4);
    let statements: Vec<String> = (0..count).map(|_| statement(random, mark)).collect();
    let end = if random.random_range(0..10) == 0 { "ROLLBACK" } else { "COMMIT" };
    format!("BEGIN; {}; {end}", statements.join("; "))
}

/// Writes its transactions, the last third of them when the cluster that is killed is up again. What was being committed as it
/// died is there or not.
fn write(several: &Several, at: usize, database: &str, seed: u64, progress: &Progress) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut client = several.connect(at, database);
    for number in 0..TRANSACTIONS {
        if number == TRANSACTIONS * 2 / 3 {
            await_until(PATIENCE * 2, "the cluster that was killed", || {
                if progress.healed.load(SeqCst) { Ok(()) } else { Err("it is down".to_owned()) }
            });
        }
        let sql = transaction(&mut random, &format!("{at}:{number}"));
        if let Err(error) = client.batch_execute(&sql) {
            match error.code().map(|code| code.code()) {
                // Those that apply write the same rows. Refusals of ours are not expected.
                Some("40001" | "40P01" | "23505") if client.batch_execute("ROLLBACK").is_ok() => {}
                // It dies, it starts, or it does not lead yet.
                None | Some("57P01" | "57P02" | "57P03" | "25006" | "08006") => {
                    client = several.connect(at, database);
                }
                Some(_) if client.is_closed() => client = several.connect(at, database),
                Some(_) => panic!("cluster {at}, {database}: {sql}: {error:?}"),
            }
        }
        progress.committed.fetch_add(1, SeqCst);
    }
}

#[test]
fn all_have_the_same_in_the_end_whoever_follows_whom() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(26);
    println!("SEED={seed}");
    let several = Several::start(CLUSTERS);
    for (database, follows) in TOPOLOGIES {
        several.prepare(database, TABLES, &TRACKED);
        several.follow(database, follows);
    }
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let (several, progress) = (&several, &progress);
        let mut writers = Vec::new();
        for (place, (database, _)) in TOPOLOGIES.into_iter().enumerate() {
            for at in several.numbers() {
                let seed = seed * 100 + (place * CLUSTERS + at) as u64;
                writers.push(scope.spawn(move || write(several, at, database, seed, progress)));
            }
        }
        let third = TRANSACTIONS * writers.len() / 3;
        await_until(PATIENCE * 2, "a third of the writes", || match progress.committed.load(SeqCst) {
            enough if enough >= third => Ok(()),
            few if writers.iter().any(std::thread::ScopedJoinHandle::is_finished) => {
                // The others do not wait for what will not come.
                progress.healed.store(true, SeqCst);
                panic!("a writer has failed when all were at {few}");
            }
            few => Err(few.to_string()),
        });
        let victim = seed as usize % CLUSTERS;
        let cluster = several.cluster(victim);
        cluster.kill(1, None);
        cluster.start_node(1);
        cluster.leader();
        println!("cluster {victim} was killed and is up again");
        progress.healed.store(true, SeqCst);
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
    });
    for (database, follows) in TOPOLOGIES {
        several.await_quiet(database, follows);
        let mut first: Option<(usize, [(String, String); 3])> = None;
        let mut conflicts = 0;
        for at in several.numbers() {
            let client = &mut several.connect(at, database);
            // How they are is said a little later than they are.
            await_answer(client, PATIENCE, ODD, "");
            let met = text(client, "SELECT coalesce(sum(count), 0)::text FROM quorum.conflicts");
            conflicts += met.parse::<u64>().expect("a number");
            let seen = TRACKED.map(|table| (rows(client, table), versions(client, table)));
            let Some((other, expected)) = &first else {
                first = Some((at, seen));
                continue;
            };
            for ((table, here), there) in TRACKED.iter().zip(&seen).zip(expected) {
                let who = format!("{database}.{table}: cluster {at} (left) and {other}, SEED={seed}");
                assert_eq!(here.0, there.0, "rows of {who}");
                assert_eq!(here.1, there.1, "versions of {who}");
            }
        }
        assert!(conflicts > 0, "{database}: there was nothing to be weighed");
        println!("{database}: the same everywhere, {conflicts} conflicts");
    }
}

/// All rows, large values by their checksums.
fn rows(client: &mut postgres::Client, table: &str) -> String {
    let row = if table == "t" { "concat_ws(' ', x.id, x.v, md5(x.doc))" } else { "x::text" };
    text(
        client,
        &format!(
            "SELECT coalesce(string_agg(s.row, E'\\n' ORDER BY s.row), '') FROM (SELECT {row} AS row FROM {table} AS x) AS s"
        ),
    )
}
