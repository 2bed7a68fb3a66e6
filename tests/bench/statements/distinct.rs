//! Ten times more statements than there is room for, all equally often: nearly each one has been thrown out before it comes
//! again.

use super::fleet::{Fleet, Kind, Measured, Plan, STARTS};
use crate::Options;
use crate::line::{Line, Must, rounded};
use crate::usage::status_bytes;
use postgres::Client;
use serde_json::{Map, Value, json};

pub const NAME: &str = "learner-distinct";

const MUST: f64 = 0.97;
/// What a session may take more after all statements than after the first fifth of them.
const MUST_GROWTH_MB: f64 = 1.0;
const KINDS: [Kind; 4] = [Kind::Plain, Kind::Learner, Kind::StatStatements, Kind::Control];
const PAIRS: [(Kind, Kind); 4] = [
    (Kind::Learner, Kind::Plain),
    (Kind::StatStatements, Kind::Plain),
    (Kind::Learner, Kind::StatStatements),
    (Kind::Control, Kind::Plain),
];
const STATEMENTS: u32 = 100_000;
const ROOM: i64 = 10_000;
const SCALE: u32 = 10;
const CLIENTS: u32 = 4;
const MB: f64 = (1 << 20) as f64;

pub fn run(_: &Options) -> bool {
    let script = tempfile::NamedTempFile::new().expect("a file for the script");
    // In the simple mode a variable is text, also within a name.
    let text = format!(
        "\\set n random(1, {STATEMENTS})\n\\set aid random(1, {})\n\
         SELECT abalance AS n:n FROM pgbench_accounts WHERE aid = :aid;\n",
        100_000 * SCALE
    );
    std::fs::write(script.path(), text).expect("the script");
    let file = script.path().display().to_string();
    let plan = Plan { clients: CLIENTS, more: &["-M", "simple", "-f", &file] };
    let mut measured = Measured::of(&PAIRS);
    let mut fleet = Fleet::start(&KINDS, SCALE);
    let measure = |number| {
        fleet.restart(number);
        measure(&fleet, &plan, &mut measured)
    };
    let learners: Vec<Learner> = (0..STARTS).map(measure).collect();
    print(&measured, &learners)
}

/// What a learner knew and took when it had been measured.
struct Learner {
    /// Statements in memory.
    places: i64,
    known: i64,
    rows: i64,
    table: i64,
    /// Shared memory before and after.
    shared: [i64; 2],
    session_growth: f64,
}

/// Runs the plan once more.
fn measure(fleet: &Fleet, plan: &Plan, measured: &mut Measured) -> Learner {
    let mut session = fleet.of(Kind::Learner).connect();
    // So that all have been there before anything is counted.
    let session_growth = one_session(&mut session);
    let shared = shared_bytes(&mut session);
    measured.add(NAME, fleet, plan);
    Learner {
        places: number(&mut session, "SELECT count(*) FROM quorum.statements_here()"),
        known: number(&mut session, "SELECT count(*) FROM quorum.readonly_statements"),
        rows: number(&mut session, "SELECT count(*) FROM quorum.readonly_statement"),
        table: number(&mut session, "SELECT pg_total_relation_size('quorum.readonly_statement')"),
        shared: [shared, shared_bytes(&mut session)],
        session_growth,
    }
}

/// Says what holds for each of the learners, with the worst of each number.
fn print(measured: &Measured, learners: &[Learner]) -> bool {
    let most = |numbers: Vec<i64>| numbers.into_iter().max().unwrap_or(0);
    let least_places = learners.iter().map(|learner| learner.places).min().unwrap_or(0);
    let known = most(learners.iter().map(|learner| learner.known).collect());
    let rows = most(learners.iter().map(|learner| learner.rows).collect());
    let table = most(learners.iter().map(|learner| learner.table).collect());
    let shared = most(learners.iter().map(|learner| learner.shared[1]).collect());
    let growth_mb = learners.iter().map(|learner| learner.session_growth).fold(0.0, f64::max) / MB;
    let fixed =
        learners.iter().all(|learner| learner.shared[0] == learner.shared[1]) && growth_mb <= MUST_GROWTH_MB;
    let bounded = known <= ROOM && rows <= ROOM;
    // Statements of other databases have places, too.
    let busy = least_places > ROOM * 9 / 10;
    let mut more = Map::new();
    measured.tell(&mut more);
    let ratios = measured.ratios(Kind::Learner, Kind::Plain);
    let ratio = ratios.median();
    for (name, value) in [
        ("statements", json!(STATEMENTS)),
        ("known", json!(known)),
        ("least_places", json!(least_places)),
        ("table_rows", json!(rows)),
        ("table_mb", json!(rounded(table as f64 / MB))),
        ("shared_mb", json!(rounded(shared as f64 / MB))),
        ("session_growth_mb", json!(rounded(growth_mb))),
        ("must_session_growth_mb", json!(MUST_GROWTH_MB)),
    ] {
        more.insert(name.to_owned(), value);
    }
    let line = Line {
        bench: NAME,
        unit: "ratio",
        samples: &ratios,
        ratio: rounded(ratio),
        against: "transactions of PostgreSQL without any library, at once with it, for the same CPU time",
        must: Must::AtLeast(MUST),
        judged: ratio,
        kept: fixed && bounded && busy,
        more: Value::Object(more),
    };
    line.print()
}

/// Runs all statements in one session; by how many bytes its own memory grew after the first fifth.
fn one_session(session: &mut Client) -> f64 {
    let pid = number(session, "SELECT pg_backend_pid()::bigint") as i32;
    let mut begin = 0;
    for n in 0..STATEMENTS {
        let statement = format!("SELECT abalance AS n{n} FROM pgbench_accounts WHERE aid = {}", n + 1);
        session.batch_execute(&statement).unwrap_or_else(|e| panic!("{NAME}: {statement}: {e:?}"));
        if n == STATEMENTS / 5 {
            begin = status_bytes(pid, "RssAnon").expect("the session's memory");
        }
    }
    status_bytes(pid, "RssAnon").expect("the session's memory").saturating_sub(begin) as f64
}

fn shared_bytes(session: &mut Client) -> i64 {
    number(
        session,
        "SELECT coalesce(sum(allocated_size), 0)::bigint FROM pg_shmem_allocations WHERE name LIKE 'pgquorum%'",
    )
}

fn number(session: &mut Client, sql: &str) -> i64 {
    session.query_one(sql, &[]).unwrap_or_else(|e| panic!("{NAME}: {sql}: {e:?}")).get(0)
}
