//! pgbench's read-only transactions, one SELECT by the primary key: where a statement costs least, learning costs most.

use super::fleet::{self, Fleet, Kind, Plan};
use crate::Options;
use crate::line::{Line, Must, rounded};
use pgquorum_tests::{await_served, hash_of, served};
use serde_json::{Map, Value, json};
use std::time::Duration;

pub const NAMES: [&str; 2] = ["learner-prepared", "learner-simple"];

const MODES: [&str; 2] = ["prepared", "simple"];
/// To PostgreSQL without any library.
const MUST: [f64; 2] = [0.96, 0.95];
/// To `pg_stat_statements` in the same rounds.
const MUST_PEER: [f64; 2] = [1.07, 1.0];
const KINDS: [Kind; 6] =
    [Kind::Plain, Kind::Learner, Kind::StatStatements, Kind::QueryId, Kind::Asleep, Kind::Control];
const SCALE: u32 = 10;
const CLIENTS: u32 = 4;
const STATEMENT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 1";

pub fn run(options: &Options) -> bool {
    let fleet = Fleet::start(&KINDS, SCALE);
    let mut good = true;
    for (at, name) in NAMES.iter().enumerate().filter(|(_, name)| options.wants(name)) {
        good &= one(name, at, &fleet);
    }
    good
}

fn one(name: &str, at: usize, fleet: &Fleet) -> bool {
    let plan = Plan {
        rounds: 120,
        within: Duration::from_secs(240),
        clients: CLIENTS,
        transactions: 6000,
        more: &["-S", "-M", MODES[at]],
    };
    let measured = fleet::measure(name, fleet, &plan);
    // A learner that learned nothing would be cheap.
    let mut session = fleet.of(Kind::Learner).connect();
    await_served(&mut session, STATEMENT);
    let asleep = served(&mut fleet.of(Kind::Asleep).connect());
    assert!(!asleep.contains(&hash_of(STATEMENT)), "{name}: who shall not learn has learned");
    let mut more = Map::new();
    fleet.systems.iter().zip(&measured.figures).for_each(|(system, f)| f.tell(system.kind, &mut more));
    let place = fleet.systems.iter().position(|system| system.kind == Kind::Learner).expect("it takes part");
    let ours = &measured.figures[place];
    let (ratio, to_peer) = (ours.ratio.median(), measured.ratio(fleet, Kind::Learner, Kind::StatStatements));
    more.insert("to_pg_stat_statements".to_owned(), json!(rounded(to_peer)));
    more.insert("must_to_pg_stat_statements".to_owned(), json!(MUST_PEER[at]));
    let line = Line {
        bench: name,
        unit: "ratio",
        samples: &ours.ratio,
        ratio: rounded(ratio),
        against: "TPS of PostgreSQL without any library; medians of rounds",
        must: Must::AtLeast(MUST[at]),
        judged: ratio,
        kept: to_peer >= MUST_PEER[at],
        more: Value::Object(more),
    };
    line.print()
}
