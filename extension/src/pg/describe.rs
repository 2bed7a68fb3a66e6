//! What a table looks like, in the words in which `quorum.table_columns` records it, from what PostgreSQL keeps of an
//! open table. Texts are in the encoding of the database.

use std::ffi::{CStr, c_char};
use std::io::Write;

use pgrx::pg_sys;

use super::trigger::OpenTable;

const LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;

pub struct Description {
    pub schema_name: Vec<u8>,
    pub table_name: Vec<u8>,
    /// The captured columns, as the `jsonb` prints that `quorum.table_columns` makes of them.
    pub columns: Vec<u8>,
}

impl Description {
    /// Of a table of which these columns are captured; `None`: all.
    pub fn of(table: OpenTable, captured: Option<&[i16]>) -> Self {
        // SAFETY: the relation is open while the trigger runs.
        unsafe { Self::of_relation(table.0, captured) }
    }

    /// Of a table that is not open; `None`: it cannot be had without waiting. Whoever changes a partitioned table locks
    /// it before its partitions, so waiting for it with a partition locked could be a deadlock.
    pub fn of_other(relid: u32, captured: Option<&[i16]>) -> Option<Self> {
        // SAFETY: locked before it is opened, and closed again; after an error the abort does it.
        unsafe {
            if !pg_sys::ConditionalLockRelationOid(relid.into(), LOCK) {
                return None;
            }
            let relation = pg_sys::try_relation_open(relid.into(), pg_sys::NoLock as pg_sys::LOCKMODE);
            if relation.is_null() {
                pg_sys::UnlockRelationOid(relid.into(), LOCK);
                return None;
            }
            let found = Self::of_relation(relation, captured);
            pg_sys::relation_close(relation, LOCK);
            Some(found)
        }
    }

    /// # Safety
    ///
    /// The relation is open.
    unsafe fn of_relation(relation: pg_sys::Relation, captured: Option<&[i16]>) -> Self {
        // SAFETY: see above; names end with a zero.
        unsafe {
            let class = &*(*relation).rd_rel;
            Self {
                schema_name: bytes_of(pg_sys::get_namespace_name(class.relnamespace)),
                table_name: bytes_of(class.relname.data.as_ptr()),
                columns: columns(relation, captured),
            }
        }
    }
}

/// The attributes of an open relation, dropped ones among them.
///
/// # Safety
///
/// The relation is open as long as they are used, and locked, so that they stay as they are.
pub(super) unsafe fn attributes<'a>(relation: pg_sys::Relation) -> &'a [pg_sys::FormData_pg_attribute] {
    // SAFETY: see above; the descriptor has as many attributes as it says. From PostgreSQL 18 on they lie behind their
    // short forms.
    unsafe {
        let descriptor = (*relation).rd_att;
        let count = usize::try_from((*descriptor).natts).unwrap_or(0);
        #[cfg(not(feature = "pg18"))]
        let all = (*descriptor).attrs.as_slice(count);
        #[cfg(feature = "pg18")]
        let all = std::slice::from_raw_parts((*descriptor).compact_attrs.as_ptr().add(count).cast(), count);
        all
    }
}

/// # Safety
///
/// The relation is open.
unsafe fn columns(relation: pg_sys::Relation, captured: Option<&[i16]>) -> Vec<u8> {
    let is_captured = |number: i16| captured.is_none_or(|numbers| numbers.contains(&number));
    let mut out = b"[".to_vec();
    // SAFETY: see above.
    unsafe {
        // Without one of its columns a key would tell no rows apart.
        let key = key(relation).filter(|key| key.iter().all(|number| is_captured(*number)));
        for attribute in attributes(relation) {
            let is_key = key.as_ref().is_some_and(|key| key.contains(&attribute.attnum));
            let computed = attribute.attgenerated != 0;
            if attribute.attisdropped || !is_captured(attribute.attnum) || computed && !is_key {
                continue;
            }
            if out.len() > 1 {
                out.extend_from_slice(b", ");
            }
            put_column(&mut out, attribute, is_key);
        }
    }
    out.push(b']');
    out
}

/// In the order in which `jsonb` keeps the names.
///
/// # Safety
///
/// In a transaction.
unsafe fn put_column(out: &mut Vec<u8>, attribute: &pg_sys::FormData_pg_attribute, key: bool) {
    let kind = attribute.atttypid;
    let (mut category, mut preferred): (c_char, bool) = (0, false);
    // SAFETY: reads the catalogue; the name ends with a zero.
    let (base, name) = unsafe {
        pg_sys::get_type_category_preferred(kind, &mut category, &mut preferred);
        (pg_sys::getBaseType(kind), CStr::from_ptr(attribute.attname.data.as_ptr()))
    };
    let _ = write!(out, "{{\"key\": {key}, \"base\": {}, \"name\": ", base.to_u32());
    put_string(out, name.to_bytes());
    out.extend_from_slice(b", \"type\": ");
    // SAFETY: as above.
    put_string(out, &unsafe { type_name(kind, attribute.atttypmod) });
    let _ = write!(out, ", \"attnum\": {}, \"category\": ", attribute.attnum);
    put_string(out, &[category as u8]);
    let _ = write!(out, ", \"type_oid\": {}}}", kind.to_u32());
}

/// A type's name as `format_type` gives it under `search_path = pg_catalog`, whatever the session's is.
///
/// # Safety
///
/// In a transaction.
unsafe fn type_name(kind: pg_sys::Oid, modifier: i32) -> Vec<u8> {
    let flags = pg_sys::FORMAT_TYPE_TYPEMOD_GIVEN | pg_sys::FORMAT_TYPE_FORCE_QUALIFY;
    // SAFETY: reads the catalogue; gives a string of its own.
    let name = unsafe { bytes_of(pg_sys::format_type_extended(kind, modifier, flags as _)) };
    match name.strip_prefix(b"pg_catalog.") {
        Some(plain) => plain.to_vec(),
        None => name,
    }
}

/// The columns of the primary key, else of the index that REPLICA IDENTITY names.
///
/// # Safety
///
/// The relation is open.
unsafe fn key(relation: pg_sys::Relation) -> Option<Vec<i16>> {
    let mut replica_identity = None;
    // SAFETY: see above; rows of the catalogue's cache are given back, and nothing fails while one is held.
    unsafe {
        for index in oids(pg_sys::RelationGetIndexList(relation)) {
            let id = pg_sys::SysCacheIdentifier::INDEXRELID as i32;
            let row = pg_sys::SearchSysCache1(id, pg_sys::Datum::from(index));
            if row.is_null() {
                continue;
            }
            let form = &*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_index>();
            let count = usize::try_from(form.indnkeyatts).unwrap_or(0);
            let columns = (form.indisvalid && (form.indisprimary || form.indisreplident))
                .then(|| form.indkey.values.as_slice(count).to_vec());
            let primary = form.indisprimary;
            pg_sys::ReleaseSysCache(row);
            match columns {
                Some(columns) if primary => return Some(columns),
                Some(columns) => replica_identity = Some(columns),
                None => {}
            }
        }
    }
    replica_identity
}

/// A string as PostgreSQL's `escape_json` writes it.
fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for &byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => {
                let _ = write!(out, "\\u{byte:04x}");
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// # Safety
///
/// It is a list of oids.
pub(super) unsafe fn oids(list: *mut pg_sys::List) -> Vec<u32> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: see above; a list has as many elements as it says.
    unsafe {
        let count = usize::try_from((*list).length).unwrap_or(0);
        std::slice::from_raw_parts((*list).elements, count)
            .iter()
            .map(|cell| cell.oid_value.to_u32())
            .collect()
    }
}

/// # Safety
///
/// The text is null or ends with a zero.
unsafe fn bytes_of(text: *const c_char) -> Vec<u8> {
    if text.is_null() {
        return Vec::new();
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(text) }.to_bytes().to_vec()
}
