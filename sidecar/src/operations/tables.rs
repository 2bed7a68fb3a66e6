//! What is done in the databases here: tables are described, made and offered, neighbours followed.

use super::fault::Fault;
use super::known::{Flow, Login, read};
use super::wanted::Named;
use crate::feed::{Call, ChannelId, Given, Kind, Source};
use serde_json::Value;

/// The channel with the tables that clusters exchange, in each database.
pub const CHANNEL: &str = "cluster";

/// What wins when both sides change a row: the later write.
pub const POLICY: &str = LAST_WRITE_WINS;
const LAST_WRITE_WINS: &str = "last_write_wins";

/// Under which name this cluster follows a neighbour, in each database.
pub fn subscription_name(neighbour: &str) -> String {
    format!("node-{neighbour}")
}

/// What is here of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Present {
    Table(Value),
    /// The database is, the table is not.
    Database,
    Nothing,
}

/// What `quorum.describe_table` says. A database without the extension gets it.
pub async fn describe(source: &dyn Source, named: &Named) -> Result<Present, Fault> {
    let call = || {
        Call::new("describe_table").text("schema", "text", &named.table.schema).text(
            "table",
            "text",
            &named.table.table,
        )
    };
    let mut found = source.call(&named.database, call()).await;
    if found.as_ref().is_err_and(|error| error.kind == Kind::NoExtension) {
        source.create_database(&named.database).await?;
        found = source.call(&named.database, call()).await;
    }
    match found {
        Ok(text) if text.is_empty() => Ok(Present::Database),
        Ok(text) => Ok(Present::Table(read(&text)?)),
        Err(error) if error.kind == Kind::UnknownDatabase => Ok(Present::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// Puts a table into the channel; makes it, and its database, as it is described, if it is not there.
pub async fn offer(source: &dyn Source, named: &Named, description: Option<&Value>) -> Result<(), Fault> {
    let present = describe(source, named).await?;
    match (&present, description) {
        (Present::Nothing, None) => return Err(Fault::no_database(&named.database)),
        (Present::Database, None) => {
            return Err(Fault::no_table(&named.database, &named.table.short()));
        }
        (Present::Nothing, Some(_)) => source.create_database(&named.database).await?,
        _ => {}
    }
    let mut call = Call::new("offer_table")
        .text("channel", "text", CHANNEL)
        .text("schema", "text", &named.table.schema)
        .text("table", "text", &named.table.table)
        // From the first write on, not only when changes come.
        .text("versions", "bool", if POLICY == LAST_WRITE_WINS { "true" } else { "false" });
    if let Some(description) = description {
        call = call.text("description", "jsonb", &description.to_string());
    }
    source.call(&named.database, call).await?;
    Ok(())
}

/// Where the database's channel ends.
pub async fn end(source: &dyn Source, database: &str) -> Result<Option<String>, Fault> {
    let states = source.states(database, Some(CHANNEL)).await?;
    Ok(states.first().and_then(|state| state["end_position"].as_str()).map(str::to_owned))
}

/// Whether the channel tracks the table.
pub async fn is_offered(source: &dyn Source, named: &Named) -> Result<bool, Fault> {
    let id = ChannelId { database: named.database.clone(), channel: CHANNEL.to_owned() };
    let tables = source.tables(&id).await?;
    Ok(tables.iter().any(|row| {
        row["schema"] == named.table.schema.as_str() && row["table"] == named.table.table.as_str()
    }))
}

/// Who is followed.
pub struct Leader<'a> {
    pub name: &'a str,
    pub remote: &'a [String],
    pub login: &'a Login,
}

/// Follows exactly these tables of a neighbour in this database; `start`: from where on, where it was not followed.
pub async fn follow(
    source: &dyn Source,
    leader: &Leader<'_>,
    database: &str,
    flows: &[&Flow],
    start: Option<&str>,
) -> Result<(), Fault> {
    let tables = flows.iter().filter(|flow| flow.subscribe && flow.named.database == database);
    let tables: Vec<String> = tables.map(|flow| flow.named.table.to_string()).collect();
    let Login { user, secret, ca } = leader.login;
    let mut call = Call::new("follow_neighbour")
        .text("name", "text", &subscription_name(leader.name))
        .with("remote", "text[]", Given::Texts(leader.remote.to_vec()))
        .text("channel", "text", CHANNEL)
        .text("database", "text", database)
        .with("tables", "text[]", Given::Texts(tables))
        .text("start", "text", start.unwrap_or("now"))
        .text("policy", "text", POLICY);
    for (name, value) in [("login", user), ("secret", secret), ("ca", ca)] {
        if let Some(value) = value {
            call = call.text(name, "text", value);
        }
    }
    match source.call(database, call).await {
        // What is not there needs not be ended.
        Err(error) if flows.is_empty() && matches!(error.kind, Kind::UnknownDatabase | Kind::NoExtension) => {
            Ok(())
        }
        done => Ok(done.map(drop)?),
    }
}

/// Applies a table's changes again from this position of the neighbour on.
pub async fn replay(
    source: &dyn Source,
    neighbour: &str,
    named: &Named,
    position: &str,
) -> Result<(), Fault> {
    let call = Call::new("replay_table")
        .text("subscription_name", "text", &subscription_name(neighbour))
        .text("schema", "text", &named.table.schema)
        .text("table", "text", &named.table.table)
        .text("position", "text", position);
    source.call(&named.database, call).await?;
    Ok(())
}
