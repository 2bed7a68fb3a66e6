//! Conflicts and rejected changes, as `pgquorum subscriptions` shows them.

use super::output::{plain, table};
use serde_json::Value;

pub fn conflicts(answer: &Value) -> String {
    let row = |one: &Value| {
        vec![
            format!("{}.{}", plain(&one["schema"]), plain(&one["table"])),
            plain(&one["conflict"]),
            plain(&one["resolution"]),
            plain(&one["count"]),
            plain(&one["last_at"]),
        ]
    };
    let rows: Vec<_> = answer.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "No change met anything else here than at the source.".to_owned();
    }
    table(&["TABLE", "CONFLICT", "RESOLUTION", "TIMES", "LAST"], rows)
}

pub fn list(answer: &Value) -> String {
    let row = |one: &Value| {
        vec![
            plain(&one["id"]),
            plain(&one["position"]),
            format!("{}.{}", plain(&one["schema"]), plain(&one["table"])),
            plain(&one["op"]),
            plain(&one["key"]),
            plain(&one["conflict"]),
            plain(&one["committed_at"]),
            plain(&one["message"]),
        ]
    };
    let rows: Vec<_> = answer.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "No change was left out.".to_owned();
    }
    table(&["NUMBER", "POSITION", "TABLE", "OP", "KEY", "CONFLICT", "COMMITTED", "WHY"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conflicts_and_rejected_changes_read_well() {
        let met = json!([{"schema": "public", "table": "t", "conflict": "insert_exists", "resolution": "rejected", "count": 3}]);
        assert!(conflicts(&met).contains("public.t") && conflicts(&json!([])).starts_with("No change"));
        let left = json!([{"id": 17, "schema": "public", "table": "t", "op": "insert", "key": {"id": 1}, "message": "it is there"}]);
        let text = list(&left);
        assert!(text.contains("17") && text.contains("it is there"), "{text}");
        assert!(list(&json!([])).contains("left out"));
    }
}
