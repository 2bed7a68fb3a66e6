//! What a transaction has changed so far: for each channel the encoded changes, in memory and beyond a limit in a
//! temporary file. Savepoints are marks at which all of it can be cut off.

/// So much memory is kept between transactions.
const KEPT_BYTES: usize = 64 * 1024;
/// Changes are read back from the file in pieces of this size.
const READ_BYTES: usize = 256 * 1024;
/// Bytes before each change, which hold its length.
const LENGTH_BYTES: usize = 4;

/// A file for what does not fit into memory. Its end without `close` is the end of the transaction's.
pub trait Spill: Sized {
    fn create() -> Self;
    /// Writes at a position that is not behind the end.
    fn write_at(&mut self, offset: u64, bytes: &[u8]);
    /// Reads as many bytes as were asked for.
    fn read_at(&mut self, offset: u64, bytes: &mut [u8]);
    /// Closes and removes it.
    fn close(self);
}

pub struct Buffers<F> {
    channels: Vec<Buffer<F>>,
    marks: Vec<Mark>,
    /// Memory of a former transaction.
    spare: Vec<u8>,
}

/// How much there was when something was captured in a savepoint for the first time.
struct Mark {
    /// Nesting level of the savepoint; the transaction itself is 1 and needs none.
    level: i32,
    lengths: Vec<u64>,
}

/// The changes of one channel: each with its length before it.
pub struct Buffer<F> {
    pub channel: i32,
    file: Option<F>,
    /// Bytes in the file that count; they come before those in memory.
    spilled: u64,
    bytes: Vec<u8>,
    /// Bytes in memory that count; behind them may lie what an error left of a change.
    whole: usize,
}

/// A change is longer than its length can say.
pub struct TooLong;

impl<F> Buffers<F> {
    pub const fn new() -> Self {
        Self { channels: Vec::new(), marks: Vec::new(), spare: Vec::new() }
    }
}

impl<F> Default for Buffers<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Spill> Buffers<F> {
    /// Adds a change, which `write` appends to the buffer that it is given. `level` is the nesting level of the
    /// present savepoint, `limit` how many bytes may stay in memory.
    #[inline]
    pub fn append(
        &mut self,
        channel: i32,
        level: i32,
        limit: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), TooLong> {
        if level > 1 {
            self.mark(level);
        }
        let at = match self.channels.iter().position(|buffer| buffer.channel == channel) {
            Some(at) => at,
            None => self.open(channel),
        };
        let buffer = &mut self.channels[at];
        let start = buffer.whole;
        buffer.bytes.truncate(start);
        buffer.bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        write(&mut buffer.bytes);
        let length = u32::try_from(buffer.bytes.len() - start - LENGTH_BYTES).map_err(|_| TooLong)?;
        buffer.bytes[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        buffer.whole = buffer.bytes.len();
        if self.channels.iter().map(|buffer| buffer.whole).sum::<usize>() > limit {
            self.channels[at].spill();
        }
        Ok(())
    }

    #[cold]
    fn open(&mut self, channel: i32) -> usize {
        let bytes = std::mem::take(&mut self.spare);
        self.channels.push(Buffer { channel, file: None, spilled: 0, bytes, whole: 0 });
        self.channels.len() - 1
    }

    fn mark(&mut self, level: i32) {
        if self.marks.last().is_none_or(|mark| mark.level < level) {
            let lengths = self.channels.iter().map(Buffer::length).collect();
            self.marks.push(Mark { level, lengths });
        }
    }

    /// A savepoint of this level was released: what it holds belongs to the one around it.
    pub fn released(&mut self, level: i32) {
        let outer = level - 1;
        if self.marks.last().is_some_and(|mark| mark.level >= level) {
            let below = self.marks.len().checked_sub(2).map_or(1, |at| self.marks[at].level);
            if below >= outer {
                self.marks.pop();
            } else if let Some(mark) = self.marks.last_mut() {
                mark.level = outer;
            }
        }
    }

    /// A savepoint of this level was rolled back.
    pub fn rolled_back(&mut self, level: i32) {
        while let Some(mark) = self.marks.pop_if(|mark| mark.level >= level) {
            for (at, buffer) in self.channels.iter_mut().enumerate() {
                buffer.truncate(mark.lengths.get(at).copied().unwrap_or(0));
            }
        }
    }

    /// What there is to be written, channel by channel.
    pub fn filled(&mut self) -> impl Iterator<Item = &mut Buffer<F>> {
        self.channels.iter_mut().filter(|buffer| buffer.length() > 0)
    }

    /// Everything was written: files are closed.
    pub fn written(&mut self) {
        self.channels.iter_mut().filter_map(|buffer| buffer.file.take()).for_each(F::close);
    }

    /// At the end of the transaction, which closes files that are still open.
    pub fn clear(&mut self) {
        self.marks.clear();
        for mut buffer in self.channels.drain(..) {
            if buffer.bytes.capacity() <= KEPT_BYTES && buffer.bytes.capacity() > self.spare.capacity() {
                buffer.bytes.clear();
                self.spare = buffer.bytes;
            }
        }
    }
}

impl<F: Spill> Buffer<F> {
    fn length(&self) -> u64 {
        self.spilled + self.whole as u64
    }

    fn truncate(&mut self, length: u64) {
        match length.checked_sub(self.spilled).and_then(|rest| usize::try_from(rest).ok()) {
            Some(rest) => self.whole = self.whole.min(rest),
            None => {
                self.spilled = length;
                self.whole = 0;
            }
        }
        self.bytes.truncate(self.whole);
    }

    #[cold]
    fn spill(&mut self) {
        let file = self.file.get_or_insert_with(F::create);
        file.write_at(self.spilled, &self.bytes[..self.whole]);
        self.spilled += self.whole as u64;
        self.whole = 0;
        self.bytes.clear();
    }

    /// Gives the changes in order.
    pub fn changes(&mut self, mut take: impl FnMut(&[u8])) {
        let mut read = 0;
        let mut window: Vec<u8> = Vec::new();
        while let Some(file) = &mut self.file
            && read < self.spilled
        {
            let kept = window.len();
            let wanted = (self.spilled - read).min(READ_BYTES as u64) as usize;
            window.resize(kept + wanted, 0);
            file.read_at(read, &mut window[kept..]);
            read += wanted as u64;
            let used = split(&window, &mut take);
            window.drain(..used);
        }
        debug_assert!(window.is_empty(), "a file ends with a whole change");
        split(&self.bytes[..self.whole], &mut take);
    }
}

/// Gives the whole changes at the beginning of `bytes`; how many bytes they take.
fn split(bytes: &[u8], take: &mut impl FnMut(&[u8])) -> usize {
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((change, behind)) = behind.split_at_checked(length) else { break };
        take(change);
        rest = behind;
    }
    bytes.len() - rest.len()
}

#[cfg(test)]
mod unit {
    use super::*;

    /// A file in memory.
    struct Memory(Vec<u8>);

    impl Spill for Memory {
        fn create() -> Self {
            Memory(Vec::new())
        }

        fn write_at(&mut self, offset: u64, bytes: &[u8]) {
            let offset = offset as usize;
            assert!(offset <= self.0.len(), "not behind the end");
            self.0.resize(self.0.len().max(offset + bytes.len()), 0);
            self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        }

        fn read_at(&mut self, offset: u64, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0[offset as usize..][..bytes.len()]);
        }

        fn close(self) {}
    }

    type Buffers = super::Buffers<Memory>;

    /// Random changes and savepoints, with files and without, against lists of what must be left.
    #[test]
    fn whatever_spills_the_same_is_left() {
        for seed in 0..300_u64 {
            let mut state = seed * 2 + 1;
            let mut random = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let limit = [0, 50, 1000, 1_000_000][random(4) as usize];
            let mut buffers = Buffers::default();
            let mut levels: Vec<[Vec<String>; 2]> = vec![Default::default()];
            for step in 0..random(200) {
                match random(8) {
                    0 => levels.push(levels[levels.len() - 1].clone()),
                    1 if levels.len() > 1 => {
                        buffers.released(levels.len() as i32);
                        let inner = levels.pop().expect("there is one");
                        levels.pop();
                        levels.push(inner);
                    }
                    2 if levels.len() > 1 => {
                        buffers.rolled_back(levels.len() as i32);
                        levels.pop();
                    }
                    _ => {
                        let channel = random(2) as usize;
                        let text = format!("{step}-{}", "x".repeat(random(60) as usize));
                        let level = levels.len() as i32;
                        let added = buffers.append(channel as i32, level, limit, |out| {
                            out.extend_from_slice(text.as_bytes())
                        });
                        assert!(added.is_ok());
                        levels[level as usize - 1][channel].push(text);
                    }
                }
            }
            while levels.len() > 1 {
                buffers.released(levels.len() as i32);
                let inner = levels.pop().expect("there is one");
                levels.pop();
                levels.push(inner);
            }
            let mut left: [Vec<String>; 2] = Default::default();
            for buffer in buffers.filled() {
                let channel = buffer.channel as usize;
                buffer.changes(|change| left[channel].push(String::from_utf8_lossy(change).into_owned()));
            }
            assert_eq!(left, levels[0], "seed {seed}");
        }
    }

    fn add(buffers: &mut Buffers, channel: i32, level: i32, text: &str) {
        let added = buffers.append(channel, level, usize::MAX, |out| out.extend_from_slice(text.as_bytes()));
        assert!(added.is_ok());
    }

    fn all(buffers: &mut Buffers) -> String {
        let mut found = Vec::new();
        for buffer in buffers.filled() {
            let channel = buffer.channel;
            buffer.changes(|change| found.push(format!("{channel}:{}", String::from_utf8_lossy(change))));
        }
        found.join(" ")
    }

    #[test]
    fn savepoints_cut_off_and_merge() {
        let mut buffers = Buffers::default();
        add(&mut buffers, 1, 1, "a");
        add(&mut buffers, 1, 3, "b");
        add(&mut buffers, 2, 3, "c");
        buffers.released(3);
        add(&mut buffers, 1, 2, "d");
        add(&mut buffers, 1, 3, "e");
        buffers.rolled_back(3);
        assert_eq!(all(&mut buffers), "1:a 1:b 1:d 2:c");
        buffers.released(2);
        add(&mut buffers, 2, 2, "f");
        buffers.rolled_back(2);
        assert_eq!(all(&mut buffers), "1:a 1:b 1:d 2:c");
        buffers.clear();
        assert_eq!(all(&mut buffers), "");
    }

    #[test]
    fn an_outer_rollback_takes_inner_ones_with_it() {
        let mut buffers = Buffers::default();
        add(&mut buffers, 1, 2, "a");
        add(&mut buffers, 1, 3, "b");
        buffers.released(3);
        add(&mut buffers, 1, 4, "c");
        buffers.rolled_back(2);
        assert_eq!(all(&mut buffers), "");
        add(&mut buffers, 1, 1, "d");
        assert_eq!(all(&mut buffers), "1:d");
    }

    #[test]
    fn remains_of_a_change_that_failed_are_overwritten() {
        let mut buffers = Buffers::default();
        add(&mut buffers, 1, 1, "a");
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = buffers.append(1, 1, usize::MAX, |out| {
                out.extend_from_slice(b"half");
                panic!("as an ERROR would");
            });
        }));
        assert!(failed.is_err());
        assert_eq!(all(&mut buffers), "1:a");
        add(&mut buffers, 1, 1, "b");
        assert_eq!(all(&mut buffers), "1:a 1:b");
    }
}
