//! What is printed of a stream, and where the next one has to begin.

use super::super::failure::Failure;
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::Write;

/// What a line was.
pub(super) enum Seen {
    Change,
    Heartbeat {
        /// What the node should know and does not.
        lacks: Option<&'static str>,
    },
    /// The last change that was wanted.
    Last,
    Failed(Failure),
}

/// What matters of a line.
#[derive(Deserialize)]
struct Line<'l> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'l, str>,
    #[serde(borrow)]
    position: Cow<'l, str>,
    #[serde(borrow)]
    transaction: Option<Cow<'l, str>>,
    leader: Option<u64>,
    #[serde(borrow)]
    end: Option<Cow<'l, str>>,
    #[serde(borrow)]
    code: Option<Cow<'l, str>>,
    #[serde(borrow)]
    message: Option<Cow<'l, str>>,
}

pub(super) struct Printer {
    /// After what the next stream begins.
    pub(super) position: String,
    /// The transaction that has begun and not ended.
    transaction: Option<String>,
    /// The next line is the first one of a stream.
    pub(super) resumes: bool,
    left: Option<u64>,
    json: bool,
}

impl Printer {
    pub(super) fn new(position: String, left: Option<u64>, json: bool) -> Printer {
        Printer { position, transaction: None, resumes: false, left, json }
    }

    /// What a line was, after it was printed if it is to be seen.
    pub(super) fn line(&mut self, text: &[u8], out: &mut impl Write) -> std::io::Result<Seen> {
        let Ok(line) = serde_json::from_slice::<Line>(text) else {
            let shown = String::from_utf8_lossy(text.get(..200).unwrap_or(text)).into_owned();
            let message = format!("the node sent a line that is not understood: {shown}");
            return Ok(Seen::Failed(Failure::failed("bad_line", message)));
        };
        if line.kind == "error" {
            let code = line.code.as_deref().unwrap_or("failed");
            let status = if code == "position_purged" { 410 } else { 500 };
            let message = line.message.as_deref().unwrap_or("the stream ended with an error");
            return Ok(Seen::Failed(Failure::from_status(status, code, message)));
        }
        if std::mem::take(&mut self.resumes) {
            self.close_what_ended(&line, out)?;
        }
        self.position.clear();
        self.position.push_str(&line.position);
        match line.kind.as_ref() {
            "heartbeat" => {
                let lacks = match (&line.leader, &line.end) {
                    (None, _) => Some("it hears of no leader"),
                    (_, None) => Some("its database does not say where the channel ends"),
                    _ => None,
                };
                return Ok(Seen::Heartbeat { lacks });
            }
            // Whoever resumes inside a transaction is told of its begin again.
            "begin" if self.transaction.as_deref() == line.transaction.as_deref() => return Ok(Seen::Change),
            "begin" => self.transaction = line.transaction.map(Cow::into_owned),
            "commit" => self.transaction = None,
            _ => {}
        }
        if self.json {
            out.write_all(text)?;
            out.write_all(b"\n")?;
        } else if line.kind == "change" {
            writeln!(out, "{}", shown(text))?;
        }
        if line.kind == "change"
            && let Some(left) = &mut self.left
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                return Ok(Seen::Last);
            }
        }
        Ok(Seen::Change)
    }

    /// A node begins with the `begin` of the transaction that the position lies in. If it does not, the position was
    /// the transaction's end, and nobody will say so any more.
    fn close_what_ended(&mut self, first: &Line<'_>, out: &mut impl Write) -> std::io::Result<()> {
        let goes_on = first.kind == "begin" && self.transaction.as_deref() == first.transaction.as_deref();
        let Some(transaction) = self.transaction.take_if(|_| !goes_on) else { return Ok(()) };
        if self.json {
            let position = &self.position;
            let commit = json!({"type": "commit", "position": position, "transaction": transaction});
            writeln!(out, "{commit}")?;
        }
        Ok(())
    }
}

/// A change for people, on one line.
fn shown(text: &[u8]) -> String {
    let change: Value = serde_json::from_slice(text).unwrap_or_default();
    let word = |name: &str| change[name].as_str().unwrap_or_default().to_owned();
    let mut shown = format!("{}  {}  {}.{}", word("position"), word("op"), word("schema"), word("table"));
    for (name, value) in [("key", &change["key"]), ("old", &change["old"]), ("new", &change["new"])] {
        if !value.is_null() {
            shown.push_str(&format!("  {name} {value}"));
        }
    }
    let unchanged: Vec<&str> =
        change["unchanged"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !unchanged.is_empty() {
        shown.push_str(&format!("  unchanged {}", unchanged.join(", ")));
    }
    if change["op"] == "ddl" {
        let (tag, text) = (word("tag"), word("sql"));
        shown.push_str(&match tag.as_str() {
            _ if text.is_empty() => format!("  {tag}"),
            // What it says is no statement.
            "INDEX" | "UNINDEX" => format!("  {tag} {text}"),
            _ => format!("  {text}"),
        });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed of two streams, one after the other.
    fn printed(streams: [&[&str]; 2]) -> Vec<(String, String)> {
        let (mut printer, mut out) = (Printer::new("5:0".to_owned(), None, true), Vec::new());
        for lines in streams {
            printer.resumes = true;
            for line in lines {
                assert!(printer.line(line.as_bytes(), &mut out).is_ok());
            }
        }
        let lines = out.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let lines = lines.map(|line| serde_json::from_slice::<Value>(line).unwrap());
        let word = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
        lines.map(|line| (word(&line, "type"), word(&line, "position"))).collect()
    }

    #[test]
    fn a_transaction_that_began_ends_once_whatever_node_says_it() {
        let begin = r#"{"type":"begin","position":"5:0","transaction":"7"}"#;
        let first = r#"{"type":"change","position":"5:1","transaction":"7","op":"insert"}"#;
        let again = r#"{"type":"begin","position":"5:1","transaction":"7"}"#;
        let second = r#"{"type":"change","position":"5:2","transaction":"7","op":"insert"}"#;
        let commit = r#"{"type":"commit","position":"5:2","transaction":"7"}"#;
        let next = r#"{"type":"begin","position":"5:1","transaction":"8"}"#;
        let beat = r#"{"type":"heartbeat","position":"5:1","end":"5:1","leader":1}"#;
        let all = |found: Vec<(String, String)>| -> Vec<String> {
            found.into_iter().map(|(kind, position)| format!("{kind} {position}")).collect()
        };
        let whole = ["begin 5:0", "change 5:1", "change 5:2", "commit 5:2"];
        assert_eq!(all(printed([&[begin, first], &[again, second, commit]])), whole);
        // Heartbeats in the middle of it end nothing.
        assert_eq!(all(printed([&[begin, first, beat], &[again, beat, second, commit]])), whole);
        let cut = ["begin 5:0", "change 5:1", "commit 5:1"];
        assert_eq!(all(printed([&[begin, first], &[beat]])), cut);
        assert_eq!(all(printed([&[begin, first], &[next]]))[..3], cut);
        assert_eq!(all(printed([&[begin, first, second, commit], &[beat]])), whole);
    }

    #[test]
    fn changes_read_well() {
        let text = br#"{"type":"change","position":"5:3","op":"update","schema":"public","table":"orders","key":{"id":1},"new":{"id":1},"unchanged":["doc"]}"#;
        assert_eq!(shown(text), "5:3  update  public.orders  key {\"id\":1}  new {\"id\":1}  unchanged doc");
        let text = br#"{"position":"5:4","op":"ddl","schema":"s","table":"t","tag":"ALTER TABLE","sql":"ALTER TABLE t ADD x int"}"#;
        assert_eq!(shown(text), "5:4  ddl  s.t  ALTER TABLE t ADD x int");
        let text = br#"{"position":"5:5","op":"ddl","schema":"s","table":"t","tag":"UNTRACK","sql":""}"#;
        assert_eq!(shown(text), "5:5  ddl  s.t  UNTRACK");
        let text =
            br#"{"position":"5:6","op":"ddl","schema":"s","table":"t","tag":"INDEX","sql":"{\"id\": 1000}"}"#;
        assert_eq!(shown(text), "5:6  ddl  s.t  INDEX {\"id\": 1000}");
    }
}
