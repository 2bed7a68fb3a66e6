//! Lines of `COPY … TO STDOUT` in text format, as changes that insert the row: a copy's rows look like the log's.

use super::error::{FeedError, Kind, Result};
use pgquorum_change::{Encoder, Old, Op, Schema, change, json};

/// Turns lines into JSON objects. Keeps its buffers from line to line.
#[derive(Default)]
pub struct RowWriter {
    record: Vec<u8>,
    value: Vec<u8>,
}

impl RowWriter {
    /// Writes the object of one line, which comes without its line end.
    ///
    /// # Errors
    /// The line has another number of values than the table has columns.
    pub fn object(&mut self, line: &[u8], schema: &Schema, out: &mut Vec<u8>) -> Result<()> {
        let RowWriter { record, value } = self;
        record.clear();
        let mut encoder = Encoder::begin(record, Op::Insert, schema.id, Old::None, true);
        encoder.image(schema.columns.len());
        let mut fields = 0;
        // A table without columns has empty lines.
        for field in self::fields(line).take_while(|_| !schema.columns.is_empty()) {
            fields += 1;
            if field == b"\\N" {
                encoder.null();
            } else if field.contains(&b'\\') {
                unescape(field, value);
                encoder.text(value);
            } else {
                encoder.text(field);
            }
        }
        let wrong = |why: String| {
            FeedError::new(
                Kind::Internal,
                format!("a copied row of {}.{} cannot be read: {why}", schema.schema, schema.table),
            )
        };
        if fields != schema.columns.len() {
            return Err(wrong(format!("{fields} values for {} columns", schema.columns.len())));
        }
        let mut bytes = record.as_slice();
        let row = change(&mut bytes).map_err(|error| wrong(error.to_string()))?;
        json::new(out, &row, schema);
        Ok(())
    }
}

/// The values of a line, as they stand there.
pub fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b'\t')
}

/// Undoes what `CopyAttributeOutText` does.
pub fn unescape(field: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'b') => 0x08,
                Some(b'f') => 0x0c,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'v') => 0x0b,
                Some(other) => *other,
                None => b'\\',
            },
            other => *other,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        let columns = r#"[{"name": "id", "type": "integer", "type_oid": 23, "key": true},
                          {"name": "note", "type": "text", "type_oid": 25, "key": false}]"#;
        Schema::new(1, "public", "t", columns).unwrap()
    }

    #[test]
    fn rows_become_objects() {
        let mut writer = RowWriter::default();
        for (line, object) in [
            ("1\ta", r#"{"id":1,"note":"a"}"#),
            ("2\t\\N", r#"{"id":2,"note":null}"#),
            ("3\t", r#"{"id":3,"note":""}"#),
            ("-4\ta\\tb\\\\N\\n\"", r#"{"id":-4,"note":"a\tb\\N\n\""}"#),
        ] {
            let mut out = Vec::new();
            writer.object(line.as_bytes(), &schema(), &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), object);
        }
        for line in ["", "1", "1\t2\t3"] {
            assert!(writer.object(line.as_bytes(), &schema(), &mut Vec::new()).is_err(), "{line:?}");
        }
    }
}
