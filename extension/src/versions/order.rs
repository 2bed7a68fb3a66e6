//! Who writes a version before whom, in the one case in which no row of the user's table decides that: a row was deleted
//! elsewhere that is not here. Its tombstone has no row to hold, so somebody could insert the row at the same time, find no
//! tombstone, and give it an older time than the deletion has: here the row would stay, elsewhere it would not.
//!
//! So everybody who writes versions holds a lock on `quorum.versioned_table` from before looking at what is there until the
//! end of the transaction. They do not disturb each other. Whoever writes such a tombstone wants to be alone, for the
//! moment from the end of the applied transaction's changes to its commit, in which it waits for no row.

use crate::pg::table::Table;
use crate::pg::worker::{self, lock};

/// So long others are waited for, who may be about to commit; those that come meanwhile wait, too.
const WAIT_MS: i32 = 500;

/// From here on until the transaction ends nobody is alone but this transaction. Held by whoever writes versions, or decides
/// by them.
pub fn be_among_others() {
    drop(Table::of_quorum_in_trigger_with(c"versioned_table", lock::ROW_EXCLUSIVE));
}

/// From here on until the transaction ends nobody else writes versions. Raises 55P03 if somebody who does has not ended
/// within half a second, such as a prepared transaction.
pub fn be_alone() {
    let _bound = worker::wait_at_most(WAIT_MS);
    drop(Table::of_quorum_in_trigger_with(c"versioned_table", lock::SHARE_ROW_EXCLUSIVE));
}
