//! Raft, by TiKV's crate, with the timers taken out of its hands.
//!
//! The crate counts ticks; the cluster's settings are times that change while it runs. So this wrapper never lets the
//! crate's own election clock run: it keeps the times itself and tells the crate when to campaign, when a heartbeat is
//! due, and whether the leader was heard of lately (the crate's `election_elapsed`, which decides whether a vote is
//! ignored because a leader lives; Ongaro, "Consensus: Bridging Theory and Practice", 4.2.3 and 9.6).

mod timers;
#[cfg(test)]
mod timers_tests;

use crate::logstore::{LogStore, Persist, Restored};
use crate::settings::Settings;
use crate::types::{Millis, NodeId};
use raft::eraftpb::{ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{Config, RawNode, StateRole};
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// The crate's election timeout in its own ticks; only compared with, never counted.
const ELECTION_TICKS: usize = 10;
/// A state is taken when the log has grown by this many entries since the last one.
const COMPACT_AFTER: u64 = 512;
/// So many entries stay behind a state for followers that are a little late.
const COMPACT_KEEP: u64 = 128;

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
    /// The node's timeout: that of the settings and a random part of it.
    timeout_ms: Millis,
    /// Drawn anew for each term and leader.
    random_part: Millis,
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
            random_part: 0,
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

    /// Whether the leader is believed dead, and votes are about to be asked for.
    pub fn is_suspicious(&self) -> bool {
        self.suspect_at.is_some()
    }

    /// When a leader sends its next heartbeat.
    pub fn next_heartbeat(&self) -> Millis {
        self.next_heartbeat
    }

    /// When a follower heard of its leader last.
    pub fn heard_at(&self) -> Millis {
        self.heard_at
    }

    /// When a follower that hears nothing until then asks for votes.
    pub fn due_at(&self) -> Millis {
        self.heard_at + self.timeout_ms
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
