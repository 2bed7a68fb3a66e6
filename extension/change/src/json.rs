//! Changes as JSON, written straight into a buffer.
//!
//! ```json
//! {"op":"update","schema":"public","table":"orders","key":{"id":7},"old":{…},"new":{"id":7,"paid":true},"unchanged":["doc"]}
//! ```
//!
//! `key` names the row that a change is about: as it was before an update or delete, as it is after an insert. `old` is
//! there where the channel keeps whole old rows. Large values that an update left alone are not in `new`, but named in
//! `unchanged`. Numbers that a double cannot hold exactly are strings, so nothing is lost on the way through any parser.

use crate::decode::{Change, Image, OldImage, Value};
use crate::schema::{Column, Kind, Schema};

/// The largest integer below which doubles hold all integers: 2^53.
const EXACT_MAX: u64 = 1 << 53;

/// Writes the change as one object on one line, without a line end.
pub fn object(out: &mut Vec<u8>, change: &Change, schema: &Schema) {
    out.push(b'{');
    members(out, change, schema);
    out.push(b'}');
}

/// Writes what stands between the braces, so that a caller can put members of its own before or after it.
pub fn members(out: &mut Vec<u8>, change: &Change, schema: &Schema) {
    out.extend_from_slice(b"\"op\":\"");
    out.extend_from_slice(change.op.name().as_bytes());
    out.extend_from_slice(b"\",");
    out.extend_from_slice(&schema.label);
    let start = out.len();
    out.extend_from_slice(b",\"key\":");
    if !key(out, change, schema) {
        out.truncate(start);
    }
    let start = out.len();
    out.extend_from_slice(b",\"old\":");
    if !old(out, change, schema) {
        out.truncate(start);
    }
    if let Some(new) = change.new {
        out.extend_from_slice(b",\"new\":");
        let unchanged = image(out, new, schema.columns.iter());
        if unchanged {
            out.extend_from_slice(b",\"unchanged\":[");
            for (at, name) in unchanged_columns(new, schema).enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                string(out, name.as_bytes());
            }
            out.push(b']');
        }
    }
    if let Some(ddl) = change.ddl {
        out.extend_from_slice(b",\"tag\":");
        string(out, ddl.tag);
        out.extend_from_slice(b",\"sql\":");
        string(out, ddl.sql);
    }
}

/// Writes the object of the key that names the row; false, and nothing is written: there is none.
pub fn key(out: &mut Vec<u8>, change: &Change, schema: &Schema) -> bool {
    if schema.key.is_empty() {
        return false;
    }
    let key_columns = schema.key.iter().map(|at| &schema.columns[*at]);
    match (change.old, change.new) {
        (Some(OldImage::Key(old)), _) => {
            image(out, old, key_columns);
        }
        (Some(OldImage::Full(whole)), _) | (None, Some(whole)) => {
            object_of(out, whole.values().zip(&schema.columns).filter(|(_, column)| column.key));
        }
        (None, None) => return false,
    }
    true
}

/// Writes the object of the whole old row; false, and nothing is written: it was not kept.
pub fn old(out: &mut Vec<u8>, change: &Change, schema: &Schema) -> bool {
    let Some(OldImage::Full(old)) = change.old else { return false };
    image(out, old, schema.columns.iter());
    true
}

/// Writes the object of the new row, without values that are unchanged; false, and nothing is written: there is none.
pub fn new(out: &mut Vec<u8>, change: &Change, schema: &Schema) -> bool {
    let Some(new) = change.new else { return false };
    image(out, new, schema.columns.iter());
    true
}

/// The columns of a new row that are not in it because they are unchanged.
pub fn unchanged_columns<'s>(new: Image<'s>, schema: &'s Schema) -> impl Iterator<Item = &'s str> {
    let columns = new.values().zip(&schema.columns);
    columns.filter(|(value, _)| *value == Value::Unchanged).map(|(_, column)| column.name.as_str())
}

/// Writes an object; true: values are missing in it because they are unchanged.
fn image<'s>(out: &mut Vec<u8>, values: Image, columns: impl Iterator<Item = &'s Column>) -> bool {
    object_of(out, values.values().zip(columns))
}

fn object_of<'v, 's>(out: &mut Vec<u8>, members: impl Iterator<Item = (Value<'v>, &'s Column)>) -> bool {
    let mut unchanged = false;
    out.push(b'{');
    let start = out.len();
    for (value, column) in members {
        if value == Value::Unchanged {
            unchanged = true;
            continue;
        }
        if out.len() > start {
            out.push(b',');
        }
        out.extend_from_slice(&column.label);
        match value {
            Value::Text(text) => scalar(out, &text, column.kind),
            _ => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
    unchanged
}

/// Writes a value by what its column holds.
fn scalar(out: &mut Vec<u8>, text: &[u8], kind: Kind) {
    match kind {
        Kind::Integer if is_integer(text) => out.extend_from_slice(text),
        Kind::Bigint if is_exact(text) => out.extend_from_slice(text),
        // PostgreSQL prints finite numbers as JSON wants them; the others begin with a letter.
        Kind::Float if text.iter().all(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e')) => {
            out.extend_from_slice(text);
        }
        Kind::Bool if text == b"t" => out.extend_from_slice(b"true"),
        Kind::Bool if text == b"f" => out.extend_from_slice(b"false"),
        // `json` keeps the line ends that it came with. They can only stand between its parts.
        Kind::Json if !text.is_empty() => utf8(out, text, |out, part| {
            let start = out.len();
            out.extend_from_slice(part);
            for byte in &mut out[start..] {
                if *byte < b' ' {
                    *byte = b' ';
                }
            }
        }),
        _ => string(out, text),
    }
}

fn is_integer(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let leading_zero = digits.len() > 1 && digits[0] == b'0';
    !digits.is_empty() && !leading_zero && digits.len() <= 20 && digits.iter().all(u8::is_ascii_digit)
}

fn is_exact(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    is_integer(text)
        && (digits.len() < 16
            || std::str::from_utf8(digits)
                .ok()
                .and_then(|d| d.parse().ok())
                .is_some_and(|n: u64| n <= EXACT_MAX))
}

/// Writes a JSON string. What is not UTF-8 becomes U+FFFD.
pub fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    utf8(out, text, escaped);
    out.push(b'"');
}

fn utf8(out: &mut Vec<u8>, text: &[u8], put: impl Fn(&mut Vec<u8>, &[u8])) {
    if std::str::from_utf8(text).is_ok() {
        return put(out, text);
    }
    put(out, String::from_utf8_lossy(text).as_bytes());
}

/// Which bytes a JSON string cannot hold as they are.
const ESCAPED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table
};

fn escaped(out: &mut Vec<u8>, mut text: &[u8]) {
    while let Some(at) = text.iter().position(|byte| ESCAPED[usize::from(*byte)]) {
        out.extend_from_slice(&text[..at]);
        let byte = text[at];
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        text = &text[at + 1..];
    }
    out.extend_from_slice(text);
}
