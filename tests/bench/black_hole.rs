//! The leader's packets to and from the other two nodes vanish, and nothing closes a connection: only time tells. The
//! client goes on reaching all three.

use crate::Options;
use crate::failover::{Measured, STEADY};
use crate::line::{Line, Must, not_measured};
use pgquorum_tests::{NetCluster, Network, ProbeOptions, await_rows};
use serde_json::json;

pub const NAME: &str = "failover-black-hole";

const MUST_S: f64 = 2.2;
/// The defaults: a follower waits this long for a leader that says nothing.
const NODE_TIMEOUT_S: f64 = 1.0;

pub fn run(options: &Options) -> bool {
    if let Some(why) = Network::refused() {
        return not_measured(NAME, &why);
    }
    let cluster = NetCluster::start(3);
    let mut measured = Measured::default();
    for round in 1..=options.runs {
        let (leader, _) = cluster.leader();
        let session = |id| cluster.connect(id).expect("a session");
        let probe = cluster.probe(&ProbeOptions::default());
        await_rows(&mut session(leader), STEADY);
        for other in cluster.others(leader) {
            cluster.network.cut(leader, other);
        }
        let (new, _) = cluster.await_leader(&cluster.others(leader));
        await_rows(&mut session(new), STEADY);
        cluster.network.heal();
        cluster.await_streaming(2);
        let report = probe.finish();
        eprintln!("{NAME} {round}: {} ms, {} lost", report.longest_gap_ms, report.lost);
        measured.add(&report);
    }
    let line = Line {
        bench: NAME,
        unit: "s",
        samples: &measured.gaps,
        ratio: measured.gaps.median() / NODE_TIMEOUT_S,
        against: "node-timeout, the silence after which a leader may be taken for dead: the setting, 1 s, not a measurement",
        must: Must::AtMost(MUST_S),
        judged: measured.gaps.median(),
        kept: measured.lost == 0 && measured.acked > 0,
        more: json!({ "lost": measured.lost, "acked": measured.acked }),
    };
    line.print()
}
