//! Settings, all under `pgquorum.`.

use std::ffi::CString;

use pgrx::guc::GucValue;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

/// `pgquorum.fence`: refuse commits of writers while there is no valid lease.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
pub static FENCE: GucSetting<bool> = GucSetting::<bool>::new(false);
/// `pgquorum.acknowledgement_rule`: the only value that `synchronous_standby_names` may take while the fence is on.
pub static ACKNOWLEDGEMENT_RULE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
/// `pgquorum.lease_wait`, milliseconds.
pub static LEASE_WAIT_MS: GucSetting<i32> = GucSetting::<i32>::new(200);
/// `pgquorum.fence_grace`, milliseconds.
pub static FENCE_GRACE_MS: GucSetting<i32> = GucSetting::<i32>::new(500);
/// `pgquorum.bypass_fence`: this session may commit without a lease.
pub static BYPASS_FENCE: GucSetting<bool> = GucSetting::<bool>::new(false);
/// `pgquorum.allow_weak_commits`: commits may return before the cluster's standbys have them.
pub static ALLOW_WEAK_COMMITS: GucSetting<bool> = GucSetting::<bool>::new(false);
/// `pgquorum.last_primary_timeline`: this server was a primary on it; 0: its clients need not wait after a start.
pub static LAST_PRIMARY_TIMELINE: GucSetting<i32> = GucSetting::<i32>::new(0);
/// `pgquorum.node_id`: 0 is a server outside any cluster.
pub static NODE_ID: GucSetting<i32> = GucSetting::<i32>::new(0);
/// `pgquorum.capture_memory`, kB: changes of a transaction beyond it go to a temporary file until the commit.
pub static CAPTURE_MEMORY_KB: GucSetting<i32> = GucSetting::<i32>::new(8192);
/// `pgquorum.origin`: where the changes of this session come from; empty: here.
pub static ORIGIN: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
/// `pgquorum.origin_commit_time`: when they were committed there.
pub static ORIGIN_COMMIT_TIME: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
/// `pgquorum.batch_interval`, milliseconds.
pub static BATCH_INTERVAL_MS: GucSetting<i32> = GucSetting::<i32>::new(10);
/// `pgquorum.segment_size`, megabytes.
pub static SEGMENT_SIZE_MB: GucSetting<i32> = GucSetting::<i32>::new(64);
/// `pgquorum.tombstone_age`, seconds.
pub static TOMBSTONE_AGE_S: GucSetting<i32> = GucSetting::<i32>::new(7 * 24 * 3600);
/// `pgquorum.clock_skew_max`, milliseconds.
pub static CLOCK_SKEW_MAX_MS: GucSetting<i32> = GucSetting::<i32>::new(10_000);

/// The value of a setting that is looked at in every statement or transaction: pgrx's own `get` makes sure each time which
/// thread it is in, which costs more than all the rest.
#[inline]
pub fn quick<T: GucValue<Raw = T> + Copy>(setting: &GucSetting<T>) -> T {
    // SAFETY: server processes have one thread, and PostgreSQL changes settings in it.
    unsafe { *setting.as_ptr() }
}

/// The same for a text; `None`: it is empty.
#[inline]
pub fn text(setting: &GucSetting<Option<CString>>) -> Option<CString> {
    // SAFETY: as above; the text is null, or ends with a zero.
    let is_given = unsafe {
        let text = *setting.as_ptr();
        !text.is_null() && *text != 0
    };
    if is_given { setting.get() } else { None }
}

/// Defines the settings and reserves their prefix, so that a misspelt one is an error.
pub fn init() {
    GucRegistry::define_bool_guc(
        c"pgquorum.fence",
        c"Refuse to commit writing transactions while this server does not hold the cluster's lease.",
        c"Set by the sidecar. Off: nothing is fenced, as on a server outside any cluster.",
        &FENCE,
        // Neither a line that gets lost from a file nor ALTER SYSTEM can take the fence down while the server runs.
        GucContext::Postmaster,
        GucFlags::DISALLOW_IN_AUTO_FILE,
    );
    GucRegistry::define_string_guc(
        c"pgquorum.acknowledgement_rule",
        c"The only value that synchronous_standby_names may take while pgquorum.fence is on.",
        c"Set by the sidecar, in the same file and before synchronous_standby_names.",
        &ACKNOWLEDGEMENT_RULE,
        GucContext::Sighup,
        GucFlags::DISALLOW_IN_AUTO_FILE,
    );
    GucRegistry::define_int_guc(
        c"pgquorum.lease_wait",
        c"How long a committing writer waits for the lease to come back before it is refused.",
        c"0 refuses at once.",
        &LEASE_WAIT_MS,
        0,
        60_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"pgquorum.fence_grace",
        c"How long after the end of the lease client sessions are ended; after twice this time the server is stopped.",
        c"",
        &FENCE_GRACE_MS,
        // Below the dead-man's interval the two stages could not be told apart.
        100,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"pgquorum.bypass_fence",
        c"Let this session commit without a lease.",
        c"For the sidecar's own sessions, which open an epoch before there is a lease.",
        &BYPASS_FENCE,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pgquorum.allow_weak_commits",
        c"Allow commits with synchronous_commit below on, which a failover may take back.",
        c"For a role or a database: ALTER ROLE ... SET, ALTER DATABASE ... SET.",
        &ALLOW_WEAK_COMMITS,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pgquorum.last_primary_timeline",
        c"The timeline on which this server was a primary, while it is not settled what became of its last commits.",
        c"Set by the sidecar. Not 0 when the server starts: clients are refused until the sidecar admits them.",
        &LAST_PRIMARY_TIMELINE,
        0,
        i32::MAX,
        // Looked at when the server starts; what the file says later is for the next start.
        GucContext::Sighup,
        GucFlags::DISALLOW_IN_AUTO_FILE,
    );
    GucRegistry::define_int_guc(
        c"pgquorum.node_id",
        c"The id of this server's node in its cluster.",
        c"0: not in a cluster.",
        &NODE_ID,
        0,
        i32::MAX,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pgquorum.capture_memory",
        c"Memory for the captured changes of a transaction; what is more goes to a temporary file until the commit.",
        c"",
        &CAPTURE_MEMORY_KB,
        64,
        1024 * 1024,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
    crate::pg::origin::define(&ORIGIN, &ORIGIN_COMMIT_TIME);
    GucRegistry::define_int_guc(
        c"pgquorum.batch_interval",
        c"The shortest time between two batches of a channel that somebody waits for.",
        c"Readers get a change about so late. A channel that nobody waits for is cut once a second.",
        &BATCH_INTERVAL_MS,
        1,
        10_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"pgquorum.segment_size",
        c"How large a piece of a channel's log gets before the next one is begun.",
        c"Old log goes by whole pieces. Channels with limits of their own have smaller ones.",
        &SEGMENT_SIZE_MB,
        1,
        65_536,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"pgquorum.tombstone_age",
        c"How long it is remembered that a row was deleted, where versions of rows are kept.",
        c"A change of the row that was made elsewhere before and comes later than that brings it back.",
        &TOMBSTONE_AGE_S,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"pgquorum.clock_skew_max",
        c"How far in the future the time of a change from elsewhere may be, where the last write wins.",
        c"Later ones are conflicts of their own: they would win over all that is written here until then.",
        &CLOCK_SKEW_MAX_MS,
        0,
        86_400_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    crate::statements::settings::define();
    crate::pg::reserve_guc_prefix(c"pgquorum");
}
