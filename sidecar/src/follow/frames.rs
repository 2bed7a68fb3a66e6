//! From bytes to frames of the binary stream (`docs/rest.md`).

use super::trouble::{Kind, Result, Trouble};
use crate::feed::Position;
use bytes::{Buf, Bytes, BytesMut};

/// Kind and length.
const HEAD: usize = 5;
/// A row's numbers: epoch, first tick, last tick, transaction, flags.
const ROW: usize = 4 * 8 + 4;
/// A chunk fits a page of a table, and an error a few lines.
const FRAME_MAX: usize = 1024 * 1024;
/// In a row's flags: the last of its transaction.
const LAST: u32 = 2;

/// What a source sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Rows follow that are read with a new decoder; `bytes` is the whole frame.
    Piece { to: Position, bytes: Bytes },
    /// A log row, the whole frame.
    Row { last_tick: u64, epoch: u64, ends: bool, bytes: Bytes },
    /// Where the channel ends, if the node knows that, and the leader that it hears of.
    Heartbeat { end: Option<Position>, hears_leader: bool },
    /// The stream's end.
    Failed(Trouble),
}

/// Cuts what comes into frames.
#[derive(Default)]
pub struct Frames {
    bytes: BytesMut,
}

impl Frames {
    pub fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// The next whole frame; `None`: more bytes are needed.
    ///
    /// # Errors
    /// What comes is no such stream.
    pub fn next(&mut self) -> Result<Option<Frame>> {
        let Some(head) = self.bytes.first_chunk::<HEAD>() else { return Ok(None) };
        let (kind, length) = (head[0], u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize);
        if length > FRAME_MAX {
            return Err(broken(&format!("a frame of {length} bytes")));
        }
        if self.bytes.len() < HEAD + length {
            return Ok(None);
        }
        let bytes = self.bytes.split_to(HEAD + length).freeze();
        let mut body = bytes.slice(HEAD..);
        let frame = match kind {
            b'P' if length >= 24 => {
                body.advance(8);
                Frame::Piece { to: Position { epoch: body.get_u64_le(), tick: body.get_u64_le() }, bytes }
            }
            b'R' if length >= ROW => {
                let epoch = body.get_u64_le();
                body.advance(8);
                let last_tick = body.get_u64_le();
                body.advance(8);
                Frame::Row { last_tick, epoch, ends: body.get_u32_le() & LAST != 0, bytes }
            }
            b'H' if length >= 16 => {
                let end = Position { epoch: body.get_u64_le(), tick: body.get_u64_le() };
                let hears_leader = length < 24 || body.get_u64_le() != 0;
                Frame::Heartbeat { end: (end != Position::default()).then_some(end), hears_leader }
            }
            b'E' => {
                let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                let text = |name: &str| said[name].as_str().unwrap_or("stream_failed").to_owned();
                let (code, message) = (text("code"), text("message"));
                let status = if code == "position_purged" { 410 } else { 531 };
                Frame::Failed(Trouble::from_source(status, &code, &message))
            }
            other => return Err(broken(&format!("a frame of kind {other} with {length} bytes"))),
        };
        Ok(Some(frame))
    }
}

fn broken(what: &str) -> Trouble {
    let message = format!(
        "the source sends {what}, which this program does not understand. Are both of the same version? Is something \
         between them that changes answers?"
    );
    Trouble::new(Kind::Waiting, "bad_stream", message)
}

/// A frame `P` that says: what follows comes after this tick, and goes up to there.
pub fn piece(after: u64, to: Position) -> [u8; HEAD + 24] {
    let mut frame = [0; HEAD + 24];
    frame[0] = b'P';
    frame[1..HEAD].copy_from_slice(&24_u32.to_le_bytes());
    frame[HEAD..HEAD + 8].copy_from_slice(&after.to_le_bytes());
    frame[HEAD + 8..HEAD + 16].copy_from_slice(&to.epoch.to_le_bytes());
    frame[HEAD + 16..].copy_from_slice(&to.tick.to_le_bytes());
    frame
}

#[cfg(test)]
pub mod written {
    use super::*;

    pub fn piece_frame(after: u64, to: Position) -> Vec<u8> {
        piece(after, to).to_vec()
    }

    pub fn row_frame(epoch: u64, ticks: (u64, u64), xid: u64, flags: u32, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let row = pgquorum_change::LogRow { epoch, first_tick: ticks.0, last_tick: ticks.1, xid, flags };
        pgquorum_change::put_row(&mut out, &row, chunk);
        out
    }

    pub fn heartbeat_frame(numbers: &[u64]) -> Vec<u8> {
        let mut out = vec![b'H'];
        out.extend_from_slice(&u32::try_from(numbers.len() * 8).unwrap().to_le_bytes());
        numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::written::*;
    use super::*;

    #[test]
    fn frames_are_whole_however_they_come() {
        let to = Position { epoch: 5, tick: 9 };
        let mut all = piece_frame(7, to);
        all.extend(row_frame(5, (8, 9), 77, 3, b"chunk"));
        all.extend(heartbeat_frame(&[0, 0]));
        all.extend(heartbeat_frame(&[5, 9, 1]));
        all.extend(heartbeat_frame(&[5, 9, 0]));
        let expected = [
            Frame::Piece { to, bytes: Bytes::from(piece_frame(7, to)) },
            Frame::Row {
                last_tick: 9,
                epoch: 5,
                ends: true,
                bytes: Bytes::from(row_frame(5, (8, 9), 77, 3, b"chunk")),
            },
            Frame::Heartbeat { end: None, hears_leader: true },
            Frame::Heartbeat { end: Some(to), hears_leader: true },
            Frame::Heartbeat { end: Some(to), hears_leader: false },
        ];
        for step in [1, 3, 7, all.len()] {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for part in all.chunks(step) {
                frames.push(part);
                while let Some(frame) = frames.next().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, expected, "{step}");
        }
    }

    #[test]
    fn what_is_no_stream_is_refused_and_a_failure_keeps_its_kind() {
        for wrong in [&b"HTTP/1.1 200 OK"[..], b"X\0\0\0\0", b"P\x04\0\0\0abcd"] {
            let mut frames = Frames::default();
            frames.push(wrong);
            assert!(frames.next().is_err(), "{wrong:?}");
        }
        let body = br#"{"code": "position_purged", "message": "gone"}"#;
        let mut frames = Frames::default();
        frames.push(b"E");
        frames.push(&u32::try_from(body.len()).unwrap().to_le_bytes());
        frames.push(body);
        let Some(Frame::Failed(trouble)) = frames.next().unwrap() else { panic!("no failure") };
        assert_eq!((trouble.kind, trouble.code.as_str()), (Kind::Lost, "position_purged"));
    }
}
