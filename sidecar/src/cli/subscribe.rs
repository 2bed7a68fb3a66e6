//! `pgquorum subscribe` and `pgquorum unsubscribe`

mod wait;

use super::client::Target;
use super::failure::{Context, Failure};
use super::output::{Out, plain};
use super::subscriptions::{path, query, sequences};
use clap::{Args, ValueEnum};
use hyper::Method;
use serde_json::{Map, Value, json};
use std::io::BufRead;
use std::path::PathBuf;

/// The tables must be here already, with the same names and at least the columns that the source has.
#[derive(Debug, Args)]
pub struct SubscribeArgs {
    #[command(flatten)]
    target: Target,
    /// What the subscription is called here.
    name: String,
    /// Sidecars of the source, e.g. https://10.1.0.1:8008; several, separated by commas: another one is asked when one fails.
    #[arg(long, required = true, value_delimiter = ',')]
    remote: Vec<String>,
    /// The source's channel.
    #[arg(long)]
    channel: String,
    /// The source's database [default: its admin database].
    #[arg(long)]
    remote_database: Option<String>,
    /// The database here that follows [default: the cluster's admin database].
    #[arg(long)]
    database: Option<String>,
    /// Only these tables, as schema.table.
    #[arg(long, value_delimiter = ',')]
    tables: Vec<String>,
    /// Only rows of a table that fulfil a condition, such as "public.orders=region = 'eu'"; once for each table.
    #[arg(long, value_name = "TABLE=CONDITION")]
    filter: Vec<String>,
    /// What to do with rows that are in the tables already; none: copy nothing.
    #[arg(long, value_enum)]
    copy: Option<CopyMode>,
    /// Where to begin, with --copy none: now, a position such as 5:1234, or a time.
    #[arg(long)]
    start: Option<String>,
    /// What to do when a change meets something else here than at the source.
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    /// What to do when the source changes a table itself.
    #[arg(long, value_enum)]
    ddl: Option<Ddl>,
    /// What to do when the source no longer has what comes next.
    #[arg(long, value_enum)]
    on_purged: Option<OnPurged>,
    /// Take also what the source has from elsewhere.
    #[arg(long)]
    forward: bool,
    /// How many tables are copied at the same time.
    #[arg(long)]
    jobs: Option<u32>,
    /// Name for the source's login, if it asks for one beside the secret.
    #[arg(long)]
    remote_login: Option<String>,
    #[command(flatten)]
    secret: SecretArgs,
    /// PEM file of the authority that signed the source's certificates; needed for https.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Return when the tables are copied, and show how far that is. If one has stopped, that is a failure, though the others go on.
    #[arg(long)]
    wait: bool,
}

/// Where the source's token comes from. Never the command line: everybody on the machine can read that.
#[derive(Debug, Default, Args)]
pub struct SecretArgs {
    /// File with the source's token.
    #[arg(long, value_name = "FILE", group = "secret")]
    secret_file: Option<PathBuf>,
    /// Read the source's token from standard input.
    #[arg(long, group = "secret")]
    secret_stdin: bool,
    /// Ask for the source's token on the terminal.
    #[arg(long, group = "secret")]
    secret_prompt: bool,
}

impl SecretArgs {
    /// The token, if one is to be given.
    ///
    /// # Errors
    /// It cannot be read, or is empty.
    pub fn read(&self) -> Result<Option<String>, Failure> {
        let text = if let Some(file) = &self.secret_file {
            std::fs::read_to_string(file).or_fail(format!("cannot read the token {}", file.display()))?
        } else if self.secret_stdin {
            let mut line = String::new();
            std::io::stdin()
                .lock()
                .read_line(&mut line)
                .or_fail("cannot read the token from standard input")?;
            line
        } else if self.secret_prompt {
            let terminal = console::Term::stderr();
            terminal.write_str("Token of the source: ").or_fail("cannot ask for the token")?;
            terminal.read_secure_line().or_fail("cannot ask for the token")?
        } else {
            return Ok(None);
        };
        match text.trim() {
            "" => Err(Failure::usage("the token is empty")),
            token => Ok(Some(token.to_owned())),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CopyMode {
    /// A table that holds rows is not copied, and stops.
    Error,
    /// The rows here go.
    Truncate,
    /// Rows with the same key are overwritten, others stay.
    Merge,
    /// Nothing is copied.
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Policy {
    /// The table stops.
    Error,
    /// The change is left out, and kept for later.
    Skip,
    /// The source's change wins.
    ApplyRemote,
    /// What is here wins.
    KeepLocal,
    /// The later of the two wins.
    LastWriteWins,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Ddl {
    Ignore,
    Stop,
    Apply,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OnPurged {
    /// The subscription stops.
    Stop,
    /// The tables are copied anew; what is in them goes.
    Reload,
}

/// The word that SQL and REST use.
pub fn word(value: &impl ValueEnum) -> Value {
    let name = value.to_possible_value().map(|value| value.get_name().replace('-', "_"));
    name.map_or(Value::Null, Value::from)
}

/// The conditions of tables, as REST takes them.
///
/// # Errors
/// One is not of the form `schema.table=condition`, or a table has two.
pub fn filters(given: &[String]) -> Result<Option<Value>, Failure> {
    let mut all = Map::new();
    for text in given {
        let Some((table, condition)) = text.split_once('=').filter(|(table, _)| table.contains('.')) else {
            return Err(Failure::usage(format!("--filter {text:?} is not schema.table=condition")));
        };
        if all.insert(table.trim().to_owned(), condition.trim().into()).is_some() {
            return Err(Failure::usage(format!(
                "--filter names table {} twice; write both conditions into one, with AND or OR",
                table.trim()
            )));
        }
    }
    Ok((!all.is_empty()).then_some(all.into()))
}

pub async fn run(args: SubscribeArgs, out: Out) -> Result<(), Failure> {
    let secret = args.secret.read()?;
    let ca = match &args.ca {
        Some(file) => Some(std::fs::read_to_string(file).or_fail(format!("cannot read {}", file.display()))?),
        None => None,
    };
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
        ("login", args.remote_login.map(Value::from)),
        ("secret", secret.map(Value::from)),
        ("ca", ca.map(Value::from)),
    ];
    let body: Map<String, Value> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let client = args.target.client()?;
    let database = query(args.database.as_deref());
    let mut answer =
        client.call(Method::POST, &format!("/subscriptions{database}"), Some(&body.into())).await?;
    if args.wait {
        answer = wait::until_copied(&client, &args.name, &database).await?;
    }
    out.show(&answer, || {
        format!(
            "Subscription {} is {}. How it goes on: pgquorum subscriptions show {}",
            args.name,
            plain(&answer["state"]),
            args.name
        )
    });
    Ok(())
}

/// The tables here stay as they are.
#[derive(Debug, Args)]
pub struct UnsubscribeArgs {
    #[command(flatten)]
    target: Target,
    name: String,
    /// The database here that follows [default: the cluster's admin database].
    #[arg(long)]
    database: Option<String>,
    /// Set the sequences of its tables first, because this database takes the source's place: by what the source's have given,
    /// or, if that is lost, by the rows here.
    #[arg(long, value_enum)]
    sequences: Option<Basis>,
    /// How many numbers to leave out for safety [default: 1000].
    #[arg(long, requires = "sequences")]
    step: Option<u64>,
}

/// By what sequences are set.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Basis {
    Source,
    Rows,
}

pub async fn end(args: UnsubscribeArgs, out: Out) -> Result<(), Failure> {
    let mut query = query(args.database.as_deref());
    let more = [("sequences", args.sequences.as_ref().map(word)), ("step", args.step.map(Value::from))];
    for (name, value) in more {
        if let Some(value) = value {
            let begin = if query.is_empty() { '?' } else { '&' };
            query.push_str(&format!("{begin}{name}={}", plain(&value)));
        }
    }
    let answer = args.target.client()?.call(Method::DELETE, &path(&args.name, "", &query), None).await?;
    out.show(&answer, || {
        let ended = format!("Subscription {} has ended, its tables stay as they are.", args.name);
        if answer["sequences"].is_null() {
            ended
        } else {
            format!("{}\n{ended}", sequences(&answer["sequences"]))
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_come_behind_their_tables() {
        let given = ["public.orders=region = 'eu'".to_owned(), "a.b = c > 3".to_owned()];
        let read = filters(&given).unwrap().unwrap();
        assert_eq!(read, json!({"public.orders": "region = 'eu'", "a.b": "c > 3"}));
        assert_eq!(filters(&[]).unwrap(), None);
        for wrong in ["orders=id > 3", "public.orders", "=x"] {
            assert!(filters(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        assert!(filters(&["a.b=c".to_owned(), "a.b=d".to_owned()]).is_err());
    }

    #[test]
    fn words_are_those_of_sql() {
        assert_eq!(word(&Policy::LastWriteWins), "last_write_wins");
        assert_eq!(word(&CopyMode::None), "none");
    }

    #[test]
    fn a_token_comes_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " s3cret\n").unwrap();
        let args = |secret_file| SecretArgs { secret_file, ..SecretArgs::default() };
        assert_eq!(args(Some(file.path().to_owned())).read().unwrap().as_deref(), Some("s3cret"));
        assert!(args(Some("/nowhere".into())).read().is_err());
        assert_eq!(args(None).read().unwrap(), None);
    }
}
