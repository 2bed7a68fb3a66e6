//! Requests about registered servers. Like those about users they wait for nothing else, and nothing waits for them.

use super::PENDING_MS;
use crate::entry::Entry;
use crate::node::Node;
use crate::registry::{BATCH_BYTES_MAX, BATCH_MAX, RegistryChange, RegistryOutcome};
use crate::request::{RejectionKind, Reply};
use crate::types::Millis;

/// How many batches may be on their way at a time.
const BATCHES_MAX: usize = 8;

/// A batch of changes on its way through the log.
#[derive(Debug)]
pub struct RegistryPending {
    id: u64,
    until: Millis,
    batch: u64,
}

impl Node {
    pub(super) fn change_registry(&mut self, id: u64, batch: u64, changes: Vec<RegistryChange>) {
        let bytes: usize = changes.iter().map(RegistryChange::bytes).sum();
        if changes.len() > BATCH_MAX || bytes > BATCH_BYTES_MAX {
            let text = format!(
                "{} changes with {bytes} bytes are too many at once; at most {BATCH_MAX} with {BATCH_BYTES_MAX} are taken",
                changes.len()
            );
            return self.reject(id, RejectionKind::InvalidValue, "batch_too_large", text);
        }
        if self.registry_changes.len() >= BATCHES_MAX || !self.propose(&Entry::Registry { batch, changes }) {
            let text =
                "the cluster's log takes no registrations at the moment; nothing was changed, try again";
            return self.reject(id, RejectionKind::Unavailable, "log_is_busy", text.to_owned());
        }
        self.registry_changes.push(RegistryPending { id, until: self.now + PENDING_MS, batch });
    }

    /// A batch was committed: whoever asked for it is told what came of each change.
    pub(crate) fn registry_changed(&mut self, batch: u64, outcomes: Vec<RegistryOutcome>) {
        let Some(place) = self.registry_changes.iter().position(|pending| pending.batch == batch) else {
            return;
        };
        let id = self.registry_changes.remove(place).id;
        self.out.replies.push((id, Ok(Reply::Registry { outcomes })));
    }

    /// Batches whose outcome this node cannot learn any more.
    pub(super) fn drive_registry_changes(&mut self) {
        if self.lead.is_none() {
            for pending in std::mem::take(&mut self.registry_changes) {
                let text = "this node lost leadership before it was said to all; register again, it does no harm to \
                            do so twice";
                self.reject(pending.id, RejectionKind::Gone, "proposal_gone", text.to_owned());
            }
        }
        let now = self.now;
        let late: Vec<RegistryPending> =
            self.registry_changes.extract_if(.., |pending| now >= pending.until).collect();
        for pending in late {
            let text = "no majority of the nodes has heard of it in time; it may still come about. Register again, it \
                        does no harm to do so twice";
            self.reject(pending.id, RejectionKind::Unavailable, "timed_out", text.to_owned());
        }
    }
}
