//! A former leader tells what it gave up: exactly what clients were not told of.

use pgquorum_tests::{Cluster, PATIENCE, await_until};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// One transaction as its client knows it.
#[derive(Clone, Copy, Debug)]
struct Written {
    id: i32,
    xid: i64,
    acknowledged: bool,
}

type Log = Arc<Mutex<Vec<Written>>>;

/// Inserts numbered rows, one a transaction, until the server is gone or `stop` is set.
fn write(
    cluster: &Cluster,
    leader: u64,
    first: i32,
    log: &Log,
    stop: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let mut client = cluster.connect(leader).expect("a session on the leader");
    let (log, stop) = (Arc::clone(log), Arc::clone(stop));
    std::thread::spawn(move || {
        for id in first.. {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let inserted = client.batch_execute(&format!("BEGIN; INSERT INTO load VALUES ({id})"));
            let xid = inserted.and_then(|()| client.query_one("SELECT txid_current() % 4294967296", &[]));
            let Ok(xid) = xid.map(|row| row.get(0)) else { return };
            log.lock().expect("the log").push(Written { id, xid, acknowledged: false });
            if client.batch_execute("COMMIT").is_err() {
                return;
            }
            let mut log = log.lock().expect("the log");
            log.iter_mut().filter(|w| w.id == id).for_each(|w| w.acknowledged = true);
        }
    })
}

/// Waits until so many commits wait for a standby.
fn await_waiting(cluster: &Cluster, leader: u64, sessions: i64) {
    await_until(PATIENCE, "commits wait for standbys", || {
        let sql = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let seen = cluster.try_ask(leader, sql)?;
        if seen.parse::<i64>().is_ok_and(|n| n >= sessions) { Ok(()) } else { Err(seen) }
    });
}

#[test]
fn a_former_leader_reports_exactly_what_nobody_was_told_of() {
    let cluster = Cluster::start_steady(3);
    let old = cluster.leader();
    cluster.sql("CREATE TABLE load (id int PRIMARY KEY); CREATE TABLE filler (n int, t text)");
    let (log, stop) = (Log::default(), Arc::new(AtomicBool::new(false)));
    let mut writers: Vec<_> = (0..4).map(|n| write(&cluster, old, n * 1_000_000, &log, &stop)).collect();
    let acknowledged = |log: &Log| log.lock().expect("the log").iter().filter(|w| w.acknowledged).count();
    await_until(PATIENCE, "acknowledged rows", || match acknowledged(&log) {
        n if n >= 100 => Ok(()),
        n => Err(n.to_string()),
    });
    // The servers of the standbys stand still; the leader keeps its lease by their sidecars.
    for other in (1..=3).filter(|id| *id != old) {
        cluster.freeze(other, Some("postgres"));
    }
    await_waiting(&cluster, old, 4);
    // What is on the wire still arrives. So much that the rest cannot be, rolled back.
    let mut filler = cluster.connect(old).expect("a session on the leader");
    let fill =
        "BEGIN; INSERT INTO filler SELECT g, repeat('x', 1000) FROM generate_series(1, 60000) g; ROLLBACK";
    filler.batch_execute(fill).expect("a transaction that is rolled back");
    writers.extend((10..13).map(|n| write(&cluster, old, n * 1_000_000, &log, &stop)));
    await_waiting(&cluster, old, 7);
    cluster.kill(old, None);
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().expect("a writer");
    }
    for other in (1..=3).filter(|id| *id != old) {
        cluster.thaw(other, Some("postgres"));
    }
    let new = cluster.await_leader(Some(old));
    cluster.start_node(old);
    cluster.await_replicas(2);
    let sql = "SELECT string_agg(xid::text, ' ') FROM quorum.lost_transactions";
    let reported = await_until(PATIENCE, "the report", || match cluster.try_ask(new, sql)? {
        none if none.is_empty() => Err("nothing".to_owned()),
        xids => Ok(xids),
    });
    let reported: BTreeSet<i64> = reported.split(' ').map(|x| x.parse().expect("a number")).collect();

    let present = cluster.ask(new, "SELECT string_agg(id::text, ' ') FROM load");
    let present: BTreeSet<i32> = present.split(' ').map(|x| x.parse().expect("a number")).collect();
    let log = log.lock().expect("the log").clone();
    let missing = log.iter().filter(|w| !present.contains(&w.id));
    let lost: BTreeSet<i64> = missing.clone().map(|w| w.xid).collect();
    assert!(missing.clone().all(|w| !w.acknowledged), "acknowledged rows are gone");
    assert!(lost.len() >= 3, "the scenario lost nothing: {lost:?}");
    assert_eq!(reported, lost, "reported and really lost");
    let told = log.iter().filter(|w| w.acknowledged).map(|w| w.xid).collect::<BTreeSet<_>>();
    assert!(reported.is_disjoint(&told), "an acknowledged transaction is reported as lost");

    // What each did, and that nobody relied on it.
    let rows = "SELECT count(*)::text FROM quorum.lost_transactions WHERE acknowledged = 'no' \
                AND node = $N AND committed_at > now() - interval '10 minutes' AND NOT schema_changed \
                AND jsonb_array_length(tables) = 1 AND tables #>> '{0,table}' = 'public.load' \
                AND tables #>> '{0,database}' = 'postgres' AND tables #>> '{0,inserted}' = '1'";
    let rows = rows.replace("$N", &old.to_string());
    for id in 1..=3 {
        cluster.await_replayed(id);
        assert_eq!(cluster.ask(id, &rows), lost.len().to_string(), "node {id}");
        let event = await_until(PATIENCE, &format!("node {id} has the event"), || {
            let (_, events) = cluster.try_get(id, "/events")?;
            let found = events.as_array().into_iter().flatten().find(|e| e["kind"] == "lost-transactions");
            found.cloned().ok_or_else(|| events.to_string())
        });
        assert_eq!(event["node"].as_u64(), Some(old), "{event}");
        assert_eq!(event["details"]["committed"].as_u64(), Some(lost.len() as u64), "{event}");
        assert_eq!(event["details"]["aborted"].as_u64(), Some(1), "{event}");
    }
    // The WAL itself is kept, and the report is told once.
    let data = cluster.node(old).data_dir;
    let kept = std::fs::read_dir(data.with_extension("lost"))
        .expect("data.lost")
        .flatten()
        .next()
        .expect("a report");
    await_until(PATIENCE, "the report is marked as told", || {
        if kept.path().join("reported.json").exists() { Ok(()) } else { Err("open".to_owned()) }
    });
    let segments = std::fs::read_dir(kept.path()).expect("the report's directory").count() - 1;
    assert!(segments >= 1, "no WAL is kept");
    cluster.assert_one_writable();
}
