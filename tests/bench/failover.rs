//! Longest time between two acknowledged writes when the leader goes away: three nodes, quorum replication, a client that
//! writes every 10 ms through the connection string of all nodes. It goes on until the old leader streams again, so what
//! the return costs the client counts too.

use crate::Options;
use crate::floor::Floor;
use crate::line::{Line, Must, Samples, rounded};
use crate::patroni;
use pgquorum_tests::{Cluster, PATIENCE, ProbeOptions, Report, await_rows, await_until, request};
use serde_json::json;

pub const NAMES: [&str; 3] = ["failover-kill-node", "failover-kill-postmaster", "planned-change"];

/// The most that the gap may be, in seconds, in the order of the names.
const MUST: [f64; 3] = [0.6, 0.6, 0.4];

const AGAINST: &str =
    "PostgreSQL without any tool: SIGKILL of the primary, pg_promote by the same script at once";

/// Rows that the client writes before and after what is measured.
pub const STEADY: i64 = 30;

/// What was measured of one benchmark.
#[derive(Default)]
pub struct Measured {
    pub gaps: Samples,
    pub acked: u64,
    pub lost: u64,
}

impl Measured {
    pub fn add(&mut self, report: &Report) {
        self.gaps.add(report.longest_gap_ms / 1000.0);
        self.acked += report.acked;
        self.lost += report.lost;
    }
}

pub fn run(options: &Options) -> bool {
    let cluster = Cluster::start(3);
    let mut floor = Floor::start();
    let compared = options.with_patroni && options.wants(NAMES[0]);
    let mut peer = compared.then(patroni::Peer::start).flatten();
    let (mut ours, mut bare): ([Measured; 3], Measured) = Default::default();
    let mut patroni = Measured::default();
    for round in 1..=options.runs {
        for (name, measured) in NAMES.iter().zip(&mut ours).filter(|(name, _)| options.wants(name)) {
            let report = once(&cluster, name);
            eprintln!("{name} {round}: {} ms, {} lost", report.longest_gap_ms, report.lost);
            measured.add(&report);
        }
        let report = floor.once();
        eprintln!("floor {round}: {} ms, {} lost", report.longest_gap_ms, report.lost);
        bare.add(&report);
        if let Some(peer) = &mut peer {
            let report = peer.once();
            eprintln!("patroni {round}: {} ms, {} lost", report.longest_gap_ms, report.lost);
            patroni.add(&report);
        }
    }
    let mut good = true;
    for ((name, must), measured) in
        NAMES.iter().zip(MUST).zip(&ours).filter(|((name, _), _)| options.wants(name))
    {
        let mut more = json!({
            "lost": measured.lost, "acked": measured.acked,
            "floor": rounded(bare.gaps.median()), "floor_p90": rounded(bare.gaps.quantile(0.9)), "floor_n": bare.gaps.len(),
        });
        if patroni.gaps.len() > 0 && *name == NAMES[0] {
            more["patroni"] = json!(rounded(patroni.gaps.median()));
            more["patroni_ratio"] = json!(rounded(measured.gaps.median() / patroni.gaps.median()));
            more["patroni_n"] = json!(patroni.gaps.len());
            more["patroni_lost"] = json!(patroni.lost);
            more["patroni_settings"] = json!(patroni::SETTINGS);
        }
        let line = Line {
            bench: name,
            unit: "s",
            samples: &measured.gaps,
            ratio: measured.gaps.median() / bare.gaps.median(),
            against: AGAINST,
            must: Must::AtMost(must),
            judged: measured.gaps.median(),
            kept: measured.lost == 0 && measured.acked > 0,
            more,
        };
        good &= line.print();
    }
    good
}

/// One disturbance; the cluster is whole again at the end.
fn once(cluster: &Cluster, name: &str) -> Report {
    cluster.await_replicas(2);
    let status = cluster.status();
    let leader = status.leader.expect("a leader");
    let ports: Vec<(u64, u16)> = status.nodes.iter().map(|n| (n.id, n.api_port())).collect();
    let session = |id| cluster.connect(id).expect("a session");
    let probe = cluster.probe_with(&ProbeOptions::default());
    await_rows(&mut session(leader), STEADY);
    let to = ports.iter().map(|(id, _)| *id).find(|id| *id != leader).expect("another node");
    match name {
        "failover-kill-node" => {
            cluster.kill(leader, None);
        }
        "failover-kill-postmaster" => {
            cluster.kill(leader, Some("postmaster"));
        }
        _ => {
            let port = ports.iter().find(|(id, _)| *id == leader).map_or(0, |(_, port)| *port);
            let (code, answer) =
                request(port, "POST", &format!("/leader?node={to}"), None).expect("an answer");
            assert_eq!(code, 200, "{answer}");
        }
    }
    let new = await_another(&ports, leader);
    if name == "failover-kill-node" {
        cluster.start_node(leader);
    }
    await_rows(&mut session(new), STEADY);
    cluster.await_replicas(2);
    probe.finish()
}

/// Asks the nodes themselves: a program started for every look would take the processor from what is measured.
fn await_another(ports: &[(u64, u16)], than: u64) -> u64 {
    await_until(PATIENCE, "another leader", || {
        let leads = |port: u16| matches!(request(port, "GET", "/is-leader", None), Ok((200, _)));
        let found = ports.iter().find(|(id, port)| *id != than && leads(*port));
        found.map(|(id, _)| *id).ok_or_else(|| "none yet".to_owned())
    })
}
