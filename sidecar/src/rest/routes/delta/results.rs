//! What became of the changes that were missing: one `DeltaUpdateResult` for each.
//!
//! A change counts as applied when the subscription has passed it and it was neither rejected nor belongs to a table that
//! had stopped before it.

use crate::follow::tick;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How many are listed.
pub(super) const LISTED: usize = 1000;
/// How many bytes of rows are listed.
const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// As `quorum.delta_outcome` says it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Outcome {
    rejected: Vec<Rejected>,
    rejected_count: u64,
    /// The tables that are followed; `None`: all.
    wanted: Option<Vec<String>>,
    stopped: Vec<Stopped>,
}

#[derive(Debug, Deserialize)]
struct Rejected {
    tick: u64,
    conflict: Option<String>,
    code: String,
    message: String,
}

#[derive(Debug, Deserialize)]
struct Stopped {
    table: String,
    /// The last change of it that was applied.
    after: Option<u64>,
    code: Option<String>,
    message: Option<String>,
}

#[derive(Serialize)]
struct DeltaUpdateResult<'a> {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<DeltaError>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a Value>,
}

#[derive(Serialize)]
struct DeltaError {
    name: String,
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stacktrace: Option<Vec<String>>,
}

/// The results of these changes, and what is to be said of the others of `passed` in all.
pub(super) fn of(changes: &[Value], passed: u64, outcome: &Outcome, verbose: bool) -> Value {
    let (mut results, mut bytes, mut listed) = (Vec::with_capacity(changes.len()), 0, 0);
    for change in changes {
        let result = result(change, outcome, verbose);
        bytes += result.record.map_or(0, |record| record.to_string().len());
        if bytes > RECORD_BYTES_MAX {
            break;
        }
        results.push(json!(result));
        listed += 1;
    }
    if passed > listed {
        let warning = format!(
            "{} further deltas were passed and are not listed (at most {LISTED} are); of all {passed}, {} were rejected: \
             quorum.rejected_changes has them",
            passed - listed,
            outcome.rejected_count
        );
        results.push(json!({"success": true, "warnings": [warning]}));
    }
    results.into()
}

fn result<'a>(change: &'a Value, outcome: &Outcome, verbose: bool) -> DeltaUpdateResult<'a> {
    let tick = tick(change).unwrap_or_default();
    let text = |name: &str| change[name].as_str().unwrap_or_default();
    let table = format!("{}.{}", text("schema"), text("table"));
    let followed = outcome.wanted.as_ref().is_none_or(|wanted| wanted.contains(&table));
    let why = fault(tick, &table, outcome).filter(|_| followed);
    let error = why.map(|(name, description)| {
        let place = format!("{} of {table} at {}", text("op"), text("position"));
        DeltaError { name, description, stacktrace: verbose.then(|| vec![place]) }
    });
    let mut warnings = Vec::new();
    if !followed {
        warnings.push(format!("table {table} is not followed here: nothing was done"));
    }
    let record = ["new", "key"].into_iter().find_map(|name| change.get(name));
    DeltaUpdateResult { success: error.is_none(), error, warnings, record: record.filter(|_| verbose) }
}

/// Why a change was not applied.
fn fault(tick: u64, table: &str, outcome: &Outcome) -> Option<(String, String)> {
    if let Some(rejected) = outcome.rejected.iter().find(|one| one.tick == tick) {
        let name = rejected.conflict.as_ref().unwrap_or(&rejected.code);
        return Some((name.clone(), rejected.message.clone()));
    }
    let stopped = outcome.stopped.iter().find(|one| one.table == table)?;
    let told = |text: &Option<String>, otherwise: &str| text.clone().unwrap_or_else(|| otherwise.to_owned());
    stopped.after.is_none_or(|after| tick > after).then(|| {
        let why = told(&stopped.message, "its state does not say why");
        (told(&stopped.code, "stopped"), format!("the table has stopped, and this comes behind: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(tick: u64, table: &str) -> Value {
        json!({"position": format!("5:{tick}"), "op": "update", "schema": "public", "table": table, "key": {"id": tick},
            "new": {"id": tick, "note": "x"}})
    }

    fn outcome() -> Outcome {
        serde_json::from_value(json!({
            "rejected": [{"tick": 7, "conflict": "update_missing", "code": "02000", "message": "no such row"}],
            "rejected_count": 1,
            "wanted": ["public.orders", "public.notes"],
            "stopped": [{"table": "public.notes", "after": 8, "code": "42703", "message": "column x is missing"}],
        }))
        .unwrap()
    }

    #[test]
    fn each_change_has_its_result() {
        let changes = [
            change(6, "orders"),
            change(7, "orders"),
            change(8, "notes"),
            change(9, "notes"),
            change(10, "other"),
        ];
        let results = of(&changes, 5, &outcome(), false);
        assert_eq!(results[0], json!({"success": true}));
        assert_eq!(
            results[1],
            json!({"success": false, "error": {"name": "update_missing", "description": "no such row"}})
        );
        assert_eq!(results[2], json!({"success": true}));
        assert_eq!((&results[3]["success"], &results[3]["error"]["name"]), (&json!(false), &json!("42703")));
        assert!(
            results[4]["success"] == true
                && results[4]["warnings"][0].as_str().unwrap().contains("not followed")
        );
        assert_eq!(results.as_array().unwrap().len(), 5);
    }

    #[test]
    fn rows_and_places_are_shown_to_those_who_ask() {
        let mut deleted = change(7, "orders");
        deleted.as_object_mut().unwrap().remove("new");
        let results = of(&[change(6, "orders"), deleted], 2, &outcome(), true);
        assert_eq!(results[0]["record"], json!({"id": 6, "note": "x"}));
        assert_eq!(results[1]["record"], json!({"id": 7}));
        assert_eq!(results[1]["error"]["stacktrace"], json!(["update of public.orders at 5:7"]));
    }

    #[test]
    fn what_is_not_listed_is_said() {
        let results = of(&[change(6, "orders")], 1001, &outcome(), false);
        let last = results[1]["warnings"][0].as_str().unwrap();
        assert!(last.starts_with("1000 further deltas") && last.contains("1 were rejected"), "{last}");
        // Rows that are too large to be shown.
        let large: Vec<Value> = (0..10)
            .map(|tick| json!({"position": format!("5:{tick}"), "new": {"note": "x".repeat(1024 * 1024)}}))
            .collect();
        let results = of(&large, 10, &Outcome::default(), true);
        assert_eq!(results.as_array().unwrap().len(), 8);
        assert!(
            results[7]["warnings"][0].as_str().unwrap().starts_with("3 further"),
            "{}",
            results[7]["warnings"]
        );
    }
}
