//! What the settings say of time, a millisecond a step, on three nodes that hear each other at once.

use super::Consensus;
use crate::logstore::Restored;
use crate::settings::{Settings, Span};
use crate::types::{Millis, NodeId};
use raft::eraftpb::{Message, MessageType};

struct Net {
    nodes: Vec<Consensus>,
    now: Millis,
    settings: Settings,
    /// Nobody hears them, and they hear nobody.
    cut: Vec<NodeId>,
    /// When which message was sent, also to those who do not hear it.
    sent: Vec<(Millis, Message)>,
}

impl Net {
    /// Three voters, of which one leads.
    fn new(settings: Settings) -> Net {
        let mut restored = Restored::default();
        let meta = restored.snapshot.mut_metadata();
        (meta.index, meta.term) = (1, 1);
        meta.mut_conf_state().voters = vec![1, 2, 3];
        (restored.hard_state.term, restored.hard_state.commit) = (1, 1);
        let nodes = (1..=3).map(|id| Consensus::new(id, &restored, 0, id)).collect();
        let mut net = Net { nodes, now: 0, settings, cut: Vec::new(), sent: Vec::new() };
        net.run_until(60_000, |net| net.leader().is_some());
        net.run(2 * net.settings.node_timeout.ms());
        net
    }

    fn leader(&self) -> Option<NodeId> {
        self.nodes
            .iter()
            .find(|node| node.is_settled_leader() && !self.cut.contains(&node.id()))
            .map(Consensus::id)
    }

    fn step(&mut self) {
        self.now += 1;
        let (now, settings) = (self.now, self.settings.clone());
        self.nodes.iter_mut().for_each(|node| node.tick(now, &settings));
        loop {
            let drained = self.nodes.iter_mut().map(|node| node.drain(now, &settings).messages);
            let messages: Vec<Message> = drained.flatten().collect();
            if messages.is_empty() {
                return;
            }
            for message in messages {
                self.sent.push((now, message.clone()));
                if self.cut.contains(&message.from) || self.cut.contains(&message.to) {
                    continue;
                }
                let to = self.nodes.iter_mut().find(|node| node.id() == message.to).expect("a member");
                to.receive(now, message, &settings);
            }
        }
    }

    fn run(&mut self, ms: Millis) {
        (0..ms).for_each(|_| self.step());
    }

    fn run_until(&mut self, most_ms: Millis, is_so: impl Fn(&Net) -> bool) {
        let begun = self.now;
        while !is_so(self) {
            assert!(self.now < begun + most_ms, "not within {most_ms} ms");
            self.step();
        }
    }

    /// When messages of a kind were sent since then, each moment once.
    fn moments(&self, since: Millis, kind: MessageType, from: Option<NodeId>) -> Vec<Millis> {
        let mut moments: Vec<Millis> = self
            .sent
            .iter()
            .filter(|(at, message)| {
                *at > since && message.get_msg_type() == kind && from.is_none_or(|from| message.from == from)
            })
            .map(|(at, _)| *at)
            .collect();
        moments.dedup();
        moments
    }

    /// Cuts the leader off; how long it takes until another node asks for pre-votes.
    fn silence(&mut self) -> Millis {
        let leader = self.leader().expect("a leader");
        let heard = self.moments(0, MessageType::MsgHeartbeat, Some(leader)).pop().expect("a heartbeat");
        self.cut = vec![leader];
        let asked = |net: &Net| {
            let all = net.moments(heard, MessageType::MsgRequestPreVote, None);
            all.first().copied()
        };
        self.run_until(60_000, |net| asked(net).is_some());
        asked(self).expect("it was asked") - heard
    }
}

fn settings(node_timeout: u64, heartbeat: u64) -> Settings {
    Settings { node_timeout: Span(node_timeout), heartbeat_interval: Span(heartbeat), ..Settings::default() }
}

#[test]
fn heartbeats_are_as_far_apart_as_they_should_and_at_once_when_that_changes() {
    let mut net = Net::new(settings(1000, 100));
    for interval in [100, 50, 300] {
        net.settings.heartbeat_interval = Span(interval);
        // The one that is on its way comes when it was to come.
        net.run(301);
        let since = net.now;
        net.run(10 * interval + 1);
        let moments = net.moments(since, MessageType::MsgHeartbeat, net.leader());
        assert!(moments.len() >= 10, "{interval}: {moments:?}");
        assert!(moments.windows(2).all(|pair| pair[1] - pair[0] == interval), "{interval}: {moments:?}");
    }
}

#[test]
fn a_silent_leader_is_given_as_long_as_the_settings_say() {
    for timeout in [300, 1000, 5000] {
        let silence = Net::new(settings(timeout, timeout / 10)).silence();
        assert!((timeout..=timeout + timeout / 2 + 1).contains(&silence), "{timeout}: {silence}");
    }
}

#[test]
fn another_node_timeout_counts_without_an_election_in_between() {
    for (before, after) in [(5000, 500), (500, 5000)] {
        let mut net = Net::new(settings(before, 50));
        let leader = net.leader();
        net.settings.node_timeout = Span(after);
        net.run(200);
        assert_eq!(net.leader(), leader, "nobody was elected");
        let silence = net.silence();
        assert!((after..=after + after / 2 + 1).contains(&silence), "{before}, then {after}: {silence}");
    }
}

#[test]
fn rounds_of_votes_are_repeated_after_their_times() {
    let mut net = Net::new(settings(1000, 100));
    net.settings.pre_voting_timeout = Span(700);
    // One alone never gets enough.
    let leader = net.leader().expect("a leader");
    let other = if leader == 1 { 2 } else { 1 };
    let alone = 6 - leader - other;
    net.cut = vec![leader, other];
    let since = net.now;
    net.run(10_000);
    let moments = net.moments(since, MessageType::MsgRequestPreVote, Some(alone));
    let apart: Vec<Millis> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(apart.len() >= 5 && apart.iter().all(|ms| (700..=1050).contains(ms)), "{apart:?}");
}

#[test]
fn what_got_lost_is_sent_again_after_the_retry_interval() {
    for interval in [250, 1000] {
        // Heartbeats, whose answers also show what is missing, are further apart.
        let mut net = Net::new(settings(30_000, 10_000));
        net.settings.replication_retry_interval = Span(interval);
        net.run(1001);
        let leader = net.leader().expect("a leader");
        let silent = if leader == 1 { 2 } else { 1 };
        let mut waited = Vec::new();
        // At five places in the interval.
        for _ in 0..5 {
            net.run(interval / 5);
            let since = net.now;
            net.cut = vec![silent];
            let at = net.nodes.iter_mut().find(|node| node.id() == leader).expect("the leader");
            assert!(at.propose(b"entry".to_vec()));
            net.step();
            net.cut.clear();
            // One time to see that nothing moved since the time before.
            net.run(2 * interval);
            let appends = net.sent.iter().filter(|(at, message)| {
                *at > since && message.to == silent && message.get_msg_type() == MessageType::MsgAppend
            });
            let moments: Vec<Millis> = appends.map(|(at, _)| *at).collect();
            let again = moments
                .iter()
                .find(|at| **at > since + 1)
                .unwrap_or_else(|| panic!("{interval}, {waited:?}: {moments:?}"));
            waited.push(again - since);
        }
        assert!(waited.iter().all(|ms| *ms <= 2 * interval), "{interval}: {waited:?}");
        assert!(waited.iter().any(|ms| *ms > interval / 2), "{interval}: {waited:?}");
    }
}
