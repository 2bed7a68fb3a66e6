//! Where the histories of two servers part.

use pgquorum_agent::types::{Lsn, Timeline};

/// A range of WAL on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub timeline: Timeline,
    pub from: Lsn,
    pub to: Lsn,
}

/// A server's history: the timelines before its present one and where it left each, and the present one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pub ancestors: Vec<(Timeline, Lsn)>,
    pub present: Timeline,
}

impl History {
    fn line(&self) -> Vec<(Timeline, Lsn)> {
        let present = (self.present, Lsn(u64::MAX));
        self.ancestors.iter().copied().chain([present]).collect()
    }
}

/// The last timeline that both have, and where they leave each other on it. `None` where they have no beginning in common.
pub fn parted(own: &History, other: &History) -> Option<(Timeline, Lsn)> {
    last_common(own, other).map(|(at, lsn)| (own.line()[at].0, lsn))
}

/// The same with the number of the timeline in the line of `own`.
fn last_common(own: &History, other: &History) -> Option<(usize, Lsn)> {
    let mut common = None;
    for (i, (a, b)) in own.line().iter().zip(&other.line()).enumerate() {
        if a.0 != b.0 {
            break;
        }
        common = Some((i, a.1.min(b.1)));
        if a.1 != b.1 {
            break;
        }
    }
    common
}

/// What `own` has up to `end` and `other` has not, oldest first. `None` where they have no beginning in common.
pub fn only_own(own: &History, end: Lsn, other: &History) -> Option<Vec<Piece>> {
    let (first, parted) = last_common(own, other)?;
    let mut pieces = Vec::new();
    let mut from = parted;
    for &(timeline, left) in &own.line()[first..] {
        let to = left.min(end);
        if from < to {
            pieces.push(Piece { timeline, from, to });
        }
        from = from.max(left);
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(ancestors: &[(Timeline, u64)], present: Timeline) -> History {
        History { ancestors: ancestors.iter().map(|&(t, l)| (t, Lsn(l))).collect(), present }
    }

    fn piece(timeline: Timeline, from: u64, to: u64) -> Piece {
        Piece { timeline, from: Lsn(from), to: Lsn(to) }
    }

    #[test]
    fn they_part_on_the_last_timeline_that_both_have() {
        // Ours went from 1 to 2, the other one on 1 and to 3 later; and the other way round.
        let (ours, other) = (history(&[(1, 500)], 2), history(&[(1, 600)], 3));
        assert_eq!(parted(&ours, &other), Some((1, Lsn(500))));
        assert_eq!(parted(&other, &ours), Some((1, Lsn(500))));
        assert_eq!(parted(&history(&[(1, 500)], 2), &history(&[(1, 500), (2, 700)], 4)), Some((2, Lsn(700))));
        assert_eq!(parted(&history(&[], 1), &history(&[], 2)), None);
    }

    #[test]
    fn what_lies_beyond_the_switch_is_only_ours() {
        let other = history(&[(1, 500)], 3);
        assert_eq!(only_own(&history(&[], 1), Lsn(700), &other), Some(vec![piece(1, 500, 700)]));
        assert_eq!(only_own(&history(&[], 1), Lsn(500), &other), Some(vec![]));
        assert_eq!(only_own(&history(&[], 1), Lsn(400), &other), Some(vec![]));
    }

    #[test]
    fn a_branch_of_several_timelines_is_lost_piece_by_piece() {
        let own = history(&[(1, 500), (2, 600)], 4);
        assert_eq!(
            only_own(&own, Lsn(900), &history(&[(1, 450)], 7)),
            Some(vec![piece(1, 450, 500), piece(2, 500, 600), piece(4, 600, 900)])
        );
        assert_eq!(
            only_own(&own, Lsn(900), &history(&[(1, 500), (2, 550)], 5)),
            Some(vec![piece(2, 550, 600), piece(4, 600, 900)])
        );
        // They parted where both left timeline 1.
        assert_eq!(
            only_own(&own, Lsn(900), &history(&[(1, 500)], 3)),
            Some(vec![piece(2, 500, 600), piece(4, 600, 900)])
        );
    }

    #[test]
    fn the_same_timeline_has_parted_nowhere() {
        let own = history(&[(1, 500)], 2);
        assert_eq!(only_own(&own, Lsn(900), &own), Some(vec![]));
        assert_eq!(only_own(&history(&[], 5), Lsn(9), &history(&[], 6)), None);
    }
}
