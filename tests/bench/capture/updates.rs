//! Updates of one row each, eight clients, asynchronous commit: there is little but the capture to be done.

use super::slices::{self, Plan};
use super::systems::{Fleet, Kind, Table, memory};
use crate::Options;
use crate::line::{Line, Must};
use serde_json::{Map, Value};
use std::time::Duration;

pub const NAME: &str = "capture-one-row-updates";

const MUST: f64 = 0.90;
const KINDS: [Kind; 6] =
    [Kind::Plain, Kind::Control, Kind::Captured, Kind::Default, Kind::Idle, Kind::Trigger];
const CLIENTS: usize = 8;
const CONF: &str = "shared_buffers = 256MB\nmax_wal_size = 4GB\ncheckpoint_timeout = 1h\nautovacuum = off\n\
                    max_connections = 50\nsynchronous_commit = off\n";
const TABLES: [Table; 1] = [Table { name: "item", has_key: true }];
const FILL: &str = "CREATE TABLE item (id integer PRIMARY KEY, stock integer NOT NULL, label text NOT NULL) WITH (fillfactor = 70);
    INSERT INTO item SELECT g, 0, md5(g::text) FROM generate_series(1, 100000) g; VACUUM ANALYZE item";
const SCRIPT: &str = "\\set id random(1, 100000)\nUPDATE item SET stock = stock + 1 WHERE id = :id;\n";

pub fn run(_: &Options) -> bool {
    let mut fleet = Fleet::start(memory(), &KINDS, CONF, &TABLES, |system| {
        FILL.split(';').for_each(|statement| system.sql(statement));
    });
    let script = fleet.root().join("update.sql");
    std::fs::write(&script, SCRIPT).expect("the script");
    let plan = Plan {
        rounds: 160,
        within: Duration::from_secs(200),
        peers_every: 6,
        others_every: 2,
        slice: Duration::from_millis(300),
        clients: CLIENTS,
        more: vec!["-M".to_owned(), "prepared".to_owned(), "-f".to_owned(), script.display().to_string()],
        wal_rounds: 0,
    };
    let figures = slices::measure(NAME, &mut fleet, &plan);
    let mut more = Map::new();
    fleet.systems.iter().zip(&figures).for_each(|(system, f)| f.tell(system.kind, &mut more));
    let Some(ours) = slices::of(Kind::Captured, &fleet, &figures) else { unreachable!("one of KINDS") };
    let ratio = ours.tps_ratio.median();
    let line = Line {
        bench: NAME,
        unit: "ratio",
        samples: &ours.tps_ratio,
        ratio,
        against: "TPS of PostgreSQL that captures nothing; median of rounds",
        must: Must::AtLeast(MUST),
        judged: ratio,
        kept: true,
        more: Value::Object(more),
    };
    line.print()
}
