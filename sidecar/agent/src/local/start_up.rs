//! A server that starts: whether it gets on by itself, and what came of giving it an upstream.

use crate::postgres::{PgObservation, PgProcess, Upstream};
use crate::types::Millis;

/// A server that reads the same WAL for so long may lack what only an upstream has.
const STILL_MS: Millis = 20_000;
/// One that ended when it got its upstream gets it sooner the next time.
const STILL_AGAIN_MS: Millis = 2_000;
/// So often it may end before it is copied anew.
const DEATHS: u32 = 2;
/// A standby that streams for so long came up.
const CAME_UP_MS: Millis = 5_000;
/// Data that get no further for so long, although their upstream is there, are copied anew.
pub(super) const REPLAY_LIMIT_MS: Millis = 600_000;

/// What is remembered of it.
#[derive(Debug, Default)]
pub struct StartUp {
    /// When this process was first seen starting.
    began: Option<Millis>,
    /// Since when it has been at the same segment of WAL. A crash recovery may take hours and is left alone while it
    /// gets on; before it reads WAL there is nothing to see, and it is left alone too.
    still_since: Option<Millis>,
    segment: Option<u64>,
    /// The upstream that it was given, and when; until the server ends or has come up.
    given: Option<(Upstream, Millis)>,
    /// How often in a row it ended by itself afterwards. WAL of an older timeline can lie where PostgreSQL cannot read
    /// on: it starts, gets more, becomes consistent and ends, each time ("belongs to timeline ..., but previous recovered
    /// WAL file came from timeline ...").
    deaths: u32,
}

/// What a server needs that does not get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Upstream,
    Copy,
    Time,
}

impl StartUp {
    pub(super) fn given(&mut self, upstream: Upstream, now: Millis) {
        self.given = Some((upstream, now));
    }

    /// `idle`: no operation is under way that may have ended the server.
    pub(super) fn look(&mut self, now: Millis, obs: &PgObservation, idle: bool) {
        let given_at = self.given.as_ref().map(|(_, at)| *at);
        let died = match obs.process {
            PgProcess::Starting => {
                let moved = self.began.is_none() || obs.replaying.is_none() || obs.replaying != self.segment;
                if moved {
                    self.still_since = Some(now);
                }
                self.segment = obs.replaying;
                let began = *self.began.get_or_insert(now);
                // It is another process than the one that got it.
                given_at.is_some_and(|at| began > at)
            }
            PgProcess::Stopped | PgProcess::Absent => {
                (self.began, self.still_since) = (None, None);
                if !idle {
                    self.given = None;
                }
                given_at.is_some() && idle
            }
            PgProcess::Running => {
                (self.began, self.still_since) = (None, None);
                if obs.streaming && given_at.is_none_or(|at| now >= at + CAME_UP_MS) {
                    *self = StartUp::default();
                }
                false
            }
        };
        if died {
            self.given = None;
            self.deaths += 1;
        }
    }

    /// Whether it does not get on by itself, as it seems: it was shut down as a standby before it had replayed what its
    /// pages need, say, and lost that WAL.
    pub(super) fn in_vain(&self, now: Millis) -> bool {
        let patience = if self.deaths == 0 { STILL_MS } else { STILL_AGAIN_MS };
        self.still_since.is_some_and(|at| now >= at + patience)
    }

    /// What may help, of one that [`Self::in_vain`] is true of. `upstream` is what it should follow.
    pub(super) fn need(&self, now: Millis, upstream: &Upstream) -> Need {
        match &self.given {
            _ if self.deaths >= DEATHS => Need::Copy,
            Some((given, at)) if given == upstream => {
                let still = self.still_since.map_or(*at, |since| since.max(*at));
                if now >= still + REPLAY_LIMIT_MS { Need::Copy } else { Need::Time }
            }
            _ => Need::Upstream,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn upstream() -> Upstream {
        Upstream { node: 1, ip: Ipv4Addr::LOCALHOST.into(), port: 1, epoch: 3, timeline: 2 }
    }

    fn starting(segment: Option<u64>) -> PgObservation {
        PgObservation { process: PgProcess::Starting, replaying: segment, ..PgObservation::default() }
    }

    fn is(process: PgProcess, streaming: bool) -> PgObservation {
        PgObservation { process, streaming, ..PgObservation::default() }
    }

    #[test]
    fn a_recovery_that_gets_on_is_left_alone_however_long_it_takes() {
        let mut s = StartUp::default();
        for minute in 0..600 {
            // Files are synced first, then WAL is read.
            let segment = (minute > 60).then_some(minute);
            s.look(minute * 15_000, &starting(segment), true);
            assert!(!s.in_vain(minute * 15_000 + 14_999));
        }
        let now = 600 * 15_000;
        s.look(now, &starting(Some(599)), true);
        assert!(s.in_vain(now + 5_000), "it has been at this segment since the look before");
        assert_eq!(s.need(now + 5_000, &upstream()), Need::Upstream);
        s.given(upstream(), now);
        assert_eq!(s.need(now + REPLAY_LIMIT_MS - 1, &upstream()), Need::Time);
        assert_eq!(s.need(now + REPLAY_LIMIT_MS, &upstream()), Need::Copy);
        s.look(now + REPLAY_LIMIT_MS, &starting(Some(600)), true);
        assert_eq!(s.need(now + REPLAY_LIMIT_MS, &upstream()), Need::Time, "the upstream helps");
    }

    /// Dies twice of its upstream, once unseen in between.
    fn hopeless() -> StartUp {
        let mut s = StartUp::default();
        s.look(0, &starting(Some(7)), true);
        s.given(upstream(), 20_000);
        s.look(20_100, &is(PgProcess::Running, false), true);
        s.look(20_200, &is(PgProcess::Stopped, false), true);
        s.look(21_000, &starting(Some(7)), false);
        assert!(!s.in_vain(22_999) && s.in_vain(23_000));
        assert_eq!(s.need(23_000, &upstream()), Need::Upstream);
        s.given(upstream(), 23_000);
        s.look(23_100, &is(PgProcess::Running, true), true);
        s.look(24_000, &starting(Some(7)), true);
        s
    }

    #[test]
    fn one_that_ends_twice_when_it_gets_its_upstream_is_copied() {
        assert_eq!(hopeless().need(26_000, &upstream()), Need::Copy);
    }

    #[test]
    fn one_that_streams_is_no_longer_suspected() {
        let mut s = hopeless();
        s.look(100_000, &is(PgProcess::Running, true), true);
        s.look(200_000, &is(PgProcess::Stopped, false), true);
        s.look(200_100, &starting(Some(9)), true);
        assert!(!s.in_vain(210_000), "a later start has all the time of a first one");
        assert_eq!(s.need(220_100, &upstream()), Need::Upstream);
    }

    #[test]
    fn one_that_was_stopped_did_not_die() {
        let mut s = StartUp::default();
        for at in [0, 100_000, 200_000] {
            s.look(at, &starting(Some(7)), true);
            s.given(upstream(), at + 20_000);
            s.look(at + 30_000, &is(PgProcess::Stopped, false), false);
        }
        s.look(300_000, &starting(Some(7)), true);
        assert_eq!(s.need(320_000, &upstream()), Need::Upstream);
    }
}
