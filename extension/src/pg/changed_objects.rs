//! From the objects that a transaction has changed to what statements know them by.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys;
use pgrx::pg_sys::SysCacheIdentifier as Cache;

use super::encoding;
use super::table::{Key, Table, View};
use crate::statements::changed::Changed;

/// An object by its catalogue and its OID there, and for some a second one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Change {
    pub class: u32,
    pub object: u32,
    /// Of an inheritor: the parent that it gets or loses. Else 0.
    pub other: u32,
}

impl Change {
    pub fn of_relation(object: u32) -> Self {
        Self { class: CLASS, object, other: 0 }
    }
}

// OIDs of catalogues, as in their headers; most are missing in pgrx's bindings.
const CLASS: u32 = 1259;
const PROCEDURE: u32 = 1255;
const TYPE: u32 = 1247;
const OPERATOR: u32 = 2617;
const OPERATOR_CLASS: u32 = 2616;
const OPERATOR_FAMILY: u32 = 2753;
const FAMILY_OPERATOR: u32 = 2602;
const FAMILY_PROCEDURE: u32 = 2603;
const CAST: u32 = 2605;
const CONSTRAINT: u32 = 2606;
const INHERITS: u32 = 2611;
const LANGUAGE: u32 = 2612;
const NAMESPACE: u32 = 2615;
const REWRITE: u32 = 2618;
const TRIGGER: u32 = 2620;
const POLICY: u32 = 3256;
const COLLATION: u32 = 3456;
const TRANSFORM: u32 = 3576;

/// Is a change of such an object of interest? For every object that is made, changed or dropped.
#[inline]
pub fn concerns(class: u32) -> bool {
    matches!(
        class,
        CLASS
            | PROCEDURE
            | TYPE
            | OPERATOR
            | OPERATOR_CLASS
            | OPERATOR_FAMILY
            | FAMILY_OPERATOR
            | FAMILY_PROCEDURE
            | CAST
            | CONSTRAINT
            | INHERITS
            | LANGUAGE
            | NAMESPACE
            | REWRITE
            | TRIGGER
            | POLICY
            | COLLATION
            | TRANSFORM
    )
}

/// Before an object is dropped: what is known by another one's OID is looked up while it is there. `None`: nothing that is
/// of interest.
pub fn before_drop(change: Change) -> Option<Change> {
    let matters = match change.class {
        CLASS => relation_name(change.object).is_none_or(|found| found.is_some()),
        TYPE => type_name(change.object).is_none_or(|found| found.is_some()),
        _ => true,
    };
    if !matters {
        return None;
    }
    match owner(change) {
        Owner::None => Some(change),
        Owner::Relation(object) => Some(Change::of_relation(object)),
        Owner::Type(object) => Some(Change { class: TYPE, object, other: 0 }),
        Owner::Nobody => None,
    }
}

/// What an object is a part of.
enum Owner {
    /// It stands for itself.
    None,
    Relation(u32),
    Type(u32),
    /// It is gone, or part of nothing that matters.
    Nobody,
}

fn owner(change: Change) -> Owner {
    let column = match change.class {
        REWRITE => c"ev_class",
        TRIGGER => c"tgrelid",
        POLICY => c"polrelid",
        // Those of tables decide nothing about reading.
        CONSTRAINT => c"contypid",
        _ => return Owner::None,
    };
    let mut found = 0;
    if let Some(table) = Table::open(change.class) {
        let column = table.column(column);
        table.matching(View::Now, Key::Oid(change.object), |row| {
            found = row.oid(column);
            false
        });
    }
    match (found, change.class) {
        (0, _) => Owner::Nobody,
        (oid, CONSTRAINT) => Owner::Type(oid),
        (oid, _) => Owner::Relation(oid),
    }
}

/// What statements know these objects by. In the transaction that has changed them, when all its commands are done.
pub fn resolve(changes: &[Change]) -> Changed {
    let mut changed = Changed::default();
    for change in changes {
        match owner(*change) {
            Owner::Relation(oid) | Owner::Type(oid) => {
                changed.add_object(oid);
                continue;
            }
            Owner::Nobody => continue,
            Owner::None => {}
        }
        match change.class {
            // Which ones a query uses does not stand in its text, and changes of them are rare.
            OPERATOR_CLASS | OPERATOR_FAMILY | FAMILY_OPERATOR | FAMILY_PROCEDURE | CAST | LANGUAGE
            | TRANSFORM => {
                changed.add_everything();
            }
            INHERITS => {
                changed.add_object(change.object);
                ancestors(change.object, &mut changed);
                if change.other != 0 {
                    changed.add_object(change.other);
                    ancestors(change.other, &mut changed);
                }
            }
            NAMESPACE => {
                // SAFETY: looks into the catalogue's cache; a string or null.
                name(&mut changed, unsafe { pg_sys::get_namespace_name(change.object.into()) });
            }
            COLLATION => {
                // SAFETY: as above.
                name(&mut changed, unsafe { pg_sys::get_collation_name(change.object.into()) });
            }
            PROCEDURE => {
                changed.add_object(change.object);
                // SAFETY: as above.
                name(&mut changed, unsafe { pg_sys::get_func_name(change.object.into()) });
            }
            OPERATOR => {
                changed.add_object(change.object);
                // SAFETY: as above.
                name(&mut changed, unsafe { pg_sys::get_opname(change.object.into()) });
            }
            CLASS => object(&mut changed, change.object, relation_name(change.object)),
            TYPE => object(&mut changed, change.object, type_name(change.object)),
            _ => changed.add_object(change.object),
        }
    }
    changed
}

/// Adds an object and its name, unless they matter to nobody. What is gone gives no name a new meaning.
fn object(changed: &mut Changed, oid: u32, found: Option<Option<*mut c_char>>) {
    match found {
        Some(None) => {}
        Some(Some(found)) => {
            changed.add_object(oid);
            name(changed, found);
        }
        None => changed.add_object(oid),
    }
}

fn name(changed: &mut Changed, found: *mut c_char) {
    if !found.is_null() {
        // SAFETY: names of objects are strings in the present memory context.
        let found = unsafe { CStr::from_ptr(found) }.to_bytes();
        changed.add_name(encoding::to_utf8(found).as_bytes());
    }
}

/// The name of a relation. `None`: it is gone. `Some(None)`: it matters to no statement, as indexes do, and temporary
/// ones: what uses those is not learned.
fn relation_name(oid: u32) -> Option<Option<*mut c_char>> {
    of_row(Cache::RELOID, oid, |row: &pg_sys::FormData_pg_class| {
        let is_index = matches!(
            row.relkind as u8,
            pg_sys::RELKIND_INDEX | pg_sys::RELKIND_PARTITIONED_INDEX | pg_sys::RELKIND_TOASTVALUE
        );
        let is_temporary = row.relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP;
        (!is_index && !is_temporary).then_some(&raw const row.relname)
    })
}

/// The same of a type.
fn type_name(oid: u32) -> Option<Option<*mut c_char>> {
    of_row(Cache::TYPEOID, oid, |row: &pg_sys::FormData_pg_type| {
        // SAFETY: compares it with the schemas of temporary objects.
        let is_temporary = unsafe { pg_sys::isAnyTempNamespace(row.typnamespace) };
        (!is_temporary).then_some(&raw const row.typname)
    })
}

fn of_row<T>(
    cache: Cache::Type,
    oid: u32,
    name: impl FnOnce(&T) -> Option<*const pg_sys::NameData>,
) -> Option<Option<*mut c_char>> {
    // SAFETY: a row of the cache begins with the catalogue's structure, and stays until it is given back; the name in it
    // ends with a zero and is copied.
    unsafe {
        let row = pg_sys::SearchSysCache1(cache as i32, pg_sys::Datum::from(oid));
        if row.is_null() {
            return None;
        }
        let found = name(&*pg_sys::GETSTRUCT(row).cast::<T>());
        let copy = found.map(|name| pg_sys::pstrdup((*name).data.as_ptr()));
        pg_sys::ReleaseSysCache(row);
        Some(copy)
    }
}

/// Whoever reads a table reads its inheritors.
fn ancestors(relation: u32, changed: &mut Changed) {
    /// More levels than anybody has.
    const LEVELS: usize = 64;
    let Some(table) = Table::open(INHERITS) else { return };
    let parent = table.column(c"inhparent");
    let mut level = vec![relation];
    for _ in 0..LEVELS {
        let mut next = Vec::new();
        for child in level {
            table.matching(View::Now, Key::Oid(child), |row| {
                next.push(row.oid(parent));
                true
            });
        }
        next.iter().for_each(|oid| changed.add_object(*oid));
        level = next;
        if level.is_empty() {
            return;
        }
    }
}
