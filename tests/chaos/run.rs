//! One run: a cluster, clients, faults, and what came of it.

use crate::Options;
use crate::checker::{Evidence, Stale, Violation, check};
use crate::disks;
use crate::history::{Call, Recorder};
use crate::nemesis::{Clocks, Nemesis, member_trouble, mend_members, unmark};
use crate::notes::Notes;
use crate::plan::Plan;
use crate::session::Hosts;
use crate::state::State;
use crate::workload::{ACCOUNTS, START_BALANCE, Workload, schema};
use pgquorum_tests::{NetCluster, poll_until};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a write is awaited after everything is healed. Longer than it may take, to see how long it does take.
pub const WRITABLE: Duration = Duration::from_secs(60);
/// How long all nodes may take to stream again before the next round begins anyway.
const MENDED: Duration = Duration::from_secs(30);
const MENDED_AT_LAST: Duration = Duration::from_secs(180);
/// How long sessions may take to end, and standbys to replay all that there is.
const AT_REST: Duration = Duration::from_secs(60);
/// How long a node that is well may stay marked as down before the administrator takes the mark away.
const UNMARK: Duration = Duration::from_secs(5);
/// How long clients are alone with a healthy cluster at the beginning.
const WARM_UP: Duration = Duration::from_secs(2);

/// A fault that happened.
#[derive(Clone, Debug)]
pub struct Injected {
    pub kind: String,
    /// Microseconds of the recorder's clock.
    pub at: u64,
    pub healed: u64,
    /// No other fault lay over it.
    pub alone: bool,
    /// Seconds from healing to the first acknowledged write that began after it.
    pub writable_after: Option<f64>,
}

/// Everything that a report is made of.
pub struct Result {
    pub seed: u64,
    pub nodes: u64,
    pub begin: u64,
    pub end: u64,
    pub faults: Vec<Injected>,
    pub impossible: Vec<(String, String)>,
    /// Seconds until all nodes streamed again, of rounds that were waited for.
    pub mended: Vec<f64>,
    pub calls: Vec<Call>,
    pub violations: Vec<Violation>,
    pub stale: Stale,
    /// Logs and histories, if they were kept.
    pub kept: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result {
    let clock = options.clock.then(Clocks::available).flatten();
    let cluster = Arc::new(NetCluster::start_prepared(
        disks::base(),
        options.nodes,
        Box::new(move |cluster, place| {
            disks::prepare(cluster, place);
            if let Some(library) = clock {
                Clocks::install(cluster, place, library);
            }
        }),
    ));
    let recorder = Arc::new(Recorder::new());
    let notes = Arc::new(Notes::new(&cluster.dir().join("chaos.log"), &recorder));
    let run = Run { cluster, recorder, notes, clock: clock.is_some() };
    run.go(options)
}

struct Run {
    cluster: Arc<NetCluster>,
    recorder: Arc<Recorder>,
    notes: Arc<Notes>,
    clock: bool,
}

impl Run {
    fn go(self, options: &Options) -> Result {
        let hosts = self.set_up(options.weak);
        let workload = Workload::start(&self.cluster, &hosts, &self.recorder, options.seed, options.cancels);
        let first = poll_until(WRITABLE, || self.recorder.first_after(0).ok_or("no write yet".to_owned()));
        first.expect("a healthy cluster takes writes");
        self.pause(WARM_UP);
        let mut nemesis = Nemesis::new(&self.cluster, &self.recorder, &self.notes, self.clock, options.weak);
        let begin = self.recorder.now();
        let mut result = self.rounds(options, &mut nemesis, begin);
        result.end = self.recorder.now();
        let whole = self.mend_at_last(&nemesis);
        workload.stop();
        nemesis.finish();
        let states = self.states(&mut result.violations);
        result.violations.extend(whole.err().map(|seen| Violation {
            rule: "all nodes stream at the end",
            text: format!("not within {MENDED_AT_LAST:?}: {seen}"),
        }));
        result.calls = self.recorder.calls();
        let recoveries: Vec<(String, Option<f64>)> =
            result.faults.iter().map(|f| (f.kind.clone(), f.writable_after)).collect();
        let (found, stale) = check(&Evidence {
            calls: &result.calls,
            states: &states,
            accounts: ACCOUNTS,
            start_balance: START_BALANCE,
            recoveries: &recoveries,
            writable_within: options.within.as_secs_f64(),
        });
        result.violations.extend(found);
        result.stale = stale;
        self.tidy(options, &mut result, &states);
        result
    }

    fn set_up(&self, weak: bool) -> Hosts {
        let password = self.cluster.password().to_owned();
        // Where others keep the machine busy, the leader may lose its place for a moment.
        let made = poll_until(WRITABLE, || {
            let (leader, _) = self.cluster.leader();
            let mut client = self.cluster.connect(leader).map_err(|e| format!("{e:?}"))?;
            client.batch_execute(&schema(&password)).map(|()| leader).map_err(|e| format!("{e:?}"))
        });
        let leader = made.expect("the tables of the workload");
        // Small, so that the disks may be small and a full one is noticed soon.
        let node = self.cluster.node_dir(leader).join("node.toml").display().to_string();
        let set = ["db-config", "set", "--config", &node, "max_wal_size=128MB", "min_wal_size=32MB"];
        let set = || self.cluster.try_program(leader, &set);
        poll_until(WRITABLE, set).expect("the parameters of the run");
        if weak {
            let set =
                ["config", "set", "--config", &node, "quorum-replication=false", "replication-factor=0"];
            let set = || self.cluster.try_program(leader, &set);
            poll_until(WRITABLE, set).expect("the settings of the run");
        }
        let nodes = self.cluster.ids().into_iter().map(|id| (id, self.cluster.network.address(id)));
        Hosts { nodes: nodes.collect(), password }
    }

    fn rounds(&self, options: &Options, nemesis: &mut Nemesis, begin: u64) -> Result {
        let mut plan = Plan::new(options.seed, options.nodes, self.clock, options.only.clone());
        let mut result = Result {
            seed: options.seed,
            nodes: options.nodes,
            begin,
            end: begin,
            faults: Vec::new(),
            impossible: Vec::new(),
            mended: Vec::new(),
            calls: Vec::new(),
            violations: Vec::new(),
            stale: Stale::default(),
            kept: None,
        };
        let until = begin + options.length.as_micros() as u64;
        let mut number = 0;
        while self.recorder.now() < until {
            number += 1;
            let round = plan.next_round();
            self.notes.say(&format!("round {number}"));
            let mut injected = Vec::new();
            for (gap, fault) in &round.faults {
                self.pause(*gap);
                let at = self.recorder.now();
                self.notes.say(&format!("  {fault}, leader is node {}", self.recorder.newest().1));
                match nemesis.inject(*fault) {
                    Ok(()) => injected.push((fault.kind(), at)),
                    Err(why) => {
                        self.notes.say(&format!("    not possible: {why}"));
                        result.impossible.push((fault.kind(), why));
                    }
                }
            }
            self.pause(round.hold);
            nemesis.heal();
            let healed = self.recorder.now();
            self.notes.say("  healed");
            let within = self.await_write(healed);
            let alone = injected.len() == 1;
            result.faults.extend(injected.into_iter().map(|(kind, at)| Injected {
                kind,
                at,
                healed,
                alone,
                writable_after: within,
            }));
            let Some(seconds) = within else {
                self.notes.say(&format!("  NOT writable within {WRITABLE:?}, the run ends here"));
                return result;
            };
            self.notes.say(&format!("  writable after {seconds:.2} s"));
            let left = Duration::from_micros(until.saturating_sub(self.recorder.now()));
            if round.mend && !left.is_zero() {
                result.mended.extend(self.mend(nemesis, MENDED.min(left)));
            } else {
                nemesis.revive();
                mend_members(&self.cluster, self.leader(), &self.notes);
            }
            self.pause(round.calm);
        }
        result
    }

    fn leader(&self) -> u64 {
        self.recorder.newest().1.max(1)
    }

    fn pause(&self, time: Duration) {
        let _ = poll_until(time, || Err::<(), _>(String::new()));
    }

    fn await_write(&self, since: u64) -> Option<f64> {
        let seen = poll_until(WRITABLE, || self.recorder.first_after(since).ok_or(String::new()));
        seen.ok().map(|end| (end - since) as f64 / 1e6)
    }

    /// Seconds until all nodes stream again; `None` if they do not in time.
    fn mend(&self, nemesis: &Nemesis, limit: Duration) -> Option<f64> {
        let begin = self.recorder.now();
        let mended = poll_until(limit, || {
            nemesis.revive();
            mend_members(&self.cluster, self.leader(), &self.notes);
            if self.recorder.now() > begin + UNMARK.as_micros() as u64 {
                unmark(&self.cluster, self.leader(), &self.notes);
            }
            member_trouble(&self.cluster, self.leader())
        });
        match mended {
            Ok(()) => Some((self.recorder.now() - begin) as f64 / 1e6),
            Err(seen) => {
                self.notes.say(&format!("  not all stream after {limit:?}: {seen}"));
                None
            }
        }
    }

    fn mend_at_last(&self, nemesis: &Nemesis) -> std::result::Result<(), String> {
        self.notes.say("the last fault is healed, all nodes must stream");
        match self.mend(nemesis, MENDED_AT_LAST) {
            Some(_) => Ok(()),
            None => member_trouble(&self.cluster, self.leader()).and(Err("they did later".to_owned())),
        }
    }

    /// The data of each node, the leader's first.
    fn states(&self, violations: &mut Vec<Violation>) -> Vec<(u64, State)> {
        let leader = self.leader();
        let position = "SELECT pg_current_wal_flush_lsn()::text";
        let mut states = Vec::new();
        // Servers may still work for clients that are gone; what they do belongs to the end.
        let busy = "SELECT count(*)::text FROM pg_stat_activity WHERE usename = 'chaos'";
        let idle = poll_until(AT_REST, || match self.cluster.ask(leader, busy)?.as_str() {
            "0" => Ok(()),
            n => Err(format!("{n} sessions of the workload are left on node {leader}")),
        });
        if let Err(seen) = idle {
            violations.push(Violation { rule: "sessions end", text: seen });
        }
        let Ok(lsn) = self.cluster.ask(leader, position) else { return states };
        for node in [vec![leader], self.cluster.others(leader)].concat() {
            let sql =
                format!("SELECT (NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= '{lsn}')::text");
            let read = poll_until(AT_REST, || match self.cluster.ask(node, &sql)?.as_str() {
                "true" => State::read(&self.cluster, node),
                other => Err(format!("has not replayed up to {lsn}: {other}")),
            });
            match read {
                Ok(state) => states.push((node, state)),
                Err(why) => violations.push(Violation {
                    rule: "all nodes can be read at the end",
                    text: format!("node {node}: {why}"),
                }),
            }
        }
        states
    }

    /// Keeps what helps to understand a failure, or removes everything.
    fn tidy(&self, options: &Options, result: &mut Result, states: &[(u64, State)]) {
        for place in self.cluster.ids() {
            self.cluster.kill(place);
        }
        if result.violations.is_empty() && !options.keep {
            self.cluster.ids().into_iter().for_each(|place| disks::remove(&self.cluster, place));
            return;
        }
        self.cluster.ids().into_iter().for_each(|place| disks::save(&self.cluster, place));
        let dir = self.cluster.dir();
        let lines = |all: Vec<String>| all.join("\n") + "\n";
        let calls = result.calls.iter().map(|c| serde_json::to_string(c).unwrap_or_default()).collect();
        let ends = states.iter().map(|s| serde_json::to_string(s).unwrap_or_default()).collect();
        for (name, text) in [("history.jsonl", lines(calls)), ("end.jsonl", lines(ends))] {
            if let Err(e) = std::fs::write(dir.join(name), text) {
                eprintln!("{name}: {e}");
            }
        }
        self.cluster.keep();
        result.kept = Some(dir.to_owned());
    }
}
