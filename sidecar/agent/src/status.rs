//! What a node says about itself: to the leader, to everybody, and to those who look at it.

use crate::lead::{Lead, Phase};
use crate::message::{Beat, OpenPrimary, PeerMessage};
use crate::node::{Link, Node};
use crate::postgres::{PgOp, PgProcess};
use crate::standing::TWO_CLUSTERS;
use crate::types::{Millis, NodeId, Position};
use crate::view::{NodeStatus, State, View};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A leader that has no open primary by then says whom it waits for.
const SLOW_START_MS: Millis = 3_000;
/// How long a node that says that this cluster is of the past is spoken of.
const RIVAL_MS: Millis = 30_000;

impl Node {
    /// What this node does at this moment.
    pub fn state(&self) -> State {
        let obs = &self.local.obs;
        let Some(member) = self.cluster.member(self.id) else { return State::Unknown };
        if !member.holds_data() {
            return State::Witness;
        }
        if matches!(&self.local.op, Some((_, PgOp::Rewind(_) | PgOp::Clone(_)))) {
            return State::Cloning;
        }
        if let Some(lead) = &self.lead {
            return if lead.is_open() { State::Leader } else { State::Electing };
        }
        match obs.process {
            PgProcess::Absent | PgProcess::Stopped => State::Stopped,
            PgProcess::Starting => State::Starting,
            PgProcess::Running if !obs.in_recovery => State::Fenced,
            PgProcess::Running if obs.streaming => State::Replica,
            PgProcess::Running => State::Detached,
        }
    }

    /// This node's own status.
    pub fn status(&self) -> NodeStatus {
        let obs = &self.local.obs;
        NodeStatus {
            state: self.state(),
            position: if obs.rewound {
                // It says where they will fit together, which is not where their WAL ends.
                Position::default()
            } else {
                self.cluster.position(obs.timeline, obs.flush_lsn)
            },
            replay_lsn: if obs.in_recovery { obs.replay_lsn } else { obs.flush_lsn },
            streaming: obs.streaming,
            pid: if obs.is_running() { obs.pid } else { 0 },
            sees: self.links.iter().filter(|(_, l)| **l == Link::Up).map(|(&n, _)| n).collect(),
            pending_restart: obs.pending_restart.clone(),
            trouble: self
                .rival()
                .or_else(|| self.writes.stuck.clone())
                .or_else(|| obs.trouble.clone())
                .or_else(|| self.waits_for()),
            writes: self.writes_state(),
            copy_progress: obs.copy_progress,
        }
    }

    fn rival(&self) -> Option<String> {
        self.rival_seen.filter(|at| self.now < at + RIVAL_MS).map(|_| TWO_CLUSTERS.to_owned())
    }

    /// Whom a leader waits for that has not got its primary open for a while.
    fn waits_for(&self) -> Option<String> {
        let lead = self.lead.as_ref().filter(|l| self.now >= l.since + SLOW_START_MS)?;
        let list = |nodes: &mut dyn Iterator<Item = NodeId>| {
            nodes.map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
        };
        match &lead.phase {
            Phase::Gate => {
                let durability = &self.cluster.durability;
                let missing = list(
                    &mut durability
                        .voters
                        .iter()
                        .copied()
                        .filter(|n| !lead.gate.has(*n) || lead.gate.runs(*n)),
                );
                let needed = durability.pledges_needed();
                Some(format!(
                    "no primary yet: {needed} of {} data nodes must say how far their WAL reaches; missing: {missing}. \
                     They may have what was acknowledged and this node lacks; bring one of them back",
                    durability.voters.len()
                ))
            }
            Phase::Opening(appointment, _) => Some(format!(
                "epoch {} does not open: {} of the nodes {} must have its first row. Bring one of them back; one that \
                 is lost for good is no longer waited for after `pgquorum node down N`",
                appointment.epoch,
                lead.in_force.k,
                list(&mut lead.in_force.standbys.iter().copied()),
            )),
            _ => None,
        }
    }

    /// Tells the leader how this node is: four times in a node timeout, and at once when something matters.
    pub(crate) fn report_status(&mut self) {
        let Some(leader) = self.consensus.leader().filter(|&l| l != self.id && !self.is_silenced()) else {
            return;
        };
        let status = self.status();
        let matters = self.sent_status.as_ref().is_none_or(|sent| {
            (sent.state, sent.streaming, sent.pid, sent.writes, &sent.trouble)
                != (status.state, status.streaming, status.pid, status.writes, &status.trouble)
        });
        let settings = &self.cluster.settings;
        // What has time goes with the answer to a heartbeat: one packet, and the leader is woken once.
        let heartbeat = settings.heartbeat_interval.ms();
        let answers = self.consensus.heard_at() == self.now || self.now >= self.next_status + heartbeat;
        if matters || (answers && self.now >= self.next_status) {
            self.next_status =
                self.now + settings.heartbeat_interval.ms().max(settings.node_timeout.ms() / 4);
            self.sent_status = Some(status.clone());
            let identity = self.identity;
            self.send(leader, PeerMessage::Status { status, identity });
        }
    }

    /// The leader's word to everybody.
    pub(crate) fn beat(&self) -> Beat {
        let obs = &self.local.obs;
        let open = self.lead.as_ref().and_then(|lead| match &lead.phase {
            Phase::Opening(a, _) | Phase::Open(a) | Phase::Preparing(a, _) => Some(OpenPrimary {
                epoch: a.epoch,
                node: self.id,
                timeline: a.timeline,
                history: obs.history.clone(),
                flush_lsn: obs.flush_lsn,
                // The observation may be older than the promotion; then the history is not this epoch's yet.
                rewind_source: lead.checkpointed && obs.timeline == a.timeline,
                accepts_writes: lead.is_open(),
            }),
            _ => None,
        });
        // A history of another timeline than the present one would make followers believe they diverged.
        let open = open.filter(|o| obs.is_primary() && o.timeline == obs.timeline);
        Beat { term: self.consensus.term(), open, nodes: self.known_nodes() }
    }

    /// How the nodes are, by their last word. One whose connection is lost may be anything by now, and says nothing.
    fn known_nodes(&self) -> BTreeMap<NodeId, NodeStatus> {
        let stale = self.now.saturating_sub(3 * self.cluster.settings.node_timeout.ms());
        let mut nodes: BTreeMap<NodeId, NodeStatus> = self
            .statuses
            .iter()
            .filter(|(n, (_, at))| *at >= stale && self.linked(**n) && self.cluster.member(**n).is_some())
            .map(|(&n, (status, _))| (n, NodeStatus { streaming: self.streams(n, status), ..status.clone() }))
            .collect();
        nodes.insert(self.id, self.status());
        nodes
    }

    /// Whether WAL flows to a node: both ends must see it, or an administrator would be told to wait for what the map
    /// shows already.
    fn streams(&self, node: NodeId, status: &NodeStatus) -> bool {
        let here = self.lead.as_ref().is_some_and(Lead::is_open);
        status.streaming && (!here || self.behind(node).is_some())
    }

    /// Everything this node knows, for readers.
    pub fn view(&self) -> View {
        let settings = &self.cluster.settings;
        let fresh = self.now.saturating_sub(3 * settings.node_timeout.ms());
        let beat = self.beat.as_ref().filter(|(_, at)| *at >= fresh).map(|(b, _)| b);
        let lead_open = self.lead.as_ref().filter(|l| l.is_open());
        let lease_until: Millis =
            lead_open.and_then(|l| l.confirmed_at).map_or(0, |sent| sent + self.lease_ms());
        let is_open_leader = lease_until > self.now;
        let open = beat.and_then(|b| b.open.as_ref()).filter(|o| o.accepts_writes);
        let leader = if is_open_leader {
            self.address_of(self.id)
        } else {
            open.filter(|o| o.node != self.id).and_then(|o| self.address_of(o.node))
        };
        let nodes = match beat {
            Some(beat) if !self.consensus.is_leader() => {
                let mut nodes = beat.nodes.clone();
                nodes.insert(self.id, self.status());
                nodes
            }
            _ => self.known_nodes(),
        };
        View {
            id: self.id,
            member: self.cluster.member(self.id).is_some(),
            removed: self.outcast.is_some(),
            outcast: self.outcast,
            term: self.consensus.term(),
            raft_leader: self.consensus.leader(),
            state: self.state(),
            is_open_leader,
            lease_until,
            epoch: self.cluster.appointment.as_ref().map_or(0, |a| a.epoch),
            leader,
            cluster: Arc::clone(&self.cluster),
            postgres: self.local.obs.clone(),
            nodes,
            change_in_flight: self.pending.is_some()
                || self.consensus.has_pending_change()
                || (self.lead.as_ref().is_some_and(Lead::is_open) && !self.durability_settled()),
            at: self.now,
        }
    }
}
