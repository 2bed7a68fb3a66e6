//! What a probe has seen, and what follows from it.

use serde::Serialize;
use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

/// An insert that the server acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    pub number: u64,
    pub(super) at: Instant,
    pub unix_us: u64,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub acked: u64,
    /// Between two acknowledged inserts of any client, or from the last one to the end of the writing.
    pub longest_gap_ms: f64,
    /// Acknowledged and not in the table.
    pub lost: u64,
    /// In the table without having been acknowledged; allowed.
    pub unacked_present: u64,
    pub errors: u64,
    /// When the longest gap began and ended, in Unix milliseconds.
    pub gap_start_ms: Option<u64>,
    pub gap_end_ms: Option<u64>,
    pub next_gaps_ms: Vec<f64>,
    pub lost_sample: Vec<u64>,
    pub first_error: Option<String>,
    pub last_error: Option<String>,
    pub inserts_per_s: f64,
}

/// One moment on both clocks, to turn the monotonic one into a date.
pub(super) struct Start(pub(super) Instant, Duration);

impl Start {
    pub(super) fn now() -> Start {
        Start(Instant::now(), SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    pub(super) fn unix(&self, at: Instant) -> Duration {
        self.1 + at.saturating_duration_since(self.0)
    }
}

#[derive(Default)]
pub(super) struct Seen {
    pub(super) acks: Vec<Ack>,
    pub(super) unknown: HashSet<u64>,
    pub(super) errors: Vec<(Instant, String)>,
}

impl Seen {
    pub(super) fn add(&mut self, other: Seen) {
        self.acks.extend(other.acks);
        self.unknown.extend(other.unknown);
        self.errors.extend(other.errors);
    }
}

pub(super) fn report(seen: &Seen, present: &HashSet<u64>, start: &Start, end: Instant) -> Report {
    let ms = |d: Duration| (d.as_secs_f64() * 10_000.0).round() / 10.0;
    let unix_ms = |at: Instant| start.unix(at).as_millis() as u64;
    let times: Vec<Instant> = seen.acks.iter().map(|a| a.at).chain([end.max(start.0)]).collect();
    let mut gaps: Vec<(Duration, Instant, Instant)> =
        times.windows(2).map(|w| (w[1].saturating_duration_since(w[0]), w[0], w[1])).collect();
    gaps.sort_by_key(|gap| std::cmp::Reverse(gap.0));
    let mut lost: Vec<u64> = seen.acks.iter().map(|a| a.number).filter(|n| !present.contains(n)).collect();
    lost.sort_unstable();
    let span = match (seen.acks.first(), seen.acks.last()) {
        (Some(first), Some(last)) => last.at.saturating_duration_since(first.at).as_secs_f64(),
        _ => 0.0,
    };
    let error = |e: Option<&(Instant, String)>| e.map(|e| e.1.chars().take(300).collect());
    Report {
        acked: seen.acks.len() as u64,
        // Without any acknowledged insert the whole time was a gap.
        longest_gap_ms: gaps.first().map_or_else(|| ms(end.saturating_duration_since(start.0)), |g| ms(g.0)),
        lost: lost.len() as u64,
        unacked_present: seen.unknown.intersection(present).count() as u64,
        errors: seen.errors.len() as u64,
        gap_start_ms: gaps.first().map(|g| unix_ms(g.1)),
        gap_end_ms: gaps.first().map(|g| unix_ms(g.2)),
        next_gaps_ms: gaps.iter().skip(1).take(3).map(|g| ms(g.0)).collect(),
        lost_sample: lost.into_iter().take(10).collect(),
        first_error: error(seen.errors.first()),
        last_error: error(seen.errors.last()),
        inserts_per_s: if span > 0.0 {
            ((seen.acks.len() - 1) as f64 / span * 10.0).round() / 10.0
        } else {
            0.0
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_what_is_missing_and_finds_the_gap() {
        let start = Start::now();
        let at = |ms| start.0 + Duration::from_millis(ms);
        let ack = |number, ms| Ack { number, at: at(ms), unix_us: 0 };
        let seen = Seen {
            acks: vec![ack(1, 0), ack(2, 10), ack(4, 510), ack(5, 520)],
            unknown: HashSet::from([3, 6]),
            errors: vec![(at(20), "gone".to_owned())],
        };
        let report = report(&seen, &HashSet::from([1, 2, 3, 5]), &start, at(530));
        assert_eq!((report.acked, report.lost, report.unacked_present, report.errors), (4, 1, 1, 1));
        assert_eq!(report.lost_sample, [4]);
        assert_eq!(report.longest_gap_ms, 500.0);
        assert_eq!(report.gap_end_ms.unwrap() - report.gap_start_ms.unwrap(), 500);
    }

    #[test]
    fn a_cluster_that_never_comes_back_is_one_long_gap() {
        let start = Start::now();
        let end = start.0 + Duration::from_secs(5);
        let dead = report(&Seen::default(), &HashSet::new(), &start, end);
        assert_eq!((dead.acked, dead.longest_gap_ms), (0, 5000.0));
        let ack = Ack { number: 1, at: start.0 + Duration::from_secs(1), unix_us: 0 };
        let cut = report(&Seen { acks: vec![ack], ..Seen::default() }, &HashSet::from([1]), &start, end);
        assert_eq!(cut.longest_gap_ms, 4000.0);
    }
}
