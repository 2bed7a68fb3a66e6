//! Whether this node takes writes. A server whose disk hangs or is full answers `SELECT 1` and commits nothing, so it is
//! judged by writes: a row that the leader's server must commit, and small files that the sidecar writes beside data and
//! WAL. A server whose first process stands still commits, on sessions that are open, and lets nobody in; so it is asked
//! for new ones, too.

use crate::node::Node;
use crate::postgres::PgObservation;
use crate::settings::Settings;
use crate::types::Millis;
use serde::{Deserialize, Serialize};

/// A write that takes longer than so many times `node-timeout` is stuck …
const STALL_TIMEOUTS: u64 = 3;
/// … but never less than this: a checkpoint can hold an fsync up for a second or two.
const STALL_MIN_MS: Millis = 2_000;
/// While the server commits, the sidecar's own write may take so many times `node-timeout`: data and WAL may lie on
/// different disks, and a checkpoint that keeps one of them busy is no reason to change the leader.
const DISK_ALONE_TIMEOUTS: u64 = 10;
/// A node that was stuck counts as well when its writes came back at once for so many times `node-timeout`.
const WELL_TIMEOUTS: u64 = 3;

/// How writes go at this moment, as the sidecar measures it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WritePath {
    /// For how long the server has owed the commit of the heartbeat row; 0: it owes none. The row waits for no standby.
    pub commit_waits: Millis,
    /// It was refused, and why: the disk is full, the disk fails.
    pub commit_refused: Option<String>,
    /// For how long the sidecar's own write beside data or WAL has not come back; 0: none is under way.
    pub disk_waits: Millis,
    pub disk_refused: Option<String>,
    /// For how long the server has not answered who asked for a new session, by whatever answer; 0: it owes none.
    pub door_waits: Millis,
}

/// Whether a node takes writes, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writes {
    Stuck,
    /// Something takes long, or failed just now; it may be nothing.
    Slow,
    #[default]
    Well,
}

/// What this node remembers of it.
#[derive(Debug, Default)]
pub struct WriteWatch {
    /// Since when each of the three is owed.
    commit_since: Option<Millis>,
    disk_since: Option<Millis>,
    door_since: Option<Millis>,
    /// Since when each was refused, without a success in between.
    commit_refused: Option<(Millis, String)>,
    disk_refused: Option<(Millis, String)>,
    /// Why nothing can be written, until it is well again.
    pub stuck: Option<String>,
    last_bad: Option<Millis>,
}

impl WriteWatch {
    pub fn look(&mut self, now: Millis, path: WritePath) {
        let since = |ms: Millis| (ms > 0).then(|| now.saturating_sub(ms));
        let refused = |before: &Option<(Millis, String)>, text: Option<String>| {
            text.map(|text| (before.as_ref().map_or(now, |(at, _)| *at), text))
        };
        self.commit_since = since(path.commit_waits);
        self.disk_since = since(path.disk_waits);
        self.door_since = since(path.door_waits);
        self.commit_refused = refused(&self.commit_refused, path.commit_refused);
        self.disk_refused = refused(&self.disk_refused, path.disk_refused);
    }

    /// Takes account of the time. Nobody has to say anything for a write to be overdue: who measures may hang as well.
    pub fn judge(&mut self, now: Millis, settings: &Settings, obs: &PgObservation) {
        let reason = self.reason(now, settings, obs);
        if reason.is_some() || self.is_slow(now, settings) {
            self.last_bad = Some(now);
        }
        let timeout = settings.node_timeout.ms();
        let well = self.last_bad.is_none_or(|at| now >= at + WELL_TIMEOUTS * timeout);
        match reason {
            // The first reason stays: a text that changes would only be noise.
            Some(_) if self.stuck.is_some() => {}
            Some(reason) => self.stuck = Some(reason),
            None if well => self.stuck = None,
            None => {}
        }
    }

    fn reason(&self, now: Millis, settings: &Settings, obs: &PgObservation) -> Option<String> {
        let timeout = settings.node_timeout.ms();
        let limit = stall_limit(settings);
        let overdue = |since: Option<Millis>, limit: Millis| since.is_some_and(|at| now >= at + limit);
        let lasting = |refused: &Option<(Millis, String)>| {
            refused.as_ref().filter(|(at, _)| now >= at + timeout).map(|(_, text)| text.clone())
        };
        // First, because a server that stands still as a whole owes its commit as well, and its disk is not to blame.
        if overdue(self.door_since, limit) {
            return Some("PostgreSQL stands still: its first process takes no new sessions".to_owned());
        }
        if overdue(self.commit_since, limit) {
            return Some("PostgreSQL does not get its WAL written: its disk hangs".to_owned());
        }
        if let Some(text) = lasting(&self.commit_refused) {
            return Some(format!("PostgreSQL cannot write: {text}"));
        }
        // A commit under way says nothing before it is late: it may be waiting for the same busy disk.
        let commits = obs.is_primary() && !overdue(self.commit_since, timeout);
        let limit = if commits { limit.max(DISK_ALONE_TIMEOUTS * timeout) } else { limit };
        if overdue(self.disk_since, limit) {
            return Some("the disk under the data directory or its WAL takes no writes: it hangs".to_owned());
        }
        lasting(&self.disk_refused)
    }

    fn is_slow(&self, now: Millis, settings: &Settings) -> bool {
        let late = |since: Option<Millis>| since.is_some_and(|at| now >= at + settings.node_timeout.ms() / 2);
        let refused = self.commit_refused.is_some() || self.disk_refused.is_some();
        late(self.commit_since) || late(self.disk_since) || late(self.door_since) || refused
    }

    pub fn state(&self, now: Millis, settings: &Settings) -> Writes {
        match self.stuck {
            Some(_) => Writes::Stuck,
            None if self.is_slow(now, settings) => Writes::Slow,
            None => Writes::Well,
        }
    }
}

/// A write that takes longer is stuck.
fn stall_limit(settings: &Settings) -> Millis {
    (STALL_TIMEOUTS * settings.node_timeout.ms()).max(STALL_MIN_MS)
}

impl Node {
    pub(crate) fn judge_writes(&mut self) {
        let settings = self.settings();
        let before = self.writes.stuck.clone();
        self.writes.judge(self.now, &settings, &self.local.obs);
        match (&before, &self.writes.stuck) {
            (None, Some(why)) => {
                let why = why.clone();
                self.trace("stuck", why);
            }
            (Some(_), None) => {
                self.trace("unstuck", "this node takes writes again".to_owned());
                // What failed for want of a disk failed for no other reason; it need not be waited for any longer.
                self.local.failures = 0;
                (self.local.retry_at, self.local.repair_at) = (self.now, self.now);
            }
            _ => {}
        }
    }

    pub(crate) fn writes_state(&self) -> Writes {
        self.writes.state(self.now, &self.cluster.settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::PgProcess;

    fn primary() -> PgObservation {
        PgObservation { process: PgProcess::Running, ..PgObservation::default() }
    }

    fn standby() -> PgObservation {
        PgObservation { in_recovery: true, ..primary() }
    }

    #[test]
    fn one_slow_write_is_no_reason_and_one_that_does_not_come_back_is() {
        let settings = Settings::default();
        let mut watch = WriteWatch::default();
        watch.look(10_000, WritePath { commit_waits: 100, ..WritePath::default() });
        watch.judge(10_000, &settings, &primary());
        assert_eq!(watch.state(10_000, &settings), Writes::Well);
        // Nothing more is heard; time alone tells.
        watch.judge(11_000, &settings, &primary());
        assert_eq!(watch.state(11_000, &settings), Writes::Slow);
        watch.judge(12_899, &settings, &primary());
        assert_eq!(watch.stuck, None);
        watch.judge(12_900, &settings, &primary());
        assert_eq!(watch.state(12_900, &settings), Writes::Stuck);
    }

    #[test]
    fn a_server_that_lets_nobody_in_is_stuck_though_it_commits() {
        let settings = Settings::default();
        for obs in [primary(), standby()] {
            let mut watch = WriteWatch::default();
            watch.look(10_000, WritePath { door_waits: 1000, ..WritePath::default() });
            watch.judge(11_999, &settings, &obs);
            assert_eq!(watch.state(11_999, &settings), Writes::Slow);
            watch.judge(12_000, &settings, &obs);
            assert!(watch.stuck.as_ref().is_some_and(|why| why.contains("new sessions")), "{watch:?}");
            watch.look(12_500, WritePath::default());
            watch.judge(15_500, &settings, &obs);
            assert_eq!(watch.stuck, None);
        }
    }

    #[test]
    fn a_busy_data_disk_is_borne_with_longer_while_the_server_commits() {
        let settings = Settings::default();
        for (obs, limit) in [(primary(), 10_000), (standby(), 3_000)] {
            let mut watch = WriteWatch::default();
            watch.look(1, WritePath { disk_waits: 1, ..WritePath::default() });
            watch.judge(limit - 1, &settings, &obs);
            assert_eq!(watch.stuck, None, "{limit}");
            watch.judge(limit, &settings, &obs);
            assert!(watch.stuck.is_some(), "{limit}");
        }
    }

    #[test]
    fn a_commit_under_way_does_not_say_that_the_server_commits_nothing() {
        let settings = Settings::default();
        let mut watch = WriteWatch::default();
        for now in [4_000, 9_000] {
            watch.look(now, WritePath { disk_waits: now, commit_waits: 300, ..WritePath::default() });
            watch.judge(now, &settings, &primary());
            assert_eq!(watch.stuck, None, "{now}: rows are committed one after the other");
        }
        watch.judge(10_000, &settings, &primary());
        assert!(watch.stuck.is_some(), "now neither comes back");
    }

    #[test]
    fn a_refusal_must_last_and_being_well_too() {
        let settings = Settings::default();
        let full = || WritePath { commit_refused: Some("disk full".to_owned()), ..WritePath::default() };
        let mut watch = WriteWatch::default();
        watch.look(0, full());
        watch.judge(999, &settings, &primary());
        assert_eq!(watch.stuck, None);
        watch.look(999, full());
        watch.judge(1000, &settings, &primary());
        assert!(watch.stuck.as_ref().is_some_and(|why| why.contains("disk full")), "{watch:?}");
        watch.look(1001, WritePath::default());
        watch.judge(1001, &settings, &primary());
        assert!(watch.stuck.is_some(), "not well after one write");
        watch.judge(4000, &settings, &primary());
        assert_eq!(watch.stuck, None);
        // A success in between begins the count anew.
        watch.look(5000, full());
        watch.look(5500, WritePath::default());
        watch.look(5600, full());
        watch.judge(6100, &settings, &primary());
        assert_eq!(watch.stuck, None);
    }
}
