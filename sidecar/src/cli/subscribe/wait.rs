//! `pgquorum subscribe --wait`

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::output::{bytes, plain};
use crate::cli::subscriptions::path;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::io::IsTerminal;
use std::time::Duration;

/// How often it is asked how far the copy is.
const LOOK: Duration = Duration::from_millis(500);

/// Waits until nothing is to be copied any more; then how the subscription is.
///
/// # Errors
/// It does not go on, or a table of it has stopped; or the cluster does not answer.
pub async fn until_copied(client: &Client, name: &str, database: &str) -> Result<Value, Failure> {
    let bar = progress_bar();
    loop {
        let state = client.get(&path(name, "", database)).await?;
        let tables = client.get(&path(name, "/tables", database)).await?;
        let copied = Copied::of(&tables);
        bar.set_length(copied.tables);
        bar.set_position(copied.done);
        bar.set_message(format!("{} rows, {}", copied.rows, bytes(copied.bytes)));
        if let Some(outcome) = outcome(name, &state, &tables) {
            bar.finish_and_clear();
            return outcome.map(|()| state);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What has become of it; `None`: it is still copied, or waits.
fn outcome(name: &str, state: &Value, tables: &Value) -> Option<Result<(), Failure>> {
    let stopped = stopped_tables(tables);
    match state["state"].as_str().unwrap_or_default() {
        "following" if stopped.is_empty() => Some(Ok(())),
        "following" => {
            let message = format!(
                "subscription {name} follows, but not with all tables; these have stopped:{stopped}\nMend what is said of each, then let it \
                 go on: pgquorum subscriptions resume {name} TABLE [--copy]"
            );
            Some(Err(Failure::failed("tables_stopped", message)))
        }
        "stopped" | "disabled" => {
            let (code, detail) = (state["code"].as_str().unwrap_or_default(), plain(&state["detail"]));
            let message = format!("subscription {name} does not go on: {detail}{stopped}");
            Some(Err(Failure::failed(code, message)))
        }
        _ => None,
    }
}

/// A line for each table that has stopped, and why.
fn stopped_tables(tables: &Value) -> String {
    let stopped = tables.as_array().into_iter().flatten().filter(|table| table["state"] == "stopped");
    let line = |table: &Value| {
        let [schema, name, code, message] =
            ["schema", "table", "code", "message"].map(|of| plain(&table[of]));
        format!("\n  {schema}.{name} ({code}): {message}")
    };
    stopped.map(line).collect()
}

/// How far the copy of all tables is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Copied {
    tables: u64,
    done: u64,
    rows: u64,
    bytes: u64,
}

impl Copied {
    fn of(tables: &Value) -> Copied {
        let mut copied = Copied::default();
        for table in tables.as_array().into_iter().flatten() {
            copied.tables += 1;
            copied.done += u64::from(table["state"] != "copy");
            copied.rows += table["rows"].as_u64().unwrap_or_default();
            copied.bytes += table["bytes"].as_u64().unwrap_or_default();
        }
        copied
    }
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} tables copied, {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::failure::Exit;
    use serde_json::json;

    #[test]
    fn progress_counts_all_tables() {
        let tables =
            json!([{"state": "copy", "rows": 3, "bytes": 10}, {"state": "following", "rows": 4, "bytes": 5}]);
        assert_eq!(Copied::of(&tables), Copied { tables: 2, done: 1, rows: 7, bytes: 15 });
    }

    #[test]
    fn tables_that_have_stopped_are_no_success() {
        let tables = |state: &str| {
            json!([{"schema": "public", "table": "orders", "state": "following", "code": null, "message": null},
                   {"schema": "shop", "table": "items", "state": state, "code": "42P01", "message": "there is no table shop.items here"}])
        };
        let found = |state: Value, tables: &Value| outcome("mirror", &state, tables);
        let following = || json!({"state": "following", "code": null, "detail": null});
        assert!(matches!(found(following(), &tables("following")), Some(Ok(()))));
        for state in ["starting", "copying", "waiting"] {
            assert!(found(json!({"state": state, "code": null}), &tables("stopped")).is_none(), "{state}");
        }
        let Some(Err(failure)) = found(following(), &tables("stopped")) else { panic!("a success") };
        assert_eq!((failure.exit, failure.code.as_str()), (Exit::Failed, "tables_stopped"));
        let wanted = "shop.items (42P01): there is no table shop.items here";
        assert!(failure.message.contains(wanted) && !failure.message.contains("orders"), "{failure}");
        let none =
            json!({"state": "stopped", "code": "no_table_copied", "detail": "no table could be copied"});
        let Some(Err(failure)) = found(none, &tables("stopped")) else { panic!("a success") };
        assert_eq!(failure.code, "no_table_copied");
        assert!(failure.message.contains("could be copied") && failure.message.contains(wanted), "{failure}");
    }
}
