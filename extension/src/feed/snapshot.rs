//! PostgreSQL's snapshots as values: which transactions they see, by 64-bit transaction id.

use std::fmt;
use std::str::FromStr;

/// What `pg_snapshot` says: all ids below `xmin` are seen, none from `xmax` on, and none that is listed as in progress.
///
/// An aborted transaction counts as seen: it is over, and PostgreSQL itself hides its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    /// Ascending, all of them in `xmin..xmax`.
    in_progress: Vec<u64>,
}

impl Snapshot {
    /// Sees nothing: what comes before a channel's first batch.
    pub const fn empty() -> Self {
        Self { xmin: 0, xmax: 0, in_progress: Vec::new() }
    }

    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// Does this snapshot see everything that `earlier` sees? Then a batch from one to the other loses nothing.
    pub fn includes(&self, earlier: &Self) -> bool {
        if self.in_progress.iter().any(|xid| earlier.sees(*xid)) {
            return false;
        }
        if earlier.xmax <= self.xmax {
            return true;
        }
        // Ids that this snapshot does not know yet must all have been in progress in the earlier one.
        let first = earlier.in_progress.partition_point(|xid| *xid < self.xmax);
        let in_progress = (earlier.in_progress.len() - first) as u64;
        earlier.xmin <= self.xmax && earlier.xmax - self.xmax == in_progress
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.in_progress.iter().enumerate() {
            write!(out, "{}{xid}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The text is none of PostgreSQL's type `pg_snapshot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotASnapshot;

impl FromStr for Snapshot {
    type Err = NotASnapshot;

    fn from_str(text: &str) -> Result<Self, NotASnapshot> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| NotASnapshot);
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or(NotASnapshot);
        let (xmin, xmax, listed) = (number(part()?)?, number(part()?)?, part()?);
        let listed = listed.split(',').filter(|xid| !xid.is_empty());
        let mut in_progress = listed.map(number).collect::<Result<Vec<_>, _>>()?;
        in_progress.sort_unstable();
        in_progress.dedup();
        let within = in_progress.iter().all(|xid| (xmin..xmax).contains(xid));
        if xmin <= xmax && within { Ok(Self { xmin, xmax, in_progress }) } else { Err(NotASnapshot) }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().expect("a snapshot")
    }

    #[test]
    fn sees_what_is_over() {
        let s = snapshot("10:20:10,15");
        let seen: Vec<u64> = (8..22).filter(|xid| s.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 14, 16, 17, 18, 19]);
        assert_eq!(s.to_string(), "10:20:10,15");
        assert!(!Snapshot::empty().sees(3));
        assert_eq!(snapshot("7:7:").to_string(), "7:7:");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "1", "1:2", "2:1:", "1:2:x", "1:5:5", "a:2:", "1:5:0"] {
            assert_eq!(text.parse::<Snapshot>(), Err(NotASnapshot), "{text}");
        }
    }

    #[test]
    fn includes_agrees_with_the_definition() {
        // All pairs of small snapshots, against the meaning of the word.
        let mut all = vec![Snapshot::empty()];
        for xmin in 3..6u64 {
            for xmax in xmin..8 {
                for mask in 0..1u32 << (xmax - xmin) {
                    let listed: Vec<u64> = (xmin..xmax).filter(|xid| mask >> (xid - xmin) & 1 == 1).collect();
                    all.push(Snapshot { xmin, xmax, in_progress: listed });
                }
            }
        }
        for later in &all {
            for earlier in &all {
                let meant = (0..10).all(|xid| !earlier.sees(xid) || later.sees(xid));
                assert_eq!(later.includes(earlier), meant, "{later} includes {earlier}");
            }
        }
    }
}
