//! The tables that records refer to, and which of them a reader wants.

use super::error::{FeedError, Kind, Result};
use super::source::{ChannelId, Source};
use pgquorum_change::Schema;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Versions of tables as one reader meets them. Not shared and not kept: numbers begin anew where the extension is
/// created anew, and a wrong name of a column would not be noticed.
pub struct Schemas {
    source: Arc<dyn Source>,
    id: ChannelId,
    known: HashMap<u64, Known>,
    /// Names of tables, `table` or `schema.table`; empty: all.
    wanted: Vec<String>,
}

struct Known {
    schema: Schema,
    wanted: bool,
}

impl Schemas {
    /// For a reader of these tables, of all if none is named.
    ///
    /// # Errors
    /// The channel has no table of that name and never had one.
    pub async fn new(source: Arc<dyn Source>, id: ChannelId, wanted: Vec<String>) -> Result<Schemas> {
        let mut schemas = Schemas { source, id, known: HashMap::new(), wanted };
        if !schemas.wanted.is_empty() {
            schemas.load(None).await?;
        }
        for name in &schemas.wanted {
            if !schemas.known.values().any(|known| is_named(&known.schema, name)) {
                let message = format!(
                    "channel {} has no table {name}; GET /channels/{} lists its tables, as schema.table",
                    schemas.id.channel, schemas.id.channel
                );
                return Err(FeedError::new(Kind::UnknownTable, message));
            }
        }
        Ok(schemas)
    }

    /// The table that a change is about, if the reader wants it and it is known already.
    pub fn wanted(&self, version: u64) -> Found<'_> {
        match self.known.get(&version) {
            None => Found::Unknown,
            Some(known) if known.wanted => Found::Wanted(&known.schema),
            Some(_) => Found::Unwanted,
        }
    }

    /// Asks the database for a version that was not met before.
    ///
    /// # Errors
    /// There is no such version, or the database does not answer.
    pub async fn learn(&mut self, version: u64) -> Result<()> {
        self.load(Some(version)).await?;
        if self.known.contains_key(&version) {
            return Ok(());
        }
        let message = format!(
            "a record of channel {} refers to version {version} of a table, which quorum.schema_version does not have",
            self.id
        );
        Err(FeedError::new(Kind::RecordBroken, message))
    }

    async fn load(&mut self, version: Option<u64>) -> Result<()> {
        for row in self.source.schemas(&self.id, version).await? {
            let schema = parse(&row)?;
            let wanted = self.wanted.is_empty() || self.wanted.iter().any(|name| is_named(&schema, name));
            self.known.insert(schema.id, Known { schema, wanted });
        }
        Ok(())
    }
}

/// What is known of a version.
pub enum Found<'s> {
    Unknown,
    Unwanted,
    Wanted(&'s Schema),
}

/// A row of `quorum.schema_version`.
pub fn parse(row: &Value) -> Result<Schema> {
    let text = |name| row.get(name).and_then(Value::as_str).unwrap_or_default();
    let id = row.get("id").and_then(Value::as_u64).unwrap_or_default();
    let columns = row.get("columns").map(Value::to_string).unwrap_or_default();
    Schema::new(id, text("schema_name"), text("table_name"), &columns).map_err(|error| {
        let message = format!("version {id} of a table does not read as the extension writes it: {error}");
        FeedError::new(Kind::RecordBroken, message)
    })
}

/// Whether a table goes by this name, `table` or `schema.table`.
pub fn is_named(schema: &Schema, name: &str) -> bool {
    let qualified = || name.strip_prefix(schema.schema.as_str())?.strip_prefix('.');
    name == schema.table || qualified() == Some(schema.table.as_str())
}
