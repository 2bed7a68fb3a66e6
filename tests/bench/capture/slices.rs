//! Short runs of pgbench on all systems in turns. Ratios are taken within a round, so what slows the machine down for a
//! while slows down both sides.
//!
//! One pgbench for each system lives through all its slices, stopped in between by a signal: starting sessions and
//! warming up their caches takes as much as some dozen transactions, and would weigh on slices as short as these.

use super::systems::{Fleet, Kind, System};
use crate::line::{Samples, rounded};
use crate::load::{Load, await_idle};
use serde_json::{Map, Value, json};
use std::thread;
use std::time::{Duration, Instant};

/// How a run goes.
pub struct Plan {
    pub rounds: usize,
    /// Where the machine is slow, there are fewer rounds.
    pub within: Duration,
    /// The peers take part in one round of so many: what they cost is many times the noise.
    pub peers_every: usize,
    /// Likewise what no mark is about.
    pub others_every: usize,
    pub slice: Duration,
    pub clients: usize,
    /// Further arguments of pgbench.
    pub more: Vec<String>,
    /// WAL is counted in so many of the first rounds.
    pub wal_rounds: usize,
}

impl Plan {
    /// Nothing is counted for so long on each system at the beginning.
    const WARM_UP: Duration = Duration::from_secs(5);
}

/// What a slice took.
#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    tps: f64,
    /// Of all server processes and of who reads there, until it has everything.
    cpu_us: f64,
    /// Of the processes of the server alone.
    server_cpu_us: f64,
    wal_bytes: Option<f64>,
}

/// What was measured of one system.
#[derive(Default)]
pub struct Figures {
    pub tps: Samples,
    pub cpu_us: Samples,
    pub server_cpu_us: Samples,
    pub wal_bytes: Samples,
    /// To the plain server in the same round.
    pub tps_ratio: Samples,
    pub cpu_ratio: Samples,
    pub server_cpu_ratio: Samples,
    pub wal_ratio: Samples,
}

/// Runs the plan; figures in the order of the fleet's systems. The first one is the plain server.
pub fn measure(name: &str, fleet: &mut Fleet, plan: &Plan) -> Vec<Figures> {
    let count = fleet.systems.len();
    let mut figures: Vec<Figures> = (0..count).map(|_| Figures::default()).collect();
    fleet.checkpoint();
    let load = |system: &mut System| {
        let clients = plan.clients.to_string();
        let mut args = vec!["-n", "-c", &clients, "-j", "2"];
        args.extend(plan.more.iter().map(String::as_str));
        let load = Load::start(&system.dsn(), &args, &mut system.session);
        slice(system, &load, Plan::WARM_UP, false);
        load
    };
    let loads: Vec<Load> = fleet.systems.iter_mut().map(load).collect();
    let start = Instant::now();
    for round in 0..plan.rounds {
        if start.elapsed() > plan.within {
            break;
        }
        let mut slices: Vec<Option<Slice>> = vec![None; count];
        // Who goes first changes, so that what grows with time hits all.
        for at in (0..count).map(|i| (i + round) % count) {
            let system = &mut fleet.systems[at];
            let every = match system.kind {
                Kind::Trigger | Kind::Wal2json | Kind::Pgoutput => plan.peers_every,
                Kind::Default | Kind::Idle => plan.others_every,
                Kind::Plain | Kind::Control | Kind::Captured => 1,
            };
            if round.is_multiple_of(every) {
                slices[at] = Some(slice(system, &loads[at], plan.slice, round < plan.wal_rounds));
            }
        }
        let plain = slices.first().copied().flatten().unwrap_or_default();
        for (figures, slice) in figures.iter_mut().zip(slices) {
            if let Some(slice) = slice {
                figures.add(&slice, &plain);
            }
        }
        if round % 20 == 19 {
            let say = |(system, f): (&System, &Figures)| {
                format!(
                    "{} {:.3} (CPU {:.3})",
                    system.kind.name(),
                    f.tps_ratio.median(),
                    f.cpu_ratio.median()
                )
            };
            let said: Vec<String> = fleet.systems.iter().zip(&figures).map(say).collect();
            eprintln!("{name}, {} rounds: {}", round + 1, said.join(", "));
        }
    }
    figures
}

fn slice(system: &mut System, load: &Load, length: Duration, count_wal: bool) -> Slice {
    const LSN: &str = "SELECT pg_current_wal_flush_lsn()::text";
    // Each transaction of the load takes one number, and nobody else takes any.
    const XID: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
    let xid = |system: &mut System| system.ask(XID).parse::<f64>().expect("the number of a transaction");
    let (tree, reader) = (system.tree(), system.reader());
    let from = count_wal.then(|| system.ask(LSN));
    let first = xid(system);
    let (of_server, of_reader, start) = (tree.seconds(), reader.seconds(), Instant::now());
    load.go_on();
    thread::sleep(length);
    load.stop();
    let seconds = start.elapsed().as_secs_f64();
    await_idle(&mut system.session);
    let transactions = xid(system) - first;
    system.drain();
    let (of_server, of_reader) = (tree.seconds() - of_server, reader.seconds() - of_reader);
    let to = count_wal.then(|| system.ask(LSN));
    let wal_bytes = from.zip(to).map(|(from, to)| system.wal_bytes(&from, &to) / transactions);
    Slice {
        tps: transactions / seconds,
        cpu_us: (of_server + of_reader) / transactions * 1e6,
        server_cpu_us: of_server / transactions * 1e6,
        wal_bytes,
    }
}

impl Figures {
    fn add(&mut self, slice: &Slice, plain: &Slice) {
        self.tps.add(slice.tps);
        self.cpu_us.add(slice.cpu_us);
        self.server_cpu_us.add(slice.server_cpu_us);
        self.tps_ratio.add(slice.tps / plain.tps);
        self.cpu_ratio.add(slice.cpu_us / plain.cpu_us);
        self.server_cpu_ratio.add(slice.server_cpu_us / plain.server_cpu_us);
        if let (Some(own), Some(plain)) = (slice.wal_bytes, plain.wal_bytes) {
            self.wal_bytes.add(own);
            self.wal_ratio.add(own / plain);
        }
    }

    /// Adds what is known of this system to the line.
    pub fn tell(&self, kind: Kind, more: &mut Map<String, Value>) {
        let name = kind.name();
        let within = |samples: &Samples| {
            let (low, high) = samples.median_within();
            json!([rounded(low), rounded(high)])
        };
        more.insert(format!("{name}_tps"), json!(self.tps.median().round()));
        more.insert(format!("{name}_cpu_us"), json!(self.cpu_us.median().round()));
        if kind != Kind::Plain {
            more.insert(format!("{name}_ratio"), json!(rounded(self.tps_ratio.median())));
            more.insert(format!("{name}_ratio_within"), within(&self.tps_ratio));
            more.insert(format!("{name}_cpu_ratio"), json!(rounded(self.cpu_ratio.median())));
            more.insert(format!("{name}_cpu_ratio_within"), within(&self.cpu_ratio));
        }
        // The others have nobody who reads.
        if matches!(kind, Kind::Wal2json | Kind::Pgoutput) {
            more.insert(format!("{name}_server_cpu_us"), json!(self.server_cpu_us.median().round()));
            more.insert(format!("{name}_server_cpu_ratio"), json!(rounded(self.server_cpu_ratio.median())));
        }
        if self.wal_bytes.len() > 0 {
            more.insert(format!("{name}_wal_bytes"), json!(self.wal_bytes.median().round()));
            more.insert(format!("{name}_wal_ratio"), json!(rounded(self.wal_ratio.median())));
        }
    }
}

/// What was measured of this kind.
pub fn of<'f>(kind: Kind, fleet: &Fleet, figures: &'f [Figures]) -> Option<&'f Figures> {
    fleet.systems.iter().zip(figures).find(|(system, _)| system.kind == kind).map(|(_, figures)| figures)
}
