//! From Raft to the replicated state: what became durable, what was committed, what can be forgotten.

use super::Node;
use crate::cluster::describe;
use crate::entry::Entry;
use crate::message::Wire;
use crate::standing::Outcast;
use std::sync::Arc;

impl Node {
    /// Takes what Raft has ready: persists, sends, applies.
    pub(super) fn drain(&mut self) {
        let settings = self.settings();
        let drained = self.consensus.drain(self.now, &settings);
        let persist = &mut self.out.persist;
        if drained.persist.install.is_some() {
            persist.entries.clear();
            persist.compact = None;
            persist.install = drained.persist.install;
        }
        if let Some(first) = drained.persist.entries.first() {
            persist.entries.retain(|e| e.index < first.index);
            persist.entries.extend(drained.persist.entries);
        }
        if drained.persist.hard_state.is_some() {
            persist.hard_state = drained.persist.hard_state;
        }
        persist.sync |= drained.persist.sync;
        for message in drained.messages {
            self.out.messages.push((message.to, Wire::Raft(Box::new(message))));
        }
        if let Some(data) = drained.installed {
            let before = self.cluster.settings.clone();
            let cluster = serde_json::from_slice(&data).expect("only this crate writes the state");
            self.cluster = Arc::new(cluster);
            self.note_settings(before);
        }
        if !drained.committed.is_empty() {
            self.apply(drained.committed);
        }
        self.compact();
        if let (Some(at), Some(lead)) = (drained.confirmed_at, &mut self.lead) {
            lead.confirmed_at = lead.confirmed_at.max(Some(at));
        }
    }

    pub(super) fn apply(&mut self, committed: Vec<crate::consensus::Committed>) {
        let (mut changes, mut batches) = (Vec::new(), Vec::new());
        let before = self.cluster.settings.clone();
        let (replayed_to, mut replayed) = (self.replayed_to, 0_usize);
        let cluster = Arc::make_mut(&mut self.cluster);
        for item in committed {
            let old = item.index <= replayed_to;
            if item.data.is_empty() {
                cluster.passed(item.index, item.term);
                continue;
            }
            match Entry::decode(&item.data) {
                Ok(Entry::Registry { batch, changes }) => {
                    let outcomes = cluster.apply_registry(item.index, item.term, &changes);
                    batches.push((batch, outcomes));
                }
                Ok(entry) => {
                    let changed_at = cluster.users.changed_at();
                    cluster.apply(item.index, item.term, &entry);
                    replayed += usize::from(old);
                    if let Entry::User(change) = entry {
                        let made = cluster.users.changed_at() != changed_at;
                        if made && !old {
                            self.out.traces.push(("committed", change.describe().1));
                        }
                        changes.push((change, made));
                        continue;
                    }
                    if let Some((kind, node, message)) = describe(&entry) {
                        if !old {
                            let name = if kind == "appointed" { "appointed" } else { "committed" };
                            self.out.traces.push((name, message));
                        }
                        if kind == "node-removed" && node == Some(self.id) {
                            self.outcast.get_or_insert(Outcast::Removed);
                        }
                    }
                }
                // Written by a newer version: this node cannot know what the cluster decided.
                Err(error) => {
                    cluster.passed(item.index, item.term);
                    self.out.traces.push((
                        "unknown-entry",
                        format!(
                            "entry {} of the cluster's log is not understood ({error}); upgrade this node",
                            item.index
                        ),
                    ));
                }
            }
        }
        self.note_settings(before);
        if replayed > 0 {
            let message = format!("{replayed} entries of the cluster's log are from before this start");
            self.trace("replayed", message);
        }
        for (change, made) in changes {
            self.user_changed(&change, made);
        }
        for (batch, outcomes) in batches {
            self.registry_changed(batch, outcomes);
        }
    }

    /// Takes a state and forgets the old part of the log, when the log has grown or a node waits for a state.
    pub(super) fn compact(&mut self) {
        let (applied, cluster) = (self.cluster.applied_index, Arc::clone(&self.cluster));
        let state = || serde_json::to_vec(&*cluster).expect("the state is plain data");
        if let Some(compact) = self.consensus.compact(applied, state) {
            self.out.persist.compact = Some(compact);
            self.out.persist.sync = true;
        }
    }
}
