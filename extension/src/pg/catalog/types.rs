//! Types and casts.

use std::ffi::c_int;

use pg_sys::SysCacheIdentifier as Cache;
use pgrx::pg_sys;

use super::{row, row_of_two};

unsafe extern "C-unwind" {
    // utils/typcache.h; pgrx's bindings are guarded.
    fn lookup_type_cache(oid: pg_sys::Oid, flags: c_int) -> *mut pg_sys::TypeCacheEntry;
    fn DomainHasConstraints(domain: pg_sys::Oid) -> bool;
}

/// A type, as far as it says what else is called.
#[derive(Clone, Copy)]
pub struct DataType {
    /// `pg_type.typtype`
    pub kind: u8,
    pub namespace: u32,
    /// The table or composite type.
    pub relation: u32,
    /// Of arrays; 0: not an array.
    pub element: u32,
    /// Of domains.
    pub base: u32,
    /// Input, output, receive, send, subscript; 0: none.
    pub functions: [u32; 5],
}

/// A type that is there and more than a name.
pub fn data_type(oid: u32) -> Option<DataType> {
    let found = row(Cache::TYPEOID, oid, |form: &pg_sys::FormData_pg_type, _| {
        let functions = [form.typinput, form.typoutput, form.typreceive, form.typsend, form.typsubscript];
        let is_array = form.typsubscript.to_u32() == pg_sys::F_ARRAY_SUBSCRIPT_HANDLER;
        let found = DataType {
            kind: form.typtype as u8,
            namespace: form.typnamespace.to_u32(),
            relation: form.typrelid.to_u32(),
            element: if is_array { form.typelem.to_u32() } else { 0 },
            base: form.typbasetype.to_u32(),
            functions: functions.map(pg_sys::Oid::to_u32),
        };
        form.typisdefined.then_some(found)
    });
    found?
}

/// Does a domain, or one that it is made of, have a NOT NULL or CHECK constraint? The type must be there. The planner
/// asks the same of each cast to a domain, so this raises nothing that it does not.
pub fn has_constraints(domain: u32) -> bool {
    // SAFETY: fills the cache of types.
    unsafe { DomainHasConstraints(domain.into()) }
}

/// The operator families that sort and hash a type where nobody says which; 0: there is none. The type must be there.
pub fn families(oid: u32) -> [u32; 2] {
    let flags = pg_sys::TYPECACHE_BTREE_OPFAMILY | pg_sys::TYPECACHE_HASH_OPFAMILY;
    // SAFETY: fills the cache of types, whose entries stay.
    let entry = unsafe { &*lookup_type_cache(oid.into(), flags as c_int) };
    [entry.btree_opf.to_u32(), entry.hash_opf.to_u32()]
}

/// What a range type is made of.
#[derive(Clone, Copy)]
pub struct Range {
    pub element: u32,
    /// The operator family that compares its elements.
    pub family: u32,
    /// Canonical, difference; 0: none.
    pub functions: [u32; 2],
}

/// `by_multirange`: the OID is that of the multirange type.
pub fn range(oid: u32, by_multirange: bool) -> Option<Range> {
    /// `pg_range`; missing from pgrx's bindings.
    #[repr(C)]
    struct Row {
        oid: pg_sys::Oid,
        element: pg_sys::Oid,
        multirange: pg_sys::Oid,
        collation: pg_sys::Oid,
        class: pg_sys::Oid,
        functions: [pg_sys::Oid; 2],
    }
    let cache = if by_multirange { Cache::RANGEMULTIRANGE } else { Cache::RANGETYPE };
    let read = |found: &Row, _| (found.element, found.class, found.functions);
    let (element, class, functions) = row(cache, oid, read)?;
    let family = row(Cache::CLAOID, class.to_u32(), |form: &pg_sys::FormData_pg_opclass, _| form.opcfamily)?;
    Some(Range {
        element: element.to_u32(),
        family: family.to_u32(),
        functions: functions.map(pg_sys::Oid::to_u32),
    })
}

/// The function of a cast; 0: there is none, or it needs none.
pub fn cast(source: u32, target: u32) -> u32 {
    /// The head of `pg_cast`; missing from pgrx's bindings.
    #[repr(C)]
    struct Row {
        oid: pg_sys::Oid,
        source: pg_sys::Oid,
        target: pg_sys::Oid,
        function: pg_sys::Oid,
    }
    let read = |found: &Row| found.function.to_u32();
    row_of_two(Cache::CASTSOURCETARGET, (source, target), read).unwrap_or(0)
}
