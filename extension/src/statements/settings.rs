//! The learner's settings.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

/// `pgquorum.learn_statements`.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
pub static LEARN: GucSetting<bool> = GucSetting::<bool>::new(true);
/// `pgquorum.statements_max`; 0: nothing is learned, and nothing served.
pub static MAX: GucSetting<i32> = GucSetting::<i32>::new(10_000);
/// Its greatest value.
pub const MOST: i32 = 1_000_000;
/// `pgquorum.statements_min_calls`.
pub static MIN_CALLS: GucSetting<i32> = GucSetting::<i32>::new(20);
/// `pgquorum.serve_observed_statements`.
pub static SERVE_OBSERVED: GucSetting<bool> = GucSetting::<bool>::new(false);

/// From `crate::guc::init`, before the prefix is reserved.
pub fn define() {
    GucRegistry::define_bool_guc(
        c"pgquorum.learn_statements",
        c"Learn which statements write nothing, so that they can be sent to standbys.",
        c"Off: nothing new is learned; what is known is served as before.",
        &LEARN,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pgquorum.statements_max",
        c"How many statements are remembered; the least used go.",
        c"Each takes about 1.7 kB of shared memory. 0: none, and none are served.",
        &MAX,
        0,
        MOST,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pgquorum.statements_min_calls",
        c"How often a statement must have run without writing to count as observed.",
        c"For statements that cannot be proven to write nothing. The same on all nodes.",
        &MIN_CALLS,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pgquorum.serve_observed_statements",
        c"Serve also statements that were only observed to write nothing.",
        c"They may write another time. On a standby that is an error, and withdraws them. The same on all nodes.",
        &SERVE_OBSERVED,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

/// `pgquorum.statements_max`, as a number of places.
pub fn most() -> usize {
    usize::try_from(MAX.get()).unwrap_or(0)
}

/// `pgquorum.statements_min_calls`.
pub fn min_calls() -> u64 {
    u64::try_from(MIN_CALLS.get()).unwrap_or(u64::MAX)
}
