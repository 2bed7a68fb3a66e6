//! What a schema version says of a table: the columns in the order in which values are encoded.

use serde::Deserialize;

/// How a value is shown in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `smallint`, `integer`: always a number.
    Integer,
    /// `bigint`: a number where a double holds it exactly, else a string.
    Bigint,
    /// `real`, `double precision`: a number unless it is NaN or infinite.
    Float,
    Bool,
    /// `json`, `jsonb`: as it is.
    Json,
    /// A string with the type's text.
    Text,
}

impl Kind {
    /// By the OID of a built-in type, which is the same in every PostgreSQL.
    fn of(base: u32) -> Kind {
        match base {
            21 | 23 => Kind::Integer,
            20 => Kind::Bigint,
            700 | 701 => Kind::Float,
            16 => Kind::Bool,
            114 | 3802 => Kind::Json,
            _ => Kind::Text,
        }
    }
}

/// A captured column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// The type's name in SQL, with its modifier: `numeric(10,2)`.
    pub type_name: String,
    pub type_oid: u32,
    /// Part of the key.
    pub key: bool,
    pub kind: Kind,
    /// `"name":`, ready to be written.
    pub(crate) label: Vec<u8>,
}

/// A table as it was when a change was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// The number that changes refer to.
    pub id: u64,
    pub schema: String,
    pub table: String,
    pub columns: Vec<Column>,
    /// Positions in `columns` of the key's columns, ascending: the order of a key image.
    pub key: Vec<usize>,
    /// `"schema":"…","table":"…"`, ready to be written.
    pub(crate) label: Vec<u8>,
}

#[derive(Deserialize)]
struct StoredColumn {
    name: String,
    #[serde(rename = "type")]
    type_name: String,
    type_oid: u32,
    #[serde(default)]
    key: bool,
    /// The type below all domains; without it the type itself.
    base: Option<u32>,
}

impl Schema {
    /// From a row of `quorum.schema_version`; `columns` is its JSON.
    ///
    /// # Errors
    /// `columns` is not what the extension writes.
    pub fn new(id: u64, schema: &str, table: &str, columns: &str) -> Result<Self, serde_json::Error> {
        let stored: Vec<StoredColumn> = serde_json::from_str(columns)?;
        let columns: Vec<Column> = stored
            .into_iter()
            .map(|column| {
                let mut label = Vec::new();
                crate::json::string(&mut label, column.name.as_bytes());
                label.push(b':');
                Column {
                    kind: Kind::of(column.base.unwrap_or(column.type_oid)),
                    name: column.name,
                    type_name: column.type_name,
                    type_oid: column.type_oid,
                    key: column.key,
                    label,
                }
            })
            .collect();
        let key = columns.iter().enumerate().filter(|(_, column)| column.key).map(|(at, _)| at).collect();
        let mut label = b"\"schema\":".to_vec();
        crate::json::string(&mut label, schema.as_bytes());
        label.extend_from_slice(b",\"table\":");
        crate::json::string(&mut label, table.as_bytes());
        Ok(Self { id, schema: schema.to_owned(), table: table.to_owned(), columns, key, label })
    }
}
