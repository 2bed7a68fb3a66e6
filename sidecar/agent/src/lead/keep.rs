//! What the leader keeps in order while its primary is open: durability, slots, records, members. Durability and
//! members also while it opens: without that, an epoch whose standbys are lost could never open.

use super::{Phase, RECORD_BATCH};
use crate::entry::Entry;
use crate::member::Role;
use crate::node::Node;
use crate::postgres::PgOp;
use crate::quorum::{Step, next_step};
use crate::rules::{Rule, holds};
use crate::types::{Millis, NodeId};
use raft::eraftpb::ConfChangeType;
use std::collections::BTreeSet;

/// So many times `node-timeout` a node must be well before a leader takes away a mark that it has not seen set.
const INHERITED_MARK_TIMEOUTS: Millis = 60;

impl Node {
    /// Whether the log, the settings and the server agree on who acknowledges.
    pub(crate) fn durability_settled(&self) -> bool {
        let Some(lead) = &self.lead else { return false };
        let wanted = self.cluster.wanted_durability();
        self.cluster.durability == wanted
            && lead.in_force == wanted.sync_set(self.id)
            && lead.changing_sync.is_none()
    }

    /// One step towards the durability that members and settings ask for.
    pub(super) fn keep_durability(&mut self) {
        let now = self.now;
        let step = self.next_durability_step();
        let Some(lead) = &mut self.lead else { return };
        if let Some((sync, Some(barrier))) = &lead.changing_sync {
            // Every walsender that is there must have shown that it follows the new rule.
            // And everything from before it, which fewer standbys may have acknowledged, must be on as many as the new
            // rule asks for, or pledges that meet the new rule might miss it.
            let standbys = &self.local.obs.standbys;
            let concerned = |n: &NodeId| sync.standbys.contains(n) || lead.in_force.standbys.contains(n);
            let follows =
                |n: &NodeId, acknowledges: bool| acknowledges == (sync.k > 0 && sync.standbys.contains(n));
            let mut streaming = standbys.iter().filter(|s| s.streaming && concerned(&s.node));
            let follow = streaming.all(|s| s.flush_lsn >= *barrier && follows(&s.node, s.acknowledges));
            let have = standbys
                .iter()
                .filter(|s| sync.standbys.contains(&s.node) && s.flush_lsn >= *barrier)
                .count();
            if follow && (have >= sync.k || !holds(Rule::SyncBarrier)) {
                lead.in_force = sync.clone();
                lead.changing_sync = None;
                lead.sync_unsure = false;
                lead.covered = true;
            } else if step != Step::Sync(sync.clone()) {
                // It was to wait for standbys that are not counted on any more. Which rule is in force is not known.
                lead.changing_sync = None;
                lead.sync_unsure = true;
            }
            return;
        }
        if lead.changing_sync.is_some() || now < lead.retry_sync_at || self.consensus.has_pending_change() {
            return;
        }
        match step {
            Step::Done => {}
            Step::Sync(sync) => {
                lead.changing_sync = Some((sync.clone(), None));
                self.start_operation(PgOp::SetSync(sync));
            }
            Step::Commit(durability) => {
                lead.retry_sync_at = now + 200;
                self.propose(&Entry::Durability(durability));
            }
        }
    }

    fn next_durability_step(&self) -> Step {
        let Some(lead) = &self.lead else { return Step::Done };
        let (committed, target) = (&self.cluster.durability, self.cluster.wanted_durability());
        if !target.voters.contains(&self.id) {
            return Step::Done;
        }
        if !holds(Rule::GrowFirstShrinkLast) && *committed != target {
            return Step::Commit(target);
        }
        match next_step(self.id, committed, &lead.in_force, &target) {
            // The rule in force is not known for sure, or what was acknowledged before this epoch may be on fewer
            // nodes than it asks for: one is set and verified before anything rests on it.
            Step::Commit(_)
                if holds(Rule::SpreadBeforeShrink)
                    && !target.needs(self.id)
                    && (lead.sync_unsure || !(lead.covered || target.follows(committed, self.id))) =>
            {
                let wanted = target.sync_set(self.id);
                let meets = committed.meets(self.id, &wanted) && target.meets(self.id, &wanted);
                Step::Sync(if meets { wanted } else { lead.in_force.clone() })
            }
            // No doubt is left to the moment when standbys are gone and nothing can be verified any more.
            Step::Done if lead.sync_unsure && matches!(lead.phase, Phase::Open(_)) => {
                Step::Sync(lead.in_force.clone())
            }
            step => step,
        }
    }

    /// One checkpoint must finish after the promotion, or nobody can be rewound to this server.
    pub(super) fn keep_checkpoint(&mut self) {
        let running = self.local.side_ops.values().any(|op| matches!(op, PgOp::Checkpoint));
        let Some(lead) = &self.lead else { return };
        if !lead.checkpointed && !running && self.now >= lead.retry_checkpoint_at {
            self.start_operation(PgOp::Checkpoint);
        }
    }

    pub(super) fn keep_slots(&mut self) {
        let wanted: BTreeSet<NodeId> = self
            .cluster
            .members
            .values()
            .filter(|m| m.holds_data() && m.id != self.id)
            .map(|m| m.id)
            .collect();
        let Some(lead) = &mut self.lead else { return };
        if lead.slots.as_ref() != Some(&wanted) && self.now >= lead.retry_slots_at {
            lead.slots = Some(wanted.clone());
            self.start_operation(PgOp::Slots(wanted));
        }
    }

    pub(super) fn record_entries(&mut self) {
        let Some(lead) = &mut self.lead else { return };
        let recorded = self.local.obs.recorded_index;
        // A standby is not asked how far its database has recorded: 0 would mean that all is to be written anew.
        if !self.local.obs.is_primary()
            || lead.recording
            || self.now < lead.retry_record_at
            || self.cluster.log.back().is_none_or(|r| r.index <= recorded)
        {
            return;
        }
        let mut records = self.cluster.records_after(recorded);
        records.truncate(RECORD_BATCH);
        if !records.is_empty() {
            lead.recording = true;
            self.start_operation(PgOp::RecordEntries(records));
        }
    }

    /// Writes into the log which store speaks for a number, when a node is heard of for the first time. A witness votes
    /// from then on.
    pub(super) fn identify_nodes(&mut self) {
        let (now, me) = (self.now, (self.id, self.identity));
        if self.consensus.has_pending_change() {
            return;
        }
        let Some(lead) = &mut self.lead else { return };
        if now < lead.retry_identify_at {
            return;
        }
        lead.identities.insert(me.0, me.1);
        let unknown = self.cluster.members.values().filter(|m| m.identity.is_none());
        let Some((member, identity)) = unknown
            .filter_map(|m| Some((m, *lead.identities.get(&m.id)?)))
            .find(|(_, identity)| *identity != 0)
        else {
            return;
        };
        lead.retry_identify_at = now + 200;
        let (node, votes) = (member.id, member.role == Role::Witness);
        let entry = Entry::Identified { node, identity };
        if votes {
            self.consensus.propose_change(node, ConfChangeType::AddNode, entry.encode());
        } else {
            self.propose(&entry);
        }
    }

    pub(super) fn upgrade_listeners(&mut self) {
        if self.pending.is_some() || !self.durability_settled() || self.consensus.has_pending_change() {
            return;
        }
        let ready = self
            .cluster
            .members
            .values()
            .find(|m| m.auto_upgrade && m.identity.is_some() && self.catching_up(m.id).is_ok());
        if let Some(member) = ready {
            let (node, db_port, api_port) = (member.id, member.db_port, member.api_port);
            self.propose_upgrade(node, db_port, api_port);
        }
    }

    /// Takes the mark from nodes that are well again. Whether a node that an earlier leader marked was ever unwell is not
    /// known here; it may be marked for work that has yet to begin, so it must be well for long.
    pub(super) fn raise_recovered_nodes(&mut self) {
        let down: Vec<NodeId> = self.cluster.members.values().filter(|m| m.down).map(|m| m.id).collect();
        for node in down {
            let well = self.catching_up(node).is_ok() && self.linked(node);
            let long = INHERITED_MARK_TIMEOUTS * self.cluster.settings.node_timeout.ms();
            let now = self.now;
            let Some(lead) = &mut self.lead else { return };
            if !well {
                lead.down_unwell.insert(node);
            }
            let since = lead.inherited_marks.get_mut(&node);
            let long_well = since.is_some_and(|since| {
                *since = well.then(|| since.unwrap_or(now));
                since.is_some_and(|since| now >= since + long)
            });
            let recovered = well && (lead.down_unwell.contains(&node) || long_well);
            if recovered && self.pending.is_none() && self.durability_settled() {
                self.propose_up(node);
                return;
            }
        }
    }

    /// Removes nodes that half of the cluster has not seen for long, where the settings allow it.
    pub(super) fn remove_unseen_nodes(&mut self) {
        let settings = &self.cluster.settings;
        if !settings.autoremove_enabled || self.pending.is_some() || !self.durability_settled() {
            return;
        }
        let (patience, members) = (10 * settings.node_timeout.ms(), self.cluster.members.len());
        let fresh = self.now.saturating_sub(2 * settings.node_timeout.ms());
        let minimum = settings.autoremove_minimum as usize;
        // Who was never heard of is not missed: its data is still being copied, for however long that takes.
        let heard_of = self.cluster.members.values().filter(|m| m.id != self.id && m.identity.is_some());
        for node in heard_of.map(|m| m.id).collect::<Vec<_>>() {
            // Who was not heard of lately has no opinion.
            let missed_by = self
                .cluster
                .members
                .keys()
                .filter(|&&m| m != node)
                .filter(|&&m| match self.statuses.get(&m) {
                    _ if m == self.id => !self.linked(node),
                    Some((status, at)) => *at >= fresh && !status.sees.contains(&node),
                    None => false,
                })
                .count();
            let now = self.now;
            let Some(lead) = &mut self.lead else { return };
            if missed_by * 2 < members {
                lead.unseen_since.remove(&node);
                continue;
            }
            let since = *lead.unseen_since.entry(node).or_insert(now);
            if now >= since + patience && members > minimum {
                let reason = "half of the cluster has not seen it for long (auto-remove)".to_owned();
                if self.propose_removal(node, reason) {
                    return;
                }
            }
        }
    }
}
