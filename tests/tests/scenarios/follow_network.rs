//! The network between two clusters drops everything, in the middle of a copy and while changes are applied: it is said, and
//! when it is healed everything is there once.

use pgquorum_tests::{NetCluster, Network, PATIENCE, await_until, run, skipped};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

const SOURCE: u64 = 1;
const TARGET: u64 = 2;
/// More than what fits into all buffers on the way.
const ROWS: i64 = 30_000;
const TABLES: &str = "CREATE TABLE big (id bigint PRIMARY KEY, note text); CREATE TABLE small (id bigint PRIMARY KEY); \
                      CREATE TABLE hot (id bigint PRIMARY KEY, n bigint)";
/// As long as somebody wants it slow the copy takes half a minute, so that its middle is found.
const SLOW: &str = "CREATE TABLE slow AS SELECT 1 AS n; CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.id % 500 = 0 AND EXISTS (SELECT FROM public.slow) THEN PERFORM pg_sleep(0.5); END IF; RETURN NEW; END $$;
    CREATE TRIGGER linger BEFORE INSERT ON big FOR EACH ROW EXECUTE FUNCTION linger(); ALTER TABLE big ENABLE REPLICA TRIGGER linger";

struct World {
    network: Arc<Network>,
    source: NetCluster,
    target: NetCluster,
}

impl World {
    fn start() -> World {
        let network = Arc::new(Network::new(2));
        let start = |place| NetCluster::start_at(&network, place, None);
        let (source, target) = std::thread::scope(|scope| {
            let source = scope.spawn(|| start(SOURCE));
            let target = start(TARGET);
            (source.join().expect("the source"), target)
        });
        for cluster in [&source, &target] {
            run(&mut cluster.connect(1).expect("a session"), TABLES);
        }
        World { network, source, target }
    }

    /// What the target says of the subscription, in SQL and over HTTP alike.
    fn state(&self) -> Result<Value, String> {
        let (status, state) = self.target.request(1, "GET", "/subscriptions/mirror")?;
        let sql = "SELECT concat_ws(' ', state, code, detail) FROM quorum.subscription_state";
        let text = |name: &str| state[name].as_str().map(str::to_owned);
        let shown: Vec<String> = ["state", "code", "detail"].into_iter().filter_map(text).collect();
        let seen = self.target.ask(1, sql)?;
        if status == 200 && seen == shown.join(" ") {
            Ok(state)
        } else {
            Err(format!("{status} {state}; {seen}"))
        }
    }

    fn await_state(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        await_until(PATIENCE, what, || {
            let state = self.state()?;
            if fits(&state) { Ok(state) } else { Err(state.to_string()) }
        })
    }

    /// Waits until it is said that the source does not answer, and where that is.
    fn await_silence(&self) {
        let state = self.await_state("it waits for the source", |state| {
            state["state"] == "waiting" && state["code"] == "unreachable"
        });
        let detail = state["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(&self.source.api(1)), "{state}");
    }

    fn await_following(&self) {
        self.await_state("it follows", |state| state["state"] == "following" && state["code"].is_null());
    }

    /// How a table is, and how many of its rows are here.
    fn table(&self, name: &str) -> Result<(String, i64), String> {
        let (_, tables) = self.target.request(1, "GET", "/subscriptions/mirror/tables")?;
        let one = tables.as_array().into_iter().flatten().find(|one| one["table"] == name);
        let found = one.and_then(|one| Some((one["state"].as_str()?.to_owned(), one["rows"].as_i64()?)));
        found.ok_or_else(|| tables.to_string())
    }

    fn count(&self, table: &str) -> i64 {
        let count = self.target.ask(1, &format!("SELECT count(*)::text FROM {table}")).expect("a count");
        count.parse().expect("a number")
    }

    fn await_applied(&self) {
        let end = self.source.ask(1, "SELECT split_part(quorum.cut('shop'), ':', 2)").expect("the end");
        let sql = format!("SELECT (tick >= {end})::text FROM quorum.subscription_position");
        await_until(PATIENCE, &format!("tick {end} is applied"), || {
            match self.target.ask(1, &sql)?.as_str() {
                "true" => Ok(()),
                _ => Err(format!("{:?}", self.state())),
            }
        });
    }

    fn assert_same(&self, table: &str) {
        let sum = format!(
            "SELECT count(*) || ' rows, ' || coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '-') FROM {table} AS t"
        );
        assert_eq!(self.target.ask(1, &sum), self.source.ask(1, &sum), "{table}");
    }
}

/// Writes at the source until it is told to stop.
fn write(source: &NetCluster, stop: &AtomicBool, done: &AtomicI64) {
    let mut client = source.connect(1).expect("a session");
    while !stop.load(Relaxed) {
        let next = done.fetch_add(1, Relaxed);
        run(
            &mut client,
            &format!(
                "BEGIN; INSERT INTO hot VALUES ({next}, 0); UPDATE hot SET n = n + 1 WHERE id = {next} - 5; \
                 DELETE FROM hot WHERE id = {next} - 50; UPDATE big SET note = note || '.' WHERE id = {next} % {ROWS} + 1; COMMIT; \
                 SELECT pg_sleep(0.005)"
            ),
        );
    }
}

#[test]
fn a_black_hole_between_clusters_is_said_and_leaves_no_gap() {
    if let Some(why) = Network::refused() {
        skipped(&why);
        return;
    }
    let world = World::start();
    run(&mut world.target.connect(1).expect("a session"), SLOW);
    run(
        &mut world.source.connect(1).expect("a session"),
        &format!(
            "INSERT INTO big SELECT g, repeat('x', 1500) FROM generate_series(1, {ROWS}) AS g; \
             INSERT INTO small SELECT generate_series(1, 100); SELECT quorum.create_channel('shop'); \
             SELECT quorum.track(t::regclass, 'shop') FROM unnest('{{big,small,hot}}'::text[]) AS t"
        ),
    );
    let (stop, done) = (AtomicBool::new(false), AtomicI64::new(100));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&world.source, &stop, &done));
        let told = Told(&stop);
        let subscription = json!({"name": "mirror", "remote": [world.source.api(1)], "channel": "shop",
            "secret": world.source.token(), "jobs": 3});
        let (status, answer) =
            world.target.send(1, "POST", "/subscriptions", Some(&subscription)).expect("an answer");
        assert_eq!(status, 200, "{answer}");

        // In the middle of the copy of one table. Those that are whole stay.
        await_until(PATIENCE, "two tables and a part of one", || {
            let seen = [world.table("small")?, world.table("hot")?, world.table("big")?];
            match &seen {
                [(small, _), (hot, _), (big, rows)]
                    if small == "following"
                        && hot == "following"
                        && big == "copy"
                        && (1..ROWS / 2).contains(rows) =>
                {
                    Ok(())
                }
                _ => Err(format!("{seen:?} {:?}", world.state())),
            }
        });
        world.network.cut(SOURCE, TARGET);
        world.await_silence();
        assert_eq!((world.count("small"), world.count("big")), (100, 0));
        run(&mut world.target.connect(1).expect("a session"), "DELETE FROM slow");
        world.network.heal();
        world.await_following();
        assert_eq!(world.count("big"), ROWS);

        // While changes are applied: nothing arrives there, then nothing arrives here.
        for (from, to) in [(TARGET, SOURCE), (SOURCE, TARGET)] {
            world.network.drop_packets(from, to);
            world.await_silence();
            let state = world.await_state("a position", |state| state["position"].is_string());
            let here = state["position"].clone();
            world.network.heal();
            world.await_following();
            world.await_state("changes are applied again", |state| state["position"] != here);
        }
        await_until(PATIENCE, "transactions", || match done.load(Relaxed) {
            enough if enough > 200 => Ok(()),
            few => Err(few.to_string()),
        });
        drop(told);
        writer.join().expect("the writer");
    });
    world.await_applied();
    ["big", "small", "hot"].iter().for_each(|table| world.assert_same(table));
    let state = world.await_state("nothing is odd", |_| true);
    assert_eq!(
        (&state["conflicts"], &state["rejected"], &state["tables_stopped"]),
        (&json!(0), &json!(0), &json!(0))
    );
    // The source keeps the log for it no longer than is needed.
    await_until(PATIENCE, "the follower is at the end", || {
        let (_, all) = world.source.request(1, "GET", "/channels/shop/followers")?;
        if all[0]["lag_ticks"] == 0 { Ok(()) } else { Err(all.to_string()) }
    });
}

/// Tells the writer to stop, also when the scenario fails.
struct Told<'a>(&'a AtomicBool);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
