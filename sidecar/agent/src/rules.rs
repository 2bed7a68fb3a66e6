//! The safety rules by name, so that tests can break one at a time and show that the break is noticed.
//!
//! Without the feature `mutants` every rule holds and the compiler removes the question.

/// A rule whose breach loses data or makes two primaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nobody is appointed without pledges that meet every acknowledging set.
    PledgesNeeded,
    /// A pledge survives a restart.
    PledgeDurable,
    /// A pledge is given only when nothing is received any more.
    ReceptionCut,
    /// Positions compare by epoch before LSN.
    PositionByEpoch,
    /// Nothing is promoted before its appointment is committed.
    PromoteAfterCommit,
    /// The acknowledging set grows before, and shrinks after, what is committed about it.
    GrowFirstShrinkLast,
    /// A new rule counts only when enough standbys have all WAL from before it.
    SyncBarrier,
    /// The lease ends before anybody else may lead.
    LeaseShorterThanTimeout,
    /// Every appointment that promotes gets a timeline of its own.
    FreshTimeline,
    /// A running primary's pledge counts for no other node.
    RunningPrimaryNeverCounts,
    /// Clients may write only when k standbys have the epoch's row.
    OpeningWaits,
    /// Before fewer must pledge, what was acknowledged to earlier leaders is on as many as the rule in force asks for.
    SpreadBeforeShrink,
    /// A node that lost its store does not vote or pledge under its old number.
    ForgottenNeverVotes,
    /// A witness is never among the k that have a transaction.
    WitnessNeverCounts,
    /// Clients see a restarted primary's last commits only when it is settled what becomes of them.
    RestartBarrier,
    /// A leader that takes no writes leaves its place only where enough others take them.
    StuckStaysStuck,
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn holds(_: Rule) -> bool {
    true
}

#[cfg(feature = "mutants")]
mod switch {
    use super::Rule;
    use std::cell::Cell;

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    pub(crate) fn holds(rule: Rule) -> bool {
        BROKEN.get() != Some(rule)
    }

    /// Breaks a rule on this thread; `None` makes all hold again.
    pub fn break_rule(rule: Option<Rule>) {
        BROKEN.set(rule);
    }
}

#[cfg(feature = "mutants")]
pub use switch::break_rule;
#[cfg(feature = "mutants")]
pub(crate) use switch::holds;
