//! Requests about users. They touch neither members nor durability, so they wait for nothing else and nothing waits for
//! them: whoever must be kept out is kept out also while a node is being added.

use super::PENDING_MS;
use crate::entry::Entry;
use crate::node::Node;
use crate::request::{RejectionKind, Reply};
use crate::types::Millis;
use crate::users::{UserChange, UserError};

/// How many may be on their way at a time.
const CHANGES_MAX: usize = 16;

/// A change of users on its way through the log.
#[derive(Debug)]
pub struct UserPending {
    id: u64,
    until: Millis,
    change: UserChange,
}

impl Node {
    pub(super) fn change_user(&mut self, id: u64, change: UserChange) {
        // What is on its way will have been made before this one is.
        let mut users = self.cluster.users.clone();
        for pending in &self.user_changes {
            let _ = users.apply(0, &pending.change);
        }
        if let Err(error) = users.apply(0, &change) {
            return self.reject_user(id, &error);
        }
        if self.user_changes.len() >= CHANGES_MAX || !self.propose(&Entry::User(change.clone())) {
            let text =
                "the cluster's log takes no change of users at the moment; nothing was changed, try again";
            return self.reject(id, RejectionKind::Unavailable, "log_is_busy", text.to_owned());
        }
        self.user_changes.push(UserPending { id, until: self.now + PENDING_MS, change });
    }

    /// A change was committed: whoever asked for it is told, and why if nothing came of it.
    pub(crate) fn user_changed(&mut self, change: &UserChange, made: bool) {
        let Some(place) = self.user_changes.iter().position(|pending| pending.change == *change) else {
            return;
        };
        let id = self.user_changes.remove(place).id;
        if made {
            let user = self.cluster.users.get(change.user()).cloned();
            return self.out.replies.push((id, Ok(Reply::User { user })));
        }
        match self.cluster.users.clone().apply(0, change) {
            Err(error) => self.reject_user(id, &error),
            // It would be possible by now: another change came before it and one after it.
            Ok(()) => {
                let text = "another change came in between and nothing was changed; try again";
                self.reject(id, RejectionKind::Unavailable, "overtaken", text.to_owned());
            }
        }
    }

    /// Changes whose outcome this node cannot learn any more.
    pub(super) fn drive_user_changes(&mut self) {
        if self.lead.is_none() {
            for pending in std::mem::take(&mut self.user_changes) {
                let text = "this node lost leadership before the change was made; look at GET /users on the new \
                            leader whether it was, before you try again";
                self.reject(pending.id, RejectionKind::Gone, "proposal_gone", text.to_owned());
            }
        }
        let now = self.now;
        let late: Vec<UserPending> =
            self.user_changes.extract_if(.., |pending| now >= pending.until).collect();
        for pending in late {
            let text = "the change was not complete in time; it may still come. Look at GET /users";
            self.reject(pending.id, RejectionKind::Unavailable, "timed_out", text.to_owned());
        }
    }

    fn reject_user(&mut self, id: u64, error: &UserError) {
        use RejectionKind::{Exists, InvalidValue, Precondition, UnknownUser};
        let (kind, code) = match error {
            UserError::BadName(_) => (InvalidValue, "bad_name"),
            UserError::NoRole(_) => (InvalidValue, "no_role"),
            UserError::Exists(_) => (Exists, "already_exists"),
            UserError::Unknown(_) => (UnknownUser, "unknown_user"),
            UserError::UnknownToken { .. } => (UnknownUser, "unknown_token"),
            UserError::TooManyUsers => (Precondition, "too_many_users"),
            UserError::TooManyTokens(_) => (Precondition, "too_many_tokens"),
            UserError::FirstIsNoAdmin => (Precondition, "first_user_is_no_admin"),
            UserError::LastAdmin(_) => (Precondition, "last_admin"),
        };
        self.reject(id, kind, code, error.to_string());
    }
}
