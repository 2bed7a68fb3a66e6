//! At every moment at most one node acknowledges writes.

use super::{Violation, seconds, told, violation};
use crate::history::Call;

/// From the moment a node of a newer epoch has acknowledged a write, no write that begins with another node's session of
/// an older epoch is acknowledged. A session's epoch is read when it begins; a node that was replaced in between cannot
/// have kept it, because it is restarted as a standby first. So a node that is appointed again without a restart, while
/// nobody else was, is not accused.
pub fn one_at_a_time(calls: &[Call]) -> Vec<Violation> {
    let mut by_start: Vec<&Call> = calls.iter().filter(|c| c.acknowledged()).collect();
    let mut by_end = by_start.clone();
    by_start.sort_by_key(|c| c.start);
    by_end.sort_by_key(|c| c.end);
    let mut ended = by_end.into_iter().peekable();
    // The newest epoch that has acknowledged, and the newest of another node than that one's.
    let (mut newest, mut second): (Option<&Call>, Option<&Call>) = (None, None);
    let mut found = Vec::new();
    for call in by_start {
        while let Some(done) = ended.next_if(|done| done.end < call.start) {
            if newest.is_none_or(|n| done.epoch > n.epoch) {
                if newest.is_some_and(|n| n.node != done.node) {
                    second = newest;
                }
                newest = Some(done);
            } else if newest.is_some_and(|n| n.node != done.node)
                && second.is_none_or(|s| done.epoch > s.epoch)
            {
                second = Some(done);
            }
        }
        let other = [newest, second].into_iter().flatten().find(|c| c.node != call.node);
        if let Some(newer) = other.filter(|other| other.epoch > call.epoch) {
            found.push((call, newer));
        }
    }
    told(found.into_iter().map(|(call, newer)| {
        let text = format!(
            "node {} acknowledged {:?} in a session of epoch {} from {:.3} s to {:.3} s, after node {} of epoch {} had \
             acknowledged at {:.3} s",
            call.node,
            call.op,
            call.epoch,
            seconds(call.start),
            seconds(call.end),
            newer.node,
            newer.epoch,
            seconds(newer.end)
        );
        violation("one writer", text)
    }))
}
