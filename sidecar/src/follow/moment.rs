//! Where the source's channel was at a time.
//!
//! Ticks follow the order in which transactions became visible, which is nearly that of their times, but not quite: one that was
//! prepared has the time of that, whenever it was committed; and two that commit at the same moment may change places. So a
//! change is not judged alone, but with those behind it.

use super::remote::{Remote, unreadable};
use super::trouble::Result;
use crate::feed::Position;
use hyper::Method;
use serde_json::Value;

/// How many changes are judged together.
const TOGETHER: usize = 200;

/// A change's own position, and when it was committed, in microseconds of Unix time.
type Moment = (Position, i64);

impl Remote {
    /// The position before the first transaction that was committed at this time (Unix time in microseconds) or later; where
    /// there is none yet, the end.
    pub(super) async fn moment(&self, time_us: i64) -> Result<Position> {
        let state = self.json(Method::GET, &self.path("", ""), None).await?;
        let number = |name: &str| state[name].as_u64().ok_or_else(|| unreadable("the channel"));
        let (first, last) = (number("first_tick")?.saturating_sub(1), number("last_tick")?);
        let end = Position { epoch: number("epoch")?, tick: last };
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = low + (high - low) / 2;
            match first_since(&self.moments(middle).await?, time_us) {
                Some(_) => high = middle,
                None => low = middle + 1,
            }
        }
        // It is among the next ones; or among those that have come meanwhile.
        loop {
            let next = self.moments(low).await?;
            if let Some(at) = first_since(&next, time_us) {
                return Ok(at);
            }
            match next.last() {
                Some((at, _)) if at.tick > low => low = at.tick,
                _ => return Ok(end),
            }
        }
    }

    /// The changes behind a tick, some of them.
    async fn moments(&self, after: u64) -> Result<Vec<Moment>> {
        let path = self.path("/changes", &format!("after={after}&limit={TOGETHER}"));
        let found = self.json(Method::GET, &path, None).await?;
        let changes = found["changes"].as_array().ok_or_else(|| unreadable("changes"))?;
        changes.iter().map(|change| read(change).ok_or_else(|| unreadable("a change"))).collect()
    }
}

fn read(change: &Value) -> Option<Moment> {
    let time = humantime::parse_rfc3339(change["committed_at"].as_str()?).ok()?;
    let us = time.duration_since(std::time::UNIX_EPOCH).ok()?.as_micros();
    Some((change["position"].as_str()?.parse().ok()?, i64::try_from(us).ok()?))
}

/// The position before the first of these that is so late. The changes of a transaction have one time, so it is between two.
fn first_since(changes: &[Moment], time_us: i64) -> Option<Position> {
    let (at, _) = changes.iter().find(|(_, us)| *us >= time_us)?;
    Some(Position { epoch: at.epoch, tick: at.tick.saturating_sub(1) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_that_is_out_of_order_hides_no_other() {
        let change = |tick: u64, second: u64| json!({"position": format!("5:{tick}"), "committed_at": format!("1970-01-01T00:00:{second:02}.000000Z")});
        let changes = [change(7, 20), change(8, 3), change(9, 21), change(10, 21)];
        let moments: Vec<Moment> = changes.iter().map(|change| read(change).unwrap()).collect();
        let before = |second: i64| first_since(&moments, second * 1_000_000).map(|at| (at.epoch, at.tick));
        assert_eq!(
            [before(10), before(20), before(21), before(22)],
            [Some((5, 6)), Some((5, 6)), Some((5, 8)), None]
        );
        assert_eq!(read(&json!({"position": "5:1"})), None);
    }
}
