//! Indexes of a table that changes are applied to: by which its rows are found, and in which they may collide.

use pgquorum_change::Schema;
use pgrx::pg_sys;

use super::apply_target::{Column, Fault};
use super::worker::lock;

/// Where the values of an index come from and how rows are found by it.
pub(super) struct Key {
    pub index: pg_sys::Relation,
    pub scan: Vec<pg_sys::ScanKeyData>,
    /// For each value of a key image: which column of the index it is.
    pub of_key: Vec<Option<usize>>,
    /// The same for each value of a whole row.
    pub of_row: Vec<Option<usize>>,
    /// For each value of a key image: which column of the schema version it is.
    pub key_columns: Vec<usize>,
}

/// The unique index by which rows of the source are found here: on exactly the columns of its key. Where it has none and
/// sends whole old rows, any that they can be found by.
///
/// # Safety
///
/// The relation is open.
pub(super) unsafe fn key_index(
    relation: pg_sys::Relation,
    schema: &Schema,
    columns: &[Column],
) -> Result<pg_sys::Oid, Fault> {
    // SAFETY: see above; the list is a copy, and each index is locked while it is looked at.
    unsafe {
        let mut wanted: Vec<i16> = Vec::new();
        for at in &schema.key {
            wanted.extend(columns[*at].place.map(|place| place as i16 + 1));
        }
        wanted.sort_unstable();
        let sent = |number: i16| columns.iter().any(|column| column.place == Some(number as usize - 1));
        let list = pg_sys::RelationGetIndexList(relation);
        let count = if list.is_null() { 0 } else { (*list).length };
        let mut best: Option<(u8, pg_sys::Oid)> = None;
        for at in 0..count {
            let oid = pg_sys::list_nth_oid(list, at);
            let index = pg_sys::index_open(oid, lock::ROW_EXCLUSIVE);
            let form = &*(*index).rd_index;
            // From PostgreSQL 18 on a key may be one without overlaps, by which no row is found that is equal.
            let plain = form.indisunique
                && !form.indisexclusion
                && form.indisvalid
                && form.indimmediate
                && pg_sys::RelationGetIndexPredicate(index).is_null()
                && pg_sys::RelationGetIndexExpressions(index).is_null();
            let mut numbers = form.indkey.values.as_slice(form.indnkeyatts.unsigned_abs().into()).to_vec();
            numbers.sort_unstable();
            let fits = if wanted.is_empty() {
                numbers.iter().all(|number| *number > 0 && sent(*number))
                    && (form.indisprimary || form.indisreplident)
            } else {
                numbers == wanted
            };
            let rank = 2 * u8::from(form.indisprimary) + u8::from(form.indisreplident);
            if plain && fits && best.is_none_or(|(known, _)| known < rank) {
                best = Some((rank, oid));
            }
            pg_sys::index_close(index, lock::NONE);
        }
        best.map(|(_, oid)| oid).ok_or_else(|| no_key(schema))
    }
}

#[cold]
fn no_key(schema: &Schema) -> Fault {
    let columns: Vec<&str> = schema.key.iter().map(|at| schema.columns[*at].name.as_str()).collect();
    let what = if columns.is_empty() {
        "a primary key, and the source sends none either".to_owned()
    } else {
        format!(
            "a primary key or unique index on exactly the columns of the source's key: {}",
            columns.join(", ")
        )
    };
    let message = format!(
        "table {}.{} has no key here by which the rows of the source could be found. It needs {what} (not deferrable, \
         without condition)",
        schema.schema, schema.table
    );
    Fault { code: "42P16", message }
}

impl Key {
    /// # Safety
    ///
    /// As [`Target::of`]; the index is one of the table's.
    pub(super) unsafe fn new(oid: pg_sys::Oid, schema: &Schema, columns: &[Column]) -> Self {
        // SAFETY: see above. The functions of the scan keys live in the present memory context.
        unsafe {
            let index = pg_sys::index_open(oid, lock::ROW_EXCLUSIVE);
            let form = &*(*index).rd_index;
            let count = usize::from(form.indnkeyatts.unsigned_abs());
            let numbers = form.indkey.values.as_slice(count);
            let mut scan = vec![pg_sys::ScanKeyData::default(); count];
            for (at, key) in scan.iter_mut().enumerate() {
                let data_type = *(*index).rd_opcintype.add(at);
                let equal = pg_sys::BTEqualStrategyNumber as i16;
                let family = *(*index).rd_opfamily.add(at);
                let operator = pg_sys::get_opfamily_member(family, data_type, data_type, equal);
                let function = pg_sys::get_opcode(operator);
                pg_sys::ScanKeyInit(key, at as i16 + 1, equal as u16, function, pg_sys::Datum::null());
                key.sk_collation = *(*index).rd_indcollation.add(at);
            }
            let column_of = |at: usize| {
                let number = columns[at].place.map(|place| place as i16 + 1);
                numbers.iter().position(|known| Some(*known) == number)
            };
            Self {
                index,
                scan,
                of_key: schema.key.iter().map(|at| column_of(*at)).collect(),
                of_row: (0..columns.len()).map(column_of).collect(),
                key_columns: schema.key.clone(),
            }
        }
    }
}

/// # Safety
///
/// The indexes of the table are open.
pub(super) unsafe fn unique_indexes(
    result: *mut pg_sys::ResultRelInfo,
) -> Vec<(pg_sys::Oid, *mut pg_sys::List)> {
    // SAFETY: see above.
    unsafe {
        let count = usize::try_from((*result).ri_NumIndices).unwrap_or(0);
        (0..count)
            .map(|at| *(*result).ri_IndexRelationDescs.add(at))
            .filter(|index| {
                let form = &*(**index).rd_index;
                form.indisunique && form.indimmediate && !form.indisexclusion
            })
            .map(|index| ((*index).rd_id, pg_sys::lappend_oid(std::ptr::null_mut(), (*index).rd_id)))
            .collect()
    }
}
