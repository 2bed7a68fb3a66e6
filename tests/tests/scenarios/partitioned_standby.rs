//! The leader's sidecar stands still, its server does not, and a standby that the others cannot reach goes on
//! acknowledging to it.

use nix::sys::signal::Signal;
use pgquorum_tests::{NetCluster, Network, PATIENCE, await_until, skipped};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

#[test]
fn what_the_old_side_acknowledged_is_not_lost() {
    if let Some(why) = Network::refused() {
        skipped(&why);
        return;
    }
    let cluster = NetCluster::start(5);
    // So that the lease holds for a while when nobody renews it, also on a slow machine.
    cluster.set_node_timeout("3s");
    let (old, epoch) = cluster.leader();
    let others = cluster.others(old);
    let (alone, rest) = (others[0], &others[1..]);
    let mut first = cluster.connect(old).expect("a session on the leader");
    first.batch_execute("CREATE TABLE w (n int)").expect("a table");
    let next = Arc::new(AtomicI32::new(0));
    // They know one server only and end when it does not answer any more.
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (mut client, next) = (cluster.connect(old).expect("a writer's session"), next.clone());
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    match client.execute("INSERT INTO w VALUES ($1)", &[&n]) {
                        Ok(_) => acknowledged.push(n),
                        Err(_) => return acknowledged,
                    }
                }
            })
        })
        .collect();
    let written = |more: i32, may_end: bool| {
        let before = next.load(Ordering::SeqCst);
        await_until(PATIENCE, "the writers write", || {
            let now = next.load(Ordering::SeqCst);
            let ended = may_end && writers.iter().all(std::thread::JoinHandle::is_finished);
            if now >= before + more || ended { Ok(()) } else { Err(now.to_string()) }
        });
    };
    written(100, false);
    for other in rest {
        cluster.network.cut(alone, *other);
    }
    written(20, false);
    cluster.signal_sidecar(old, Signal::SIGSTOP);
    // The lease holds for a while, and the server answers; a slow machine writes as much as it can until then.
    written(20, true);
    let (new, later) = cluster.await_leader(rest);
    assert!(later > epoch);
    let acknowledged: Vec<i32> =
        writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
    cluster.signal_sidecar(old, Signal::SIGCONT);
    cluster.network.heal();
    cluster.await_streaming(4);
    let mut client = cluster.connect(new).expect("a session on the new leader");
    let there: std::collections::HashSet<i32> =
        client.query("SELECT n FROM w", &[]).expect("the rows").iter().map(|row| row.get(0)).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
    assert!(lost.is_empty(), "{} acknowledged, lost: {lost:?}", acknowledged.len());
    cluster.assert_one_writable();
}
