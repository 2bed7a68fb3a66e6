//! A fake PostgreSQL server: its WAL as a list of records, its process, its lease and its synchronous commits.

use crate::world::Time;
use pgquorum_agent::barrier::Replayed;
use pgquorum_agent::postgres::{PgProcess, SyncSet};
use pgquorum_agent::types::{Epoch, Lsn, NodeId, Timeline};
use std::collections::BTreeMap;

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A client's transaction.
    Write,
    /// The row of an epoch.
    Epoch(Epoch),
    /// Entries of the cluster's log up to this index, the last of them of this term.
    Entries(u64, u64),
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Unlike (timeline, LSN), never the same for two records.
    pub uid: u64,
    pub timeline: Timeline,
    /// Where the record ends.
    pub end: Lsn,
    pub what: What,
}

/// A WAL receiver. The generation ties it to its sender.
#[derive(Clone, Copy, Debug)]
pub struct Receiver {
    pub generation: u64,
    pub upstream: NodeId,
    pub heard: Time,
}

/// A walsender.
#[derive(Clone, Debug)]
pub struct Sender {
    pub generation: u64,
    pub sent: usize,
    pub flush: Lsn,
    /// `synchronous_standby_names` as this process has read it.
    pub rule: SyncSet,
    pub last_arrival: Time,
    pub heard: Time,
    /// The standby's data do not fit together yet: what it confirms counts for nothing.
    pub rejoining: bool,
}

/// A commit that waits for its standbys.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    pub uid: u64,
    pub index: usize,
    pub lsn: Lsn,
    pub epoch: Epoch,
    /// When it passed the lease's check.
    pub entered: Time,
}

/// The server's lease as the extension keeps it in shared memory: epoch, and its end on the node's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    pub epoch: Epoch,
    pub until: u64,
    pub revoked: Epoch,
}

#[derive(Clone, Debug)]
pub struct Server {
    pub process: PgProcess,
    /// Counts starts, so that what belongs to an earlier process is known.
    pub run: u64,
    pub recovery: bool,
    pub wal: Vec<Record>,
    pub timeline: Timeline,
    pub history: Vec<(Timeline, Lsn)>,
    /// Shut down cleanly: the control file tells where the WAL ends.
    pub clean: bool,
    pub conninfo: Option<NodeId>,
    pub receiver: Option<Receiver>,
    pub sync: SyncSet,
    /// Index of the record that every walsender reads the configuration before.
    pub reload_at: usize,
    pub senders: BTreeMap<NodeId, Sender>,
    pub waiters: Vec<Waiter>,
    pub lease: Lease,
    pub checkpointed: bool,
    /// A rewind writes into the data directory: until it is through there is no database.
    pub rewinding: bool,
    /// The data were rewound, and fit together once the WAL reaches this record: its place and itself.
    pub whole_at: Option<(usize, Record)>,
    /// They were not rewound: it is its own WAL that is missing.
    pub lost_wal: bool,
    /// The timeline on which it was a primary, until it is settled what became of its last commits.
    pub primary_on: Option<Timeline>,
    /// It was started since, and lets no clients in.
    pub held: bool,
    /// It was a primary, was rewound, copied or fed, and streams under a name that acknowledges nothing until it has the
    /// row of the epoch that it follows, or of a later one.
    pub unheard: bool,
    pub follows: Epoch,
}

impl Server {
    /// No data directory.
    pub fn absent() -> Server {
        Server {
            process: PgProcess::Absent,
            run: 1,
            recovery: true,
            wal: Vec::new(),
            timeline: 1,
            history: Vec::new(),
            clean: false,
            conninfo: None,
            receiver: None,
            sync: SyncSet::default(),
            reload_at: 0,
            senders: BTreeMap::new(),
            waiters: Vec::new(),
            lease: Lease::default(),
            checkpointed: false,
            rewinding: false,
            whole_at: None,
            lost_wal: false,
            primary_on: None,
            held: false,
            unheard: false,
            follows: 0,
        }
    }

    /// A database as `initdb` and copies of it make it, shut down.
    pub fn initial() -> Server {
        let record = |i: u64| Record { uid: i, timeline: 1, end: Lsn(1000 + i * 10), what: What::Other };
        Server {
            process: PgProcess::Stopped,
            wal: (1..=3).map(record).collect(),
            clean: true,
            ..Server::absent()
        }
    }

    pub fn is_running(&self) -> bool {
        self.process == PgProcess::Running
    }

    pub fn is_primary(&self) -> bool {
        self.is_running() && !self.recovery
    }

    /// Tells one run from the next.
    pub fn pid(&self) -> u32 {
        (self.run & 0xffff) as u32 + 1
    }

    pub fn end(&self) -> Lsn {
        self.wal.last().map_or(Lsn(0), |r| r.end)
    }

    pub fn has(&self, index: usize, uid: u64) -> bool {
        self.wal.get(index).is_some_and(|r| r.uid == uid)
    }

    pub fn recorded(&self) -> u64 {
        self.last_entries().map_or(0, |(index, _)| index)
    }

    fn last_entries(&self) -> Option<(u64, u64)> {
        let entries = |r: &Record| match r.what {
            What::Entries(index, term) => Some((index, term)),
            _ => None,
        };
        self.wal.iter().rev().find_map(entries)
    }

    /// What its database says that decides whether clients are let in, if they are held.
    pub fn replayed(&self) -> Option<Replayed> {
        let primary_on = self.primary_on.filter(|_| self.held)?;
        let epoch = |r: &Record| match r.what {
            What::Epoch(epoch) if r.timeline > primary_on => Some(epoch),
            _ => None,
        };
        let later_epoch = self.wal.iter().filter_map(epoch).min();
        Some(Replayed { later_epoch, recorded_term: self.last_entries().map(|(_, term)| term) })
    }

    /// Whether its data fit together; what was rewound does so again only along the history of its source.
    pub fn is_whole(&self) -> bool {
        self.whole_at.is_none_or(|(index, record)| self.has(index, record.uid))
    }

    /// The process is gone.
    pub fn halt(&mut self, clean: bool) {
        if self.process == PgProcess::Absent {
            return;
        }
        self.process = PgProcess::Stopped;
        self.run += 1;
        self.recovery = true;
        self.clean = clean;
        self.receiver = None;
        self.senders.clear();
        self.waiters.clear();
        self.lease = Lease::default();
        self.checkpointed = false;
    }

    /// Takes another upstream out of its configuration. `unheard`: under the name that acknowledges nothing.
    pub fn read_upstream(&mut self, upstream: Option<NodeId>, unheard: bool) {
        let stays = self.unheard == unheard;
        (self.conninfo, self.unheard) = (upstream, unheard);
        self.receiver = self.receiver.filter(|r| stays && Some(r.upstream) == upstream);
    }

    /// Whether it may acknowledge again.
    pub fn is_past_the_beginning(&self) -> bool {
        let begun = |r: &Record| matches!(r.what, What::Epoch(epoch) if epoch >= self.follows);
        self.is_running()
            && self.recovery
            && self.unheard
            && self.conninfo.is_some()
            && self.wal.iter().any(begun)
    }

    /// Takes over a record that an upstream sent.
    pub fn receive(&mut self, record: Record) {
        if record.timeline != self.timeline {
            self.history.push((self.timeline, self.end()));
            self.timeline = record.timeline;
        }
        self.wal.push(record);
    }

    /// Length of the common beginning of two logs.
    pub fn common(&self, other: &Server) -> usize {
        self.wal.iter().zip(&other.wal).take_while(|(a, b)| a.uid == b.uid).count()
    }

    /// Forgets everything after the first `len` records.
    pub fn truncate(&mut self, len: usize) {
        self.wal.truncate(len);
        let end = self.end();
        self.timeline = self.wal.last().map_or(1, |r| r.timeline);
        let timeline = self.timeline;
        self.history.retain(|(t, left)| *t < timeline && *left <= end);
    }

    /// Whether this server lets `standby` stream from it, as PostgreSQL decides: by timeline and LSN alone.
    pub fn accepts(&self, standby: &Server) -> bool {
        let end = standby.end();
        if standby.timeline == self.timeline {
            return end <= self.end();
        }
        self.history.iter().any(|(t, left)| *t == standby.timeline && end <= *left)
    }

    /// Commits that standby `from` releases by what it has confirmed: as in `syncrep.c`, the walsender that got the
    /// confirmation judges by its own reading of the rule, over all walsenders that take themselves for synchronous.
    pub fn released(&mut self, from: NodeId) -> Vec<Waiter> {
        let Some(sender) = self.senders.get(&from) else { return Vec::new() };
        if sender.rejoining || !sender.rule.standbys.contains(&from) {
            return Vec::new();
        }
        let k = sender.rule.k;
        let mut flushed: Vec<Lsn> = self
            .senders
            .iter()
            .filter(|(n, s)| !s.rejoining && s.rule.standbys.contains(n))
            .map(|(_, s)| s.flush)
            .collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let Some(&upto) = flushed.get(k.wrapping_sub(1)) else { return Vec::new() };
        let (done, waiting) = self.waiters.iter().partition(|w| w.lsn <= upto);
        self.waiters = waiting;
        done
    }

    /// Whether the extension lets a writing transaction pass at this time of the node's clock.
    pub fn lease_holds(&self, clock: u64) -> bool {
        self.is_primary() && self.lease.epoch > self.lease.revoked && clock < self.lease.until
    }
}
