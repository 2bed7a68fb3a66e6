//! `pgquorum publish`, `pgquorum unpublish` and `pgquorum publications`

use super::client::{Client, Target};
use super::failure::{Context, Failure};
use super::output::{Out, pairs, plain, table};
use super::subscribe::{CopyMode, Ddl, OnPurged, Policy, SecretArgs, filters, word};
use super::subscriptions::query;
use crate::uri::encoded;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is asked whether the other cluster follows, and how long that is waited for.
const LOOK: Duration = Duration::from_millis(500);
const WAIT: Duration = Duration::from_secs(60);

/// The subscription gets this name at the other cluster, whose database must have the tables already.
#[derive(Debug, Args)]
pub struct PublishArgs {
    #[command(flatten)]
    target: Target,
    /// What the subscription is called, here and there.
    name: String,
    /// Sidecars of the other cluster, e.g. https://10.1.0.1:8008; several, separated by commas: another one is asked when one
    /// fails.
    #[arg(long, required = true, value_delimiter = ',')]
    remote: Vec<String>,
    /// The channel of this cluster that is to be followed.
    #[arg(long)]
    channel: String,
    /// The database there that follows [default: that cluster's admin database].
    #[arg(long)]
    remote_database: Option<String>,
    /// The database here with the channel [default: the cluster's admin database].
    #[arg(long)]
    database: Option<String>,
    /// Only these tables, as schema.table.
    #[arg(long, value_delimiter = ',')]
    tables: Vec<String>,
    /// Only rows of a table that fulfil a condition; once for each table.
    #[arg(long, value_name = "TABLE=CONDITION")]
    filter: Vec<String>,
    /// What to do with rows that are in the tables there already; none: copy nothing.
    #[arg(long, value_enum)]
    copy: Option<CopyMode>,
    /// Where to begin, with --copy none: now, a position such as 5:1234, or a time.
    #[arg(long)]
    start: Option<String>,
    /// What to do when a change meets something else there than here.
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    /// What to do there when a table is changed here.
    #[arg(long, value_enum)]
    ddl: Option<Ddl>,
    /// What to do when this cluster no longer has what comes next.
    #[arg(long, value_enum)]
    on_purged: Option<OnPurged>,
    /// Take also what this cluster has from elsewhere.
    #[arg(long)]
    forward: bool,
    /// How many tables are copied at the same time.
    #[arg(long)]
    jobs: Option<u32>,
    #[command(flatten)]
    access: Access,
    /// Return when the other cluster has the subscription.
    #[arg(long)]
    wait: bool,
}

/// How the clusters reach each other.
#[derive(Debug, Default, Args)]
struct Access {
    /// Name of an admin at the other cluster, if it asks for one beside the secret.
    #[arg(long)]
    remote_login: Option<String>,
    #[command(flatten)]
    secret: SecretArgs,
    /// PEM file of the authority that signed the other cluster's certificates; needed for https.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Where the other cluster reaches this one's sidecars [default: all nodes, as this cluster knows them].
    #[arg(long, value_delimiter = ',')]
    own_addresses: Vec<String>,
    /// Name with which the other cluster logs in here, if this one asks for one beside the secret.
    #[arg(long)]
    own_login: Option<String>,
    /// File with the token or password with which the other cluster logs in here.
    #[arg(long, value_name = "FILE")]
    own_secret_file: Option<PathBuf>,
    /// PEM file of the authority that signed this cluster's certificates [default: that of its nodes' tls-ca].
    #[arg(long, value_name = "FILE")]
    own_ca: Option<PathBuf>,
}

impl Access {
    fn fields(&self) -> Result<[(&'static str, Option<Value>); 7], Failure> {
        let own_secret = self.own_secret_file.as_deref().map(text).transpose()?;
        Ok([
            ("login", self.remote_login.clone().map(Value::from)),
            ("secret", self.secret.read()?.map(Value::from)),
            ("ca", self.ca.as_deref().map(text).transpose()?.map(Value::from)),
            ("own_addresses", (!self.own_addresses.is_empty()).then(|| json!(self.own_addresses))),
            ("own_login", self.own_login.clone().map(Value::from)),
            ("own_secret", own_secret.map(|secret| secret.trim().into())),
            ("own_ca", self.own_ca.as_deref().map(text).transpose()?.map(Value::from)),
        ])
    }
}

fn text(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).or_fail(format!("cannot read {}", file.display()))
}

fn body(fields: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    let body: Map<String, Value> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    body.into()
}

fn path(name: &str, query: &str) -> String {
    format!("/publications/{}{query}", encoded(name))
}

pub async fn run(args: PublishArgs, out: Out) -> Result<(), Failure> {
    let fields = [
        ("name", Some(json!(args.name))),
        ("remote", Some(json!(args.remote))),
        ("channel", Some(json!(args.channel))),
        ("remote_database", args.remote_database.map(Value::from)),
        ("tables", (!args.tables.is_empty()).then(|| json!(args.tables))),
        ("filter", filters(&args.filter)?),
        ("copy", args.copy.as_ref().map(word)),
        ("start", args.start.map(Value::from)),
        ("policy", args.policy.as_ref().map(word)),
        ("ddl", args.ddl.as_ref().map(word)),
        ("on_purged", args.on_purged.as_ref().map(word)),
        ("forward", args.forward.then_some(Value::Bool(true))),
        ("jobs", args.jobs.map(Value::from)),
    ];
    let body = body(fields.into_iter().chain(args.access.fields()?));
    let client = args.target.client()?;
    let database = query(args.database.as_deref());
    let mut answer = client.call(Method::POST, &format!("/publications{database}"), Some(&body)).await?;
    if args.wait {
        answer = wait(&client, &args.name, &database).await?;
    }
    out.show(&answer, || {
        format!(
            "Publication {} is {}. How it goes on: pgquorum publications show {}",
            args.name,
            plain(&answer["state"]),
            args.name
        )
    });
    Ok(())
}

/// Waits until the other cluster has the subscription.
async fn wait(client: &Client, name: &str, database: &str) -> Result<Value, Failure> {
    let begun = Instant::now();
    loop {
        let state = client.get(&path(name, database)).await?;
        let given_up = begun.elapsed() >= WAIT;
        match state["state"].as_str().unwrap_or_default() {
            "established" => return Ok(state),
            found if found == "failed" || given_up => {
                let code = state["code"].as_str().unwrap_or("timed_out");
                let why = if given_up { ", it is tried again" } else { "" };
                let detail = plain(&state["detail"]);
                return Err(Failure::failed(code, format!("publication {name} is {found}{why}: {detail}")));
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The other cluster's tables stay as they are.
#[derive(Debug, Args)]
pub struct UnpublishArgs {
    #[command(flatten)]
    target: Target,
    name: String,
    /// The database here with the channel [default: the cluster's admin database].
    #[arg(long)]
    database: Option<String>,
    /// Forget it at once; what is at the other cluster stays, and goes on.
    #[arg(long)]
    force: bool,
}

pub async fn end(args: UnpublishArgs, out: Out) -> Result<(), Failure> {
    let mut query = query(args.database.as_deref());
    if args.force {
        query.push_str(if query.is_empty() { "?force=true" } else { "&force=true" });
    }
    let answer = args.target.client()?.call(Method::DELETE, &path(&args.name, &query), None).await?;
    let ended = answer["ended"] == true;
    out.show(&answer, || match (ended, args.force) {
        (true, false) => format!("Publication {} has ended, also at the other cluster.", args.name),
        (true, true) => format!("Publication {} is forgotten here: {}.", args.name, plain(&answer["detail"])),
        (false, _) => format!(
            "Publication {} is being ended; the other cluster has not done it yet ({}): {}",
            args.name,
            plain(&answer["code"]),
            plain(&answer["detail"])
        ),
    });
    Ok(())
}

/// Channels of this cluster that others follow, set up from here. Without a command: all of them.
#[derive(Debug, Args)]
pub struct PublicationsArgs {
    #[command(flatten)]
    target: Target,
    /// The database here with the channels [default: the cluster's admin database].
    #[arg(long, global = true)]
    database: Option<String>,
    #[command(subcommand)]
    command: Option<PublicationsCommand>,
}

#[derive(Debug, Subcommand)]
enum PublicationsCommand {
    /// List all of them.
    List,
    /// Show one.
    Show { name: String },
    /// Change how the clusters reach each other; what is not named stays. One that was ended there is made again.
    Set(Box<SetArgs>),
}

#[derive(Debug, Args)]
struct SetArgs {
    name: String,
    /// Sidecars of the other cluster.
    #[arg(long, value_delimiter = ',')]
    remote: Vec<String>,
    #[command(flatten)]
    access: Access,
}

pub async fn all(args: PublicationsArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    let query = query(args.database.as_deref());
    match args.command {
        None | Some(PublicationsCommand::List) => {
            let answer = client.get(&format!("/publications{query}")).await?;
            out.show(&answer, || list(&answer));
        }
        Some(PublicationsCommand::Show { name }) => {
            let answer = client.get(&path(&name, &query)).await?;
            out.show(&answer, || pairs(["NAME", "VALUE"], &answer));
        }
        Some(PublicationsCommand::Set(set)) => {
            let remote = ("remote", (!set.remote.is_empty()).then(|| json!(set.remote)));
            let body = body([remote].into_iter().chain(set.access.fields()?));
            let answer = client.call(Method::PATCH, &path(&set.name, &query), Some(&body)).await?;
            out.show(&answer, || format!("Publication {} is changed.", set.name));
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
            plain(&one["there_state"]),
            plain(&one["there_code"]),
            plain(&one["seen_at"]),
        ]
    };
    let rows: Vec<_> = answer.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "Nothing is published from here. Have another cluster follow: pgquorum publish NAME --remote URL --channel CHANNEL"
            .to_owned();
    }
    table(&["NAME", "STATE", "CODE", "CHANNEL", "THERE", "CODE THERE", "SEEN"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publications_read_well() {
        let one =
            json!({"name": "mirror", "state": "established", "there_state": "following", "seen_at": null});
        assert!(list(&json!([one])).contains("following"));
        assert!(list(&json!([])).contains("pgquorum publish"));
        assert_eq!(path("a b", "?database=x"), "/publications/a%20b?database=x");
    }

    #[test]
    fn only_what_is_given_is_sent() {
        let access = Access { own_addresses: vec!["http://a:1".to_owned()], ..Access::default() };
        assert_eq!(body(access.fields().unwrap()), json!({"own_addresses": ["http://a:1"]}));
        let missing = Access { own_ca: Some("/nowhere".into()), ..Access::default() };
        assert!(missing.fields().is_err());
    }
}
