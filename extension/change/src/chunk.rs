//! Chunks: what fits a page of the log's table.

use crate::wire::{Reader, put_varint};
use crate::{Error, VERSION};

/// Longest chunk in bytes. With the log row's other columns and headers it fills a page of 8 KiB exactly:
/// 8192 − 24 (page) − 4, aligned to 8 (line pointer) − 24 (row header) − 28 (columns) − 4 (length of `data`).
pub const CHUNK_MAX: usize = 8104;
/// Version, checksum, flags, part, length of the tail and of the head, at their longest.
const PREFIX_MAX: usize = 1 + 4 + 1 + 5 + 2 + 2;
/// Version and checksum.
const UNCHECKED: usize = 5;

const STARTS_INSIDE: u8 = 0x01;
const ENDS_INSIDE: u8 = 0x02;
const HEADER: u8 = 0x04;
const ORIGIN: u8 = 0x08;
const ORIGIN_TIME: u8 = 0x10;
const LAST: u8 = 0x20;

/// What is said once of a transaction, in part 0. Times are microseconds since 1970 (UTC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// Where the transaction comes from, when it was applied here from elsewhere; not empty, at most 255 bytes.
    pub origin: Option<&'a str>,
    /// When it was committed there.
    pub origin_commit_us: Option<i64>,
    /// The time just before the commit, by this server's clock.
    pub commit_us: i64,
}

impl<'a> Header<'a> {
    /// Cuts the origin to what there is room for.
    fn origin_bytes(&self) -> Option<&'a [u8]> {
        self.origin.filter(|origin| !origin.is_empty()).map(|origin| {
            let mut end = origin.len().min(255);
            while !origin.is_char_boundary(end) {
                end -= 1;
            }
            &origin.as_bytes()[..end]
        })
    }

    fn flags(&self) -> u8 {
        let origin = if self.origin_bytes().is_some() { ORIGIN } else { 0 };
        HEADER | origin | if self.origin_commit_us.is_some() { ORIGIN_TIME } else { 0 }
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.commit_us.to_le_bytes());
        if let Some(origin) = self.origin_bytes() {
            put_varint(out, origin.len() as u64);
            out.extend_from_slice(origin);
        }
        if let Some(time) = self.origin_commit_us {
            out.extend_from_slice(&time.to_le_bytes());
        }
    }

    fn parse(reader: &mut Reader<'a>, flags: u8) -> Result<Self, Error> {
        let commit_us = reader.i64()?;
        let origin = if flags & ORIGIN == 0 {
            None
        } else {
            Some(std::str::from_utf8(reader.string()?).map_err(|_| Error::BadLength)?)
        };
        let origin_commit_us = if flags & ORIGIN_TIME == 0 { None } else { Some(reader.i64()?) };
        Ok(Self { origin, origin_commit_us, commit_us })
    }
}

/// A finished chunk, handed to whoever stores it.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Counts from 0 in a transaction and channel.
    pub part: u32,
    /// How many changes end in it.
    pub changes: u32,
    pub last: bool,
    pub data: &'a [u8],
}

/// Cuts transactions' changes into chunks. Holds one chunk, whatever a transaction's size.
#[derive(Debug, Default)]
pub struct Chunker {
    /// Taken by part 0.
    header: Vec<u8>,
    header_flags: u8,
    body: Vec<u8>,
    data: Vec<u8>,
    part: u32,
    changes: u32,
    /// Bytes of the body that belong to a change that began before.
    tail: Option<usize>,
    /// Bytes of the body that belong to a change that goes on later; 0: it began before, too.
    head: Option<usize>,
}

impl Chunker {
    #[must_use]
    pub fn new(header: &Header) -> Self {
        let mut chunker = Self::default();
        chunker.begin(header);
        chunker
    }

    /// Begins another transaction, whatever became of the last one.
    pub fn begin(&mut self, header: &Header) {
        self.header.clear();
        header.put(&mut self.header);
        self.header_flags = header.flags();
        self.body.clear();
        (self.part, self.changes) = (0, 0);
        (self.tail, self.head) = (None, None);
    }

    fn room(&self) -> usize {
        CHUNK_MAX - PREFIX_MAX - self.header.len() - self.body.len()
    }

    /// Adds a change, as [`crate::Encoder`] wrote it. Full chunks go to `store`.
    ///
    /// # Errors
    /// What `store` returns; the transaction cannot be written then.
    pub fn push<E>(&mut self, change: &[u8], mut store: impl FnMut(Chunk) -> Result<(), E>) -> Result<(), E> {
        // A chunk is closed only when something follows, so that the last one is known to be the last.
        if self.room() == 0 {
            self.close(false, &mut store)?;
        }
        let mut rest = change;
        loop {
            let (now, later) = rest.split_at(rest.len().min(self.room()));
            let began_before = rest.len() < change.len();
            self.body.extend_from_slice(now);
            if began_before {
                self.tail = Some(now.len());
            }
            if later.is_empty() {
                self.changes += 1;
                return Ok(());
            }
            self.head = Some(if began_before { 0 } else { now.len() });
            self.close(false, &mut store)?;
            rest = later;
        }
    }

    /// Closes the last chunk. To be called once, after at least one change.
    ///
    /// # Errors
    /// What `store` returns.
    pub fn finish<E>(&mut self, mut store: impl FnMut(Chunk) -> Result<(), E>) -> Result<(), E> {
        self.close(true, &mut store)
    }

    fn close<E>(&mut self, last: bool, store: &mut impl FnMut(Chunk) -> Result<(), E>) -> Result<(), E> {
        let mut flags = if self.part == 0 { self.header_flags } else { 0 };
        flags |= if last { LAST } else { 0 };
        flags |= if self.tail.is_some() { STARTS_INSIDE } else { 0 };
        flags |= if self.head.is_some() { ENDS_INSIDE } else { 0 };
        self.data.clear();
        self.data.extend_from_slice(&[VERSION, 0, 0, 0, 0, flags]);
        put_varint(&mut self.data, u64::from(self.part));
        for length in [self.tail, self.head].into_iter().flatten() {
            put_varint(&mut self.data, length as u64);
        }
        self.data.append(&mut self.header);
        self.data.extend_from_slice(&self.body);
        let checksum = crc32fast::hash(&self.data[UNCHECKED..]);
        self.data[1..UNCHECKED].copy_from_slice(&checksum.to_le_bytes());
        debug_assert!(self.data.len() <= CHUNK_MAX, "a chunk fits a page");
        store(Chunk { part: self.part, changes: self.changes, last, data: &self.data })?;
        self.body.clear();
        self.part += 1;
        self.changes = 0;
        (self.tail, self.head) = (None, None);
        Ok(())
    }
}

/// A chunk taken apart; its checksum is right and its lengths fit.
#[derive(Clone, Copy, Debug)]
pub struct Parsed<'a> {
    pub part: u32,
    pub last: bool,
    pub header: Option<Header<'a>>,
    /// Set if a change of an earlier chunk goes on here: its bytes, and whether it ends here.
    pub tail: Option<(&'a [u8], bool)>,
    /// Whole changes.
    pub changes: &'a [u8],
    /// The beginning of a change that goes on in the next chunk.
    pub head: Option<&'a [u8]>,
}

impl<'a> Parsed<'a> {
    pub fn new(data: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(data);
        match reader.u8()? {
            VERSION => {}
            other => return Err(Error::Version(other)),
        }
        let checksum = reader.u32()?;
        if crc32fast::hash(reader.0) != checksum {
            return Err(Error::Checksum);
        }
        let flags = reader.u8()?;
        if flags & !(STARTS_INSIDE | ENDS_INSIDE | HEADER | ORIGIN | ORIGIN_TIME | LAST) != 0 {
            return Err(Error::BadOperation);
        }
        let part = u32::try_from(reader.varint()?).map_err(|_| Error::BadLength)?;
        let tail_length = if flags & STARTS_INSIDE == 0 { None } else { Some(reader.length()?) };
        let head_length = if flags & ENDS_INSIDE == 0 { None } else { Some(reader.length()?) };
        if (part == 0) != (flags & HEADER != 0) || (part == 0 && tail_length.is_some()) {
            return Err(Error::BadOperation);
        }
        // The last part of a transaction ends with a change.
        if flags & LAST != 0 && head_length.is_some() {
            return Err(Error::BadOperation);
        }
        let header = if part == 0 { Some(Header::parse(&mut reader, flags)?) } else { None };
        let tail = tail_length.map(|length| reader.bytes(length)).transpose()?;
        // A head of no bytes stands for a change that fills the chunk from end to end.
        let goes_on = head_length == Some(0);
        if goes_on && (tail.is_none() || !reader.0.is_empty()) {
            return Err(Error::BadLength);
        }
        let split = reader.0.len().checked_sub(head_length.unwrap_or(0)).ok_or(Error::BadLength)?;
        let (changes, head) = reader.0.split_at(split);
        Ok(Self {
            part,
            last: flags & LAST != 0,
            header,
            tail: tail.map(|bytes| (bytes, !goes_on)),
            changes,
            head: (head_length.is_some() && !goes_on).then_some(head),
        })
    }
}
