//! Raft in time: heartbeats, retries, elections, and when a leader counts as dead.

use super::{Consensus, ELECTION_TICKS};
use crate::settings::Settings;
use crate::types::{Millis, NodeId};
use raft::StateRole;
use raft::eraftpb::{Message, MessageType};
use rand::Rng;

/// While a leader's death is all but certain, pre-votes are asked for again this often, because the other nodes may
/// learn of it some milliseconds later.
const SUSPICION_RETRY_MS: Millis = 25;
/// How long that goes on before the ordinary stage time applies.
const SUSPICION_MS: Millis = 500;
/// What the random part of a timeout is counted in.
const PARTS: Millis = 10_000;

impl Consensus {
    /// Another random part of the timeout.
    pub(super) fn draw_timeout(&mut self, settings: &Settings) {
        self.random_part = self.rng.random_range(0..=PARTS / 2);
        self.set_timeout(settings);
    }

    /// As long as the settings say now, and up to half of that longer.
    fn set_timeout(&mut self, settings: &Settings) {
        let base = settings.node_timeout.ms();
        self.timeout_ms = base + base * self.random_part / PARTS;
    }

    /// Time passes: heartbeats, stages and timeouts that are due happen.
    pub fn tick(&mut self, now: Millis, settings: &Settings) {
        self.set_timeout(settings);
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
                None => now >= self.due_at(),
            },
        };
        if due {
            self.campaign(now);
        }
    }

    /// Stage times get a random part, or two candidates that tie once tie for ever.
    fn jittered(&self, ms: Millis) -> Millis {
        ms + ms * (self.random_part % 7) / 14
    }

    pub(super) fn campaign(&mut self, now: Millis) {
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

    pub(super) fn note_stage(&mut self, now: Millis, settings: &Settings) {
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
            // Whoever gave its vote away gives the other time to win (Raft, 5.2); else it would end what it helped to begin.
            StateRole::Follower if ![raft::INVALID_ID, self.raw.raft.id].contains(&self.raw.raft.vote) => {
                let won = now + self.jittered(settings.leader_voting_timeout.ms());
                self.suspect_at = self.suspect_at.map(|at| at.max(won));
            }
            _ => {}
        }
    }
}
