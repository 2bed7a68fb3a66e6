//! Clusters that write the same rows end with the same rows, whatever way the writes take.

use pgquorum_change::{Stamp, Verdict, commit_time, last_write_wins};
use proptest::prelude::*;

const SKEW_MAX_US: i64 = 10_000_000;

fn stamp(commit_us: i64, origin: &str) -> Stamp<'_> {
    Stamp { commit_us, origin }
}

fn verdict(local: Option<Stamp>, remote: Stamp) -> Verdict {
    last_write_wins(local, remote, 1_000, SKEW_MAX_US)
}

#[test]
fn the_later_write_wins() {
    assert_eq!(verdict(None, stamp(i64::MIN, "")), Verdict::Remote, "nothing is older than everything");
    assert_eq!(verdict(Some(stamp(5, "a")), stamp(6, "a")), Verdict::Remote);
    assert_eq!(
        verdict(Some(stamp(6, "b")), stamp(5, "z")),
        Verdict::Local,
        "names count at the same time only"
    );
    assert_eq!(verdict(Some(stamp(5, "a")), stamp(5, "b")), Verdict::Remote);
    assert_eq!(verdict(Some(stamp(5, "b")), stamp(5, "a")), Verdict::Local);
    assert_eq!(verdict(Some(stamp(5, "b")), stamp(5, "ba")), Verdict::Remote, "by bytes, the shorter first");
    assert_eq!(verdict(Some(stamp(5, "z")), stamp(5, "ä")), Verdict::Remote, "by bytes, not by a language");
    assert_eq!(verdict(Some(stamp(5, "a")), stamp(5, "a")), Verdict::Same);
}

#[test]
fn what_is_from_the_future_is_refused_whatever_it_meets() {
    let at = |commit_us| stamp(commit_us, "a");
    let judge = |local, commit_us| last_write_wins(local, at(commit_us), 100, 10);
    assert_eq!(judge(None, 110), Verdict::Remote, "as far as clocks may differ");
    assert_eq!(judge(None, 111), Verdict::FromTheFuture { ahead_us: 11 });
    assert_eq!(judge(Some(at(500)), 111), Verdict::FromTheFuture { ahead_us: 11 });
    assert_eq!(judge(None, i64::MIN), Verdict::Remote, "the past is no matter");
    assert_eq!(
        last_write_wins(None, at(i64::MAX), i64::MIN, 10),
        Verdict::FromTheFuture { ahead_us: i64::MAX }
    );
}

#[test]
fn a_commit_is_later_than_what_it_replaces() {
    assert_eq!(commit_time(100, None), 100);
    assert_eq!(commit_time(100, Some(99)), 100);
    assert_eq!(commit_time(100, Some(100)), 101);
    assert_eq!(commit_time(100, Some(5000)), 5001);
    assert_eq!(commit_time(100, Some(i64::MAX)), i64::MAX);
}

const NAMES: [&str; 4] = ["berlin", "bern", "oslo", "zürich"];
const ROWS: usize = 3;

/// A write as it travels: a value, or that the row was deleted.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Write {
    row: usize,
    stamp: Stamp<'static>,
    value: Option<u32>,
}

/// What a cluster has of each row, deleted ones among them.
#[derive(Clone, Default)]
struct Node {
    rows: [Option<Write>; ROWS],
    /// What has not come here yet.
    under_way: Vec<Write>,
}

impl Node {
    fn latest_us(&self, row: usize) -> Option<i64> {
        self.rows[row].map(|write| write.stamp.commit_us)
    }

    fn take(&mut self, write: Write) {
        let local = self.rows[write.row].map(|write| write.stamp);
        match last_write_wins(local, write.stamp, i64::MAX / 2, SKEW_MAX_US) {
            Verdict::Remote => self.rows[write.row] = Some(write),
            Verdict::Local => {}
            Verdict::Same => assert_eq!(self.rows[write.row], Some(write), "a stamp stands for one write"),
            Verdict::FromTheFuture { .. } => unreachable!("there is none"),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Somebody writes at a node: the row, the value, the clock.
    Write { node: usize, row: usize, value: Option<u32>, clock_us: i64 },
    /// One of the writes under way to a node arrives, maybe not for the last time.
    Arrive { node: usize, which: usize, again: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NAMES.len();
    // Clocks stand still, go back, and differ: few times, so that many are the same.
    let write = (node.clone(), 0..ROWS, proptest::option::of(any::<u32>()), 0..6_i64)
        .prop_map(|(node, row, value, clock_us)| Step::Write { node, row, value, clock_us });
    let arrive = (node, any::<usize>(), any::<bool>()).prop_map(|(node, which, again)| Step::Arrive {
        node,
        which,
        again,
    });
    prop_oneof![write, arrive]
}

/// Lets it all happen, and then all arrive in some order. What each node has at the end.
fn run(steps: &[Step], later: impl Fn(i64, Option<i64>) -> i64) -> Vec<[Option<Write>; ROWS]> {
    let mut nodes = vec![Node::default(); NAMES.len()];
    for step in steps {
        match *step {
            Step::Write { node, row, value, clock_us } => {
                let commit_us = later(clock_us, nodes[node].latest_us(row));
                let write = Write { row, stamp: stamp(commit_us, NAMES[node]), value };
                nodes[node].rows[row] = Some(write);
                nodes.iter_mut().enumerate().filter(|(at, _)| *at != node).for_each(|(_, other)| {
                    other.under_way.push(write);
                });
            }
            Step::Arrive { node, which, again } => {
                let node = &mut nodes[node];
                if node.under_way.is_empty() {
                    continue;
                }
                let which = which % node.under_way.len();
                let write = if again { node.under_way[which] } else { node.under_way.swap_remove(which) };
                node.take(write);
            }
        }
    }
    for node in &mut nodes {
        for write in std::mem::take(&mut node.under_way) {
            node.take(write);
        }
    }
    nodes.into_iter().map(|node| node.rows).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any set of writes has one winner, whoever sees them and in whatever order.
    #[test]
    fn the_order_of_arrival_does_not_matter(
        (times, shuffled) in proptest::collection::vec((0..4_i64, 0..NAMES.len()), 1..12)
            .prop_flat_map(|times| (Just(times.clone()), Just(times).prop_shuffle())),
    ) {
        // The same stamp is the same write.
        let write = |(commit_us, name): &(i64, usize)| Write {
            row: 0,
            stamp: stamp(*commit_us, NAMES[*name]),
            value: (*name > 0).then_some(*commit_us as u32 * 10 + *name as u32),
        };
        let winner = times.iter().map(write).max_by_key(|write| write.stamp);
        for times in [times, shuffled] {
            let mut node = Node::default();
            times.iter().map(write).for_each(|write| node.take(write));
            prop_assert_eq!(node.rows[0], winner);
        }
    }

    /// Nodes that write, hear of each other late, twice and in any order, and whose clocks differ, end the same.
    #[test]
    fn all_nodes_end_the_same(steps in proptest::collection::vec(step(), 0..60)) {
        let ends = run(&steps, commit_time);
        for end in &ends {
            prop_assert_eq!(end, &ends[0]);
        }
    }
}

/// The property above notices what it is for: clocks alone do not do.
#[test]
fn with_clocks_alone_nodes_end_differently() {
    let write = |node, clock_us| Step::Write { node, row: 0, value: Some(clock_us as u32), clock_us };
    let arrive = Step::Arrive { node: 0, which: 0, again: false };
    // The second node's clock is ahead; the first one has its write and writes again.
    let steps = [write(1, 5), arrive, write(0, 2)];
    let ends = run(&steps, |clock_us, _| clock_us);
    assert_ne!(ends[0], ends[1]);
    let ends = run(&steps, commit_time);
    assert_eq!(ends[0], ends[1]);
    assert_eq!(ends[0][0].map(|write| write.stamp), Some(stamp(6, "berlin")));
}
