//! What must hold at all times, one function each.

use crate::postgres::{Record, Waiter, What};
use crate::world::{Time, World};
use pgquorum_agent::entry::{Appointment, Entry};
use pgquorum_agent::message::Wire;
use pgquorum_agent::postgres::SyncSet;
use pgquorum_agent::quorum::Durability;
use pgquorum_agent::registry::{Registry, Shared};
use pgquorum_agent::types::{Epoch, NodeId, Timeline};
use pgquorum_agent::users::Users;
use raft::eraftpb::MessageType;
use std::collections::BTreeMap;

/// A write that a client was told is committed.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    pub uid: u64,
    pub index: usize,
    pub epoch: Epoch,
    pub at: Time,
    /// Commits waited for at least one standby, and the cluster had promised so.
    pub strong: bool,
}

/// The last record that clients saw on a server that had been a primary and was started again.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub node: NodeId,
    pub index: usize,
    pub uid: u64,
}

#[derive(Default)]
pub struct Check {
    pub broken: Option<String>,
    pub acks: Vec<Ack>,
    pub seen: Vec<Seen>,
    /// Epochs in the order of their opening: when, and where.
    pub opened: BTreeMap<Epoch, (Time, NodeId)>,
    leaders: BTreeMap<u64, NodeId>,
    entries: BTreeMap<u64, (u64, Entry)>,
    pub appointments: BTreeMap<Epoch, Appointment>,
    /// Which process writes on which timeline.
    writers: BTreeMap<Timeline, (NodeId, u64)>,
    /// The users after each entry that changed them.
    users: BTreeMap<u64, Users>,
    /// The registered servers after each entry that changed them.
    servers: BTreeMap<u64, Shared<Registry>>,
    /// The newest committed durability that any node has applied.
    durability: (u64, Durability),
}

impl Check {
    pub fn fail(&mut self, now: Time, text: String) {
        self.broken.get_or_insert(format!("at {now} ms: {text}"));
    }

    pub fn newest_epoch(&self) -> Epoch {
        self.opened.last_key_value().map_or(0, |(&epoch, _)| epoch)
    }

    pub fn strong_acks(&self) -> usize {
        self.acks.iter().filter(|a| a.strong).count()
    }

    /// The longest time without an acknowledged write since `from`.
    pub fn longest_gap(&self, from: Time) -> Time {
        let mut times = vec![from];
        times.extend(self.acks.iter().map(|a| a.at).filter(|&at| at > from));
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }
}

impl World {
    /// (a) An acknowledged write is in the history of every primary that opens later.
    pub fn check_opened(&mut self, node: NodeId, epoch: Epoch) {
        let now = self.now;
        if let Some((_, other)) = self.check.opened.insert(epoch, (now, node)) {
            self.check.fail(now, format!("epoch {epoch} was opened on node {other} and on node {node}"));
        }
        let server = &self.machines[&node].server;
        let durability = &self.check.durability.1;
        if durability.k == 0 && durability.voters.len() > 1 {
            // The cluster was told to promise nothing: what is gone now is forgiven.
            self.check.acks.retain(|a| server.has(a.index, a.uid));
            self.check.seen.retain(|s| server.has(s.index, s.uid));
        }
        if let Some(seen) = self.check.seen.iter().find(|s| !server.has(s.index, s.uid)).copied() {
            let (uid, there) = (seen.uid, seen.node);
            let text =
                format!("node {node} opens epoch {epoch} without record {uid}, seen by clients of {there}");
            self.check.fail(now, text);
        }
        let lost = self
            .check
            .acks
            .iter()
            .find(|a| a.strong && a.epoch < epoch && !server.has(a.index, a.uid))
            .copied();
        if let Some(lost) = lost {
            self.check.fail(now, format!("node {node} opens epoch {epoch} without {lost:?}"));
        }
        // Whatever pledges the log asks for from now on, one of them has the row.
        let durability = &self.check.durability.1;
        let row =
            server.wal.iter().rposition(|r| r.what == What::Epoch(epoch)).map(|i| (i, server.wal[i].uid));
        let lacks = |n: &&NodeId| row.is_none_or(|(i, uid)| !self.machines[n].server.has(i, uid));
        let lack = durability.voters.iter().filter(lacks).count();
        if row.is_none() || (durability.k > 0 && lack >= durability.pledges_needed()) {
            let text = format!("epoch {epoch} is opened while {lack} of {durability:?} lack its row");
            self.check.fail(now, text);
        }
        self.check_rule(node);
    }

    /// (a, b) A write that a client is told of while a later epoch is open must have been under way before that, and
    /// be part of its history. So the acknowledged writes are ordered by epoch.
    pub fn acknowledged(&mut self, node: NodeId, waiter: Waiter) {
        let now = self.now;
        let server = &self.machines[&node].server;
        let newest = (self.check.durability.0, self.check.durability.1.k);
        // Who is alone needs nobody; another one, whose commits waited for nobody, promised nothing.
        let alone = self.check.durability.1.voters.iter().eq([&node]);
        let strong = server.sync.k > 0 && newest.1 > 0 || alone;
        // (a) As many standbys have it as the cluster promises, in data that fit together.
        let whole = |m: &&crate::machine::Machine| {
            m.id != node && m.server.whole_at.is_none() && m.server.has(waiter.index, waiter.uid)
        };
        let (have, k) = (self.machines.values().filter(whole).count(), server.sync.k.min(newest.1));
        let present =
            self.check.appointments.last_key_value().is_some_and(|(&epoch, _)| epoch == waiter.epoch);
        if present && have < k {
            let text = format!(
                "node {node} acknowledges write {} while {have} of {k} standbys have it in consistent data",
                waiter.uid
            );
            self.check.fail(now, text);
        }
        self.check.acks.push(Ack {
            uid: waiter.uid,
            index: waiter.index,
            epoch: waiter.epoch,
            at: now,
            strong,
        });
        let later = self.check.opened.range(waiter.epoch + 1..).map(|(&e, &v)| (e, v)).collect::<Vec<_>>();
        for (epoch, (opened, primary)) in later {
            if waiter.entered > opened {
                let text = format!(
                    "node {node} acknowledges write {} of epoch {} that began after epoch {epoch} was opened",
                    waiter.uid, waiter.epoch
                );
                self.check.fail(now, text);
            }
            let has = self.machines[&primary].server.has(waiter.index, waiter.uid);
            if strong
                && epoch == self.check.newest_epoch()
                && self.machines[&primary].server.is_primary()
                && !has
            {
                let text = format!(
                    "node {node} acknowledges write {} of epoch {} that epoch {epoch} does not have",
                    waiter.uid, waiter.epoch
                );
                self.check.fail(now, text);
            }
        }
    }

    /// (g) What clients see on a server that was a primary and was started again is never taken back: not by an epoch
    /// that is open, nor by one that is opened later.
    pub fn check_read(&mut self, node: NodeId) {
        let now = self.now;
        let server = &self.machines[&node].server;
        // What came to it since, from the present primary, is seen on any standby.
        let own = |r: &Record| server.primary_on.is_some_and(|t| r.timeline <= t);
        let last = if server.recovery {
            server.wal.iter().rposition(own)
        } else {
            server.wal.iter().rposition(|r| matches!(r.what, What::Epoch(_)))
        };
        let durability = &self.check.durability.1;
        let promised = durability.k > 0 || durability.voters.len() == 1;
        let Some(index) = last.filter(|_| promised) else { return };
        let seen = Seen { node, index, uid: server.wal[index].uid };
        self.check.seen.push(seen);
        let Some((&epoch, &(_, primary))) = self.check.opened.last_key_value() else { return };
        let other = &self.machines[&primary].server;
        if other.is_primary() && !other.has(seen.index, seen.uid) {
            let text = format!("clients see {seen:?}, which epoch {epoch} on node {primary} does not have");
            self.check.fail(now, text);
        }
    }

    /// (c) A timeline is written by one process only.
    pub fn check_writer(&mut self, node: NodeId, run: u64, timeline: Timeline) {
        if self.check.writers.get(&timeline) != Some(&(node, run)) {
            let text =
                format!("node {node} writes on timeline {timeline}, which was not given to this process");
            self.check.fail(self.now, text);
        }
    }

    /// (c) No timeline is taken twice, and none is taken without a committed appointment.
    pub fn check_promoted(&mut self, node: NodeId, run: u64, timeline: Timeline) {
        let now = self.now;
        if let Some(other) = self.check.writers.insert(timeline, (node, run)) {
            self.check.fail(now, format!("timeline {timeline} was taken by {other:?} and by node {node}"));
        }
        let committed = |a: &Appointment| a.node == node && a.timeline == timeline;
        if !self.check.appointments.values().any(committed) {
            let text = format!("node {node} is promoted to timeline {timeline} without an appointment");
            self.check.fail(now, text);
        }
    }

    /// (d) One leader per term.
    pub fn check_raft(&mut self, node: NodeId, messages: &[(NodeId, Wire)]) {
        for (_, wire) in messages {
            let Wire::Raft(message) = wire else { continue };
            let kind = message.get_msg_type();
            if !matches!(kind, MessageType::MsgHeartbeat | MessageType::MsgAppend | MessageType::MsgSnapshot)
            {
                continue;
            }
            let leader = *self.check.leaders.entry(message.term).or_insert(node);
            if leader != node {
                let text = format!("nodes {leader} and {node} both lead term {}", message.term);
                self.check.fail(self.now, text);
            }
        }
    }

    /// (c, d) Applied entries are the same everywhere; an epoch is appointed once.
    pub fn check_state(&mut self, node: NodeId) {
        let m = self.machines.get_mut(&node).expect("machines stay");
        let Some(agent) = &m.agent else { return };
        let cluster = agent.cluster();
        if cluster.applied_index <= m.checked {
            return;
        }
        let mut problem = None;
        for record in cluster.log.iter().rev().take_while(|r| r.index > m.checked) {
            let known = self
                .check
                .entries
                .entry(record.index)
                .or_insert_with(|| (record.term, record.payload.clone()));
            if *known != (record.term, record.payload.clone()) {
                problem =
                    Some(format!("entry {} differs on node {node}: {known:?}, {record:?}", record.index));
            }
            if let Entry::Appoint(a) = &record.payload
                && *self.check.appointments.entry(a.epoch).or_insert_with(|| a.clone()) != *a
            {
                problem = Some(format!("two appointments in epoch {}", a.epoch));
            }
        }
        // (h) So are users: who is in or out on one node is so on every other that has come as far.
        let users = &cluster.users;
        let differ = self.check.users.entry(users.changed_at()).or_insert_with(|| users.clone()) != users;
        let newest = self.check.users.range(..=cluster.applied_index).next_back().map(|(&at, _)| at);
        if differ || newest != Some(users.changed_at()) {
            problem = Some(format!("node {node} knows other users than the nodes before it, {users:?}"));
        }
        // (i) And so are the servers that registered.
        let servers = &cluster.registry;
        let known = self.check.servers.entry(servers.changed_at()).or_insert_with(|| servers.clone());
        let differ = known != servers;
        let newest = self.check.servers.range(..=cluster.applied_index).next_back().map(|(&at, _)| at);
        if differ || newest != Some(servers.changed_at()) {
            problem = Some(format!("node {node} knows other servers than the nodes before it, {servers:?}"));
        }
        m.checked = cluster.applied_index;
        let newer = cluster.applied_index > self.check.durability.0;
        if newer {
            self.check.durability = (cluster.applied_index, cluster.durability.clone());
        }
        if let Some(problem) = problem {
            self.check.fail(self.now, problem);
        }
        if newer && let Some((_, last)) = self.check.appointments.last_key_value() {
            let primary = last.node;
            self.check_rule(primary);
        }
    }

    /// (e) What the newest primary waits for, in the eyes of each of its walsenders, meets the committed durability.
    pub fn check_rule(&mut self, node: NodeId) {
        let newest = self.check.appointments.last_key_value().map(|(_, a)| (a.node, a.timeline));
        let server = &self.machines[&node].server;
        if !server.is_primary() || newest != Some((node, server.timeline)) {
            return;
        }
        let durability = &self.check.durability.1;
        let bad = |rule: &&SyncSet| !durability.meets(node, rule);
        let rules = server.senders.iter().filter(|(n, s)| s.rule.standbys.contains(n)).map(|(_, s)| &s.rule);
        if let Some(rule) = std::iter::once(&server.sync).chain(rules).find(bad) {
            let text =
                format!("node {node} waits for {rule:?}, which does not meet the committed {durability:?}");
            self.check.fail(self.now, text);
        }
    }

    /// (a) At the end every node that holds data and votes has every acknowledged write.
    pub fn check_end(&mut self) {
        let now = self.now;
        let Some((&epoch, &(_, primary))) = self.check.opened.last_key_value() else { return };
        let server = &self.machines[&primary].server;
        let lost: Vec<_> =
            self.check.acks.iter().filter(|a| a.strong && !server.has(a.index, a.uid)).collect();
        if !lost.is_empty() {
            let text = format!("epoch {epoch} on node {primary} lacks {} writes: {:?}", lost.len(), lost[0]);
            self.check.fail(now, text);
        }
    }
}
