//! The Raft log in memory, as the raft crate reads it. The sidecar keeps a copy of every change on disk before
//! anything that depends on it leaves the node; see [`Persist`].

use crate::cluster::Cluster;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::cell::Cell;

/// What must be on disk before the messages and actions of the same [`Output`](crate::node::Output) go out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Persist {
    pub hard_state: Option<HardState>,
    /// Entries to append. One at an index that exists replaces it and everything after it.
    pub entries: Vec<Entry>,
    /// A state received from the leader: it replaces the whole log.
    pub install: Option<Snapshot>,
    /// A state made here, and the first index of the log that is still needed.
    pub compact: Option<(Snapshot, u64)>,
    /// The term of the newest pledge.
    pub pledge: Option<u64>,
    /// The cluster goes on without this node; it must never take part again.
    pub superseded: bool,
    /// Must survive a crash of the machine (false: only the commit index moved).
    pub sync: bool,
}

impl Persist {
    pub fn is_empty(&self) -> bool {
        *self == Persist::default()
    }
}

/// What was on disk when the node started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restored {
    pub hard_state: HardState,
    pub snapshot: Snapshot,
    pub entries: Vec<Entry>,
    pub pledge: u64,
    /// Tells this store from any other that was ever made for this node; 0 if it is not known.
    pub identity: u64,
    pub superseded: bool,
}

impl Restored {
    /// The database that the cluster has, as this node was told last; 0: it was not told of any.
    pub fn system_identifier(&self) -> u64 {
        serde_json::from_slice::<Cluster>(&self.snapshot.data).map_or(0, |cluster| cluster.system_identifier)
    }

    /// Writes a change as a disk would: the next start begins from here.
    pub fn absorb(&mut self, change: &Persist) {
        if let Some(hard_state) = &change.hard_state {
            self.hard_state = hard_state.clone();
        }
        if let Some(snapshot) = &change.install {
            self.snapshot = snapshot.clone();
            self.entries.clear();
        }
        if let Some(first) = change.entries.first() {
            self.entries.retain(|e| e.index < first.index);
            self.entries.extend(change.entries.iter().cloned());
        }
        if let Some((snapshot, first_kept)) = &change.compact {
            self.snapshot = snapshot.clone();
            self.entries.retain(|e| e.index >= *first_kept);
        }
        if let Some(pledge) = change.pledge {
            self.pledge = pledge;
        }
        self.superseded |= change.superseded;
    }
}

/// The log, its latest state, and Raft's own durable words.
pub struct LogStore {
    hard_state: HardState,
    conf_state: ConfState,
    snapshot: Snapshot,
    /// Consecutive; the first one's index is `truncated.0 + 1`.
    entries: Vec<Entry>,
    /// Index and term of the entry before the first one kept.
    truncated: (u64, u64),
    /// A node asked for a state that the present snapshot cannot give it.
    newer_wanted: Cell<bool>,
}

impl LogStore {
    pub fn new(restored: &Restored) -> LogStore {
        let meta = restored.snapshot.get_metadata();
        let mut entries = restored.entries.clone();
        // Entries before the snapshot are kept for slow followers; what precedes the first of them is known only if
        // that first one follows the snapshot directly or the snapshot lies inside.
        let truncated = match entries.first() {
            Some(first) if first.index <= meta.index => {
                let before = (first.index, first.term);
                entries.remove(0);
                before
            }
            _ => (meta.index, meta.term),
        };
        LogStore {
            hard_state: restored.hard_state.clone(),
            conf_state: meta.get_conf_state().clone(),
            snapshot: restored.snapshot.clone(),
            entries,
            truncated,
            newer_wanted: Cell::new(false),
        }
    }

    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    /// Whether a newer state should be taken soon, because a node waits for it.
    pub fn newer_snapshot_wanted(&self) -> bool {
        self.newer_wanted.get()
    }

    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    pub fn append(&mut self, new: &[Entry]) {
        let Some(first) = new.first() else { return };
        assert!(first.index > self.truncated.0, "an entry that was compacted away is never written again");
        let keep = (first.index - self.truncated.0 - 1) as usize;
        assert!(keep <= self.entries.len(), "the log has no gaps");
        self.entries.truncate(keep);
        self.entries.extend(new.iter().cloned());
    }

    pub fn install(&mut self, snapshot: Snapshot) {
        let meta = snapshot.get_metadata();
        self.truncated = (meta.index, meta.term);
        self.conf_state = meta.get_conf_state().clone();
        self.hard_state.commit = self.hard_state.commit.max(meta.index);
        self.entries.clear();
        self.snapshot = snapshot;
    }

    /// Takes a state at `index` and forgets the log before it but for `keep` entries. Returns what to put on disk.
    pub fn compact(&mut self, index: u64, data: Vec<u8>, keep: u64) -> Option<(Snapshot, u64)> {
        let term = self.term(index).ok()?;
        self.newer_wanted.set(false);
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        meta.index = index;
        meta.term = term;
        *meta.mut_conf_state() = self.conf_state.clone();
        snapshot.data = data;
        self.snapshot = snapshot.clone();
        let cut = index.saturating_sub(keep);
        if cut > self.truncated.0 {
            let term = self.term(cut).ok()?;
            self.entries.drain(..(cut - self.truncated.0) as usize);
            self.truncated = (cut, term);
        }
        // The entry at the cut itself stays on disk: its term is needed at the next start.
        Some((snapshot, self.truncated.0))
    }
}

impl Storage for LogStore {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.truncated.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let first = self.truncated.0 + 1;
        let mut entries = self.entries[(low - first) as usize..(high - first) as usize].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        let meta = self.snapshot.get_metadata();
        if index == self.truncated.0 {
            return Ok(self.truncated.1);
        }
        if index == meta.index {
            return Ok(meta.term);
        }
        if index < self.truncated.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let at = (index - self.truncated.0 - 1) as usize;
        self.entries.get(at).map(|e| e.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.truncated.0 + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.truncated.0 + self.entries.len() as u64)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        // A node throws away a state whose members it is not among.
        let members = self.snapshot.get_metadata().get_conf_state();
        let names = [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next];
        let named = names.into_iter().any(|ids| ids.contains(&to));
        if self.snapshot_index() < request_index || self.snapshot_index() == 0 || !named {
            self.newer_wanted.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}
