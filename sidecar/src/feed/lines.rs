//! Changes as JSON, a line each, written straight from the decoder into one buffer.

use super::error::{FeedError, Kind, Result};
use super::outlet::Outlet;
use super::pieces::Piece;
use super::position::{After, Position};
use super::schemas::{Found, Schemas};
use super::source::{LAST, LogRow};
use pgquorum_change::{Changes, Decoder, Header, Schema, json};
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

/// What surrounds a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A line end.
    Ndjson,
    /// Server-sent events, with the position as id.
    Events,
    /// Elements of an array; only changes, each with what else its transaction's line says, up to a number of them.
    Array { left: usize, bytes_max: usize },
}

/// Writes lines, and knows where it is.
pub struct Lines {
    schemas: Schemas,
    form: Form,
    /// Everything up to here was written or was not wanted.
    position: After,
    transaction: Option<Transaction>,
}

/// A transaction of which something was read.
struct Transaction {
    xid: u64,
    /// `"committed_at":…,"origin":…`, ready to be written.
    about: Vec<u8>,
    /// Its first line was written.
    begun: bool,
}

impl Lines {
    pub fn new(schemas: Schemas, form: Form, position: After) -> Lines {
        Lines { schemas, form, position, transaction: None }
    }

    pub fn position(&self) -> After {
        self.position
    }

    /// The position lies inside a transaction.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Writes the changes of a piece; false: enough, or nobody takes them any more.
    ///
    /// # Errors
    /// A record is damaged; everything before it was written.
    pub async fn piece(&mut self, piece: &Piece, out: &mut Outlet) -> Result<bool> {
        let mut decoder = Decoder::new();
        for (row, chunk) in piece.rows.iter() {
            let changes = decoder.feed(chunk).map_err(|error| broken(&row, &error))?;
            let (form, position) = (self.form, self.position);
            if let Some(header) = changes.header
                && let Some(transaction) = self.enter(row.xid, &header)
                && piece.after.tick().is_some_and(|tick| row.first_tick <= tick)
            {
                // The reader was in the middle of it. What comes may be unwanted, but the end is not.
                transaction.begin(form, &position, out.buffer());
            }
            let new = piece.after.tick().is_none_or(|tick| row.last_tick > tick);
            if !self.row(piece, &row, changes, out).await? {
                return Ok(false);
            }
            if new && row.flags & LAST != 0 && row.last_tick >= row.first_tick {
                self.leave(&row, out);
            }
            if !out.flush_full().await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the changes that end in one row.
    async fn row(
        &mut self,
        piece: &Piece,
        row: &LogRow,
        mut changes: Changes<'_>,
        out: &mut Outlet,
    ) -> Result<bool> {
        let seen = piece.after.tick();
        let mut tick = row.first_tick + u64::from(changes.first_is_lost);
        while let Some(change) = changes.next().map_err(|error| broken(row, &error))? {
            if seen.is_none_or(|seen| tick > seen) {
                if let Form::Array { left: 0, .. } = self.form {
                    return Ok(false);
                }
                if let Found::Unknown = self.schemas.wanted(change.schema_version) {
                    self.schemas.learn(change.schema_version).await?;
                }
                let here = Position { epoch: row.epoch, tick };
                if let Found::Wanted(schema) = self.schemas.wanted(change.schema_version) {
                    if let Some(transaction) = &mut self.transaction {
                        transaction.begin(self.form, &self.position, out.buffer());
                    }
                    let transaction = self.transaction.as_ref();
                    let line = Line { form: self.form, here, xid: row.xid, transaction };
                    let last = row.flags & LAST != 0 && tick == row.last_tick;
                    line.change(out.buffer(), &change, schema, last);
                    if let Form::Array { left, bytes_max } = &mut self.form {
                        *left = if out.buffer().len() > *bytes_max { 0 } else { *left - 1 };
                    }
                }
                self.position = After::At(here);
            }
            tick += 1;
        }
        if tick == row.last_tick + 1 {
            Ok(true)
        } else {
            Err(broken(row, &"it has another number of changes"))
        }
    }

    /// The transaction, if it is another one.
    fn enter(&mut self, xid: u64, header: &Header) -> Option<&mut Transaction> {
        if self.transaction.as_ref().is_some_and(|transaction| transaction.xid == xid) {
            return None;
        }
        let mut about = b"\"committed_at\":".to_vec();
        time(&mut about, header.commit_us);
        if let Some(origin) = header.origin {
            about.extend_from_slice(b",\"origin\":");
            json::string(&mut about, origin.as_bytes());
        }
        if let Some(us) = header.origin_commit_us {
            about.extend_from_slice(b",\"origin_committed_at\":");
            time(&mut about, us);
        }
        Some(self.transaction.insert(Transaction { xid, about, begun: false }))
    }

    /// The end of a transaction, if anything of it was shown.
    fn leave(&mut self, row: &LogRow, out: &mut Outlet) {
        let here = Position { epoch: row.epoch, tick: row.last_tick };
        let shown = self.transaction.take().is_some_and(|transaction| transaction.begun);
        if shown && !matches!(self.form, Form::Array { .. }) {
            let buffer = out.buffer();
            let here = After::At(here);
            open(buffer, self.form, &here);
            buffer.extend_from_slice(b"{\"type\":\"commit\",");
            place(buffer, &here, row.xid);
            // The comma is one too many.
            buffer.pop();
            buffer.push(b'}');
            close(buffer, self.form);
        }
    }

    /// Where the reader is and where the channel ends, when there is nothing else to say.
    pub fn heartbeat(&self, end: Option<Position>, leader: Option<u64>, out: &mut Outlet) {
        let buffer = out.buffer();
        open(buffer, self.form, &self.position);
        let _ = write!(buffer, "{{\"type\":\"heartbeat\",\"position\":\"{}\",\"end\":", self.position);
        let _ = match end {
            Some(end) => write!(buffer, "\"{end}\""),
            None => write!(buffer, "null"),
        };
        let _ = match leader {
            Some(leader) => write!(buffer, ",\"leader\":{leader}}}"),
            None => write!(buffer, ",\"leader\":null}}"),
        };
        close(buffer, self.form);
    }

    /// The last line of a stream that cannot go on.
    pub fn error(&self, code: &str, message: &str, out: &mut Outlet) {
        let buffer = out.buffer();
        open(buffer, self.form, &self.position);
        let _ = write!(
            buffer,
            "{{\"type\":\"error\",\"position\":\"{}\",\"code\":\"{code}\",\"message\":",
            self.position
        );
        json::string(buffer, message.as_bytes());
        buffer.push(b'}');
        close(buffer, self.form);
    }
}

impl Transaction {
    /// Its first line, once.
    fn begin(&mut self, form: Form, position: &After, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.begun, true) || matches!(form, Form::Array { .. }) {
            return;
        }
        open(out, form, position);
        out.extend_from_slice(b"{\"type\":\"begin\",");
        place(out, position, self.xid);
        out.extend_from_slice(&self.about);
        out.push(b'}');
        close(out, form);
    }
}

/// What surrounds one change.
struct Line<'l> {
    form: Form,
    here: Position,
    xid: u64,
    transaction: Option<&'l Transaction>,
}

impl Line<'_> {
    /// `last`: the transaction ends with it.
    fn change(&self, out: &mut Vec<u8>, change: &pgquorum_change::Change, schema: &Schema, last: bool) {
        let (here, xid) = (self.here, self.xid);
        let array = matches!(self.form, Form::Array { .. });
        if array {
            if !out.is_empty() {
                out.push(b',');
            }
            out.push(b'{');
            place(out, &After::At(here), xid);
            if let Some(transaction) = self.transaction {
                out.extend_from_slice(&transaction.about);
                out.push(b',');
            }
        } else {
            let here = After::At(here);
            open(out, self.form, &here);
            out.extend_from_slice(b"{\"type\":\"change\",");
            place(out, &here, xid);
        }
        json::members(out, change, schema);
        out.extend_from_slice(if last { b",\"last\":true}" } else { b"}" });
        if !array {
            close(out, self.form);
        }
    }
}

fn open(out: &mut Vec<u8>, form: Form, at: &After) {
    if form == Form::Events {
        out.extend_from_slice(b"id: ");
        position(out, at);
        out.extend_from_slice(b"\ndata: ");
    }
}

/// Where a line is, with a comma behind it.
fn place(out: &mut Vec<u8>, at: &After, xid: u64) {
    out.extend_from_slice(b"\"position\":\"");
    position(out, at);
    out.extend_from_slice(b"\",\"transaction\":\"");
    decimal(out, xid);
    out.extend_from_slice(b"\",");
}

fn position(out: &mut Vec<u8>, at: &After) {
    if let After::At(here) = at {
        decimal(out, here.epoch);
        out.push(b':');
        decimal(out, here.tick);
    } else {
        let _ = write!(out, "{at}");
    }
}

fn close(out: &mut Vec<u8>, form: Form) {
    out.extend_from_slice(if form == Form::Events { b"\n\n" } else { b"\n" });
}

/// Digits without the machinery of formatting, which would cost as much as the rest of a line.
fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A time in RFC 3339, to the microsecond. What no calendar holds is null.
fn time(out: &mut Vec<u8>, us: i64) {
    let at = u64::try_from(us).ok().and_then(|us| UNIX_EPOCH.checked_add(Duration::from_micros(us)));
    // Beyond the year 9999 formatting fails.
    let text = at.filter(|_| us < 253_402_300_800_000_000).map(humantime::format_rfc3339_micros);
    let _ = match text {
        Some(text) => write!(out, "\"{text}\""),
        None => write!(out, "null"),
    };
}

fn broken(row: &LogRow, why: &dyn std::fmt::Display) -> FeedError {
    FeedError::new(
        Kind::RecordBroken,
        format!(
            "the log row with ticks {} to {} of transaction {} in epoch {} cannot be read: {why}. Reading stops before \
             it. Another node may hold a good copy: read there, and check this node's disk",
            row.first_tick, row.last_tick, row.xid, row.epoch
        ),
    )
}
