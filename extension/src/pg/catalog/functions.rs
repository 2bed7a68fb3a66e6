//! Functions, the aggregates that are made of them, and the operators that call them.

use std::ffi::{CStr, c_char, c_int};

use pg_sys::SysCacheIdentifier as Cache;
use pgrx::pg_sys;

use super::{comes_with_server, each_row, is_pinned, row};
use crate::statements::functions::{LIBRARIES, Library};

unsafe extern "C-unwind" {
    // utils/syscache.h, utils/fmgrtab.h; pgrx's bindings are guarded.
    fn SysCacheGetAttr(
        cache: c_int,
        row: pg_sys::HeapTuple,
        attribute: pg_sys::AttrNumber,
        null: *mut bool,
    ) -> pg_sys::Datum;
    fn fmgr_internal_function(name: *const c_char) -> pg_sys::Oid;
}

/// The languages that matter, and all others by whether they are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Internal,
    C,
    Sql,
    Trusted,
    Untrusted,
}

impl Language {
    /// pg_language.dat
    const INTERNAL: u32 = 12;
    const C_CODE: u32 = 13;
    const SQL: u32 = 14;

    fn of(oid: u32) -> Self {
        /// The head of `pg_language`; missing from pgrx's bindings.
        #[repr(C)]
        struct Row {
            oid: pg_sys::Oid,
            name: pg_sys::NameData,
            owner: pg_sys::Oid,
            procedural: bool,
            trusted: bool,
        }
        match oid {
            Self::INTERNAL => Self::Internal,
            Self::C_CODE => Self::C,
            Self::SQL => Self::Sql,
            _ => match row(Cache::LANGOID, oid, |found: &Row, _| found.trusted) {
                Some(true) => Self::Trusted,
                _ => Self::Untrusted,
            },
        }
    }
}

#[derive(Clone, Copy)]
pub struct Function {
    pub name: pg_sys::NameData,
    pub namespace: u32,
    pub language: Language,
    pub volatile: bool,
    pub aggregate: bool,
    /// How many arguments a call must and may have; variadic ones have no limit.
    arguments: (i16, i16),
}

impl Function {
    fn new(form: &pg_sys::FormData_pg_proc, language: Language) -> Self {
        let most = if form.provariadic == pg_sys::InvalidOid { form.pronargs } else { i16::MAX };
        Self {
            name: form.proname,
            namespace: form.pronamespace.to_u32(),
            language,
            volatile: form.provolatile as u8 == pg_sys::PROVOLATILE_VOLATILE,
            aggregate: form.prokind as u8 == pg_sys::PROKIND_AGGREGATE,
            arguments: (form.pronargs - form.pronargdefaults, most),
        }
    }

    pub fn takes(&self, arguments: i16) -> bool {
        (self.arguments.0..=self.arguments.1).contains(&arguments)
    }
}

pub fn function(oid: u32) -> Option<Function> {
    let read = |form: &pg_sys::FormData_pg_proc, _| {
        (Function::new(form, Language::Untrusted), form.prolang.to_u32())
    };
    let (function, language) = row(Cache::PROCOID, oid, read)?;
    Some(Function { language: Language::of(language), ..function })
}

/// Calls for each function of this name that does not come with the server, in whatever schema. Its language is not
/// looked up.
pub fn each_namesake(name: &pg_sys::NameData, mut visit: impl FnMut(u32, &Function)) {
    let key = pg_sys::Datum::from(name.data.as_ptr());
    each_row(Cache::PROCNAMEARGSNSP, key, |form: &pg_sys::FormData_pg_proc| {
        if !comes_with_server(form.oid.to_u32()) {
            visit(form.oid.to_u32(), &Function::new(form, Language::Untrusted));
        }
    });
}

/// A text of the catalogue, with a zero at its end, of at most 255 bytes; others are cut. In a value, since memory of
/// PostgreSQL would stay and memory of Rust would have to be dropped.
#[derive(Clone, Copy)]
struct Text([u8; 256]);

impl Text {
    /// # Safety
    ///
    /// The row is one of the cache, and the attribute a text that is stored in the row itself.
    unsafe fn of(cache: Cache::Type, row: pg_sys::HeapTuple, attribute: u32) -> Option<Self> {
        // SAFETY: see above; catalogues with a cache have no toasted values that were not flattened into the cache.
        unsafe {
            let mut null = true;
            let value = SysCacheGetAttr(cache as c_int, row, attribute as pg_sys::AttrNumber, &mut null);
            if null {
                return None;
            }
            let value = value.cast_mut_ptr::<pg_sys::varlena>();
            if pgrx::varatt_is_4b_c(value) {
                return None;
            }
            let (from, length) = (pgrx::vardata_any(value).cast::<u8>(), pgrx::varsize_any_exhdr(value));
            let mut text = Self([0; 256]);
            let length = length.min(text.0.len() - 1);
            std::ptr::copy_nonoverlapping(from, text.0.as_mut_ptr(), length);
            Some(text)
        }
    }

    fn as_c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

fn function_text(oid: u32, attribute: u32) -> Option<Text> {
    // SAFETY: both texts that are asked for are stored in rows of pg_proc.
    row(Cache::PROCOID, oid, |_: &pg_sys::FormData_pg_proc, row| unsafe {
        Text::of(Cache::PROCOID, row, attribute)
    })?
}

/// The built-in function that a function in language `internal` runs. PostgreSQL looks it up in a list by its name,
/// which takes some microseconds; functions of this kind are rare, and `super::judged` remembers what was found.
pub fn alias(oid: u32) -> Option<(u32, Function)> {
    let source = function_text(oid, pg_sys::Anum_pg_proc_prosrc)?;
    // SAFETY: the text ends with a zero.
    let builtin = unsafe { fmgr_internal_function(source.as_c().as_ptr()) }.to_u32();
    Some((builtin, function(builtin)?)).filter(|_| is_pinned(builtin))
}

/// The library that a function in C is in, if it is one of the list.
pub fn library(oid: u32) -> Option<&'static Library> {
    let path = function_text(oid, pg_sys::Anum_pg_proc_probin)?;
    let path = path.as_c().to_bytes();
    let file = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let name = file.strip_suffix(b".so").unwrap_or(file);
    LIBRARIES.iter().find(|library| library.name.as_bytes() == name)
}

/// The functions that an aggregate is made of, and the type of its state.
#[derive(Clone, Copy)]
pub struct Aggregate {
    pub functions: [u32; 8],
    pub state: [u32; 2],
}

pub fn aggregate(oid: u32) -> Option<Aggregate> {
    /// The head of `pg_aggregate`; missing from pgrx's bindings.
    #[repr(C)]
    struct Row {
        oid: pg_sys::Oid,
        kind: c_char,
        direct_arguments: i16,
        functions: [pg_sys::Oid; 8],
        flags: [c_char; 4],
        sort_operator: pg_sys::Oid,
        state: pg_sys::Oid,
        state_space: i32,
        moving_state: pg_sys::Oid,
    }
    row(Cache::AGGFNOID, oid, |found: &Row, _| Aggregate {
        functions: found.functions.map(pg_sys::Oid::to_u32),
        state: [found.state.to_u32(), found.moving_state.to_u32()],
    })
}

/// The function that an operator calls.
pub fn operator(oid: u32) -> Option<u32> {
    row(Cache::OPEROID, oid, |form: &pg_sys::FormData_pg_operator, _| form.oprcode.to_u32())
}

/// Calls for each operator family that an operator is in.
pub fn each_family(operator: u32, mut visit: impl FnMut(u32)) {
    let key = pg_sys::Datum::from(operator);
    each_row(Cache::AMOPOPID, key, |form: &pg_sys::FormData_pg_amop| visit(form.amopfamily.to_u32()));
}

/// Calls for each operator that is in an operator family.
pub fn each_member(family: u32, mut visit: impl FnMut(u32)) {
    let key = pg_sys::Datum::from(family);
    each_row(Cache::AMOPSTRATEGY, key, |form: &pg_sys::FormData_pg_amop| visit(form.amopopr.to_u32()));
}

/// Calls for each support function of an operator family: what compares and hashes.
pub fn each_support(family: u32, mut visit: impl FnMut(u32)) {
    let key = pg_sys::Datum::from(family);
    each_row(Cache::AMPROCNUM, key, |form: &pg_sys::FormData_pg_amproc| visit(form.amproc.to_u32()));
}
