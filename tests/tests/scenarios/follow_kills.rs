//! What dies in the middle of a copy, or while changes are applied: everything is there once, nothing twice.

use pgquorum_tests::{Cluster, PATIENCE, Pair, await_until};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const TABLES: &str =
    "CREATE TABLE big (id bigint PRIMARY KEY, note text); CREATE TABLE hot (id bigint PRIMARY KEY, n bigint)";
/// As long as somebody wants it slow the copy takes half a minute, so that its middle is found.
const SLOW: &str = "CREATE TABLE slow AS SELECT 1 AS n; CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.id % 200 = 0 AND EXISTS (SELECT FROM public.slow) THEN PERFORM pg_sleep(0.1); END IF; RETURN NEW; END $$;
    CREATE TRIGGER linger BEFORE INSERT ON big FOR EACH ROW EXECUTE FUNCTION linger(); ALTER TABLE big ENABLE REPLICA TRIGGER linger";

/// Writes until it is told to stop, whoever leads; what is acknowledged counts.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Writer {
    fn start(dsn: String) -> Writer {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let mut client = None;
            while !told.load(Ordering::Relaxed) {
                let connected = match client.take() {
                    Some(connected) => Some(connected),
                    None => postgres::Client::connect(&dsn, postgres::NoTls).ok(),
                };
                let Some(mut connected) = connected else {
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                };
                let next = count.load(Ordering::Relaxed) * 3;
                let sql = format!(
                    "BEGIN; INSERT INTO hot VALUES ({next}, 0), ({next} + 1, 0), ({next} + 2, 0) ON CONFLICT DO NOTHING; \
                     UPDATE hot SET n = n + 1 WHERE id = {next} - 30; DELETE FROM hot WHERE id = {next} - 300; COMMIT"
                );
                if connected.batch_execute(&sql).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                    client = Some(connected);
                }
            }
        });
        Writer { stop, done, thread }
    }

    fn end(self) {
        await_until(PATIENCE, "transactions", || match self.done.load(Ordering::Relaxed) {
            enough if enough > 20 => Ok(()),
            few => Err(few.to_string()),
        });
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer");
    }
}

fn start(nodes: (usize, usize)) -> Pair {
    let pair = Pair::start(nodes, TABLES);
    pair.target.sql(SLOW);
    pair.source.sql("INSERT INTO big SELECT g, repeat('x', 800) FROM generate_series(1, 60000) AS g");
    pair.track(&["big", "hot"]);
    pair
}

/// Waits until some rows of the table are copied and not all.
fn await_half_a_copy(pair: &Pair) {
    await_until(PATIENCE, "a copy that is under way", || {
        let leader = pair.target.status().leader.ok_or("no leader")?;
        let (_, tables) = pair.target.try_get(leader, "/subscriptions/mirror/tables")?;
        let state = pair.state()?;
        let big = tables.as_array().into_iter().flatten().find(|one| one["table"] == "big");
        let some =
            big.is_some_and(|big| big["state"] == "copy" && big["rows"].as_u64().is_some_and(|n| n > 0));
        if some && state["state"] == "copying" { Ok(()) } else { Err(format!("{state} {tables}")) }
    });
}

/// The next copy is as fast as it can be.
fn hurry(pair: &Pair) {
    pair.target.sql("DELETE FROM slow");
}

fn end(pair: &Pair, writer: Writer) {
    writer.end();
    pair.source.leader();
    pair.await_applied();
    for table in ["big", "hot"] {
        pair.assert_same(table);
    }
}

fn other(cluster: &Cluster, not: u64) -> u64 {
    cluster.await_leader(Some(not))
}

#[test]
fn the_source_loses_its_leader_while_it_is_copied_and_while_it_is_followed() {
    let pair = start((3, 1));
    let writer = Writer::start(pair.source.status().dsn);
    pair.subscribe(&json!({"copy": "error"}));
    await_half_a_copy(&pair);
    let leader = pair.source.leader();
    pair.source.kill(leader, None);
    hurry(&pair);
    other(&pair.source, leader);
    pair.source.start_node(leader);
    pair.await_state("following", None);
    pair.source.await_replicas(2);
    let leader = pair.source.leader();
    pair.source.kill(leader, Some("sidecar"));
    other(&pair.source, leader);
    pair.source.start_node(leader);
    pair.source.await_replicas(2);
    end(&pair, writer);
}

#[test]
fn the_target_loses_its_leader_while_it_copies_and_while_it_applies() {
    let pair = start((1, 3));
    let writer = Writer::start(pair.source.status().dsn);
    pair.subscribe(&json!({"copy": "error"}));
    await_half_a_copy(&pair);
    let leader = pair.target.leader();
    pair.target.kill(leader, None);
    other(&pair.target, leader);
    hurry(&pair);
    pair.target.start_node(leader);
    pair.await_state("following", None);
    pair.target.await_replicas(2);
    let leader = pair.target.leader();
    pair.target.kill(leader, Some("sidecar"));
    other(&pair.target, leader);
    pair.target.start_node(leader);
    pair.target.await_replicas(2);
    pair.await_progress();
    // In order, too.
    let leader = pair.target.leader();
    let next = leader % 3 + 1;
    assert_eq!(pair.target.hand_over(next).0, 200);
    end(&pair, writer);
    pair.target.assert_one_writable();
}

#[test]
fn servers_that_restart_under_it_are_waited_for() {
    let pair = start((1, 1));
    let writer = Writer::start(pair.source.status().dsn);
    pair.subscribe(&json!({"copy": "error"}));
    await_half_a_copy(&pair);
    pair.target.kill(1, Some("sidecar"));
    pair.target.start_node(1);
    hurry(&pair);
    pair.await_state("following", None);
    pair.source.kill(1, None);
    pair.source.start_node(1);
    pair.source.leader();
    pair.target.kill(1, None);
    pair.target.start_node(1);
    pair.target.leader();
    pair.await_progress();
    end(&pair, writer);
}
