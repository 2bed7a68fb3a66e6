//! What the extension's tables say of a tracked table, read without SQL: every session asks once for each table, and
//! again whenever something happens to the table.

use std::ffi::CStr;

use pgrx::PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
use pgrx::pg_sys;

use super::describe::{Description, oids};
use super::encoding;
use super::query;
use super::table::{Key, Table, View};
use super::trigger::OpenTable;
use crate::error::Refusal;

unsafe extern "C-unwind" {
    /// catalog/partition.h; missing from pgrx's bindings.
    fn get_partition_ancestors(relid: pg_sys::Oid) -> *mut pg_sys::List;
}

/// How a table or partition is captured. Texts are UTF-8.
pub struct Tracking {
    /// The table that is tracked: this one, or one that it is a partition of.
    pub root: u32,
    pub channel: i32,
    pub old_image: String,
    pub filter: Option<String>,
    /// The schema version that says what is true now; `None`: something changed that no event trigger saw.
    pub schema_version: Option<u64>,
    pub schema_name: String,
    pub table_name: String,
    /// As `quorum.schema_version` has them.
    pub columns: String,
}

/// A row of `quorum.tracked_table`.
struct Tracked {
    root: u32,
    channel: i32,
    columns: Option<Vec<i16>>,
    filter: Option<Vec<u8>>,
    old_image: Option<Vec<u8>>,
    schema_version: i64,
}

/// What reading the tables gave.
enum Read {
    Tracked(Tracking),
    Untracked,
    /// That version is not what the table is now, or cannot be compared without waiting.
    Unclear,
}

/// How a table is captured in the state of this moment: the newest that was committed, and what this transaction did;
/// its own snapshot may be older. `None`: it is not captured. Raises XX000 if that cannot be read.
pub fn of(table: OpenTable) -> Option<Tracking> {
    match read(table) {
        Read::Tracked(found) => Some(found),
        Read::Untracked => None,
        Read::Unclear => ask(table.relid()),
    }
}

fn read(table: OpenTable) -> Read {
    // SAFETY: may be called wherever a lock may be taken. The catalogues' caches are compared with what was committed:
    // not everything that changes them needs the table's lock.
    unsafe { pg_sys::AcceptInvalidationMessages() };
    let Some(all) = Table::of_quorum_in_trigger(c"tracked_table") else { return Read::Unclear };
    let relid = table.relid();
    let found = tracked(&all, relid).or_else(|| ancestors(table).into_iter().find_map(|a| tracked(&all, a)));
    let Some(found) = found else { return Read::Untracked };
    let now = if found.root == relid {
        Some(Description::of(table, found.columns.as_deref()))
    } else {
        Description::of_other(found.root, found.columns.as_deref())
    };
    let version = u64::try_from(found.schema_version).ok();
    let (Some(now), Some(version), Some(old_image)) = (now, version, &found.old_image) else {
        return Read::Unclear;
    };
    if !describes(&found, &now) {
        return Read::Unclear;
    }
    let text = |bytes: &[u8]| encoding::to_utf8(bytes).into_owned();
    Read::Tracked(Tracking {
        root: found.root,
        channel: found.channel,
        old_image: text(old_image),
        filter: found.filter.as_deref().map(text),
        schema_version: Some(version),
        schema_name: text(&now.schema_name),
        table_name: text(&now.table_name),
        columns: text(&now.columns),
    })
}

fn tracked(all: &Table, relid: u32) -> Option<Tracked> {
    let at = |name: &CStr| all.column(name);
    let (channel, columns, filter) = (at(c"channel"), at(c"columns"), at(c"filter"));
    let (old_image, schema_version) = (at(c"old_image"), at(c"schema_version"));
    let mut found = None;
    all.matching(View::Now, Key::Oid(relid), |row| {
        found =
            row.integer(channel).zip(row.bigint(schema_version)).map(|(channel, schema_version)| Tracked {
                root: relid,
                channel,
                columns: row.smallints(columns),
                filter: row.bytes(filter),
                old_image: row.bytes(old_image),
                schema_version,
            });
        false
    });
    found
}

/// The tables that a partition belongs to, the nearest first.
pub fn ancestors(table: OpenTable) -> Vec<u32> {
    // SAFETY: the relation is open; the list is read while it is there.
    unsafe {
        if !(*(*table.0).rd_rel).relispartition {
            return Vec::new();
        }
        let oid = (*table.0).rd_id;
        oids(pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_ancestors(oid)))
    }
}

/// Does the version that the table is said to have say what is true now?
fn describes(found: &Tracked, now: &Description) -> bool {
    let Some(all) = Table::of_quorum_in_trigger(c"schema_version") else { return false };
    let at = |name: &CStr| all.column(name);
    let (relid, channel, columns) = (at(c"relid"), at(c"channel"), at(c"columns"));
    let (schema_name, table_name) = (at(c"schema_name"), at(c"table_name"));
    let mut same = false;
    all.matching(View::Now, Key::Bigint(found.schema_version), |row| {
        same = row.oid(relid) == found.root
            && row.integer(channel) == Some(found.channel)
            && row.bytes(schema_name).as_ref() == Some(&now.schema_name)
            && row.bytes(table_name).as_ref() == Some(&now.table_name)
            && row.json_bytes(columns).as_ref() == Some(&now.columns);
        false
    });
    same
}

/// The same by SQL, which looks for another version that says what is true now.
#[cold]
fn ask(relid: u32) -> Option<Tracking> {
    let found = query::newest(
        c"SELECT root, channel, old_image, filter, schema_version, schema_name, table_name, columns FROM quorum.tracking($1)",
        relid,
    )?;
    Some(from_values(found).unwrap_or_else(|| unreadable()))
}

fn from_values(row: query::Values) -> Option<Tracking> {
    let [root, channel, old_image, filter, version, schema_name, table_name, columns] =
        <[Option<String>; 8]>::try_from(row).ok()?;
    let schema_version = match version {
        Some(number) => Some(number.parse().ok()?),
        None => None,
    };
    Some(Tracking {
        root: root?.parse().ok()?,
        channel: channel?.parse().ok()?,
        old_image: old_image?,
        filter,
        schema_version,
        schema_name: schema_name?,
        table_name: table_name?,
        columns: columns?,
    })
}

/// Raises XX000.
#[cold]
pub fn unreadable() -> ! {
    Refusal::new(ERRCODE_INTERNAL_ERROR, "how a tracked table is to be captured cannot be read")
        .hint("quorum.tracking and quorum.schema_version do not say what they must; is the extension's SQL of the library's version?")
        .raise()
}

/// The table that a channel's log grows in.
pub enum Segment {
    /// Its oid.
    Open(u32),
    /// The channel is gone, maybe with the extension.
    NoChannel,
    /// The channel has no table to write to.
    Missing,
}

/// Where a channel's log grows in the state of this moment, as [`of`]. `watch` is told, before anything is read, of the
/// table of which notices say that this has changed.
pub fn segment(channel: i32, watch: impl FnOnce(u32)) -> Segment {
    let mut heap = None;
    if let Some(all) = Table::of_quorum_in_trigger(c"log_segment") {
        watch(all.oid());
        let (at, closed_at) = (all.column(c"heap"), all.column(c"closed_at"));
        all.matching(View::Now, Key::Integer(channel), |row| {
            if row.is_null(closed_at) {
                heap = Some(row.oid(at));
            }
            heap.is_none()
        });
    }
    match heap {
        Some(heap) => Segment::Open(heap),
        None => ask_segment(channel),
    }
}

#[cold]
fn ask_segment(channel: i32) -> Segment {
    // This transaction may have dropped the extension itself.
    if !query::has_extension(c"pgquorum") {
        return Segment::NoChannel;
    }
    let Ok(number) = u32::try_from(channel) else { return Segment::NoChannel };
    let Some(found) = query::newest(c"SELECT heap FROM quorum.current_segment($1)", number) else {
        return Segment::NoChannel;
    };
    let heap = found.into_iter().next().flatten().and_then(|text| text.parse().ok());
    heap.map_or(Segment::Missing, Segment::Open)
}
