//! Tracked tables as collections: which they are, how their documents are written, and what an inventory says of them.

use super::error::{Failure, Result};
use super::names;
use crate::feed::{ChannelId, Source};
use pgquorum_change::Schema;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

const DOCUMENTS: u8 = 2;
pub const EDGES: u8 = 3;

/// A table as it was in one of its versions.
#[derive(Clone, Debug)]
pub struct Collection {
    pub cid: u64,
    pub name: String,
    /// With the columns named as attributes.
    pub schema: Arc<Schema>,
    /// Its documents go from one document to another: the table has columns `_from` and `_to`.
    pub edge: bool,
    /// It holds whole documents, the members of `data` being their attributes.
    pub documents: bool,
}

impl Collection {
    /// From a row of `quorum.schema_version`.
    pub fn parse(row: &Value) -> Result<Collection> {
        let text = |name| row.get(name).and_then(Value::as_str).unwrap_or_default();
        let version = row.get("id").and_then(Value::as_u64).unwrap_or_default();
        // PostgreSQL writes an oid as a text.
        let relid = row.get("relid").unwrap_or(&Value::Null);
        let cid = relid.as_u64().or_else(|| relid.as_str()?.parse().ok()).unwrap_or_default();
        let (schema, table) = (text("schema_name"), text("table_name"));
        let (edge, documents) = form(row.get("columns").unwrap_or(&Value::Null));
        let columns = renamed(row.get("columns").unwrap_or(&Value::Null), edge).to_string();
        let parsed = Schema::new(version, schema, table, &columns).map_err(|error| {
            Failure::internal(format!(
                "version {version} of a table does not read as the extension writes it: {error}"
            ))
        })?;
        let name = names::collection(schema, table);
        Ok(Collection { cid, name, schema: Arc::new(parsed), edge, documents })
    }

    /// The number that clients know its kind by.
    pub fn kind(&self) -> u8 {
        if self.edge { EDGES } else { DOCUMENTS }
    }

    /// Without a key there is nothing by which a row could be told from others.
    pub fn has_key(&self) -> bool {
        !self.schema.key.is_empty()
    }
}

const TEXT: u64 = 25;
const JSONB: u64 = 3802;

/// Whether a table with these columns holds edges, and whether it holds whole documents: `quorum.holds_documents` says the
/// same.
fn form(columns: &Value) -> (bool, bool) {
    let columns = columns.as_array().map_or(&[][..], Vec::as_slice);
    let number = |column: &Value, name: &str| column.get(name).and_then(Value::as_u64);
    let edge = ["_from", "_to"].iter().all(|wanted| {
        let text = |column: &Value| number(column, "base").or(number(column, "type_oid")) == Some(TEXT);
        columns.iter().any(|column| column["name"] == *wanted && text(column))
    });
    let expected: &[(&str, u64)] = if edge {
        &[("_key", TEXT), ("_from", TEXT), ("_to", TEXT), ("data", JSONB)]
    } else {
        &[("_key", TEXT), ("data", JSONB)]
    };
    let same = |(column, (name, oid)): (&Value, &(&str, u64))| {
        column["name"] == *name
            && number(column, "type_oid") == Some(*oid)
            && column["key"] == (*name == "_key")
    };
    (edge, columns.len() == expected.len() && columns.iter().zip(expected).all(same))
}

/// The columns with the names of attributes.
fn renamed(columns: &Value, edge: bool) -> Value {
    let mut columns = columns.clone();
    for column in columns.as_array_mut().into_iter().flatten() {
        if let Some(Value::String(name)) = column.get_mut("name") {
            *name = attribute(name, edge).into_owned();
        }
    }
    columns
}

fn attribute(column: &str, edge: bool) -> Cow<'_, str> {
    if edge && matches!(column, "_from" | "_to") { column.into() } else { names::attribute(column) }
}

/// What is needed to make such a table elsewhere, as `quorum.restore_collection` takes it.
fn description(row: &Value) -> Value {
    let columns = row["columns"].as_array().map_or(&[][..], Vec::as_slice);
    let described: Vec<Value> =
        columns.iter().map(|column| json!({"name": column["name"], "type": column["type"]})).collect();
    let key: Vec<&Value> =
        columns.iter().filter(|column| column["key"] == true).map(|column| &column["name"]).collect();
    json!({"columns": described, "key": key})
}

/// Versions of tables as one request meets them.
pub struct Collections {
    source: Arc<dyn Source>,
    id: ChannelId,
    known: HashMap<u64, Collection>,
    /// Whole documents are shown as the columns of their table.
    in_columns: bool,
    /// Tables that are tracked now; asked for when something is dropped.
    tracked: Option<Vec<u64>>,
}

impl Collections {
    pub fn new(source: Arc<dyn Source>, id: ChannelId) -> Collections {
        Collections { source, id, known: HashMap::new(), in_columns: false, tracked: None }
    }

    /// The same where whole documents are, if so, shown as the columns of their table, like all other rows.
    pub fn in_columns(self, in_columns: bool) -> Collections {
        Collections { in_columns, ..self }
    }

    /// A version that was learned.
    pub fn get(&self, version: u64) -> Option<&Collection> {
        self.known.get(&version)
    }

    /// The same for changes, which name the version that their values belong to.
    ///
    /// # Errors
    /// There is no such version, or the database does not answer.
    pub async fn learn(&mut self, version: u64) -> Result<&Collection> {
        if !self.known.contains_key(&version) {
            self.load(Some(version)).await?;
        }
        self.known.get(&version).ok_or_else(|| {
            let id = &self.id;
            Failure::internal(format!(
                "the log of channel {id} refers to version {version} of a table, which quorum.schema_version does not have"
            ))
        })
    }

    /// What the same table was called before this version; `None`: it is its first one.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn name_before(&mut self, version: u64) -> Result<Option<String>> {
        self.load(None).await?;
        let Some(cid) = self.get(version).map(|collection| collection.cid) else { return Ok(None) };
        let older = self.known.iter().filter(|(id, older)| **id < version && older.cid == cid);
        Ok(older.max_by_key(|(id, _)| **id).map(|(_, older)| older.name.clone()))
    }

    /// Whether a table is tracked now.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn is_tracked(&mut self, cid: u64) -> Result<bool> {
        if self.tracked.is_none() {
            let tables = self.source.table_details(&self.id).await?;
            self.tracked = Some(tables.iter().filter_map(|table| table["relid"].as_u64()).collect());
        }
        Ok(self.tracked.as_ref().is_some_and(|tracked| tracked.contains(&cid)))
    }

    async fn load(&mut self, version: Option<u64>) -> Result<()> {
        for row in self.source.schemas(&self.id, version).await? {
            let mut collection = Collection::parse(&row)?;
            collection.documents &= !self.in_columns;
            self.known.insert(collection.schema.id, collection);
        }
        Ok(())
    }
}

/// A tracked table with its indexes, as an inventory lists it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub collection: Collection,
    indexes: Vec<Index>,
    description: Value,
}

impl Listed {
    /// The tables that are collections, in the order of an inventory: documents before edges, by name, whatever the case.
    ///
    /// # Errors
    /// The database answered with something else.
    pub fn all(details: &[Value]) -> Result<Vec<Listed>> {
        let mut all = Vec::new();
        for row in details {
            let collection = Collection::parse(row)?;
            if collection.has_key() {
                let indexes = row["indexes"].as_array().map_or(&[][..], Vec::as_slice);
                let indexes = indexes.iter().filter_map(|one| Index::parse(one, collection.edge)).collect();
                all.push(Listed { collection, indexes, description: description(row) });
            }
        }
        all.sort_by_key(|Listed { collection, .. }| {
            (collection.edge, collection.name.to_lowercase(), collection.name.clone())
        });
        Ok(all)
    }

    /// `ready`: with what the inventory of a cluster says.
    pub fn inventory(&self, server: u64, ready: bool) -> Value {
        let mut parameters = parameters(&self.collection);
        parameters.insert("isSystem".to_owned(), false.into());
        parameters.insert("globallyUniqueId".to_owned(), unique_id(server, self.collection.cid).into());
        parameters.insert(DESCRIPTION.to_owned(), self.description.clone());
        let indexes: Vec<Value> = self.indexes.iter().map(Index::described).collect();
        let mut entry = json!({"parameters": parameters, "indexes": indexes});
        if ready {
            entry["planVersion"] = 1.into();
            entry["isReady"] = true.into();
            entry["allInSync"] = true.into();
        }
        entry
    }

    /// As `GET /_api/collection` lists it.
    pub fn summary(&self, server: u64) -> Value {
        let Collection { cid, name, .. } = &self.collection;
        json!({"id": cid.to_string(), "name": name, "status": 3, "type": self.collection.kind(), "isSystem": false,
            "globallyUniqueId": unique_id(server, *cid)})
    }
}

/// Where an inventory says how the table is made.
pub const DESCRIPTION: &str = "pgquorum";

/// What is said of a collection when it is listed, created or changed.
pub fn parameters(of: &Collection) -> Map<String, Value> {
    let value = json!({"version": 5, "type": of.kind(), "cid": of.cid.to_string(), "deleted": false, "doCompact": true,
        "maximalSize": 33_554_432, "name": of.name, "isVolatile": false, "waitForSync": false});
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A name for a table that no other cluster gives.
pub fn unique_id(server: u64, cid: u64) -> String {
    format!("h{server:X}/{cid}")
}

/// An index of a collection, as inventory and log tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub id: u64,
    pub kind: &'static str,
    /// Such a one allows several NULLs, which is what `sparse` says.
    pub unique: bool,
    /// The names of attributes.
    pub fields: Vec<String>,
}

impl Index {
    /// From what the database says of it. `None`: clients are told nothing of it, since a collection of edges has one over
    /// each end of its documents by itself.
    pub fn parse(row: &Value, edge: bool) -> Option<Index> {
        let fields = row["fields"].as_array()?.iter();
        let fields = fields
            .map(|field| Some(attribute(field.as_str()?, edge).into_owned()))
            .collect::<Option<Vec<_>>>()?;
        let (id, unique) = (row["id"].as_u64()?, row["unique"].as_bool()?);
        let own = edge && !unique && matches!(fields.as_slice(), [end] if end == "_from" || end == "_to");
        let kind = if row["method"] == "hash" { "hash" } else { "persistent" };
        (!own).then_some(Index { id, kind, unique, fields })
    }

    fn described(&self) -> Value {
        let Index { id, kind, unique, fields } = self;
        json!({"id": id.to_string(), "type": kind, "unique": unique, "sparse": unique, "fields": fields})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details() -> Vec<Value> {
        let column =
            |name: &str, key: bool| json!({"name": name, "type": "text", "type_oid": 25, "key": key});
        let row = |relid: u64, schema: &str, table: &str, key: bool| {
            json!({"id": relid, "relid": relid, "schema_name": schema, "table_name": table,
                "columns": [column("id", key), column("email", false), column("_key", false)],
                "indexes": [
                    {"id": 1009, "method": "btree", "unique": true, "fields": ["email"]},
                    {"id": 1010, "method": "hash", "unique": false, "fields": ["_key"]}]})
        };
        vec![
            row(7, "public", "Users", true),
            row(5, "public", "accounts", true),
            row(6, "x", "keyless", false),
        ]
    }

    #[test]
    fn an_inventory_has_the_documented_form() {
        let listed = Listed::all(&details()).unwrap();
        let names: Vec<&str> = listed.iter().map(|one| one.collection.name.as_str()).collect();
        assert_eq!(names, ["accounts", "Users"], "by name, without what has no key");
        let entry = listed[1].inventory(0xABC, false);
        assert_eq!(
            entry["parameters"],
            json!({"version": 5, "type": 2, "cid": "7", "deleted": false, "doCompact": true, "maximalSize": 33554432,
                "name": "Users", "isVolatile": false, "isSystem": false, "waitForSync": false,
                "globallyUniqueId": "hABC/7", "pgquorum": {"key": ["id"], "columns": [{"name": "id", "type": "text"},
                    {"name": "email", "type": "text"}, {"name": "_key", "type": "text"}]}})
        );
        assert_eq!(
            entry["indexes"],
            json!([{"id": "1009", "type": "persistent", "unique": true, "sparse": true, "fields": ["email"]},
                {"id": "1010", "type": "hash", "unique": false, "sparse": false, "fields": ["%5Fkey"]}])
        );
        assert!(entry.get("isReady").is_none());
        assert_eq!(entry["parameters"]["type"], 2);
        assert_eq!(listed[0].inventory(1, true)["allInSync"], true);
        assert_eq!(listed[1].summary(0xABC)["status"], 3);
    }

    #[test]
    fn tables_with_two_ends_hold_edges_and_come_last() {
        let column =
            |name: &str, oid: u64, key: bool| json!({"name": name, "type": "x", "type_oid": oid, "key": key});
        let row = |table: &str, columns: Value| json!({"id": 1, "relid": 5, "schema_name": "public", "table_name": table, "columns": columns});
        let documents = json!([column("_key", 25, true), column("data", 3802, false)]);
        let edges = json!([
            column("_key", 25, true),
            column("_from", 25, false),
            column("_to", 25, false),
            column("data", 3802, false)
        ]);
        let columns = json!([column("id", 23, true), column("_from", 25, false), column("_to", 25, false)]);
        let numbers = json!([column("id", 23, true), column("_from", 23, false), column("_to", 25, false)]);
        let rows = [row("a", columns), row("b", documents), row("c", numbers), row("d", edges)];
        let listed = Listed::all(&rows).unwrap();
        let found: Vec<_> = listed
            .iter()
            .map(|one| (one.collection.name.as_str(), one.collection.kind(), one.collection.documents))
            .collect();
        assert_eq!(found, [("b", 2, true), ("c", 2, false), ("a", 3, false), ("d", 3, true)]);
        let attributes = |of: usize| {
            let schema = &listed[of].collection.schema;
            schema.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(attributes(1), ["id", "%5Ffrom", "%5Fto"]);
        assert_eq!(attributes(2), ["id", "_from", "_to"]);
        assert_eq!(listed[2].summary(1)["type"], 3);
    }

    #[test]
    fn what_every_collection_of_edges_has_by_itself_is_not_told() {
        let index = |unique: bool, fields: &[&str], edge: bool| {
            let row = json!({"id": 1000, "method": "btree", "unique": unique, "fields": fields});
            Index::parse(&row, edge).map(|index| index.fields.join(" "))
        };
        assert_eq!(index(false, &["_from"], true), None);
        assert_eq!(index(false, &["_to"], true), None);
        assert_eq!(index(true, &["_to"], true).as_deref(), Some("_to"));
        assert_eq!(index(false, &["_from", "_key"], true).as_deref(), Some("_from %5Fkey"));
        assert_eq!(index(false, &["_from"], false).as_deref(), Some("%5Ffrom"));
        assert_eq!(Index::parse(&json!({"id": 1000, "unique": true}), false), None);
    }
}
