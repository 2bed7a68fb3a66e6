//! `pgquorum readonly`

use super::client::Target;
use super::failure::Failure;
use super::output::{Out, plain, table};
use crate::uri::encoded;
use clap::Args;
use serde_json::Value;

/// As much of a statement as a line of a table has room for.
const STATEMENT_CHARACTERS: usize = 80;

/// Statements that the servers have learned, with what they are known to do.
#[derive(Debug, Args)]
pub struct ReadonlyArgs {
    #[command(flatten)]
    target: Target,
    /// The database that they were learned in [default: the cluster's admin database].
    #[arg(long)]
    database: Option<String>,
    /// Only those that are served.
    #[arg(long)]
    served: bool,
}

pub async fn run(args: ReadonlyArgs, out: Out) -> Result<(), Failure> {
    let database = args.database.as_deref().map(|name| format!("&database={}", encoded(name)));
    let path = format!("/sql/readonly?details=true{}", database.unwrap_or_default());
    let mut records = args.target.client()?.get(&path).await?;
    if let Some(records) = records.as_array_mut() {
        records.retain(|record| !args.served || record["served"] == true);
    }
    out.show(&records, || list(&records));
    Ok(())
}

fn list(records: &Value) -> String {
    let records = records.as_array().map(Vec::as_slice).unwrap_or_default();
    if records.is_empty() {
        return "No statement is known here. See docs/readonly.md for what is learned, and when.".to_owned();
    }
    let row = |record: &Value| {
        vec![
            plain(&record["hash"]),
            plain(&record["how"]),
            if record["served"] == true { "yes" } else { "no" }.to_owned(),
            plain(&record["calls"]),
            plain(&record["search_path"]),
            remark(record),
        ]
    };
    table(&["HASH", "HOW", "SERVED", "CALLS", "SEARCH PATH", "STATEMENT"], records.iter().map(row).collect())
}

/// The statement, or why it is not served. In one line, and without anything that a terminal would obey.
fn remark(record: &Value) -> String {
    let reason = record["reason"].as_str().filter(|_| record["served"] != true);
    let statement = record["statement"].as_str().unwrap_or_default();
    let text = reason.map_or_else(|| statement.to_owned(), |reason| format!("({reason}) {statement}"));
    let mut text: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if let Some((end, _)) = text.char_indices().nth(STATEMENT_CHARACTERS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn statements_read_well() {
        let served = json!({"hash": "00000000000000a1", "how": "proven", "served": true, "calls": 7,
            "search_path": "public", "statement": "select \u{1b}[31m $", "reason": null});
        let withdrawn = json!({"hash": "00000000000000b2", "how": "observed", "served": false, "calls": 30,
            "search_path": "public", "statement": format!("select {}", "x".repeat(200)), "reason": "was seen writing"});
        let text = list(&json!([served, withdrawn]));
        assert!(text.contains("00000000000000a1") && text.contains("select ?[31m $"), "{text}");
        assert!(remark(&withdrawn).starts_with("(was seen writing) select xx"), "{text}");
        assert_eq!(remark(&withdrawn).chars().count(), STATEMENT_CHARACTERS + 1);
        assert!(list(&json!([])).contains("docs/readonly.md"));
        assert_eq!(remark(&json!({"statement": null})), "");
    }
}
