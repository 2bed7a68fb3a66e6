//! One node: Raft, the replicated state and this node's decisions, as a single state machine.
//!
//! [`Node::step`] takes one [`Input`] and returns an [`Output`]. Whoever drives it must put [`Output::persist`] on
//! disk before anything else of the same output leaves the node: messages carry promises.

mod apply;
mod lost;
mod pledge;
mod ticks;
mod timings;

use crate::cluster::Cluster;
use crate::consensus::Consensus;
use crate::entry::Entry;
use crate::lead::Lead;
use crate::local::Local;
use crate::logstore::{Persist, Restored};
use crate::lost::LostReport;
use crate::message::{Beat, PeerMessage, Wire};
use crate::postgres::{PgFailure, PgObservation, PgOp, PgOutcome};
use crate::request::{Rejection, RejectionKind, Reply, Request};
use crate::standing::Outcast;
use crate::types::{Epoch, Millis, NodeId};
use crate::view::NodeStatus;
use crate::write_path::{WritePath, WriteWatch};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed; expected about every 10 ms.
    Tick,
    Message {
        from: NodeId,
        wire: Wire,
    },
    Link {
        peer: NodeId,
        link: Link,
    },
    /// The server beside this node, as it is now.
    Postgres(Box<PgObservation>),
    /// How writes go on this node, as they are now.
    WritePath(WritePath),
    /// An operation ended.
    PostgresDone {
        id: u64,
        result: Result<PgOutcome, PgFailure>,
    },
    Request {
        id: u64,
        request: Request,
    },
    /// Transactions that this node gave up; the report is on its disk.
    Lost(Box<LostReport>),
    /// Another node says that this one has no part in the cluster any more.
    Outcast(Outcast),
    /// This node is told to stop: hand over, stop the server, then [`Action::Exit`].
    Leave,
}

/// State of the connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Up,
    /// Lost or silent; the peer may live.
    Down,
    /// The peer's process is dead: its machine answers that nobody listens there, or the peer closed the connection and
    /// takes no other.
    Gone,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Postgres {
        id: u64,
        op: PgOp,
    },
    /// Let the primary accept writes until `sent_at + ms`.
    RenewLease {
        epoch: Epoch,
        sent_at: Millis,
        ms: u64,
    },
    /// Stop it accepting writes now.
    RevokeLease {
        epoch: Epoch,
        hint: String,
    },
    /// The cluster's log holds this report.
    LostReported {
        id: String,
    },
    /// Everything is stopped; the process may end.
    Exit,
}

/// What a step brought.
#[derive(Debug, Default)]
pub struct Output {
    pub persist: Persist,
    pub messages: Vec<(NodeId, Wire)>,
    pub actions: Vec<Action>,
    pub replies: Vec<(u64, Result<Reply, Rejection>)>,
    /// What people may want to read: kind and sentence.
    pub traces: Vec<(&'static str, String)>,
}

/// A node's whole state.
pub struct Node {
    pub(crate) id: NodeId,
    pub(crate) now: Millis,
    pub(crate) consensus: Consensus,
    pub(crate) cluster: Arc<Cluster>,
    /// Settings of before that still count; the oldest first.
    earlier: Vec<timings::Earlier>,
    /// Highest term this node has pledged itself to. Durable.
    pub(crate) pledged: u64,
    /// Who is waiting for the pledge, and for which term.
    pub(crate) pledge_to: Option<(NodeId, u64)>,
    /// Since when it is.
    pub(crate) pledge_asked: Option<Millis>,
    pub(crate) local: Local,
    pub(crate) writes: WriteWatch,
    /// When this node last gave leadership up because writes were stuck.
    pub(crate) gave_up_at: Option<Millis>,
    pub(crate) lead: Option<Lead>,
    pub(crate) pending: Option<crate::admin::Pending>,
    pub(crate) checking: Option<crate::admin::Checking>,
    pub(crate) waiting: Option<crate::admin::Waiting>,
    pub(crate) user_changes: Vec<crate::admin::UserPending>,
    pub(crate) registry_changes: Vec<crate::admin::RegistryPending>,
    pub(crate) links: BTreeMap<NodeId, Link>,
    pub(crate) statuses: BTreeMap<NodeId, (NodeStatus, Millis)>,
    /// The newest word of a leader.
    pub(crate) beat: Option<(Beat, Millis)>,
    /// When a leader last said that its primary is open.
    pub(crate) open_heard: Option<Millis>,
    /// When the sidecar last went on after it had stood still for longer than a node timeout.
    pub(crate) woke_at: Millis,
    /// When time itself was an input last.
    ticked_at: Millis,
    pub(crate) next_op: u64,
    pub(crate) next_status: Millis,
    pub(crate) sent_status: Option<NodeStatus>,
    /// Reports of this node that are not in the cluster's log yet.
    lost_reports: Vec<LostReport>,
    lost_send_at: Millis,
    pub(crate) leaving: Option<Millis>,
    pub(crate) exited: bool,
    pub(crate) identity: u64,
    pub(crate) outcast: Option<Outcast>,
    /// When a node of a cluster that was forced was last heard of, while this one has a primary.
    pub(crate) rival_seen: Option<Millis>,
    /// Up to here the log was known to be committed when this node started: nothing of it is news.
    replayed_to: u64,
    pub(crate) out: Output,
}

impl Node {
    /// A node as it was when it stopped. `seed` decides the random parts of its timeouts.
    pub fn new(id: NodeId, restored: &Restored, now: Millis, seed: u64) -> Node {
        let cluster = if restored.snapshot.data.is_empty() {
            Cluster::unknown()
        } else {
            serde_json::from_slice(&restored.snapshot.data).expect("only this crate writes the state")
        };
        Node {
            id,
            now,
            consensus: Consensus::new(id, restored, now, seed),
            cluster: Arc::new(cluster),
            earlier: Vec::new(),
            pledged: restored.pledge,
            pledge_to: None,
            pledge_asked: None,
            local: Local::default(),
            writes: WriteWatch::default(),
            gave_up_at: None,
            lead: None,
            pending: None,
            checking: None,
            waiting: None,
            user_changes: Vec::new(),
            registry_changes: Vec::new(),
            links: BTreeMap::new(),
            statuses: BTreeMap::new(),
            beat: None,
            open_heard: None,
            woke_at: 0,
            ticked_at: now,
            next_op: 1,
            next_status: now,
            sent_status: None,
            lost_reports: Vec::new(),
            lost_send_at: 0,
            leaving: None,
            exited: false,
            identity: restored.identity,
            outcast: restored.superseded.then_some(Outcast::Superseded),
            rival_seen: None,
            replayed_to: restored.hard_state.commit,
            out: Output::default(),
        }
    }

    pub fn id(&self) -> NodeId {
        self.id
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Takes one input at time `now` (which never goes back) and says what follows from it.
    pub fn step(&mut self, now: Millis, input: Input) -> Output {
        if now > self.now + self.cluster.settings.node_timeout.ms() {
            self.woke_at = now;
        }
        self.now = self.now.max(now);
        let time = self.brings_time(&input);
        self.take(input);
        if time {
            // What a message brought is on disk before anything is begun that counts on it: see `Output::persist`.
            self.drain();
            self.tick();
        }
        self.judge_writes();
        // Everything below reacts to state, not to the input, and repeats until nothing changes any more: a commit
        // may allow an appointment, whose commit allows a promotion.
        for _ in 0..8 {
            self.drain();
            let before = (self.out.actions.len(), self.out.messages.len(), self.consensus.term());
            self.follow_role();
            self.drive_lead();
            self.drive_local();
            self.drive_pending();
            self.report_lost();
            self.drain();
            if before == (self.out.actions.len(), self.out.messages.len(), self.consensus.term()) {
                break;
            }
        }
        self.report_status();
        self.finish_leaving();
        std::mem::take(&mut self.out)
    }

    fn take(&mut self, input: Input) {
        let settings = self.settings();
        match input {
            // See `tick`.
            Input::Tick => {}
            Input::Message { .. } if self.is_silenced() => {}
            Input::Message { from, wire: Wire::Raft(message) } => {
                if message.from == from {
                    self.consensus.receive(self.now, *message, &settings);
                }
            }
            Input::Message { from, wire: Wire::Peer(message) } => self.receive(from, message),
            Input::Link { peer, link } => self.link_changed(peer, link),
            Input::Postgres(observation) => self.observe(*observation),
            Input::WritePath(path) => self.writes.look(self.now, path),
            Input::PostgresDone { id, result } => self.operation_done(id, result),
            Input::Request { id, request } => self.requested(id, request),
            Input::Lost(report) => self.lost(*report),
            Input::Outcast(why) => self.cast_out(why),
            Input::Leave => {
                self.leaving.get_or_insert(self.now);
            }
        }
    }

    fn tick(&mut self) {
        self.ticked_at = self.now;
        if !self.is_silenced() {
            let settings = self.settings();
            self.consensus.tick(self.now, &settings);
        }
    }

    fn receive(&mut self, from: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Pledge { term } => self.asked_to_pledge(from, term),
            PeerMessage::Pledged { term, end } => self.pledge_received(from, term, end),
            PeerMessage::Status { status, identity } => {
                if let Some(lead) = &mut self.lead
                    && identity != 0
                {
                    lead.identities.insert(from, identity);
                }
                self.statuses.insert(from, (status, self.now));
            }
            PeerMessage::Lost { report } => self.lost_received(from, report),
            PeerMessage::Beat(beat) => {
                if beat.term >= self.consensus.term() {
                    self.hear(beat);
                }
            }
        }
    }

    /// The newest word of a leader, this node among them.
    pub(crate) fn hear(&mut self, beat: Beat) {
        if beat.open.as_ref().is_some_and(|open| open.accepts_writes) {
            self.open_heard = Some(self.now);
        }
        self.beat = Some((beat, self.now));
    }

    fn link_changed(&mut self, peer: NodeId, link: Link) {
        let before = self.links.insert(peer, link);
        if before == Some(link) {
            return;
        }
        self.trace("link", format!("connection to node {peer}: {}", format!("{link:?}").to_lowercase()));
        if link == Link::Gone && self.consensus.leader() == Some(peer) {
            self.suspect(peer, 0, "its process no longer accepts connections");
        }
    }

    /// The leader is dead as far as can be seen from here: start pre-voting, after `wait` milliseconds in which a word of
    /// it would prove the contrary. Nodes take turns, so that two do not split the votes.
    pub(crate) fn suspect(&mut self, leader: NodeId, wait: Millis, why: &str) {
        let others = self.cluster.members.values().filter(|m| m.is_voter() && m.id != leader);
        let rank = others.filter(|m| m.is_data_voter() && m.id < self.id).count() as u64;
        let witness = self.cluster.member(self.id).is_some_and(|m| !m.holds_data());
        let delay = wait + rank * 60 + if witness { 200 } else { 0 };
        self.trace("suspect", format!("leader {leader} seems dead: {why}"));
        self.consensus.suspect_leader(self.now, delay);
    }

    pub(crate) fn send(&mut self, to: NodeId, message: PeerMessage) {
        self.out.messages.push((to, Wire::Peer(message)));
    }

    pub(crate) fn trace(&mut self, kind: &'static str, message: String) {
        self.out.traces.push((kind, message));
    }

    pub(crate) fn propose(&mut self, entry: &Entry) -> bool {
        self.consensus.propose(entry.encode())
    }

    pub(crate) fn linked(&self, peer: NodeId) -> bool {
        peer == self.id || self.links.get(&peer) == Some(&Link::Up)
    }

    /// Whether the server beside this node runs as the primary of the newest appointment.
    pub(crate) fn is_newest_primary(&self) -> bool {
        self.local.obs.is_primary()
            && self.local.promoted
            && self
                .cluster
                .appointment
                .as_ref()
                .is_some_and(|a| a.node == self.id && a.timeline == self.local.obs.timeline)
    }

    pub(crate) fn start_operation(&mut self, op: PgOp) -> u64 {
        let id = self.next_op;
        self.next_op += 1;
        if op.is_process_operation() {
            self.trace("postgres", format!("operation {id}: {}", op.name()));
            self.local.op = Some((id, op.clone()));
            self.local.maybe_started = !matches!(op, PgOp::Stop(_));
            if matches!(
                op,
                PgOp::Follow(_) | PgOp::Feed(_) | PgOp::Rewind(_) | PgOp::Clone(_) | PgOp::Promote { .. }
            ) {
                // From here on the WAL may grow beyond what was pledged.
                self.local.cut = None;
            }
            // What it was told before is only known to be so again when this operation has succeeded.
            self.local.following = None;
        } else {
            self.local.side_ops.insert(id, op.clone());
        }
        self.out.actions.push(Action::Postgres { id, op });
        id
    }

    pub(crate) fn reject(&mut self, id: u64, kind: RejectionKind, code: &str, message: String) {
        let mut rejection = Rejection::new(kind, code, message);
        if kind == RejectionKind::NotLeader {
            rejection.leader = self.consensus.leader().and_then(|n| self.address_of(n));
        }
        self.out.replies.push((id, Err(rejection)));
    }

    fn finish_leaving(&mut self) {
        let Some(since) = self.leaving else { return };
        let stopped = !matches!(
            self.local.obs.process,
            crate::postgres::PgProcess::Running | crate::postgres::PgProcess::Starting
        ) && self.local.op.is_none();
        let handing_over = self.lead.as_ref().is_some_and(Lead::is_handing_over);
        let leads = self.consensus.is_leader() && self.cluster.members.len() > 1;
        // The hand-over gets a while; after that the node goes in any case, and the others elect.
        let patient = self.now < since + 8_000;
        if !self.exited && stopped && !((leads || handing_over) && patient) {
            self.exited = true;
            self.out.actions.push(Action::Exit);
        }
    }
}
