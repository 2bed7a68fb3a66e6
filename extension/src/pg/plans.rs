//! Plans that this session keeps.

use pgrx::pg_sys;

/// All of them are made anew when they are used next. Raises nothing, and looks nothing up.
pub fn make_anew() {
    // SAFETY: marks the plans of this session as outdated; allowed at any time.
    unsafe { pg_sys::ResetPlanCache() }
}
