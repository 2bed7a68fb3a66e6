//! `pgquorum follow` while nodes die: every change once, in order.

use pgquorum_tests::{Cluster, PATIENCE, ProbeOptions, await_until, pgquorum_program};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// A reader in the background.
struct Follow {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Follow {
    fn start(url: &str, more: &[&str]) -> Follow {
        let mut command = Command::new(pgquorum_program());
        command.args(["--json", "follow", "shop", "--url", url]).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("pgquorum follow");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, kept) = (child.stdout.take().expect("its output"), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                kept.lock().expect("the lines").push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        Follow { child, lines }
    }

    /// Numbers of the probe's rows, in the order in which they came.
    fn numbers(&self) -> Vec<u64> {
        let lines = self.lines.lock().expect("the lines");
        lines
            .iter()
            .filter(|line| line["op"] == "insert")
            .filter_map(|line| line["new"]["n"].as_u64())
            .collect()
    }

    fn ticks(&self) -> Vec<u64> {
        let lines = self.lines.lock().expect("the lines");
        let changes = lines.iter().filter(|line| line["type"] == "change");
        let tick = |line: &Value| line["position"].as_str()?.split(':').nth(1)?.parse().ok();
        changes.map(|line| tick(line).expect("a tick")).collect()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_channel(cluster: &Cluster) {
    for (path, body) in [
        ("/channels", json!({"name": "shop"})),
        ("/channels/shop/tables", json!({"table": "pgquorum_probe"})),
    ] {
        let (status, answer) = cluster.post(cluster.leader(), path, Some(&body));
        assert_eq!(status, 200, "{path}: {answer}");
    }
}

/// Follows the probe's table from `reads_from` on, while `disturb` does its work.
fn follow_through(reads_from: impl Fn(&Cluster) -> u64, disturb: impl Fn(&Cluster)) {
    let cluster = Cluster::start_steady(3);
    let probe = cluster.probe_with(&ProbeOptions { clients: 4, interval_ms: 2, ..ProbeOptions::default() });
    make_channel(&cluster);
    let follow = Follow::start(&cluster.node(reads_from(&cluster)).api, &["--from", "start"]);
    await_until(PATIENCE, "some changes", || match follow.numbers().len() {
        found if found >= 200 => Ok(()),
        found => Err(found.to_string()),
    });
    disturb(&cluster);
    let seen = follow.numbers().len();
    await_until(PATIENCE, "changes after the disturbance", || match follow.numbers().len() {
        found if found >= seen + 200 => Ok(()),
        found => Err(format!("{found} after {seen}")),
    });
    let report = probe.finish();
    report.assert_nothing_lost();
    let last = cluster.ask(cluster.leader(), "SELECT count(*)::text FROM pgquorum_probe");
    let first = *follow.numbers().first().expect("a change");
    // Rows from before the table was tracked are not in the log; all later ones are, once.
    let expected = cluster.ask(
        cluster.leader(),
        "SELECT count(*)::text FROM pgquorum_probe AS p, quorum.tracked_tables AS t WHERE p.at >= t.tracked_at",
    );
    let expected: usize = expected.parse().expect("a number");
    await_until(PATIENCE, &format!("at least {expected} of {last} rows, from {first} on"), || {
        match follow.numbers().len() {
            found if found >= expected => Ok(()),
            found => Err(found.to_string()),
        }
    });
    let ticks = follow.ticks();
    let steps = ticks.windows(2).filter(|pair| pair[1] <= pair[0]).collect::<Vec<_>>();
    assert!(steps.is_empty(), "out of order or twice: {steps:?}");
    let mut numbers = follow.numbers();
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "rows came twice");
    let missing = cluster.ask(
        cluster.leader(),
        &format!(
            "SELECT coalesce(string_agg(p.n::text, ', '), '') FROM pgquorum_probe AS p, quorum.tracked_tables AS t \
             WHERE p.at > t.tracked_at + interval '1 s' AND NOT p.n = ANY ('{{{}}}'::bigint[])",
            numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
        ),
    );
    assert_eq!(missing, "", "rows that did not come");
}

#[test]
fn the_leader_dies_and_the_reader_that_reads_from_it_goes_on_elsewhere() {
    follow_through(Cluster::leader, |cluster| {
        let old = cluster.leader();
        cluster.kill(old, None);
        cluster.await_leader(Some(old));
    });
}

#[test]
fn the_leader_dies_and_a_reader_at_a_follower_goes_on() {
    follow_through(Cluster::follower, |cluster| {
        let old = cluster.leader();
        cluster.kill(old, None);
        cluster.await_leader(Some(old));
    });
}

#[test]
fn a_position_that_was_purged_ends_it_clearly() {
    let cluster = Cluster::start_steady(1);
    let probe = cluster.probe();
    make_channel(&cluster);
    await_until(PATIENCE, "some changes", || {
        let (_, state) = cluster.get(1, "/channels/shop");
        if state["last_tick"].as_u64() > Some(50) { Ok(()) } else { Err(state.to_string()) }
    });
    probe.finish();
    let (_, purged) = cluster.post(1, "/channels/shop/purge", Some(&json!({"keep": 5})));
    assert!(purged["first_tick"].as_u64() > Some(10), "{purged}");
    let url = cluster.node(1).api;
    let ended = pgquorum_tests::pgquorum(["follow", "shop", "--from", "3", "--url", &url]);
    assert_eq!(ended.code, 4, "{}", ended.said);
    assert!(ended.said.contains("position_purged"), "{}", ended.said);
    let ended = pgquorum_tests::pgquorum(["follow", "shop", "--from", "99999:3", "--url", &url]);
    assert_eq!(ended.code, 1, "{}", ended.said);
    assert!(ended.said.contains("position_unknown_epoch"), "{}", ended.said);
}
