//! Who writes a version before whom, in the one case in which no row of the user's table decides that: a row was deleted
//! elsewhere that is not here. Its tombstone has no row to hold, so somebody could insert the row at the same time, find no
//! tombstone, and give it an older time than the deletion has: here the row would stay, elsewhere it would not.
//!
//! So everybody who writes versions holds a lock on `quorum.versioned_table` from before looking at what is there until the
//! end of the transaction. They do not disturb each other. Whoever writes such a tombstone wants to be alone, for the
//! moment from the end of the applied transaction's changes to its commit, in which it waits for no row.
//!
//! Those who apply changes have such locks while they wait for rows. Two of them that both have deletions of that kind would wait
//! for each other, and one for the other that has a row it needs. So whoever cannot be alone at once rolls back what it has
//! applied, with its locks, and begins anew when no other one applies; those that come wait, with nothing in hand.

use crate::pg::table::{Table, named};
use crate::pg::worker::{self, Job, lock};

/// So long others are waited for, who may be about to commit; those that come meanwhile wait, too.
const WAIT_MS: i32 = 500;

/// From here on until the transaction ends nobody is alone but this transaction. Held by whoever writes versions, or decides
/// by them.
pub fn be_among_others() {
    drop(Table::of_quorum_in_trigger_with(c"versioned_table", lock::ROW_EXCLUSIVE));
}

/// The same, if nobody else writes versions at this moment; false: somebody does.
pub fn is_alone() -> bool {
    named(c"versioned_table").is_none_or(|table| worker::lock_if_free(table, lock::SHARE_ROW_EXCLUSIVE))
}

/// Whoever applies changes and decides by versions: others do so, too, until the transaction ends or this is rolled back.
pub fn join_appliers() {
    worker::be_with_others(Job::Weighing);
}

/// Nobody else applies changes and decides by versions until the transaction ends. Raises 55P03 as [`be_alone`].
pub fn exclude_appliers() {
    let _bound = worker::wait_at_most(WAIT_MS);
    worker::be_next(Job::Weighing);
}

/// From here on until the transaction ends nobody else writes versions. Raises 55P03 if somebody who does has not ended
/// within half a second, such as a prepared transaction.
pub fn be_alone() {
    let _bound = worker::wait_at_most(WAIT_MS);
    drop(Table::of_quorum_in_trigger_with(c"versioned_table", lock::SHARE_ROW_EXCLUSIVE));
}
