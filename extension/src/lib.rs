//! The part of pgquorum that lives inside the server: the lease fence and the cluster's state in SQL.
//!
//! A lease in shared memory, renewed by the sidecar with every heartbeat that a quorum confirmed, says
//! whether this server may commit. Where things are:
//!
//! * `guc` – settings; `shmem` – the lease; `cluster` – SQL functions written in Rust;
//! * `fence` – who may not commit, and when; `commit_wait` – commits that wait for standbys cannot be given up;
//!   `weak_commits` – who may commit without waiting; `barrier` – when clients may log in after a restart;
//! * `capture` – what tracked tables go through, into the log; `log` – what its writers and readers share;
//! * `versions` – who wrote a row last, and when, where that is kept;
//! * `statements` – which statements write nothing: learned here, served to standbys;
//! * `apply` – writes the changes of another database, as `sql/following.sql` says where from; `applier` – the same for those
//!   that come over the replication interface, as `sql/applier.sql` says;
//! * `deadman` – the worker that stops a server whose sidecar is gone;
//! * `feed` – from the log to batches, and what readers see;
//! * `sql/` (top of the repository) – tables, roles and the SQL functions that touch nothing but tables;
//! * `pg/` – all `unsafe` calls into PostgreSQL; only shared-memory declarations have theirs elsewhere.
//!
//! What most transactions go through is in the section `.text_hot` of the library, and the variables that it looks at in
//! `.data_hot`. It is a few kilobytes among some megabytes, and takes less time to run than to come from memory: so it lies
//! side by side. Builds for tests have no such sections: one function would bring in all the others, and what they need of
//! the server.
//!
//! Invariant: nothing here talks to the network or to other nodes, and nothing decides about the
//! cluster. The sidecar does; this side only refuses what the sidecar can no longer vouch for.

use pgrx::prelude::*;

mod applier;
mod apply;
mod barrier;
mod capture;
mod cluster;
mod commit_wait;
mod deadman;
mod error;
mod feed;
mod fence;
mod guc;
mod log;
mod pg;
mod shmem;
mod statements;
#[cfg(any(test, feature = "pg_test"))]
mod tests;
mod versions;
mod weak_commits;

pgrx::pg_module_magic!(name, version);

extension_sql_file!("../../sql/roles.sql", name = "roles", bootstrap);
extension_sql_file!("../../sql/tables.sql", name = "tables", requires = ["roles"]);
extension_sql_file!("../../sql/apply.sql", name = "apply", requires = ["tables"]);
extension_sql_file!("../../sql/read.sql", name = "read", requires = ["tables"]);
extension_sql_file!("../../sql/channels.sql", name = "channels", requires = ["apply"]);
extension_sql_file!("../../sql/track.sql", name = "track", requires = ["channels"]);
extension_sql_file!("../../sql/indexes.sql", name = "indexes", requires = ["track"]);
extension_sql_file!("../../sql/ddl.sql", name = "ddl", requires = ["track"]);
extension_sql_file!(
    "../../sql/versions.sql",
    name = "versions",
    requires =
        ["track", versions::sql::version_of_key, versions::sql::judge_write, versions::sql::origin_number]
);
extension_sql_file!("../../sql/feed.sql", name = "feed", requires = ["track", feed::read::channel_ends]);
extension_sql_file!("../../sql/audit.sql", name = "audit", requires = ["ddl", "feed"]);
extension_sql_file!(
    "../../sql/statements.sql",
    name = "statements",
    requires = ["apply", statements::sql::served_statements, statements::sql::statements_here]
);
extension_sql_file!("../../sql/subscriptions.sql", name = "subscriptions", requires = ["track", "feed"]);
extension_sql_file!("../../sql/subscribe.sql", name = "subscribe", requires = ["subscriptions"]);
extension_sql_file!("../../sql/row_filters.sql", name = "row_filters", requires = ["subscriptions"]);
extension_sql_file!(
    "../../sql/publications.sql",
    name = "publications",
    requires = ["subscribe", "row_filters"]
);
extension_sql_file!("../../sql/following.sql", name = "following", requires = ["subscribe"]);
extension_sql_file!(
    "../../sql/sequences.sql",
    name = "sequences",
    requires = ["subscribe", apply::sequences::lock_sequence]
);
extension_sql_file!(
    "../../sql/last_write_wins.sql",
    name = "last_write_wins",
    requires = ["subscribe", "versions"]
);
extension_sql_file!("../../sql/delta.sql", name = "delta", requires = ["following"]);
extension_sql_file!("../../sql/delta_sync.sql", name = "delta_sync", requires = ["delta"]);
extension_sql_file!("../../sql/logger.sql", name = "logger", requires = ["feed", "versions"]);
extension_sql_file!("../../sql/described_types.sql", name = "described_types", requires = ["apply"]);
extension_sql_file!(
    "../../sql/neighbours.sql",
    name = "neighbours",
    requires = ["following", "described_types"]
);
extension_sql_file!("../../sql/applier.sql", name = "applier", requires = ["apply", "neighbours"]);
extension_sql_file!(
    "../../sql/restore.sql",
    name = "restore",
    requires = ["neighbours", "logger", apply::owner::run_as_owner]
);
extension_sql_file!("../../sql/grants.sql", name = "grants", finalize);

#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::require_preload();
    pgquorum_change::prepare();
    guc::init();
    shmem::init();
    weak_commits::init();
    barrier::init();
    log::slots::init();
    feed::init();
    statements::init();
    pg::shared::init();
    pg::standby_names::init();
    pg::commit_level::init();
    pg::relcache::init();
    pg::judged::init();
    pg::hooks::init();
    pg::statement_hooks::init();
    pg::object_hooks::init();
    deadman::init();
}

/// Set-up of `cargo pgrx test`.
#[cfg(test)]
pub mod pg_test {
    /// Called once before the tests; nothing to prepare.
    pub fn setup(_options: Vec<&str>) {}

    /// Settings of the test server.
    #[must_use]
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'pgquorum'", "pgquorum.statements_max = 500"]
    }
}
