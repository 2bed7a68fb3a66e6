//! The restart barrier: when clients may log in again on a server that was a primary and was started anew.
//!
//! Such a server has replayed all it has, also commits that nobody else has and that nobody was told of. Whoever reads
//! them may see what is taken back. As a primary it is opened by its next lease: then its epoch's row, and all before it,
//! is on k standbys. As a standby it is by what it has replayed, which is judged here.

use crate::rules::{Rule, holds};
use crate::types::Epoch;

/// What the database of such a server says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The oldest epoch whose first row lies on a later timeline than the one that it wrote as a primary. With that row it
    /// has replayed the decision on everything before.
    pub later_epoch: Option<Epoch>,
    /// The term of the newest entry of the cluster's log that is recorded in the database. A leader records entries once
    /// its epoch is open, so an entry of a term proves that the epochs up to it, as far as they are in this history, are
    /// on k standbys.
    pub recorded_term: Option<u64>,
}

impl Replayed {
    /// Whether it is settled what became of this server's last commits, and clients may see them.
    pub fn is_settled(self) -> bool {
        let Replayed { later_epoch, recorded_term } = self;
        let open = later_epoch.zip(recorded_term).is_some_and(|(epoch, term)| epoch <= term);
        open || !holds(Rule::RestartBarrier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_wait_for_the_row_of_a_later_epoch_and_for_its_opening() {
        let judge = |later_epoch, recorded_term| Replayed { later_epoch, recorded_term }.is_settled();
        assert!(!judge(None, None) && !judge(None, Some(9)), "no later epoch");
        assert!(!judge(Some(7), None) && !judge(Some(7), Some(6)), "it may never open");
        assert!(judge(Some(7), Some(7)) && judge(Some(7), Some(9)));
    }
}
