//! Where this session looks names up: the schemas of its effective search path, by their names.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pgrx::pg_sys;

use super::encoding;
use super::single::Single;

#[cfg(any(feature = "pg17", feature = "pg18"))]
type Matcher = pg_sys::SearchPathMatcher;
#[cfg(not(any(feature = "pg17", feature = "pg18")))]
type Matcher = pg_sys::OverrideSearchPath;

/// A schema was renamed, or may have been. One process: no ordering is needed.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static RENAMED: AtomicBool = AtomicBool::new(false);

/// What [`TEXT`] was read by, in the session's memory; null: nothing yet.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static MATCHER: Single<Cell<*mut Matcher>> = Single::cell(std::ptr::null_mut());
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static HASH: Single<Cell<u64>> = Single::cell(0);
static TEXT: Single<RefCell<Vec<u8>>> = Single::new(Vec::new());

/// From a notice of changed schemas.
pub fn forget() {
    RENAMED.store(true, Relaxed);
}

/// Hash of the text that [`with_text`] gives. In a transaction; nothing with a destructor may be alive in its callers, since it
/// raises errors past pgrx's guards.
#[inline]
pub fn hash() -> u64 {
    let matcher = MATCHER.get();
    // SAFETY: null or a path of this session; the function compares it with the present one.
    if matcher.is_null() || RENAMED.load(Relaxed) || unsafe { !matches(matcher) } {
        look_up();
    }
    HASH.get()
}

/// The schemas as a list of identifiers in UTF-8, as [`hash`] has seen them. Temporary schemas are left out: what is in
/// them has a meaning for this session only.
pub fn with_text<R>(use_it: impl FnOnce(&[u8]) -> R) -> R {
    TEXT.with(|text| use_it(text))
}

/// The hash of such a text.
fn hash_of(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

unsafe extern "C-unwind" {
    // catalog/namespace.h; pgrx's binding is guarded.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    #[link_name = "SearchPathMatchesCurrentEnvironment"]
    fn matches(path: *mut Matcher) -> bool;
    #[cfg(not(any(feature = "pg17", feature = "pg18")))]
    #[link_name = "OverrideSearchPathMatchesCurrent"]
    fn matches(path: *mut Matcher) -> bool;
}

#[cold]
fn look_up() {
    let mut text = Vec::new();
    RENAMED.store(false, Relaxed);
    // SAFETY: the copy is this session's own and freed when it is replaced; its list holds schemas. Names are strings in
    // the present memory context or null.
    unsafe {
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        let matcher = pg_sys::GetSearchPathMatcher(pg_sys::TopMemoryContext);
        #[cfg(not(any(feature = "pg17", feature = "pg18")))]
        let matcher = pg_sys::GetOverrideSearchPath(pg_sys::TopMemoryContext);
        let before = MATCHER.get();
        MATCHER.set(matcher);
        if !before.is_null() {
            pg_sys::list_free((*before).schemas);
            pg_sys::pfree(before.cast());
        }
        let list = (*matcher).schemas;
        let length = if list.is_null() { 0 } else { usize::try_from((*list).length).unwrap_or(0) };
        for at in 0..length {
            let schema = (*(*list).elements.add(at)).oid_value;
            let name = pg_sys::get_namespace_name(schema);
            if name.is_null() || pg_sys::isAnyTempNamespace(schema) {
                continue;
            }
            if !text.is_empty() {
                text.extend_from_slice(b", ");
            }
            let quoted = CStr::from_ptr(pg_sys::quote_identifier(name)).to_bytes();
            text.extend_from_slice(encoding::to_utf8(quoted).as_bytes());
        }
    }
    HASH.set(hash_of(&text));
    TEXT.with(|known| *known = text);
}
