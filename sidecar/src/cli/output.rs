//! What goes to the terminal: tables for people, JSON for programs, progress and errors on standard error.

use super::failure::Failure;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    pub json: bool,
}

impl Out {
    /// Prints the document for programs, or the text for people. A reader that went away is no error.
    pub fn show(self, document: &impl Serialize, text: impl FnOnce() -> String) {
        let text = if self.json {
            serde_json::to_string(document)
                .unwrap_or_else(|e| json!({ "code": "json", "message": e.to_string() }).to_string())
        } else {
            text()
        };
        let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    }

    /// Says what is being done. Goes to standard error, so that standard output stays one document.
    pub fn note(self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    pub fn failed(self, failure: &Failure) -> ExitCode {
        let text = if self.json {
            json!({ "code": failure.code, "message": failure.message }).to_string()
        } else {
            format!("pgquorum: {}", failure.message)
        };
        let _ = writeln!(std::io::stderr().lock(), "{text}");
        ExitCode::from(failure.exit as u8)
    }
}

/// A table without lines: easy on the eye, on grep and on awk.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(head.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Name and value, a row each; the members of an inner object as `outer.inner`.
pub fn pairs(head: [&str; 2], object: &Value) -> String {
    let mut rows = Vec::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(inner) => rows.extend(inner.iter().map(|(k, v)| vec![format!("{name}.{k}"), plain(v)])),
            None => rows.push(vec![name.clone(), plain(value)]),
        }
    }
    table(&head, rows)
}

/// A JSON value as a person writes it: strings without quotes.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// `0 B`, `1.5 MB`: powers of 1024 under the names that `pg_size_pretty` uses.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Splits `name=value` as it is typed on the command line.
pub fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(format!("{text:?} is not of the form name=value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 kB");
        assert_eq!(bytes(334 * 1024 * 1024), "334.0 MB");
    }

    #[test]
    fn assignments_are_split_at_the_first_sign() {
        assert_eq!(assignment("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(assignment("a="), Ok(("a".to_owned(), String::new())));
        assert!(assignment("=b").is_err());
        assert!(assignment("a").is_err());
    }
}
