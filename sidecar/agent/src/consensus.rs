//! Raft, by TiKV's crate, with the timers taken out of its hands.
//!
//! The crate counts ticks; the cluster's settings are times that change while it runs. So this wrapper never lets the
//! crate's own election clock run: it keeps the times itself and tells the crate when to campaign, when a heartbeat is
//! due, and whether the leader was heard of lately (the crate's `election_elapsed`, which decides whether a vote is
//! ignored because a leader lives; Ongaro, "Consensus: Bridging Theory and Practice", 4.2.3 and 9.6).

use crate::logstore::{LogStore, Persist, Restored};
use crate::settings::Settings;
use crate::types::{Millis, NodeId};
use raft::eraftpb::{ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{Config, RawNode, StateRole};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The crate's election timeout in its own ticks; only compared with, never counted.
const ELECTION_TICKS: usize = 10;
/// A state is taken when the log has grown by this many entries since the last one.
const COMPACT_AFTER: u64 = 512;
/// So many entries stay behind a state for followers that are a little late.
const COMPACT_KEEP: u64 = 128;
/// While a leader's death is all but certain, pre-votes are asked for again this often, because the other nodes may
/// learn of it some milliseconds later.
const SUSPICION_RETRY_MS: Millis = 25;
/// How long that goes on before the ordinary stage time applies.
const SUSPICION_MS: Millis = 500;

/// A committed entry as the state machine sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    pub index: u64,
    pub term: u64,
    /// Empty for Raft's own entries.
    pub data: Vec<u8>,
}

/// What a round of [`Consensus::drain`] brought.
#[derive(Default)]
pub struct Drained {
    pub persist: Persist,
    pub messages: Vec<Message>,
    pub committed: Vec<Committed>,
    /// State received from the leader in place of entries.
    pub installed: Option<Vec<u8>>,
    /// A majority answered heartbeats that were sent at this time.
    pub confirmed_at: Option<Millis>,
}

/// One node's Raft.
pub struct Consensus {
    raw: RawNode<LogStore>,
    rng: SmallRng,
    /// When the present leader was last heard of (for a leader: when it was elected).
    heard_at: Millis,
    /// Random part of the node's timeout, drawn anew for each term and leader.
    timeout_ms: Millis,
    /// When the present stage (pre-voting or voting) began.
    stage_at: Millis,
    stage: (StateRole, u64),
    /// When to ask for pre-votes because the leader seems dead.
    suspect_at: Option<Millis>,
    suspect_since: Millis,
    next_heartbeat: Millis,
    next_retry: Millis,
    next_check: Millis,
    transfer_deadline: Option<Millis>,
    last_matched: Vec<(NodeId, u64)>,
}

impl Consensus {
    /// # Panics
    /// When the restored log contradicts itself; a node must not take part with such a log.
    pub fn new(id: NodeId, restored: &Restored, now: Millis, seed: u64) -> Consensus {
        let store = LogStore::new(restored);
        let config = Config {
            id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: 1,
            applied: store.snapshot_index(),
            pre_vote: true,
            check_quorum: true,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw =
            RawNode::new(&config, store, &logger).expect("the configuration of Raft is constant and valid");
        let mut consensus = Consensus {
            raw,
            rng: SmallRng::seed_from_u64(seed),
            heard_at: now,
            timeout_ms: 0,
            stage_at: now,
            stage: (StateRole::Follower, 0),
            suspect_at: None,
            suspect_since: 0,
            next_heartbeat: now,
            next_retry: now,
            next_check: now,
            transfer_deadline: None,
            last_matched: Vec::new(),
        };
        consensus.draw_timeout(&Settings::default());
        consensus
    }

    fn draw_timeout(&mut self, settings: &Settings) {
        let base = settings.node_timeout.ms();
        self.timeout_ms = base + self.rng.random_range(0..=base / 2);
    }

    pub fn id(&self) -> NodeId {
        self.raw.raft.id
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn role(&self) -> StateRole {
        self.raw.raft.state
    }

    pub fn is_leader(&self) -> bool {
        self.role() == StateRole::Leader
    }

    /// Leader, and an entry of its own term is applied: its view of the cluster is complete (Raft, 8).
    pub fn is_settled_leader(&self) -> bool {
        self.is_leader() && self.raw.raft.apply_to_current_term()
    }

    pub fn leader(&self) -> Option<NodeId> {
        Some(self.raw.raft.leader_id).filter(|&id| id != raft::INVALID_ID)
    }

    pub fn is_voter(&self) -> bool {
        self.raw.raft.promotable()
    }

    pub fn has_pending_change(&self) -> bool {
        self.raw.raft.has_pending_conf()
    }

    /// Time passes: heartbeats, stages and timeouts that are due happen.
    pub fn tick(&mut self, now: Millis, settings: &Settings) {
        self.note_stage(now, settings);
        if self.is_leader() {
            self.tick_leader(now, settings)
        } else {
            self.tick_follower(now, settings)
        }
        self.note_stage(now, settings);
    }

    fn tick_leader(&mut self, now: Millis, settings: &Settings) {
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + settings.heartbeat_interval.ms();
            // The context comes back when a majority answered this very heartbeat: that renews the lease.
            self.raw.read_index(now.to_be_bytes().to_vec());
            // The crate confirms a lone voter by itself, and sends nothing to the listeners then.
            if !self.raw.raft.commit_to_current_term() || self.raw.raft.prs().conf().voters().ids().len() == 1
            {
                self.raw.ping();
            }
        }
        if now >= self.next_check {
            self.next_check = now + settings.node_timeout.ms();
            let mut check = Message::default();
            check.set_msg_type(MessageType::MsgCheckQuorum);
            // Steps down when no majority was active since the last check; cannot fail for a local message.
            let _ = self.raw.raft.step(check);
        }
        if self.is_leader() && now >= self.next_retry {
            self.next_retry = now + settings.replication_retry_interval.ms();
            self.retry_silent_peers();
        }
        if self.transfer_deadline.is_some_and(|d| now >= d) {
            self.transfer_deadline = None;
            self.raw.raft.abort_leader_transfer();
        }
    }

    /// Sends the log again to peers that made no progress since the last time.
    fn retry_silent_peers(&mut self) {
        let last = self.raw.raft.raft_log.last_index();
        let id = self.id();
        let matched: Vec<(NodeId, u64)> = self
            .raw
            .raft
            .prs()
            .iter()
            .map(|(&peer, p)| (peer, p.matched))
            .filter(|(p, _)| *p != id)
            .collect();
        for &(peer, at) in &matched {
            if at < last && self.last_matched.contains(&(peer, at)) {
                // A state that got lost is waited for until somebody says that it failed.
                self.raw.report_snapshot(peer, raft::SnapshotStatus::Failure);
                self.raw.report_unreachable(peer);
                self.raw.raft.send_append(peer);
            }
        }
        self.last_matched = matched;
    }

    fn tick_follower(&mut self, now: Millis, settings: &Settings) {
        let heard_lately = now < self.heard_at + settings.node_timeout.ms() && self.suspect_at.is_none();
        self.raw.raft.election_elapsed = if heard_lately { 0 } else { ELECTION_TICKS };
        if !self.is_voter() {
            return;
        }
        let suspicious = self.suspect_at.is_some() && now < self.suspect_since + SUSPICION_MS;
        let due = match self.role() {
            StateRole::PreCandidate if suspicious => now >= self.stage_at + SUSPICION_RETRY_MS,
            StateRole::PreCandidate => now >= self.stage_at + self.jittered(settings.pre_voting_timeout.ms()),
            StateRole::Candidate => now >= self.stage_at + self.jittered(settings.leader_voting_timeout.ms()),
            _ => match self.suspect_at {
                Some(at) => now >= at,
                // A lone voter has nobody to wait for.
                None if self.raw.raft.prs().conf().voters().ids().len() == 1 => true,
                None => now >= self.heard_at + self.timeout_ms,
            },
        };
        if due {
            self.campaign(now);
        }
    }

    /// Stage times get a random part, or two candidates that tie once tie for ever.
    fn jittered(&self, ms: Millis) -> Millis {
        ms + ms * (self.timeout_ms % 7) / 14
    }

    fn campaign(&mut self, now: Millis) {
        self.raw.raft.election_elapsed = ELECTION_TICKS;
        // Only fails for a node that may not campaign, which was checked.
        let _ = self.raw.campaign();
        self.stage_at = now;
        if let Some(at) = &mut self.suspect_at {
            *at = now + SUSPICION_RETRY_MS;
            if now >= self.suspect_since + SUSPICION_MS {
                self.suspect_at = None;
            }
        }
        if self.suspect_at.is_none() {
            // A round that brings no leader is repeated after the stage's time, not after the whole timeout.
            self.heard_at = now.saturating_sub(self.timeout_ms.saturating_sub(self.timeout_ms / 4));
        }
    }

    /// The leader is all but certainly dead (its process no longer accepts connections): ask for pre-votes after
    /// `delay_ms`, and no longer hold on to it when others ask.
    pub fn suspect_leader(&mut self, now: Millis, delay_ms: Millis) {
        if self.is_leader() || self.suspect_at.is_some() {
            return;
        }
        self.suspect_since = now;
        self.suspect_at = Some(now + delay_ms);
        self.raw.raft.election_elapsed = ELECTION_TICKS;
    }

    fn note_stage(&mut self, now: Millis, settings: &Settings) {
        let stage = (self.role(), self.term());
        if stage == self.stage {
            return;
        }
        let was_leader = self.stage.0 == StateRole::Leader;
        self.stage = stage;
        self.stage_at = now;
        self.draw_timeout(settings);
        match stage.0 {
            StateRole::Leader => {
                self.suspect_at = None;
                self.heard_at = now;
                self.next_heartbeat = now;
                self.next_check = now + settings.node_timeout.ms();
                self.next_retry = now + settings.replication_retry_interval.ms();
                self.transfer_deadline = None;
                self.last_matched.clear();
            }
            StateRole::Follower if was_leader => self.heard_at = now,
            _ => {}
        }
    }

    /// A message from another node.
    pub fn receive(&mut self, now: Millis, message: Message, settings: &Settings) {
        let from_leader = matches!(
            message.get_msg_type(),
            MessageType::MsgHeartbeat | MessageType::MsgAppend | MessageType::MsgSnapshot
        );
        let (from, term) = (message.from, message.term);
        if !self.is_leader() {
            let heard = now < self.heard_at + settings.node_timeout.ms() && self.suspect_at.is_none();
            self.raw.raft.election_elapsed = if heard { 0 } else { ELECTION_TICKS };
        }
        // Messages that Raft refuses (of removed peers, of earlier terms) are simply not acted upon.
        let _ = self.raw.step(message);
        if from_leader && term == self.term() && self.leader() == Some(from) {
            self.heard_at = now;
            self.suspect_at = None;
        }
        self.note_stage(now, settings);
    }

    /// Proposes an entry; only a leader can.
    pub fn propose(&mut self, data: Vec<u8>) -> bool {
        self.is_leader() && self.raw.propose(Vec::new(), data).is_ok()
    }

    /// Proposes a change of one member's vote together with the entry that says so.
    pub fn propose_change(&mut self, node: NodeId, kind: ConfChangeType, data: Vec<u8>) -> bool {
        let mut change = ConfChangeV2::default();
        let mut single = raft::eraftpb::ConfChangeSingle { node_id: node, ..Default::default() };
        single.set_change_type(kind);
        change.changes = vec![single];
        change.context = data;
        self.is_leader()
            && !self.has_pending_change()
            && self.raw.propose_conf_change(Vec::new(), change).is_ok()
    }

    /// Hands leadership to `to`, which campaigns at once as soon as its log is complete.
    pub fn transfer(&mut self, now: Millis, to: NodeId, settings: &Settings) {
        self.transfer_deadline = Some(now + settings.node_timeout.ms());
        self.raw.transfer_leader(to);
    }

    /// Gives leadership up without naming a successor.
    pub fn step_down(&mut self, now: Millis, settings: &Settings) {
        if self.is_leader() {
            let term = self.term();
            self.raw.raft.become_follower(term, raft::INVALID_ID);
            self.note_stage(now, settings);
        }
    }

    /// Campaigns now; used by a leader that stepped down in order to be elected in a new term.
    pub fn campaign_now(&mut self, now: Millis) {
        if !self.is_leader() && self.is_voter() {
            self.campaign(now);
        }
    }

    /// Peers whose log is complete as far as the leader knows, for choosing a successor.
    pub fn is_up_to_date(&self, peer: NodeId) -> bool {
        let committed = self.raw.raft.raft_log.committed;
        self.raw.raft.prs().get(peer).is_some_and(|p| p.matched >= committed)
    }

    /// Takes everything that the crate has ready. `apply_change` is told of each committed configuration.
    pub fn drain(&mut self, now: Millis, settings: &Settings) -> Drained {
        let mut out = Drained::default();
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            out.messages.append(&mut ready.take_messages());
            for state in ready.take_read_states() {
                if let Ok(bytes) = <[u8; 8]>::try_from(state.request_ctx.as_slice()) {
                    let sent = Millis::from_be_bytes(bytes);
                    out.confirmed_at = Some(out.confirmed_at.map_or(sent, |at: Millis| at.max(sent)));
                }
            }
            if !ready.snapshot().is_empty() {
                let snapshot = ready.snapshot().clone();
                out.installed = Some(snapshot.data.clone());
                out.committed.clear();
                out.persist.entries.clear();
                out.persist.install = Some(snapshot.clone());
                self.raw.mut_store().install(snapshot);
            }
            let entries = ready.take_entries();
            self.raw.mut_store().append(&entries);
            merge_entries(&mut out.persist.entries, entries);
            if let Some(hard_state) = ready.hs() {
                self.raw.mut_store().set_hard_state(hard_state.clone());
                out.persist.hard_state = Some(hard_state.clone());
            }
            out.persist.sync |= ready.must_sync();
            out.messages.append(&mut ready.take_persisted_messages());
            let committed = ready.take_committed_entries();
            self.commit(committed, &mut out);
            let mut light = self.raw.advance_append(ready);
            if let Some(commit) = light.commit_index() {
                let mut hard_state =
                    out.persist.hard_state.clone().unwrap_or_else(|| self.raw.raft.hard_state());
                hard_state.commit = commit;
                self.raw.mut_store().set_hard_state(hard_state.clone());
                out.persist.hard_state = Some(hard_state);
            }
            out.messages.append(&mut light.take_messages());
            let committed = light.take_committed_entries();
            self.commit(committed, &mut out);
            self.raw.advance_apply();
        }
        self.note_stage(now, settings);
        out
    }

    fn commit(&mut self, entries: Vec<Entry>, out: &mut Drained) {
        for entry in entries {
            let data = match entry.get_entry_type() {
                EntryType::EntryNormal => entry.data.clone(),
                EntryType::EntryConfChangeV2 => self.change(entry.data.as_slice()),
                EntryType::EntryConfChange => Vec::new(),
            };
            out.committed.push(Committed { index: entry.index, term: entry.term, data });
        }
    }

    /// Puts a committed configuration in force and returns the entry that came with it.
    fn change(&mut self, data: &[u8]) -> Vec<u8> {
        let change =
            <ConfChangeV2 as prost::Message>::decode(data).expect("only this crate writes configurations");
        if let Ok(conf_state) = self.raw.apply_conf_change(&change) {
            self.raw.mut_store().set_conf_state(conf_state);
        }
        change.context
    }

    /// Takes a state, given by `state` as of `applied`, and forgets the old part of the log: when the log has grown,
    /// or when a node waits for a state newer than the last one.
    pub fn compact(
        &mut self,
        applied: u64,
        state: impl FnOnce() -> Vec<u8>,
    ) -> Option<(raft::eraftpb::Snapshot, u64)> {
        let store = self.raw.store();
        let taken = store.snapshot_index();
        let wanted = store.newer_snapshot_wanted() && applied > taken;
        if applied < taken + COMPACT_AFTER && !wanted {
            return None;
        }
        self.raw.mut_store().compact(applied, state(), COMPACT_KEEP)
    }
}

/// Our own entry in one of Raft's, empty if there is none.
pub(crate) fn entry_data(entry: &Entry) -> Vec<u8> {
    match entry.get_entry_type() {
        EntryType::EntryNormal => entry.data.clone(),
        EntryType::EntryConfChangeV2 => {
            let change = <ConfChangeV2 as prost::Message>::decode(entry.data.as_slice());
            change.map(|c| c.context).unwrap_or_default()
        }
        EntryType::EntryConfChange => Vec::new(),
    }
}

/// Appends `new`, which may replace the end of what is already there.
fn merge_entries(entries: &mut Vec<Entry>, new: Vec<Entry>) {
    if let Some(first) = new.first() {
        entries.retain(|e| e.index < first.index);
        entries.extend(new);
    }
}
