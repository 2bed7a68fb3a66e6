//! The log as it is, for readers that decode it themselves with `pgquorum-change`.
//!
//! ```text
//! frame     = kind u8 · length of the body u32 · body
//! piece     = 'P': after u64 · epoch u64 · tick u64
//! row       = 'R': epoch u64 · first tick u64 · last tick u64 · transaction u64 · flags u32 · chunk
//! heartbeat = 'H': epoch u64 · tick u64, of the channel's end · leader u64 (0: the node hears of none)
//! error     = 'E': {"code": …, "message": …}; the last frame
//! ```
//!
//! Integers are little-endian. A piece frame says that rows follow which are read with a new decoder: changes up to
//! the tick `after` are dropped (all ones: none is), and the last change has the position `epoch:tick`, from which the
//! reader may go on. A reader that joins in the middle of a transaction gets what it needs to read the rest.

use super::error::Result;
use super::outlet::{FULL_BYTES, Outlet};
use super::pieces::Piece;
use super::position::Position;

const PIECE: u8 = b'P';
const HEARTBEAT: u8 = b'H';
const ERROR: u8 = b'E';

/// Writes the rows of a piece; false: nobody takes them any more.
pub async fn piece(piece: &Piece, out: &mut Outlet) -> Result<bool> {
    let after = piece.after.tick().unwrap_or(u64::MAX);
    frame(out.buffer(), PIECE, &[after, piece.to.epoch, piece.to.tick], &[]);
    for part in piece.rows.parts(FULL_BYTES) {
        out.buffer().extend_from_slice(part);
        if !out.flush_full().await {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes where the channel ends, if that is known.
pub fn heartbeat(end: Option<Position>, leader: Option<u64>, out: &mut Outlet) {
    let end = end.unwrap_or_default();
    frame(out.buffer(), HEARTBEAT, &[end.epoch, end.tick, leader.unwrap_or(0)], &[]);
}

pub fn error(code: &str, message: &str, out: &mut Outlet) {
    let body = serde_json::json!({ "code": code, "message": message }).to_string();
    frame(out.buffer(), ERROR, &[], body.as_bytes());
}

fn frame(out: &mut Vec<u8>, kind: u8, numbers: &[u64], rest: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&length(numbers.len() * 8 + rest.len()));
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(rest);
}

/// No body is that long.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}
