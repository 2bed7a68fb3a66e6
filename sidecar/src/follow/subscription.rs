//! A subscription as the target's table has it.

use super::trouble::{Result, Trouble};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a subscription says. Two that are equal are followed in the same way.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Subscription {
    pub id: i32,
    pub name: String,
    pub enabled: bool,
    /// It is enabled for as long as somebody brings it to its source's end.
    #[serde(default)]
    pub woken: bool,
    /// Addresses of the source's nodes.
    pub remote: Vec<String>,
    pub remote_database: Option<String>,
    pub channel: String,
    pub tables: Option<Vec<String>>,
    /// Conditions of the rows that are wanted, by `schema.table`.
    pub filter: Option<BTreeMap<String, String>>,
    pub policy: String,
    pub ddl: String,
    pub on_purged: String,
    pub forward: bool,
    pub copy: String,
    pub start: Option<String>,
    pub jobs: i32,
    pub login: Option<String>,
    pub secret: Option<String>,
    /// PEM text of the authority that signed the source's certificates.
    pub ca: Option<String>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subscription({}, {:?})", self.id, self.name)
    }
}

impl Subscription {
    /// Reads a row of `quorum.subscription`.
    ///
    /// # Errors
    /// The extension has another version of it.
    pub fn read(row: Value) -> Result<Subscription> {
        // The parser's own message could quote a secret.
        serde_json::from_value(row).map_err(|_| {
            Trouble::stopped(
                "version",
                "the extension's table of subscriptions is not the one that this program knows. Are both of the same \
                 version? `make install` brings both, ALTER EXTENSION pgquorum UPDATE the table",
            )
        })
    }

    /// Whether this table is wanted.
    pub fn wants(&self, table: &TableName) -> bool {
        self.tables.as_ref().is_none_or(|wanted| wanted.contains(&table.to_string()))
    }

    /// The condition of the rows of this table that are wanted; `None`: all are.
    pub fn filter_of(&self, table: &TableName) -> Option<&str> {
        self.filter.as_ref()?.get(&table.to_string()).map(String::as_str)
    }
}

/// A table's name, at the source and here.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let row = serde_json::json!({"id": 1, "name": "a", "enabled": true, "remote": ["http://x:1"], "channel": "shop",
            "policy": "error", "ddl": "ignore", "on_purged": "stop", "forward": false, "copy": "error", "jobs": 2,
            "secret": "s3cret", "created_at": "now"});
        let subscription = Subscription::read(row).unwrap();
        assert!(!format!("{subscription:?}").contains("s3cret"));
        let broken = serde_json::json!({"id": "s3cret"});
        assert!(!Subscription::read(broken).unwrap_err().to_string().contains("s3cret"));
    }
}
