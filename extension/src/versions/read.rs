//! What is known of a row, for whoever applies changes from elsewhere.

use pgquorum_change::{KEY_BYTES, Stamp, Verdict, last_write_wins};

use super::kept::{self, Kept};
use super::origins;
use crate::guc;
use crate::pg::trigger::OpenTable;
use crate::pg::version_rows::{Place, Stored, VersionRows};
use crate::pg::{process, tracking};

/// Who wrote a row last, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Time of the commit, in microseconds since 1970, by the origin's clock.
    pub commit_us: i64,
    /// `None`: it was written here.
    pub origin: Option<String>,
    /// The row was deleted.
    pub deleted: bool,
}

/// Does a write from elsewhere win over what is known of its row? `here` is the name that this database has as an origin.
pub fn judge(local: Option<&Version>, here: &str, remote: Stamp) -> Verdict {
    let local = local.map(|version| Stamp {
        commit_us: version.commit_us,
        origin: version.origin.as_deref().unwrap_or(here),
    });
    let skew_max_us = i64::from(guc::CLOCK_SKEW_MAX_MS.get()) * 1000;
    last_write_wins(local, remote, process::now_us(), skew_max_us)
}

/// The versions of one table's rows.
pub struct Reader {
    root: u32,
    kept: Kept,
}

impl Reader {
    /// Of a table that is tracked, by its oid; a partitioned one's rows go by the root. `None`: no versions are kept. Use it
    /// while the table is locked, and not longer than the transaction.
    pub fn open(root: u32) -> Option<Self> {
        Some(Self { root, kept: kept::of_table(root)? })
    }

    /// The same by a table or partition that is open.
    pub fn of(table: OpenTable) -> Option<Self> {
        let relid = table.relid();
        Self::open(relid).or_else(|| tracking::ancestors(table).into_iter().find_map(Self::open))
    }

    /// The table that is tracked.
    pub fn root(&self) -> u32 {
        self.root
    }

    /// The number under which versions are kept: it is another one when the table's key is.
    pub fn keeping(&self) -> i32 {
        self.kept.keeping
    }

    /// When the table was emptied last, and by whom.
    pub fn emptied(&self) -> Option<Version> {
        self.kept.truncated.map(version)
    }

    /// What is known of a row at this moment, by [`pgquorum_change::key_hash`] of its key: whatever was committed and what
    /// this transaction's earlier commands wrote. `None`: it was written before versions were kept, or never. Whoever wants
    /// it to stay so has locked the row.
    pub fn find(&self, key: &[u8; KEY_BYTES]) -> Option<Version> {
        let place = Place { keeping: self.kept.keeping, key: *key };
        // Opened each time: it belongs to the savepoint in which it is.
        let of_row = VersionRows::open()?.find(&place).map(|found| found.stored);
        // What was written before the table was emptied is not found.
        of_row.or(self.kept.truncated).map(version)
    }
}

fn version(stored: Stored) -> Version {
    Version { commit_us: stored.commit_us, origin: origins::name(stored.origin), deleted: stored.deleted }
}
