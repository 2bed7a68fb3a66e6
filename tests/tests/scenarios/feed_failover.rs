//! A reader goes on over failovers: no gap, no repetition, no other order, whichever node it asks.

use super::feed_writers::{Manner, RECORD, SCHEMA, Stops, write as write_anything};
use pgquorum_tests::{Cluster, PATIENCE, Replayed, await_until};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const TABLES: [&str; 1] = ["public.t"];

/// The writer has gone round the table more than once.
const BUSY: &str = "SELECT CASE WHEN max(n) > 220 THEN 't' ELSE 'f' END FROM t";

#[test]
fn the_feed_goes_on_over_failovers() {
    let cluster = Cluster::start_steady(3);
    cluster.sql(
        "CREATE TABLE t (id int PRIMARY KEY, n int);
         SELECT quorum.create_channel('shop'); SELECT quorum.track('t', 'shop')",
    );
    let mut copy = Replayed::new("shop");
    for round in 0..3 {
        let leader = cluster.leader();
        write(&cluster, leader, round, Duration::from_secs(3));
        // From a standby: it shows what is confirmed.
        let follower = cluster.follower();
        await_until(PATIENCE, "a standby shows the feed", || {
            let mut client = cluster.connect(follower).map_err(|e| e.to_string())?;
            copy.read(&mut client, 500, i64::MAX).map_err(|e| e.to_string())?;
            if copy.changes > round as u64 * 100 { Ok(()) } else { Err(copy.position.clone()) }
        });
        // In the middle of writing.
        let busy = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(&cluster, leader, round + 10, PATIENCE));
            await_until(PATIENCE, "it writes", || match cluster.try_ask(leader, BUSY)?.as_str() {
                "t" => Ok(()),
                other => Err(other.to_owned()),
            });
            cluster.kill(leader, None);
            writer.join()
        });
        busy.expect("the writer ends with its server");
        let new = cluster.await_leader(Some(leader));
        cluster.start_node(leader);
        await_until(PATIENCE, "the copy equals a snapshot on the new leader", || {
            let mut client = cluster.connect(new).map_err(|e| e.to_string())?;
            copy.compare(&mut client, &TABLES).map_err(|e| format!("{e:?}"))
        });
        cluster.await_replicas(2);
    }
    let mut client = cluster.connect(cluster.leader()).expect("a session");
    let epochs: i64 = client
        .query_one("SELECT count(DISTINCT epoch) FROM quorum.channel_epoch", &[])
        .expect("epochs")
        .get(0);
    assert!(epochs > 1, "each leader has its epoch");
}

/// The model of `feed_model` where leaders die under it: writers that do everything, and a copy that is the same as what
/// each batch's snapshot sees, on whichever node it was read, and as what each leader's tables have.
#[test]
fn the_model_holds_over_failovers() {
    const ROUNDS: u64 = 3;
    const CHANGES: u64 = 3000;
    let cluster = Cluster::start_steady(3);
    cluster.sql(SCHEMA);
    cluster.sql(RECORD);
    let mut copy = Replayed::checked("shop");
    for round in 0..=ROUNDS {
        let leader = cluster.leader();
        let stop = AtomicBool::new(false);
        let target = copy.changes + CHANGES;
        std::thread::scope(|scope| {
            let _stops = Stops(&stop);
            for number in 0..4 {
                let (cluster, stop) = (&cluster, &stop);
                scope.spawn(move || {
                    let mut random = SmallRng::seed_from_u64(round * 10 + number);
                    let manner = Manner { weak: false, prepared: false, partitions: true };
                    // It ends with the server.
                    // Or with its session, which may end, or be refused, while the server lives: then it begins anew.
                    while !stop.load(SeqCst) {
                        let Ok(mut client) = cluster.connect(leader) else { continue };
                        let name = format!("w{round}_{number}_");
                        let _ = write_anything(&mut client, &mut random, &name, stop, manner);
                    }
                });
            }
            let follower = cluster.follower();
            let mut on_leader = false;
            await_until(PATIENCE * 2, "changes", || {
                // Now from a standby, now from the leader: positions are the same everywhere.
                on_leader = !on_leader;
                let node = if on_leader { leader } else { follower };
                let mut client = cluster.connect(node).map_err(|e| e.to_string())?;
                copy.read(&mut client, 700, i64::MAX).map_err(|e| e.to_string())?;
                if copy.changes >= target { Ok(()) } else { Err(format!("{} of {target}", copy.changes)) }
            });
            if round < ROUNDS {
                cluster.kill(leader, None);
            }
        });
        let now = if round < ROUNDS { cluster.await_leader(Some(leader)) } else { leader };
        await_until(PATIENCE, "the copy equals a snapshot", || {
            let mut client = cluster.connect(now).map_err(|e| e.to_string())?;
            copy.compare(&mut client, &super::feed_writers::TABLES).map_err(|e| format!("{e:?}"))
        });
        if round < ROUNDS {
            cluster.start_node(leader);
            cluster.await_replicas(2);
        }
        eprintln!(
            "round {round}: {} changes in {} batches, at {}; {} times a partition came or went",
            copy.changes,
            copy.batches_compared(),
            copy.position,
            copy.partitions
        );
    }
    let batches = cluster.connect(cluster.leader()).and_then(|mut client| copy.batches_listed(&mut client));
    assert_eq!(copy.batches_compared(), batches.expect("the batches"), "each batch was compared");
}

/// Single-row transactions on one node, until it is gone or the time is over.
fn write(cluster: &Cluster, node: u64, round: i32, time: Duration) {
    let Ok(mut client) = cluster.connect(node) else { return };
    let until = Instant::now() + time;
    for n in 0.. {
        let id = (n * 7 + round) % 200;
        let sql = format!("INSERT INTO t VALUES ({id}, {n}) ON CONFLICT (id) DO UPDATE SET n = excluded.n");
        if Instant::now() >= until || client.batch_execute(&sql).is_err() {
            return;
        }
    }
}
