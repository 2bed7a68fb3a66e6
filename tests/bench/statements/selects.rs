//! pgbench's read-only transactions, one SELECT by the primary key: where a statement costs least, learning costs most.
//! Both ways of sending it are measured with the same sets of servers.

use super::fleet::{Fleet, Kind, Measured, Plan, STARTS};
use crate::Options;
use crate::line::{Line, Must, rounded};
use pgquorum_tests::{await_served, hash_of, served};
use serde_json::{Map, Value, json};

pub const NAMES: [&str; 2] = ["learner-prepared", "learner-simple"];

const MODES: [&str; 2] = ["prepared", "simple"];
/// To PostgreSQL without any library.
const MUST: [f64; 2] = [0.96, 0.95];
/// To `pg_stat_statements` in the same rounds.
const MUST_PEER: [f64; 2] = [1.07, 1.0];
const KINDS: [Kind; 6] =
    [Kind::Plain, Kind::Learner, Kind::StatStatements, Kind::QueryId, Kind::Asleep, Kind::Control];
const PAIRS: [(Kind, Kind); 6] = [
    (Kind::Learner, Kind::Plain),
    (Kind::StatStatements, Kind::Plain),
    (Kind::Learner, Kind::StatStatements),
    (Kind::QueryId, Kind::Plain),
    (Kind::Asleep, Kind::Plain),
    (Kind::Control, Kind::Plain),
];
const SCALE: u32 = 10;
const CLIENTS: u32 = 4;
const STATEMENT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 1";

pub fn run(options: &Options) -> bool {
    let wanted = (0..NAMES.len()).filter(|at| options.wants(NAMES[*at]));
    let mut all: Vec<(usize, Measured)> = wanted.map(|at| (at, Measured::of(&PAIRS))).collect();
    let mut fleet = Fleet::start(&KINDS, SCALE);
    for number in 0..STARTS {
        fleet.restart(number);
        for (at, measured) in &mut all {
            measure(*at, &fleet, measured);
        }
    }
    let mut good = true;
    for (at, measured) in &all {
        good &= print(*at, measured);
    }
    good
}

fn measure(at: usize, fleet: &Fleet, measured: &mut Measured) {
    let name = NAMES[at];
    let plan = Plan { clients: CLIENTS, more: &["-S", "-M", MODES[at]] };
    measured.add(name, fleet, &plan);
    // A learner that learned nothing would be cheap.
    let mut session = fleet.of(Kind::Learner).connect();
    await_served(&mut session, STATEMENT);
    let asleep = served(&mut fleet.of(Kind::Asleep).connect());
    assert!(!asleep.contains(&hash_of(STATEMENT)), "{name}: who shall not learn has learned");
}

fn print(at: usize, measured: &Measured) -> bool {
    let mut more = Map::new();
    measured.tell(&mut more);
    let ratios = measured.ratios(Kind::Learner, Kind::Plain);
    let ratio = ratios.median();
    let to_peer = measured.ratios(Kind::Learner, Kind::StatStatements).median();
    more.insert("must_to_pg_stat_statements".to_owned(), json!(MUST_PEER[at]));
    let line = Line {
        bench: NAMES[at],
        unit: "ratio",
        samples: &ratios,
        ratio: rounded(ratio),
        against: "transactions of PostgreSQL without any library, at once with it, for the same CPU time",
        must: Must::AtLeast(MUST[at]),
        judged: ratio,
        kept: to_peer >= MUST_PEER[at],
        more: Value::Object(more),
    };
    line.print()
}
