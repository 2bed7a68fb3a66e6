//! Where this session looks names up: the schemas of its effective search path, by their names.

use std::cell::RefCell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pgrx::pg_sys;

use super::encoding;

#[cfg(any(feature = "pg17", feature = "pg18"))]
type Matcher = pg_sys::SearchPathMatcher;
#[cfg(not(any(feature = "pg17", feature = "pg18")))]
type Matcher = pg_sys::OverrideSearchPath;

/// A schema was renamed, or may have been. One process: no ordering is needed.
static RENAMED: AtomicBool = AtomicBool::new(false);

struct Current {
    /// In the session's memory; null: none yet.
    matcher: *mut Matcher,
    hash: u64,
    text: Vec<u8>,
}

thread_local! {
    static CURRENT: RefCell<Current> =
        const { RefCell::new(Current { matcher: std::ptr::null_mut(), hash: 0, text: Vec::new() }) };
}

/// From a notice of changed schemas.
pub fn forget() {
    RENAMED.store(true, Relaxed);
}

/// Hash of the text that [`text`] gives. In a transaction.
#[inline]
pub fn hash() -> u64 {
    CURRENT.with_borrow_mut(|current| {
        // SAFETY: null or a path of this session; the function compares it with the present one.
        let holds =
            !current.matcher.is_null() && !RENAMED.load(Relaxed) && unsafe { matches(current.matcher) };
        if !holds {
            look_up(current);
        }
        current.hash
    })
}

/// The schemas as a list of identifiers in UTF-8, as [`hash`] has seen them. Temporary schemas are left out: what is in
/// them has a meaning for this session only.
pub fn text() -> Vec<u8> {
    CURRENT.with_borrow(|current| current.text.clone())
}

/// The hash of such a text.
fn hash_of(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
unsafe fn matches(matcher: *mut Matcher) -> bool {
    // SAFETY: as in `hash`.
    unsafe { pg_sys::SearchPathMatchesCurrentEnvironment(matcher) }
}

#[cfg(not(any(feature = "pg17", feature = "pg18")))]
unsafe fn matches(matcher: *mut Matcher) -> bool {
    // SAFETY: as in `hash`.
    unsafe { pg_sys::OverrideSearchPathMatchesCurrent(matcher) }
}

#[cold]
fn look_up(current: &mut Current) {
    RENAMED.store(false, Relaxed);
    // SAFETY: the copy is this session's own and freed when it is replaced; its list holds schemas. Names are strings in
    // the present memory context or null.
    unsafe {
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        let matcher = pg_sys::GetSearchPathMatcher(pg_sys::TopMemoryContext);
        #[cfg(not(any(feature = "pg17", feature = "pg18")))]
        let matcher = pg_sys::GetOverrideSearchPath(pg_sys::TopMemoryContext);
        let before = std::mem::replace(&mut current.matcher, matcher);
        if !before.is_null() {
            pg_sys::list_free((*before).schemas);
            pg_sys::pfree(before.cast());
        }
        current.text.clear();
        let list = (*matcher).schemas;
        let length = if list.is_null() { 0 } else { usize::try_from((*list).length).unwrap_or(0) };
        for at in 0..length {
            let schema = (*(*list).elements.add(at)).oid_value;
            let name = pg_sys::get_namespace_name(schema);
            if name.is_null() || pg_sys::isAnyTempNamespace(schema) {
                continue;
            }
            if !current.text.is_empty() {
                current.text.extend_from_slice(b", ");
            }
            let quoted = CStr::from_ptr(pg_sys::quote_identifier(name)).to_bytes();
            current.text.extend_from_slice(encoding::to_utf8(quoted).as_bytes());
        }
    }
    current.hash = hash_of(&current.text);
}
