//! Where the source's channel was at a time.
//!
//! Ticks follow the order in which transactions became visible, which is nearly that of their times, but not quite: one that was
//! prepared has the time of that, whenever it was committed; and two that commit at the same moment may change places. So a
//! change is not judged alone, but with those behind it, of other transactions, too.

use super::remote::{Remote, unreadable};
use super::trouble::Result;
use crate::feed::Position;
use hyper::Method;
use serde_json::Value;

/// How many changes are judged together.
const TOGETHER: u64 = 200;
/// How many are read at a time where it is among the next ones.
const AT_ONCE: u64 = 10_000;

/// What is known of a change.
#[derive(Debug)]
struct Moment {
    /// Its own.
    position: Position,
    transaction: String,
    /// When that was committed, in microseconds of Unix time.
    time_us: i64,
}

/// What a channel's changes are read from.
trait Changes {
    /// The changes behind a tick, at most so many.
    async fn moments(&self, after: u64, limit: u64) -> Result<Vec<Moment>>;
}

impl Changes for Remote {
    async fn moments(&self, after: u64, limit: u64) -> Result<Vec<Moment>> {
        let path = self.path("/changes", &format!("after={after}&limit={limit}"));
        let found = self.json(Method::GET, &path, None).await?;
        let changes = found["changes"].as_array().ok_or_else(|| unreadable("changes"))?;
        changes.iter().map(|change| read(change).ok_or_else(|| unreadable("a change"))).collect()
    }
}

impl Remote {
    /// The position before the first transaction that was committed at this time (Unix time in microseconds) or later; where
    /// there is none yet, the end.
    pub(super) async fn moment(&self, time_us: i64) -> Result<Position> {
        let (first, end) = self.cut().await?;
        Ok(find(self, first, end.tick, time_us).await?.unwrap_or(end))
    }

    /// Makes all readable that was committed before, and returns the tick before the first change and the end. While nobody
    /// reads a channel, what was committed long ago may have no tick yet: it would come after any end that is known.
    pub(super) async fn cut(&self) -> Result<(u64, Position)> {
        let state = self.json(Method::POST, &self.path("/cut", ""), None).await?;
        let number = |name: &str| state[name].as_u64().ok_or_else(|| unreadable("the channel"));
        let end = Position { epoch: number("epoch")?, tick: number("last_tick")? };
        Ok((number("first_tick")?.saturating_sub(1), end))
    }
}

/// Where the first transaction since the time begins; `None`: there is none.
async fn find(source: &impl Changes, first: u64, last: u64, time_us: i64) -> Result<Option<Position>> {
    let (mut low, mut high) = (first, last);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_since(source, middle, high, time_us).await? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    // It is among the next ones; or among those that have come meanwhile.
    loop {
        let next = source.moments(low, AT_ONCE).await?;
        if let Some(at) = first_since(&next, time_us) {
            return Ok(Some(at));
        }
        match next.last() {
            Some(last) if last.position.tick > low => low = last.position.tick,
            _ => return Ok(None),
        }
    }
}

/// Is the time behind us at this tick? `high`: there it is. One transaction alone says nothing, however large it is: it may
/// have been prepared long before it was committed. Where nothing else is found it is taken for behind us: to begin too
/// early is to look at more, to begin too late is to miss something.
async fn is_since(source: &impl Changes, after: u64, high: u64, time_us: i64) -> Result<bool> {
    let (mut at, mut step, mut alone) = (after, TOGETHER, None);
    loop {
        let changes = source.moments(at, TOGETHER).await?;
        if first_since(&changes, time_us).is_some() {
            return Ok(true);
        }
        let Some(first) = changes.first() else { return Ok(alone.is_some()) };
        let transaction = alone.get_or_insert_with(|| first.transaction.clone());
        if changes.iter().any(|change| change.transaction != *transaction) {
            return Ok(false);
        }
        at = at.saturating_add(step);
        step = step.saturating_mul(2);
        if at >= high {
            return Ok(true);
        }
    }
}

fn read(change: &Value) -> Option<Moment> {
    let time = humantime::parse_rfc3339(change["committed_at"].as_str()?).ok()?;
    let us = time.duration_since(std::time::UNIX_EPOCH).ok()?.as_micros();
    Some(Moment {
        position: change["position"].as_str()?.parse().ok()?,
        transaction: change["transaction"].as_str()?.to_owned(),
        time_us: i64::try_from(us).ok()?,
    })
}

/// The position before the first of these that is so late. The changes of a transaction have one time, so it is between two.
fn first_since(changes: &[Moment], time_us: i64) -> Option<Position> {
    let at = changes.iter().find(|change| change.time_us >= time_us)?.position;
    Some(Position { epoch: at.epoch, tick: at.tick.saturating_sub(1) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Transactions as they became visible: how many changes each has, and its time in seconds.
    struct Log(Vec<(u64, i64)>);

    impl Changes for Log {
        async fn moments(&self, after: u64, limit: u64) -> Result<Vec<Moment>> {
            let all = self.0.iter().enumerate().flat_map(|(number, (count, second))| {
                let moment = move |_| (number.to_string(), second * 1_000_000);
                (0..*count).map(moment)
            });
            let ticks = (1..).zip(all).skip(after as usize).take(limit as usize);
            Ok(ticks
                .map(|(tick, (transaction, time_us))| Moment {
                    position: Position { epoch: 5, tick },
                    transaction,
                    time_us,
                })
                .collect())
        }
    }

    async fn found(log: &[(u64, i64)], second: i64) -> Option<u64> {
        let last = log.iter().map(|(count, _)| count).sum();
        let at = find(&Log(log.to_vec()), 0, last, second * 1_000_000).await.expect("it is readable");
        at.map(|at| at.tick)
    }

    #[tokio::test]
    async fn a_large_transaction_that_was_prepared_long_ago_hides_no_other() {
        let many: Vec<(u64, i64)> = (0..1000).map(|number| (1, number)).collect();
        for second in [0, 1, 499, 999] {
            assert_eq!(found(&many, second).await, Some(second as u64));
        }
        assert_eq!(found(&many, 1000).await, None);
        // Prepared at second 10, committed between the seconds 700 and 701.
        for size in [1, 150, 5000, 100_000] {
            let mut log = many.clone();
            log.insert(701, (size, 10));
            for second in [9, 11, 600, 700] {
                assert_eq!(found(&log, second).await, Some(second as u64), "{size} changes");
            }
            assert_eq!(found(&log, 701).await, Some(701 + size), "{size} changes");
        }
        // Nothing came after it.
        let mut log = many[..700].to_vec();
        log.push((30_000, 10));
        assert_eq!(found(&log, 650).await, Some(650));
        assert_eq!(found(&log, 900).await, None);
    }

    #[test]
    fn one_that_is_out_of_order_hides_no_other() {
        let change = |tick: u64, second: u64| json!({"position": format!("5:{tick}"), "transaction": "7", "committed_at": format!("1970-01-01T00:00:{second:02}.000000Z")});
        let changes = [change(7, 20), change(8, 3), change(9, 21), change(10, 21)];
        let moments: Vec<Moment> = changes.iter().map(|change| read(change).unwrap()).collect();
        let before = |second: i64| first_since(&moments, second * 1_000_000).map(|at| (at.epoch, at.tick));
        assert_eq!(
            [before(10), before(20), before(21), before(22)],
            [Some((5, 6)), Some((5, 6)), Some((5, 8)), None]
        );
        assert!(read(&json!({"position": "5:1"})).is_none());
    }
}
