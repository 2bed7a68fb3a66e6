//! Bytes into changes. Values point into the chunk, so that reading a small change costs no allocation.

use std::borrow::Cow;

use crate::chunk::Parsed;
use crate::encode::{NEW, NULL, OLD_FULL, OLD_KEY, OP_MASK, PADDED, TEXT, UNCHANGED};
use crate::wire::Reader;
use crate::{Error, Header, Op};

/// Longest change that a reader takes unless it says otherwise: a row can be a gigabyte, and its old image another.
const LIMIT: usize = if usize::BITS > 32 { 4 << 30 } else { isize::MAX as usize };
/// Most values in an image: a table has at most 1600 columns.
const VALUES_MAX: u64 = 1664;
/// Most blanks that a value may ask for, in bytes: no value of PostgreSQL is longer. A row can have several such values,
/// stored elsewhere; all of an image's are at most [`LIMIT`].
const BLANKS_MAX: u64 = 1 << 30;

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    pub op: Op,
    /// Which [`crate::Schema`] the values belong to.
    pub schema_version: u64,
    pub old: Option<OldImage<'a>>,
    /// All captured columns; of inserts and updates.
    pub new: Option<Image<'a>>,
    pub ddl: Option<Ddl<'a>>,
}

/// What is known of the old row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldImage<'a> {
    /// The key's columns, in the order of the schema.
    Key(Image<'a>),
    /// All captured columns.
    Full(Image<'a>),
}

/// A change of the table itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ddl<'a> {
    /// The command's tag, as `ALTER TABLE`.
    pub tag: &'a [u8],
    /// The statement's text; empty if it is not known. With the tags `INDEX` and `UNINDEX` an object of JSON: the index that
    /// the table has got, or lost.
    pub sql: &'a [u8],
}

/// The values of a row. Its bytes were checked, so that going through them cannot fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    count: usize,
    bytes: &'a [u8],
}

/// A column's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// As the type's output function prints it: UTF-8 (in a database without encoding, SQL_ASCII: any bytes).
    Text(Cow<'a, [u8]>),
    /// A large value that is the same as before; it was not written again.
    Unchanged,
}

impl<'a> Image<'a> {
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[must_use]
    pub fn values(&self) -> Values<'a> {
        Values { reader: Reader(self.bytes), left: self.count }
    }

    /// Checks an image and leaves the reader behind it.
    fn parse(reader: &mut Reader<'a>) -> Result<Self, Error> {
        let count = reader.varint()?;
        if count > VALUES_MAX {
            return Err(Error::BadLength);
        }
        let start = reader.0;
        let mut blanks = 0_u64;
        for _ in 0..count {
            match reader.varint()? {
                NULL | UNCHANGED => {}
                PADDED => {
                    let used = reader.length()?;
                    let added = reader.varint()?;
                    blanks = blanks.saturating_add(added);
                    if added > BLANKS_MAX || blanks > LIMIT as u64 {
                        return Err(Error::BadLength);
                    }
                    reader.bytes(used)?;
                }
                text => {
                    reader.bytes(usize::try_from(text - TEXT).map_err(|_| Error::BadLength)?)?;
                }
            }
        }
        let bytes = &start[..start.len() - reader.0.len()];
        // At most 1664.
        Ok(Self { count: count as usize, bytes })
    }
}

/// The values of an [`Image`], one after the other.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let reader = &mut self.reader;
        // The bytes were checked when the image was made.
        match reader.varint().ok()? {
            NULL => Some(Value::Null),
            UNCHANGED => Some(Value::Unchanged),
            PADDED => {
                let used = reader.length().ok()?;
                let blanks = reader.length().ok()?;
                let mut text = reader.bytes(used).ok()?.to_vec();
                text.resize(used + blanks, b' ');
                Some(Value::Text(Cow::Owned(text)))
            }
            text => Some(Value::Text(Cow::Borrowed(reader.bytes((text - TEXT) as usize).ok()?))),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Values<'_> {}

/// Reads one change from the beginning of `bytes`, which it shortens by it.
///
/// # Errors
/// The bytes are no change, or no whole one.
pub fn change<'a>(bytes: &mut &'a [u8]) -> Result<Change<'a>, Error> {
    let mut reader = Reader(bytes);
    let first = reader.u8()?;
    let op = Op::from_code(first & OP_MASK).ok_or(Error::BadOperation)?;
    let images = first & !OP_MASK;
    let fits = match op {
        Op::Insert => images == NEW,
        Op::Update => matches!(images & !NEW, 0 | OLD_KEY | OLD_FULL) && images & NEW != 0,
        Op::Delete => matches!(images, OLD_KEY | OLD_FULL),
        Op::Truncate | Op::Ddl => images == 0,
    };
    if !fits {
        return Err(Error::BadOperation);
    }
    let schema_version = reader.varint()?;
    let old = match images & !NEW {
        OLD_KEY => Some(OldImage::Key(Image::parse(&mut reader)?)),
        OLD_FULL => Some(OldImage::Full(Image::parse(&mut reader)?)),
        _ => None,
    };
    let new = if images & NEW == 0 { None } else { Some(Image::parse(&mut reader)?) };
    let ddl = if op == Op::Ddl { Some(Ddl { tag: reader.string()?, sql: reader.string()? }) } else { None };
    *bytes = reader.0;
    Ok(Change { op, schema_version, old, new, ddl })
}

/// The header of a transaction, from its part 0; `None`: this is another part.
///
/// # Errors
/// The chunk is damaged.
pub fn header(chunk: &[u8]) -> Result<Option<Header<'_>>, Error> {
    Parsed::new(chunk).map(|parsed| parsed.header)
}

/// Where a reader is in the run of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing was read yet: any part may come.
    Anywhere,
    /// Part 0 must come.
    BetweenTransactions,
    /// The next part must come. After part 0 any later one may: a reader that goes on in the middle of a long
    /// transaction is given its first chunk for the header.
    After(u32),
}

/// Reads chunks in order. Holds at most one change, that of which only a beginning was seen.
#[derive(Clone, Debug)]
pub struct Decoder {
    place: Place,
    /// A change that spanned chunks, now whole; lent to [`Changes`].
    whole: Vec<u8>,
    /// The beginning of a change that goes on.
    partial: Vec<u8>,
    /// The change that is under way began in a chunk that was not read.
    lost: bool,
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(LIMIT)
    }

    /// Refuses changes that span chunks and are longer than `limit` bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self { place: Place::Anywhere, whole: Vec::new(), partial: Vec::new(), lost: false, limit }
    }

    /// Takes the next chunk and gives the changes that end in it.
    ///
    /// # Errors
    /// The chunk is damaged, is not the next one, or a change is too long. The decoder is of no use then.
    pub fn feed<'a>(&'a mut self, chunk: &'a [u8]) -> Result<Changes<'a>, Error> {
        let parsed = Parsed::new(chunk)?;
        let follows = match self.place {
            Place::BetweenTransactions if parsed.part != 0 => {
                return Err(Error::Gap { expected: 0, found: parsed.part });
            }
            Place::Anywhere | Place::BetweenTransactions => parsed.part == 0,
            Place::After(part) if part.checked_add(1) == Some(parsed.part) => true,
            Place::After(0) if parsed.part != 0 => false,
            Place::After(part) => {
                return Err(Error::Gap { expected: part.saturating_add(1), found: parsed.part });
            }
        };
        if !follows {
            self.partial.clear();
            self.lost = parsed.tail.is_some();
        } else if parsed.tail.is_some() != (self.lost || !self.partial.is_empty()) {
            return Err(Error::BadLength);
        }
        self.place = if parsed.last { Place::BetweenTransactions } else { Place::After(parsed.part) };

        let mut first_is_lost = false;
        let mut spanning = false;
        if let Some((tail, ends)) = parsed.tail {
            if !self.lost {
                self.collect(tail)?;
            }
            if ends && !std::mem::take(&mut self.lost) {
                std::mem::swap(&mut self.whole, &mut self.partial);
                self.partial.clear();
                spanning = true;
            } else if ends {
                first_is_lost = true;
            }
        }
        if let Some(head) = parsed.head {
            self.collect(head)?;
        }
        Ok(Changes {
            whole: spanning.then_some(self.whole.as_slice()),
            rest: parsed.changes,
            header: parsed.header,
            part: parsed.part,
            last: parsed.last,
            first_is_lost,
        })
    }

    fn collect(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.partial.len() + bytes.len() > self.limit {
            return Err(Error::TooLong { limit: self.limit });
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

/// The changes that end in one chunk.
#[derive(Debug)]
pub struct Changes<'a> {
    whole: Option<&'a [u8]>,
    rest: &'a [u8],
    /// Of part 0.
    pub header: Option<Header<'a>>,
    pub part: u32,
    /// The transaction ends with these changes.
    pub last: bool,
    /// The first change that ends in this chunk began in one that was not read. It is not among those that are given,
    /// but it has a tick.
    pub first_is_lost: bool,
}

impl<'a> Changes<'a> {
    /// The next change.
    ///
    /// # Errors
    /// The bytes are no change; the rest of the chunk cannot be read.
    #[allow(clippy::should_implement_trait)] // a Result of an Option is handier for those who end at an error
    pub fn next(&mut self) -> Result<Option<Change<'a>>, Error> {
        self.next_with_bytes().map(|found| found.map(|(change, _)| change))
    }

    /// The next change, and its bytes, which [`change`] reads again.
    ///
    /// # Errors
    /// As [`Changes::next`].
    pub fn next_with_bytes(&mut self) -> Result<Option<(Change<'a>, &'a [u8])>, Error> {
        if let Some(bytes) = self.whole.take() {
            let mut rest = bytes;
            let found = change(&mut rest)?;
            return if rest.is_empty() { Ok(Some((found, bytes))) } else { Err(Error::BadLength) };
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        let begin = self.rest;
        let found = change(&mut self.rest)?;
        Ok(Some((found, &begin[..begin.len() - self.rest.len()])))
    }
}
