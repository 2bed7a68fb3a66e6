//! A planned change of leader.

use pgquorum_tests::{Cluster, PATIENCE, ProbeOptions, await_until};

#[test]
fn leadership_goes_round_and_nothing_is_lost() {
    let cluster = Cluster::start_steady(3);
    let probe = cluster.probe_with(&ProbeOptions { clients: 4, ..ProbeOptions::default() });
    for _ in 0..3 {
        let to = cluster.follower();
        let (code, answer) = cluster.hand_over(to);
        assert_eq!(code, 200, "{answer}");
        await_until(PATIENCE, &format!("node {to} leads"), || match cluster.status().leader {
            Some(leader) if leader == to => Ok(()),
            other => Err(format!("{other:?}")),
        });
        cluster.await_replicas(2);
    }
    cluster.assert_one_writable();
    let report = probe.finish();
    report.assert_nothing_lost();
    assert!(report.longest_gap_ms < 15_000.0, "writes stood still for {} ms", report.longest_gap_ms);
}

#[test]
fn a_follower_passes_the_request_on() {
    let cluster = Cluster::start_steady(3);
    let to = cluster.follower();
    await_until(PATIENCE, "the change of leader", || {
        match cluster.post(to, &format!("/leader?node={to}"), None) {
            (200, _) => Ok(()),
            // The leader has not seen yet that it streams.
            (412, answer) if answer["code"] == "not_streaming" => Err(answer.to_string()),
            (code, answer) => panic!("{code} {answer}"),
        }
    });
    cluster.await_node(to, "node", "leader");
}

#[test]
fn a_node_that_is_down_cannot_lead() {
    let cluster = Cluster::start_steady(3);
    let (leader, down) = (cluster.leader(), cluster.follower());
    cluster.stop(down);
    // Until the leader has heard of it, it would try.
    cluster.await_node(down, "node", "unknown");
    let (code, answer) = cluster.hand_over(down);
    assert_eq!((code, answer["code"].as_str()), (412, Some("node_unreachable")), "{answer}");
    assert!(answer["message"].is_string(), "{answer}");
    assert_eq!(cluster.leader(), leader, "nothing changed");
    cluster.assert_one_writable();
}
