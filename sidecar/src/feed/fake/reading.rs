//! Reading the log in memory as the database does.

use super::super::error::{FeedError, Kind, Result};
use super::super::position::After;
use super::super::source::{LogRow, Rows};
use super::{Fake, Row};
use std::sync::atomic::Ordering;

impl Fake {
    /// The tick after which to read.
    pub(super) fn place(&self, after: &str) -> Result<u64> {
        let end = *self.end.borrow();
        let purged = self.log().purged;
        let tick = match after.parse::<After>().unwrap() {
            After::Start => return Ok(purged),
            After::Now => return Ok(end.tick),
            After::Tick(tick) => tick,
            After::At(at) if at.epoch > end.epoch || at.epoch < 5 => {
                return Err(FeedError::new(
                    Kind::PositionUnknownEpoch,
                    format!("{after} is of another history"),
                ));
            }
            After::At(at) => at.tick,
        };
        match tick {
            _ if tick < purged => Err(FeedError::new(Kind::PositionPurged, format!("{after} was purged"))),
            _ if tick > end.tick => {
                Err(FeedError::new(Kind::PositionInFuture, format!("{after} is beyond {end}")))
            }
            _ => Ok(tick),
        }
    }

    pub(super) fn read_rows(&self, after: u64, max_bytes: usize) -> Result<Rows> {
        let log = self.log();
        let mut found = Rows::default();
        let Some(holder) = log.rows.iter().position(|row| row.ticks.1 > after) else { return Ok(found) };
        // Where the change after `after` begins.
        let mut begin = holder;
        while log.rows[begin].starts_inside && log.rows[begin].ticks.0 > after {
            begin -= 1;
            if log.rows[begin].ticks.1 >= log.rows[begin].ticks.0 {
                break;
            }
        }
        let mut push = |row: &Row| {
            self.bytes_read.fetch_add(row.data.len(), Ordering::Relaxed);
            let Row { epoch, ticks: (first_tick, last_tick), xid, flags, .. } = *row;
            found.push(&LogRow { epoch, first_tick, last_tick, xid, flags }, &row.data);
        };
        let part = usize::try_from(log.rows[begin].part).unwrap();
        if part > 0 {
            push(&log.rows[begin - part]);
        }
        let mut bytes = 0;
        for row in &log.rows[begin..] {
            if bytes > 0 && bytes + row.data.len() > max_bytes {
                break;
            }
            if row.broken {
                let error = FeedError::new(Kind::RecordBroken, "the checksum is wrong");
                if bytes == 0 {
                    return Err(error);
                }
                found.broken = Some(error);
                break;
            }
            bytes += row.data.len();
            push(row);
        }
        Ok(found)
    }
}
