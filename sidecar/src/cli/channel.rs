//! `pgquorum channel`

use super::client::Target;
use super::failure::Failure;
use super::output::{Out, bytes, pairs, plain, table};
use crate::uri::encoded;
use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::{Map, Value, json};

/// A channel is a named set of tables and the log of their changes, in a database where the extension is.
#[derive(Debug, Args)]
pub struct ChannelArgs {
    #[command(flatten)]
    target: Target,
    /// The database that the channel is in [default: the cluster's admin database].
    #[arg(long, global = true)]
    database: Option<String>,
    #[command(subcommand)]
    command: ChannelCommand,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OldImage {
    /// Nothing of the old row.
    None,
    /// Its key.
    Key,
    /// All of it.
    Full,
}

impl OldImage {
    fn name(self) -> &'static str {
        match self {
            OldImage::None => "none",
            OldImage::Key => "key",
            OldImage::Full => "full",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Import {
    Data,
    AttributesAndData,
    Suggest,
    Recommendation,
    Ranking,
    CustomerSpecificPricing,
    Geo,
}

impl Import {
    /// As clients of the delta interface know it.
    fn name(self) -> &'static str {
        match self {
            Import::Data => "DATA",
            Import::AttributesAndData => "ATTRIBUTES_AND_DATA",
            Import::Suggest => "SUGGEST",
            Import::Recommendation => "RECOMMENDATION",
            Import::Ranking => "RANKING",
            Import::CustomerSpecificPricing => "CUSTOMER_SPECIFIC_PRICING",
            Import::Geo => "GEO",
        }
    }
}

#[derive(Debug, Subcommand)]
enum ChannelCommand {
    /// Create a channel; `channel track` then adds tables to it.
    Create {
        name: String,
        /// What changes say of the old row, unless a table says otherwise.
        #[arg(long, value_enum)]
        old_image: Option<OldImage>,
        /// Keep changes at least so long, for example "7 days".
        #[arg(long)]
        retain_age: Option<String>,
        /// Keep at least so many changes.
        #[arg(long)]
        retain_rows: Option<u64>,
        /// Keep at least so many bytes of log.
        #[arg(long)]
        retain_bytes: Option<u64>,
        /// Above so many bytes the oldest log goes, whoever has not read it yet.
        #[arg(long)]
        cap_bytes: Option<u64>,
    },
    /// Drop a channel with its log; its tables stay, their changes are no longer captured.
    Drop { name: String },
    /// List all channels, or show one with its tables and followers.
    List { name: Option<String> },
    /// Capture the changes of a table.
    Track {
        channel: String,
        /// The table, as SQL names it: orders, sales.orders.
        table: String,
        /// Only these columns.
        #[arg(long, value_delimiter = ',')]
        columns: Vec<String>,
        /// Only rows for which this is true, for example "region = 'eu'".
        #[arg(long = "where", value_name = "CONDITION")]
        filter: Option<String>,
        /// What changes say of the old row [default: what the channel says].
        #[arg(long, value_enum)]
        old_image: Option<OldImage>,
    },
    /// Capture the changes of a table no longer.
    Untrack { channel: String, table: String },
    /// Drop all changes and begin a new version of the channel: its followers copy the tables anew.
    Prune { channel: String },
    /// Show versions and counts of a channel that is published, or followed, here.
    State { channel: String },
    /// Tell everybody who reads a channel to drop what was cached of it.
    Flush { channel: String },
    /// Count an import into a channel's tables. Loads of all that is followed are counted by themselves.
    CountImport {
        channel: String,
        /// What was imported.
        #[arg(value_enum)]
        kind: Import,
    },
    /// Fetch the description of all tables that are followed here anew: their config versions begin again at 0.
    ResetCounters,
    /// Apply what is missing here of a channel that is followed, and say what became of each change.
    Sync {
        channel: String,
        /// Show the changed rows, too.
        #[arg(long)]
        verbose: bool,
        /// Give up waiting after so long.
        #[arg(long, default_value = "60s", value_name = "DURATION")]
        wait: humantime::Duration,
    },
    /// The same for all channels that are followed here; those whose source was pruned are copied anew.
    Resync {
        /// Give up waiting after so long.
        #[arg(long, default_value = "10m", value_name = "DURATION")]
        wait: humantime::Duration,
    },
    /// Drop old changes now; followers that still need them are told to load anew.
    #[command(group = clap::ArgGroup::new("what").required(true).args(["keep", "before"]))]
    Purge {
        channel: String,
        /// Keep the newest so many.
        #[arg(long)]
        keep: Option<u64>,
        /// Keep those from this position on.
        #[arg(long, value_name = "POSITION")]
        before: Option<String>,
    },
}

pub async fn run(args: ChannelArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    let query = query(args.database.as_deref());
    let path = |channel: &str, rest: &str| format!("/channels/{}{rest}{query}", encoded(channel));
    match args.command {
        ChannelCommand::Create { name, old_image, retain_age, retain_rows, retain_bytes, cap_bytes } => {
            let body = given([
                ("name", Some(name.as_str().into())),
                ("old_image", old_image.map(|image| image.name().into())),
                ("retain_age", retain_age.map(Value::from)),
                ("retain_rows", retain_rows.map(Value::from)),
                ("retain_bytes", retain_bytes.map(Value::from)),
                ("cap_bytes", cap_bytes.map(Value::from)),
            ]);
            let answer = client.call(Method::POST, &format!("/channels{query}"), Some(&body)).await?;
            out.show(&answer, || {
                format!("Channel {name} is there. Add tables: pgquorum channel track {name} TABLE")
            });
        }
        ChannelCommand::Drop { name } => {
            let answer = client.call(Method::DELETE, &path(&name, ""), None).await?;
            out.show(&answer, || format!("Channel {name} is gone, its tables are left as they are."));
        }
        ChannelCommand::List { name: None } => {
            let answer = client.get(&format!("/channels{query}")).await?;
            out.show(&answer, || list(&answer));
        }
        ChannelCommand::List { name: Some(name) } => {
            let answer = client.get(&path(&name, "")).await?;
            out.show(&answer, || shown(&answer));
        }
        ChannelCommand::Track { channel, table, columns, filter, old_image } => {
            let columns = (!columns.is_empty()).then(|| json!(columns));
            let body = given([
                ("table", Some(table.as_str().into())),
                ("columns", columns),
                ("where", filter.map(Value::from)),
                ("old_image", old_image.map(|image| image.name().into())),
            ]);
            let answer = client.call(Method::POST, &path(&channel, "/tables"), Some(&body)).await?;
            out.show(&answer, || format!("Changes of {table} go into channel {channel} from now on."));
        }
        ChannelCommand::Untrack { channel, table } => {
            let rest = format!("/tables/{}", encoded(&table));
            let answer = client.call(Method::DELETE, &path(&channel, &rest), None).await?;
            out.show(&answer, || format!("Changes of {table} are no longer captured."));
        }
        ChannelCommand::Prune { channel } => {
            let answer = client.call(Method::POST, &path(&channel, "/prune"), None).await?;
            out.show(&answer, || {
                format!("Channel {channel} is at version {}.", plain(&answer["database_version"]))
            });
        }
        ChannelCommand::State { channel } => {
            let answer = client.get(&delta(&channel, "/state", &query)).await?;
            out.show(&answer, || state(&answer));
        }
        ChannelCommand::Flush { channel } => {
            let answer = client.call(Method::POST, &path(&channel, "/flush"), None).await?;
            out.show(&answer, || {
                format!("Flushes of channel {channel} so far: {}.", plain(&answer["cache_flushes"]))
            });
        }
        ChannelCommand::CountImport { channel, kind } => {
            let body = given([("kind", Some(kind.name().into()))]);
            let answer = client.call(Method::POST, &path(&channel, "/imports"), Some(&body)).await?;
            out.show(&answer, || {
                format!(
                    "Imports of {} into channel {channel} so far: {}.",
                    kind.name(),
                    plain(&answer["count"])
                )
            });
        }
        ChannelCommand::ResetCounters => {
            let answer =
                client.call(Method::POST, &delta("reset", "/config/version/counters", &query), None).await?;
            out.show(&answer, || plain(&answer));
        }
        ChannelCommand::Sync { channel, verbose, wait } => {
            let query = and(&query, &format!("verbose={verbose}&wait={}", span(*wait)));
            let client = client.patient(*wait);
            let answer = client.call(Method::POST, &delta(&channel, "/database/sync", &query), None).await?;
            out.show(&answer, || synced(&answer));
        }
        ChannelCommand::Resync { wait } => {
            let query = and(&query, &format!("wait={}", span(*wait)));
            let client = client.patient(*wait);
            let answer = client.call(Method::POST, &delta("database", "/sync/full", &query), None).await?;
            out.show(&answer, || "Everything that is followed here is where its source was.".to_owned());
        }
        ChannelCommand::Purge { channel, keep, before } => {
            let body = given([("keep", keep.map(Value::from)), ("before", before.map(Value::from))]);
            let answer = client.call(Method::POST, &path(&channel, "/purge"), Some(&body)).await?;
            out.show(&answer, || {
                format!("Channel {channel} begins with change {}.", plain(&answer["first_tick"]))
            });
        }
    }
    Ok(())
}

/// `?database=…`, or nothing.
fn query(database: Option<&str>) -> String {
    database.map(|name| format!("?database={}", encoded(name))).unwrap_or_default()
}

/// A path of the delta interface.
fn delta(channel: &str, rest: &str, query: &str) -> String {
    format!("/rest/v5/cluster/{}{rest}{query}", encoded(channel))
}

/// The query with more in it.
fn and(query: &str, more: &str) -> String {
    if query.is_empty() { format!("?{more}") } else { format!("{query}&{more}") }
}

fn span(wait: std::time::Duration) -> String {
    format!("{}ms", wait.as_millis())
}

fn state(answer: &Value) -> String {
    let mut text = String::new();
    for name in ["databaseVersion", "deltaVersion", "deltaErrorCount", "cacheFlush"] {
        text.push_str(&format!("{name}: {}\n", plain(&answer[name])));
    }
    for import in answer["importCounts"].as_array().into_iter().flatten() {
        text.push_str(&format!("imports of {}: {}\n", plain(&import["type"]), plain(&import["count"])));
    }
    text.trim_end().to_owned()
}

fn synced(answer: &Value) -> String {
    let mut text = String::new();
    let results = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let failed = results.iter().filter(|result| result["success"] == false);
    for result in failed.clone() {
        let error = &result["error"];
        text.push_str(&format!("not applied: {}: {}\n", plain(&error["name"]), plain(&error["description"])));
    }
    for warning in results.iter().flat_map(|result| result["warnings"].as_array().into_iter().flatten()) {
        text.push_str(&format!("{}\n", plain(warning)));
    }
    let failed = failed.count();
    format!("{text}Changes that were missing: {}; not applied of them: {failed}.", results.len())
}

fn given<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect::<Map<_, _>>()
        .into()
}

fn list(answer: &Value) -> String {
    let size = |value: &Value| value.as_u64().map_or_else(|| plain(value), bytes);
    let row = |state: &Value| {
        vec![
            plain(&state["channel"]),
            plain(&state["epoch"]),
            plain(&state["first_tick"]),
            plain(&state["last_tick"]),
            plain(&state["database_version"]),
            size(&state["bytes"]),
            plain(&state["followers"]),
        ]
    };
    let rows: Vec<_> = answer.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "There is no channel. Create one: pgquorum channel create NAME".to_owned();
    }
    table(&["CHANNEL", "EPOCH", "FIRST", "LAST", "VERSION", "SIZE", "FOLLOWERS"], rows)
}

fn shown(answer: &Value) -> String {
    let mut state = answer.clone();
    let mut take = |name| state.as_object_mut().and_then(|state| state.remove(name)).unwrap_or_default();
    let (tables, followers) = (take("tables"), take("followers"));
    let mut text = pairs(["NAME", "VALUE"], &state);
    for (what, rows) in [("TABLES", tables), ("FOLLOWERS", followers)] {
        text.push_str(&format!("\n{what}\n"));
        for row in rows.as_array().into_iter().flatten() {
            let members = row.as_object().into_iter().flatten();
            let members: Vec<_> = members
                .filter(|(name, value)| !value.is_null() && *name != "channel")
                .map(|(name, value)| format!("{name}={}", plain(value)))
                .collect();
            text.push_str(&format!("  {}\n", members.join("  ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_said_is_sent() {
        let body = given([("name", Some("a".into())), ("old_image", None), ("retain_rows", Some(5.into()))]);
        assert_eq!(body, json!({"name": "a", "retain_rows": 5}));
        assert_eq!(query(Some("my db")), "?database=my%20db");
    }

    #[test]
    fn what_was_applied_reads_well() {
        let answer = json!([{"success": true}, {"success": false, "error": {"name": "update_missing", "description": "no row"}},
            {"success": true, "warnings": ["more"]}]);
        let text = synced(&answer);
        assert_eq!(
            text,
            "not applied: update_missing: no row\nmore\nChanges that were missing: 3; not applied of them: 1."
        );
        let text = state(
            &json!({"databaseVersion": 2, "deltaVersion": 0, "importCounts": [{"type": "DATA", "count": 3}]}),
        );
        assert!(text.starts_with("databaseVersion: 2\n") && text.ends_with("imports of DATA: 3"), "{text}");
        assert_eq!(
            delta("a b", "/state", &and("?database=x", "wait=5ms")),
            "/rest/v5/cluster/a%20b/state?database=x&wait=5ms"
        );
        assert_eq!(and("", "wait=5ms"), "?wait=5ms");
    }

    #[test]
    fn channels_read_well() {
        let state = json!({"channel": "shop", "epoch": 5, "first_tick": 1, "last_tick": 9, "bytes": 2048, "followers": 0,
            "database_version": 1});
        let text = list(&json!([state]));
        assert!(text.contains("shop") && text.contains("2.0 kB"), "{text}");
        assert!(list(&json!([])).contains("channel create"));
        let text = shown(
            &json!({"channel": "shop", "tables": [{"table": "public.orders", "filter": null}], "followers": []}),
        );
        assert!(text.contains("  table=public.orders\n"), "{text}");
    }
}
