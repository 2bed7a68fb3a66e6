//! A reader's way through the binary stream: frames, positions, and where transactions begin and end.
//!
//! ```text
//! frame = kind u8 · length of the body u32 · body
//! piece = 'P': after u64 (all ones: none) · epoch u64 · tick u64
//! row   = 'R': see `row`
//! ```
//!
//! [`Progress`] takes frames in any portions, as long as each frame is whole, and tells what is new in them: changes whose
//! ticks follow each other without a gap, between the begin and the end of their transaction. What was seen before is
//! passed over, so the same bytes may come twice, and a reader may be sent back a little after a connection was lost.

use crate::decode::{Change, Decoder};
use crate::row::{LogRow, ROW, take_row};
use crate::wire::Reader;
use crate::{Error, Header};

const PIECE: u8 = b'P';
/// "No tick", where a piece begins at the log's start.
const NO_TICK: u64 = u64::MAX;

/// A place between two changes of a channel: everything up to this tick, in the history that the epoch belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub epoch: u64,
    pub tick: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}:{}", self.epoch, self.tick)
    }
}

/// What is said of a transaction once. Times are microseconds since 1970 (UTC).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Its number at the source.
    pub xid: u64,
    /// When it was committed there.
    pub commit_us: i64,
    /// Where it was made, if the source itself has it from elsewhere.
    pub origin: Option<String>,
    /// When it was committed where it was made.
    pub origin_commit_us: Option<i64>,
}

impl Transaction {
    fn new(xid: u64, header: &Header) -> Self {
        Self {
            xid,
            commit_us: header.commit_us,
            origin: header.origin.map(str::to_owned),
            origin_commit_us: header.origin_commit_us,
        }
    }
}

/// What is new in a frame.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Changes of this transaction follow.
    Begin(&'a Transaction),
    Change {
        position: Position,
        transaction: &'a Transaction,
        change: Change<'a>,
        /// The change as it is encoded.
        bytes: &'a [u8],
    },
    /// The transaction is complete; the position is that of its last change.
    End(Position, &'a Transaction),
}

/// Why frames cannot be taken. Nothing after them may be taken either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misfit {
    #[error("frame {0:?} is none that is to be applied, or it is not whole")]
    Frame(Option<char>),
    #[error("change {found} comes where {expected} must come")]
    Gap { expected: u64, found: u64 },
    #[error("change {found} belongs to another history than position {at}")]
    History { at: Position, found: Position },
    #[error("transaction {open} is not complete, and transaction {found} follows")]
    Broken { open: u64, found: u64 },
    #[error("{0}")]
    Record(#[from] Error),
    #[error("a log row says that the change {said} ends in it, but it ends with {found}")]
    Miscounted { said: u64, found: u64 },
}

/// Why [`Progress::feed`] stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop<E> {
    Misfit(Misfit),
    /// What the caller's function returned.
    Taker(E),
}

impl<E> From<Misfit> for Stop<E> {
    fn from(misfit: Misfit) -> Self {
        Stop::Misfit(misfit)
    }
}

impl<E> From<Error> for Stop<E> {
    fn from(error: Error) -> Self {
        Stop::Misfit(Misfit::Record(error))
    }
}

/// A transaction of which the end was not seen.
#[derive(Clone, Debug)]
struct Open {
    transaction: Transaction,
    /// Something of it was new.
    begun: bool,
}

/// Where a reader is. A copy of it is a place to go back to.
#[derive(Clone, Debug)]
pub struct Progress {
    position: Position,
    decoder: Decoder,
    open: Option<Open>,
}

impl Progress {
    /// Everything up to this position is done.
    #[must_use]
    pub fn new(position: Position) -> Self {
        Self { position, decoder: Decoder::new(), open: None }
    }

    /// Up to where changes were taken; within a transaction, too.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Was a transaction begun and not ended?
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.begun)
    }

    /// Takes whole frames and gives what is new in them to `take`, in order.
    ///
    /// # Errors
    /// The frames do not follow, are damaged, or `take` has failed. This value is of no use then.
    pub fn feed<E>(
        &mut self,
        mut batch: &[u8],
        mut take: impl FnMut(Event) -> Result<(), E>,
    ) -> Result<(), Stop<E>> {
        while let Some(kind) = batch.first() {
            match *kind {
                PIECE => self.piece(&mut batch)?,
                ROW => {
                    let (row, chunk) = take_row(&mut batch).ok_or(Misfit::Frame(Some('R')))?;
                    self.row(&row, chunk, &mut take)?;
                }
                other => return Err(Misfit::Frame(Some(char::from(other))).into()),
            }
        }
        Ok(())
    }

    /// Begins a piece, which is read with a new decoder.
    fn piece(&mut self, batch: &mut &[u8]) -> Result<(), Misfit> {
        let bad = |_| Misfit::Frame(Some('P'));
        let mut reader = Reader(&batch[1..]);
        if reader.u32().map_err(bad)? != 3 * 8 {
            return Err(Misfit::Frame(Some('P')));
        }
        let after = reader.i64().map_err(bad)? as u64;
        reader.bytes(2 * 8).map_err(bad)?;
        if after != NO_TICK && after > self.position.tick {
            return Err(Misfit::Gap { expected: self.position.tick + 1, found: after.saturating_add(1) });
        }
        self.decoder = Decoder::new();
        *batch = reader.0;
        Ok(())
    }

    fn row<E>(
        &mut self,
        row: &LogRow,
        chunk: &[u8],
        take: &mut impl FnMut(Event) -> Result<(), E>,
    ) -> Result<(), Stop<E>> {
        let Self { position, decoder, open } = self;
        let mut changes = decoder.feed(chunk)?;
        if let Some(state) = open.as_ref().filter(|state| state.transaction.xid != row.xid) {
            if state.begun {
                return Err(Misfit::Broken { open: state.transaction.xid, found: row.xid }.into());
            }
            *open = None;
        }
        let state = match (open.as_mut(), changes.header) {
            (Some(state), _) => state,
            (None, Some(header)) => {
                open.insert(Open { transaction: Transaction::new(row.xid, &header), begun: false })
            }
            // The decoder begins with the first part of a transaction, so it has said so already.
            (None, None) => {
                return Err(Misfit::Record(Error::Gap { expected: 0, found: changes.part }).into());
            }
        };
        let mut tick = row.first_tick;
        if changes.first_is_lost {
            Self::expect(*position, Position { epoch: row.epoch, tick })?;
            if tick > position.tick {
                return Err(Misfit::Gap { expected: position.tick + 1, found: tick }.into());
            }
            tick += 1;
        }
        while let Some((change, bytes)) = changes.next_with_bytes()? {
            let at = Position { epoch: row.epoch, tick };
            tick += 1;
            if !Self::expect(*position, at)? {
                continue;
            }
            if !state.begun {
                state.begun = true;
                take(Event::Begin(&state.transaction)).map_err(Stop::Taker)?;
            }
            take(Event::Change { position: at, transaction: &state.transaction, change, bytes })
                .map_err(Stop::Taker)?;
            *position = at;
        }
        if tick != row.last_tick.wrapping_add(1) {
            return Err(Misfit::Miscounted { said: row.last_tick, found: tick.wrapping_sub(1) }.into());
        }
        if changes.last {
            let ended = open.take().filter(|state| state.begun);
            if let Some(state) = ended {
                take(Event::End(*position, &state.transaction)).map_err(Stop::Taker)?;
            }
        }
        Ok(())
    }

    /// Is this change the next one? False: it was seen before.
    fn expect(position: Position, found: Position) -> Result<bool, Misfit> {
        let next = position.tick + 1;
        let seen = found.tick < next;
        // A tick that was given again in a later history is another change.
        if (seen && found.epoch > position.epoch) || (!seen && found.epoch < position.epoch) {
            return Err(Misfit::History { at: position, found });
        }
        if found.tick > next {
            return Err(Misfit::Gap { expected: next, found: found.tick });
        }
        Ok(!seen)
    }
}
