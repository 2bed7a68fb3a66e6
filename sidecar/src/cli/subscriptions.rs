//! `pgquorum subscriptions`

use super::client::Target;
use super::failure::{Context, Failure};
use super::output::{Out, bytes, pairs, plain, table};
use super::rejected;
use super::subscribe::{Basis, Ddl, OnPurged, Policy, SecretArgs, filters, word};
use crate::uri::encoded;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Channels of other clusters that are followed. Without a command: all of them.
#[derive(Debug, Args)]
pub struct SubscriptionsArgs {
    #[command(flatten)]
    target: Target,
    /// The database here that follows [default: the cluster's admin database].
    #[arg(long, global = true)]
    database: Option<String>,
    #[command(subcommand)]
    command: Option<SubscriptionsCommand>,
}

#[derive(Debug, Subcommand)]
enum SubscriptionsCommand {
    /// List all of them.
    List,
    /// Show one with its tables.
    Show { name: String },
    /// Let a stopped table go on with the change at which it stopped.
    Resume {
        name: String,
        /// As schema.table.
        table: String,
        /// Copy its rows anew instead.
        #[arg(long)]
        copy: bool,
    },
    /// Set the sequences of its tables so far that they give no number that the source's have given.
    Sequences {
        name: String,
        /// By what: the source's sequences, or the rows that are here.
        #[arg(long, value_enum)]
        from: Option<Basis>,
        /// How many numbers to leave out for safety [default: 1000].
        #[arg(long)]
        step: Option<u64>,
    },
    /// Set what to do about conflicts in one table.
    Policy {
        name: String,
        /// As schema.table.
        table: String,
        /// "default" for that of the subscription.
        policy: String,
    },
    /// Show what changes met here, and what was done.
    Conflicts { name: String },
    /// Show the changes that were left out, 100 at a time.
    Rejected {
        name: String,
        /// Only those with higher numbers.
        #[arg(long)]
        after: Option<u64>,
    },
    /// Try a change again that was left out.
    Retry { name: String, change: u64 },
    /// Forget a change that was left out.
    Drop { name: String, change: u64 },
    /// Let one rest; it goes on from where it is when it is enabled again.
    Disable { name: String },
    /// Let one that rests, or has stopped, go on.
    Enable { name: String },
    /// Change settings; what is not named stays.
    Set(Box<SetArgs>),
}

#[derive(Debug, Args)]
struct SetArgs {
    name: String,
    /// Sidecars of the source.
    #[arg(long, value_delimiter = ',')]
    remote: Vec<String>,
    /// Only these tables, as schema.table; "all" for all.
    #[arg(long, value_delimiter = ',')]
    tables: Vec<String>,
    /// Only rows of a table that fulfil a condition, from now on; in place of all conditions that there were.
    #[arg(long, value_name = "TABLE=CONDITION", conflicts_with = "no_filter")]
    filter: Vec<String>,
    /// All rows of all tables, from now on.
    #[arg(long)]
    no_filter: bool,
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    #[arg(long, value_enum)]
    ddl: Option<Ddl>,
    #[arg(long, value_enum)]
    on_purged: Option<OnPurged>,
    #[arg(long)]
    forward: Option<bool>,
    #[arg(long)]
    jobs: Option<u32>,
    /// Name for the source's login.
    #[arg(long)]
    remote_login: Option<String>,
    #[command(flatten)]
    secret: SecretArgs,
    /// PEM file of the authority that signed the source's certificates.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl SetArgs {
    fn body(&self) -> Result<Value, Failure> {
        let ca = match &self.ca {
            Some(file) => {
                Some(std::fs::read_to_string(file).or_fail(format!("cannot read {}", file.display()))?)
            }
            None => None,
        };
        let tables = match self.tables.as_slice() {
            [] => None,
            [all] if all == "all" => Some(Value::Null),
            tables => Some(json!(tables)),
        };
        let fields = [
            ("remote", (!self.remote.is_empty()).then(|| json!(self.remote))),
            ("tables", tables),
            ("filter", if self.no_filter { Some(Value::Null) } else { filters(&self.filter)? }),
            ("policy", self.policy.as_ref().map(word)),
            ("ddl", self.ddl.as_ref().map(word)),
            ("on_purged", self.on_purged.as_ref().map(word)),
            ("forward", self.forward.map(Value::from)),
            ("jobs", self.jobs.map(Value::from)),
            ("login", self.remote_login.clone().map(Value::from)),
            ("secret", self.secret.read()?.map(Value::from)),
            ("ca", ca.map(Value::from)),
        ];
        let body: Map<String, Value> =
            fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        if body.is_empty() {
            return Err(Failure::usage(
                "say what to change; `pgquorum subscriptions set --help` lists the settings",
            ));
        }
        Ok(body.into())
    }
}

/// `?database=…`, or nothing.
pub fn query(database: Option<&str>) -> String {
    database.map(|name| format!("?database={}", encoded(name))).unwrap_or_default()
}

pub fn path(name: &str, rest: &str, query: &str) -> String {
    format!("/subscriptions/{}{rest}{query}", encoded(name))
}

pub async fn run(args: SubscriptionsArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    let query = query(args.database.as_deref());
    match args.command {
        None | Some(SubscriptionsCommand::List) => {
            let answer = client.get(&format!("/subscriptions{query}")).await?;
            out.show(&answer, || list(&answer));
        }
        Some(SubscriptionsCommand::Show { name }) => {
            let mut answer = client.get(&path(&name, "", &query)).await?;
            answer["its_tables"] = client.get(&path(&name, "/tables", &query)).await?;
            out.show(&answer, || shown(&answer));
        }
        Some(SubscriptionsCommand::Resume { name, table, copy }) => {
            let rest = format!("/tables/{}/resume", encoded(&table));
            let body = json!({ "copy": copy });
            let answer = client.call(Method::POST, &path(&name, &rest, &query), Some(&body)).await?;
            out.show(&answer, || format!("Table {table} goes on: {}.", plain(&answer["state"])));
        }
        Some(SubscriptionsCommand::Sequences { name, from, step }) => {
            let fields = [("from", from.as_ref().map(word)), ("step", step.map(Value::from))];
            let body: Map<String, Value> =
                fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
            let path = path(&name, "/sequences", &query);
            let answer = client.call(Method::POST, &path, Some(&body.into())).await?;
            out.show(&answer, || sequences(&answer["sequences"]));
        }
        Some(SubscriptionsCommand::Policy { name, table, policy }) => {
            let body = json!({ "policy": (policy != "default").then_some(&policy) });
            let rest = format!("/tables/{}", encoded(&table));
            let answer = client.call(Method::PATCH, &path(&name, &rest, &query), Some(&body)).await?;
            out.show(&answer, || format!("Conflicts in {table}: {policy}."));
        }
        Some(SubscriptionsCommand::Conflicts { name }) => {
            let answer = client.get(&path(&name, "/conflicts", &query)).await?;
            out.show(&answer, || rejected::conflicts(&answer));
        }
        Some(SubscriptionsCommand::Rejected { name, after }) => {
            let mut query = query;
            if let Some(after) = after {
                let begin = if query.is_empty() { '?' } else { '&' };
                query.push_str(&format!("{begin}after={after}"));
            }
            let answer = client.get(&path(&name, "/rejected", &query)).await?;
            out.show(&answer, || rejected::list(&answer));
        }
        Some(SubscriptionsCommand::Retry { name, change }) => {
            let rest = format!("/rejected/{change}/retry");
            let answer = client.call(Method::POST, &path(&name, &rest, &query), None).await?;
            out.show(&answer, || format!("Change {change}: {}.", plain(&answer["outcome"])));
        }
        Some(SubscriptionsCommand::Drop { name, change }) => {
            let rest = format!("/rejected/{change}");
            let answer = client.call(Method::DELETE, &path(&name, &rest, &query), None).await?;
            out.show(&answer, || format!("Change {change} is forgotten."));
        }
        Some(SubscriptionsCommand::Disable { name }) => {
            let answer = client
                .call(Method::PATCH, &path(&name, "", &query), Some(&json!({"enabled": false})))
                .await?;
            out.show(&answer, || format!("Subscription {name} rests."));
        }
        Some(SubscriptionsCommand::Enable { name }) => {
            let answer =
                client.call(Method::PATCH, &path(&name, "", &query), Some(&json!({"enabled": true}))).await?;
            out.show(&answer, || format!("Subscription {name} goes on."));
        }
        Some(SubscriptionsCommand::Set(set)) => {
            let answer = client.call(Method::PATCH, &path(&set.name, "", &query), Some(&set.body()?)).await?;
            out.show(&answer, || format!("Subscription {} is changed.", set.name));
        }
    }
    Ok(())
}

fn list(answer: &Value) -> String {
    let row = |one: &Value| {
        vec![
            plain(&one["name"]),
            plain(&one["state"]),
            plain(&one["code"]),
            plain(&one["channel"]),
            plain(&one["position"]),
            plain(&one["lag_ticks"]),
            seconds(&one["lag_seconds"]),
            plain(&one["tables_copying"]),
            plain(&one["tables_stopped"]),
            plain(&one["conflicts"]),
            plain(&one["rejected"]),
        ]
    };
    let rows: Vec<_> = answer.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "Nothing is followed. Follow another cluster: pgquorum subscribe NAME --remote URL --channel CHANNEL"
            .to_owned();
    }
    let head = [
        "NAME",
        "STATE",
        "CODE",
        "CHANNEL",
        "POSITION",
        "LAG",
        "LAG S",
        "COPYING",
        "STOPPED",
        "CONFLICTS",
        "REJECTED",
    ];
    table(&head, rows)
}

/// What was done with sequences.
pub fn sequences(rows: &Value) -> String {
    let row = |one: &Value| {
        vec![
            format!("{}.{}.{}", plain(&one["schema"]), plain(&one["table"]), plain(&one["column"])),
            plain(&one["sequence"]),
            plain(&one["was"]),
            plain(&one["now"]),
            plain(&one["outcome"]),
        ]
    };
    let rows: Vec<_> = rows.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "No column of its tables takes numbers from a sequence.".to_owned();
    }
    table(&["COLUMN", "SEQUENCE", "WAS", "NOW", "OUTCOME"], rows)
}

fn seconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| plain(value), |seconds| format!("{seconds:.1}"))
}

fn shown(answer: &Value) -> String {
    let mut state = answer.clone();
    let tables = state.as_object_mut().and_then(|state| state.remove("its_tables")).unwrap_or_default();
    let row = |one: &Value| {
        vec![
            format!("{}.{}", plain(&one["schema"]), plain(&one["table"])),
            plain(&one["state"]),
            plain(&one["after"]),
            plain(&one["rows"]),
            one["bytes"].as_u64().map_or_else(|| plain(&one["bytes"]), bytes),
            plain(&one["code"]),
            plain(&one["message"]),
        ]
    };
    let rows: Vec<_> = tables.as_array().into_iter().flatten().map(row).collect();
    let head = ["TABLE", "STATE", "AFTER", "ROWS", "SIZE", "CODE", "MESSAGE"];
    format!("{}\n{}", pairs(["NAME", "VALUE"], &state), table(&head, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions_read_well() {
        let one = json!({"name": "mirror", "state": "following", "code": null, "position": "5:9", "lag_seconds": 0.25});
        let text = list(&json!([one]));
        assert!(text.contains("mirror") && text.contains("0.2"), "{text}");
        assert!(list(&json!([])).contains("pgquorum subscribe"));
        let text = shown(
            &json!({"name": "mirror", "its_tables": [{"schema": "public", "table": "orders", "bytes": 2048}]}),
        );
        assert!(text.contains("public.orders") && text.contains("2.0 kB"), "{text}");
        let set = json!([{"schema": "public", "table": "orders", "column": "id", "sequence": "orders_id_seq", "was": null,
            "now": 1500, "outcome": "set"}]);
        assert!(sequences(&set).contains("1500"), "{}", sequences(&set));
        assert!(sequences(&json!([])).contains("No column"));
        assert_eq!(path("a b", "/tables", "?database=x"), "/subscriptions/a%20b/tables?database=x");
    }
}
