//! A client of the stream of changes over HTTP, as small as a measurement wants it, and counters of what comes.

use std::io::{Error, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub const NDJSON: &str = "application/x-ndjson";
pub const BINARY: &str = "application/x-pgquorum-change";

/// What the line of a change begins with.
pub const CHANGE: &[u8] = b"{\"type\":\"change\"";

const BUFFER: usize = 256 * 1024;
/// Streams say something every second.
const SILENCE: Duration = Duration::from_secs(20);

/// The body of an answer that does not end.
pub struct Stream {
    connection: TcpStream,
    buffer: Vec<u8>,
    /// What was received and not given out yet.
    from: usize,
    to: usize,
    /// So much of the present chunk is not given out yet.
    left: usize,
}

impl Stream {
    /// Asks for a channel's changes after a position.
    ///
    /// # Errors
    /// No connection, or an answer other than 200 with a body in chunks.
    pub fn open(port: u16, channel: &str, accept: &str, after: &str) -> Result<Stream, Error> {
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let mut connection = TcpStream::connect(to)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(SILENCE))?;
        let head = format!(
            "GET /channels/{channel}/stream?after={after} HTTP/1.1\r\nhost: {to}\r\naccept: {accept}\r\n\r\n"
        );
        connection.write_all(head.as_bytes())?;
        let mut stream = Stream { connection, buffer: vec![0; BUFFER], from: 0, to: 0, left: 0 };
        loop {
            let got = &stream.buffer[..stream.to];
            if let Some(at) = got.windows(4).position(|w| w == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&got[..at]).to_ascii_lowercase();
                if !text.starts_with("http/1.1 200") || !text.contains("transfer-encoding: chunked") {
                    return Err(Error::other(String::from_utf8_lossy(got).into_owned()));
                }
                stream.from = at + 4;
                return Ok(stream);
            }
            stream.fill()?;
        }
    }

    /// The next bytes of the body, as soon as there are any; none at its end.
    ///
    /// # Errors
    /// The connection breaks, is silent, or holds something that is no chunk.
    pub fn read(&mut self) -> Result<&[u8], Error> {
        loop {
            if self.left > 0 && self.from < self.to {
                let begin = self.from;
                let n = self.left.min(self.to - begin);
                self.from += n;
                self.left -= n;
                return Ok(&self.buffer[begin..begin + n]);
            }
            if self.left == 0
                && let Some(size) = self.size()?
            {
                if size == 0 {
                    return Ok(&[]);
                }
                self.left = size;
                continue;
            }
            self.fill()?;
        }
    }

    /// Takes the line with a chunk's size, if it is there.
    fn size(&mut self) -> Result<Option<usize>, Error> {
        let got = &self.buffer[self.from..self.to];
        // The chunk before ends with a line end of its own.
        let skip = if got.starts_with(b"\r\n") { 2 } else { 0 };
        let Some(end) = got[skip..].windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
        let text = String::from_utf8_lossy(&got[skip..skip + end]).into_owned();
        let size =
            usize::from_str_radix(text.trim(), 16).map_err(|_| Error::other(format!("no chunk: {text}")))?;
        self.from += skip + end + 2;
        Ok(Some(size))
    }

    fn fill(&mut self) -> Result<(), Error> {
        self.buffer.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        let n = self.connection.read(&mut self.buffer[self.to..])?;
        if n == 0 {
            return Err(Error::other("the server closed the stream"));
        }
        self.to += n;
        Ok(())
    }
}

/// Whole lines out of pieces of text.
#[derive(Default)]
pub struct Lines {
    tail: Vec<u8>,
}

impl Lines {
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            if self.tail.is_empty() {
                each(&bytes[..end]);
            } else {
                self.tail.extend_from_slice(&bytes[..end]);
                each(&self.tail);
                self.tail.clear();
            }
            bytes = &bytes[end + 1..];
        }
        self.tail.extend_from_slice(bytes);
    }
}

/// Changes in the frames of the binary stream; see the page on reading the change log for their layout.
#[derive(Default)]
pub struct Frames {
    rest: Vec<u8>,
    pub changes: u64,
}

impl Frames {
    /// # Errors
    /// The server says that the stream cannot go on.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.rest.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(head) = self.rest.get(at..at + 5) {
            let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let Some(body) = self.rest.get(at + 5..at + 5 + length) else { break };
            match head[0] {
                b'R' => self.changes += changes_in(body).ok_or_else(|| Error::other("a short row"))?,
                b'E' => return Err(Error::other(String::from_utf8_lossy(body).into_owned())),
                _ => {}
            }
            at += 5 + length;
        }
        self.rest.drain(..at);
        Ok(())
    }
}

/// How many changes end in a row: its first and last tick say so.
fn changes_in(row: &[u8]) -> Option<u64> {
    let number = |at: usize| Some(u64::from_le_bytes(row.get(at..at + 8)?.try_into().ok()?));
    Some((number(16)? + 1).saturating_sub(number(8)?))
}

/// The text of a member of a JSON line, up to the next quote, comma or bracket. Enough for numbers and positions.
pub fn member<'l>(line: &'l [u8], name: &str) -> Option<&'l str> {
    let text = std::str::from_utf8(line).ok()?;
    let value = text.split_once(&format!("\"{name}\":"))?.1.trim_start_matches('"');
    value.split(['"', ',', '}']).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn chunks_are_put_together_wherever_they_are_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut to, _) = listener.accept().unwrap();
            let _ = to.read(&mut [0; 1024]).unwrap();
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\na\nb\nc\r\n6\r\nd\nefg\n\r\n0\r\n\r\n";
            for byte in answer.as_bytes() {
                to.write_all(&[*byte]).unwrap();
            }
        });
        let mut stream = Stream::open(port, "bench", NDJSON, "start").unwrap();
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        loop {
            let bytes = stream.read().unwrap();
            if bytes.is_empty() {
                break;
            }
            lines.push(bytes, |line| seen.push(String::from_utf8_lossy(line).into_owned()));
        }
        server.join().unwrap();
        assert_eq!(seen, ["a", "b", "cd", "efg"]);
    }

    #[test]
    fn frames_are_counted_wherever_they_are_cut() {
        let mut row = vec![b'R', 36, 0, 0, 0];
        for number in [7_u64, 11, 13, 99] {
            row.extend_from_slice(&number.to_le_bytes());
        }
        row.extend_from_slice(&3_u32.to_le_bytes());
        let mut frames = Frames::default();
        let all = [row.as_slice(), &[b'H', 1, 0, 0, 0, 0], &row].concat();
        all.iter().for_each(|byte| frames.push(&[*byte]).unwrap());
        assert_eq!(frames.changes, 6);
        assert!(frames.push(b"E\x02\0\0\0{}").is_err());
    }

    #[test]
    fn members_are_found() {
        let line = br#"{"type":"change","position":"5:12","new":{"id":17,"n":1}}"#;
        assert_eq!((member(line, "id"), member(line, "position")), (Some("17"), Some("5:12")));
        assert_eq!(member(line, "old"), None);
    }
}
