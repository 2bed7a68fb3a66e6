//! The few calls from the command line into the daemon's own modules. Everything else in `cli` goes through REST.

use super::failure::{Context, Failure};
use crate::config::{NodeConfig, Secrets};
use crate::postgres::PostgresError;
use crate::run::{RunError, postgres_config};
use crate::store::{Identity, Store, StoreError};
use pgquorum_agent::force::Forced;
use pgquorum_agent::logstore::Restored;
use pgquorum_agent::postgres::Upstream;
use pgquorum_agent::settings::Settings;
use pgquorum_agent::types::{Lsn, Timeline};
use std::path::PathBuf;

/// Is told how many bytes were copied, and of how many.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// Runs the sidecar until it is asked to stop.
pub async fn run(config: NodeConfig) -> Result<(), Failure> {
    crate::run::run(config).await.map_err(|e: RunError| Failure::failed("run", e.to_string()))
}

/// Makes an empty database and returns its system identifier.
pub async fn initialise(config: &NodeConfig, secrets: &Secrets) -> Result<u64, Failure> {
    let made = crate::postgres::bootstrap::initialise(&postgres_config(config, secrets)).await;
    made.map_err(|e: PostgresError| Failure::failed("initialise", e.to_string()))
}

/// Copies the database of another node.
pub async fn clone_from(
    config: &NodeConfig,
    secrets: &Secrets,
    upstream: &Upstream,
    progress: Progress<'_>,
) -> Result<(), Failure> {
    let copied = crate::postgres::clone_from(&postgres_config(config, secrets), upstream, progress).await;
    copied.map(drop).or_fail("cannot copy the database")
}

/// What a stopped sidecar's store holds.
pub fn read_store(config: &NodeConfig) -> Result<(Identity, Restored), Failure> {
    let opened = Store::open(&config.store_file(), config.node);
    opened.map(|(_, identity, restored)| (identity, restored)).map_err(store_failure)
}

/// Puts a forced state in the place of a stopped sidecar's store; returns where the former one is kept.
pub fn replace_store(config: &NodeConfig, identity: &Identity, forced: &Forced) -> Result<PathBuf, Failure> {
    let new = Identity { cluster_id: forced.cluster.cluster_id.clone(), node: identity.node };
    Store::replace(&config.store_file(), &new, &forced.restored).map_err(store_failure)
}

fn store_failure(error: StoreError) -> Failure {
    let code = match error {
        StoreError::InUse { .. } => "sidecar_runs",
        StoreError::Lost { .. } | StoreError::Damaged { .. } => "store_lost",
        _ => "store",
    };
    Failure::failed(code, error.to_string())
}

/// Where the WAL of a stopped server ends, as far as can be told without starting it.
///
/// # Errors
/// There is no database here that could be started by itself.
pub async fn stopped_at(config: &NodeConfig) -> Result<(Timeline, Lsn), Failure> {
    let secrets = Secrets::load(&config.secrets_file())?;
    let at = crate::postgres::stopped_at(&postgres_config(config, &secrets)).await;
    at.map_err(|e| Failure::failed("no_data", format!("there is nothing to go on with here: {e}")))
}

/// Writes the log of a new cluster with this node as its only member; returns the cluster's id.
pub fn create_first(
    config: &NodeConfig,
    system_identifier: u64,
    settings: Settings,
) -> Result<String, Failure> {
    let made = Store::create_first(config, system_identifier, settings);
    made.map(|identity| identity.cluster_id).map_err(|e: StoreError| Failure::failed("store", e.to_string()))
}

/// Writes the empty log of a node that the leader has added.
pub fn create_joiner(config: &NodeConfig, cluster_id: &str) -> Result<(), Failure> {
    let made = Store::create_joiner(config, cluster_id);
    made.map(drop).map_err(|e: StoreError| Failure::failed("store", e.to_string()))
}
