//! `quorum.read_packed`: the log for programs that read much of it. A row of the result holds many log rows, because
//! a row of a result costs more than reading a small row of the log.

use pgquorum_change::put_row;
use pgrx::prelude::*;

use super::error::FeedError;
use super::read::{Heap, Reading};

/// A pack is given away when it has so many bytes; it may be longer by one log row.
const PACK_BYTES: usize = 64 * 1024;

/// Packs the log rows of a reading.
struct Packing {
    reading: Reading,
    /// How many bytes may still come.
    left: usize,
    failure: Option<FeedError>,
}

impl Packing {
    /// The next pack; `None` at the end of what is shown, or of what was asked for.
    fn next(&mut self) -> Result<Option<Vec<u8>>, FeedError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let (mut pack, mut heap) = (Vec::new(), Heap::default());
        while pack.len() < PACK_BYTES && self.left > 0 {
            let before = pack.len();
            match self.reading.next_in(&mut heap, |row, chunk| put_row(&mut pack, row, chunk)) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                // What comes before a damaged row is good, and is given first.
                Err(error) if !pack.is_empty() => {
                    self.failure = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
            self.left = self.left.saturating_sub(pack.len() - before);
        }
        Ok((!pack.is_empty()).then_some(pack))
    }
}

/// The same log rows as `quorum.read_log` gives, many in a value, one after the other, as `pgquorum_change::take_row` takes
/// them. `max_bytes` counts what is said of the rows, too. Stops when so many bytes were given, be it inside a change: who
/// finds none complete asks for more, if there is memory for it. At least one row is given.
///
/// To be called in the list of a SELECT: there each value goes to the client before the next one is made, also before
/// the error for a damaged row.
///
/// Errors: as `quorum.read_log`.
#[pg_extern]
fn read_packed(
    channel: &str,
    after: &str,
    max_bytes: default!(i32, "1048576"),
) -> SetOfIterator<'static, Vec<u8>> {
    let reading = match Reading::new(channel, after) {
        Ok(reading) => reading,
        Err(error) => error.raise(),
    };
    let left = usize::try_from(max_bytes).unwrap_or(0).max(1);
    let mut packing = Packing { reading, left, failure: None };
    SetOfIterator::new(std::iter::from_fn(move || match packing.next() {
        Ok(pack) => pack,
        Err(error) => error.raise(),
    }))
}
