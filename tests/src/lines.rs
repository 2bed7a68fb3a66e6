//! A stream of lines over HTTP, read as slowly as a test likes.

use crate::PATIENCE;
use serde_json::Value;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Longer than a stream is silent, also on a machine that has other things to do.
const SILENCE: Duration = Duration::from_secs(60);

/// An answer that goes on.
pub struct LineStream {
    reader: BufReader<TcpStream>,
}

impl LineStream {
    /// Asks `127.0.0.1:port` for a stream and reads its head.
    ///
    /// # Errors
    /// No connection, or another answer than 200.
    pub fn open(port: u16, path: &str, accept: &str) -> Result<LineStream, Error> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(SILENCE))?;
        // The old protocol: the body is not cut into chunks.
        let head = format!("GET {path} HTTP/1.0\r\nhost: 127.0.0.1:{port}\r\naccept: {accept}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut reader = BufReader::with_capacity(256 * 1024, stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.split(' ').nth(1) != Some("200") {
            let mut rest = String::new();
            let _ = reader.read_to_string(&mut rest);
            return Err(Error::other(format!("{}: {rest}", line.trim())));
        }
        while line.trim() != "" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(LineStream { reader })
    }

    /// The next line as it is; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or nothing came for a minute.
    pub fn text(&mut self, line: &mut Vec<u8>) -> Result<bool, Error> {
        line.clear();
        Ok(self.reader.read_until(b'\n', line)? > 0)
    }

    /// The next line that is no heartbeat.
    ///
    /// # Panics
    /// The stream ended or broke, a line is no JSON, or there are heartbeats only.
    pub fn next_change(&mut self) -> Value {
        let (begin, mut line) = (Instant::now(), Vec::new());
        loop {
            assert!(self.text(&mut line).expect("the next line"), "the stream ended");
            let value: Value = serde_json::from_slice(&line)
                .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&line)));
            if value["type"] != "heartbeat" {
                return value;
            }
            assert!(begin.elapsed() < PATIENCE, "heartbeats only, the last one is {value}");
        }
    }

    /// So many bytes as they come.
    ///
    /// # Errors
    /// As [`LineStream::text`].
    pub fn bytes(&mut self, into: &mut [u8]) -> Result<(), Error> {
        self.reader.read_exact(into)
    }
}
