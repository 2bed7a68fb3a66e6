//! What the catalogue's caches say of functions, operators, types, casts and relations.
//!
//! Called at every planning, so PostgreSQL's functions are called without pgrx's guards: an ERROR (a broken catalogue,
//! no memory) jumps over the frames here and above, which hold nothing with a destructor. All of it needs a transaction.

use std::ffi::c_int;

use pg_sys::SysCacheIdentifier as Cache;
use pgrx::pg_sys;

mod functions;
mod types;

pub use functions::*;
pub use types::*;

unsafe extern "C-unwind" {
    // utils/syscache.h, utils/catcache.h, catalog/namespace.h; pgrx's bindings are guarded.
    fn SearchSysCache1(cache: c_int, key: pg_sys::Datum) -> pg_sys::HeapTuple;
    fn SearchSysCache2(cache: c_int, first: pg_sys::Datum, second: pg_sys::Datum) -> pg_sys::HeapTuple;
    fn ReleaseSysCache(row: pg_sys::HeapTuple);
    fn SearchSysCacheList(
        cache: c_int,
        count: c_int,
        first: pg_sys::Datum,
        second: pg_sys::Datum,
        third: pg_sys::Datum,
    ) -> *mut pg_sys::catclist;
    fn ReleaseCatCacheList(list: *mut pg_sys::catclist);
    fn isTempNamespace(namespace: pg_sys::Oid) -> bool;
    fn fetch_search_path_array(namespaces: *mut pg_sys::Oid, most: c_int) -> c_int;
}

/// Objects below this OID are made by PostgreSQL itself and cannot be dropped (access/transam.h).
const FIRST_UNPINNED: u32 = 12000;

#[inline]
pub fn is_pinned(oid: u32) -> bool {
    oid < FIRST_UNPINNED
}

/// Made by `initdb` or pinned, and so by nobody else: the information schema, for one.
#[inline]
pub fn comes_with_server(oid: u32) -> bool {
    oid < pg_sys::FirstNormalObjectId
}

/// Reads a row of a cache by its one key. The closure looks at the row only.
#[inline]
fn row<T, R: Copy>(cache: Cache::Type, key: u32, read: impl FnOnce(&T, pg_sys::HeapTuple) -> R) -> Option<R> {
    // SAFETY: a row of the cache begins with the catalogue's structure, and stays until it is given back.
    unsafe {
        let row = SearchSysCache1(cache as c_int, pg_sys::Datum::from(key));
        if row.is_null() {
            return None;
        }
        let found = read(&*pg_sys::GETSTRUCT(row).cast::<T>(), row);
        ReleaseSysCache(row);
        Some(found)
    }
}

/// As [`row`], by two keys.
fn row_of_two<T, R: Copy>(
    cache: Cache::Type,
    keys: (impl Into<pg_sys::Datum>, impl Into<pg_sys::Datum>),
    read: impl FnOnce(&T) -> R,
) -> Option<R> {
    // SAFETY: as in `row`.
    unsafe {
        let row = SearchSysCache2(cache as c_int, keys.0.into(), keys.1.into());
        if row.is_null() {
            return None;
        }
        let found = read(&*pg_sys::GETSTRUCT(row).cast::<T>());
        ReleaseSysCache(row);
        Some(found)
    }
}

/// Calls for each row that a cache has with the first key. The closure may call PostgreSQL: the rows stay.
fn each_row<T>(cache: Cache::Type, key: pg_sys::Datum, mut visit: impl FnMut(&T)) {
    // SAFETY: as in `row`; a list has as many members as it says. After an ERROR the resource owner gives it back.
    unsafe {
        let none = pg_sys::Datum::from(0);
        let list = SearchSysCacheList(cache as c_int, 1, key, none, none);
        let count = usize::try_from((*list).n_members).unwrap_or(0);
        for member in (*list).members.as_slice(count) {
            visit(&*pg_sys::GETSTRUCT(&raw mut (**member).tuple).cast::<T>());
        }
        ReleaseCatCacheList(list);
    }
}

/// Can a name without a schema mean an object of this schema?
pub fn is_searched(namespace: u32) -> bool {
    let mut path = [pg_sys::InvalidOid; 32];
    // SAFETY: writes as many as there is room for, and gives how many there are.
    let count = unsafe { fetch_search_path_array(path.as_mut_ptr(), path.len() as c_int) };
    let count = usize::try_from(count).unwrap_or(0);
    count > path.len() || path[..count].iter().any(|oid| oid.to_u32() == namespace)
}

/// Is it the schema of this session's temporary objects?
pub fn is_temporary(namespace: u32) -> bool {
    // SAFETY: compares numbers.
    unsafe { isTempNamespace(namespace.into()) }
}

/// A relation, as far as it decides who can read it.
#[derive(Clone, Copy)]
pub struct Relation {
    /// `pg_class.relkind`
    pub kind: u8,
    /// `pg_class.relpersistence`
    pub persistence: u8,
    pub namespace: u32,
    /// It has, or has had, inheritors or partitions.
    pub has_inheritors: bool,
    pub has_policies: bool,
    /// With those that are dropped.
    pub columns: i16,
}

pub fn relation(oid: u32) -> Option<Relation> {
    row(Cache::RELOID, oid, |form: &pg_sys::FormData_pg_class, _| Relation {
        kind: form.relkind as u8,
        persistence: form.relpersistence as u8,
        namespace: form.relnamespace.to_u32(),
        has_inheritors: form.relhassubclass,
        has_policies: form.relrowsecurity,
        columns: form.relnatts,
    })
}

/// The type of a column; `None`: it is dropped.
pub fn column_type(relation: u32, column: i16) -> Option<u32> {
    row_of_two(Cache::ATTNUM, (relation, column), |form: &pg_sys::FormData_pg_attribute| {
        (!form.attisdropped).then_some(form.atttypid.to_u32())
    })?
}
