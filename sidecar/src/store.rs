//! What this node must remember: the Raft log, its vote, its pledge. One `redb` file, written before anything that
//! depends on it leaves the node.

use crate::config::NodeConfig;
use pgquorum_agent::cluster::Cluster;
use pgquorum_agent::first_state;
use pgquorum_agent::logstore::{Persist, Restored};
use pgquorum_agent::member::{Member, Role};
use pgquorum_agent::settings::Settings;
use pgquorum_agent::types::NodeId;
use prost::Message;
use raft::eraftpb::{Entry, HardState, Snapshot};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::{Path, PathBuf};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");

/// Version of this file's layout.
const FORMAT: u64 = 1;

/// The file cannot be used; the text says what that means and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the cluster's log {path} cannot be opened: {message}. If another sidecar runs with it, stop that one. If the \
         file is damaged, this node must not vote with it: remove the node from the cluster and join it again"
    )]
    Open { path: PathBuf, message: String },
    #[error(
        "the cluster's log {path} cannot be written: {message}. The node stops; look for a full or broken disk"
    )]
    Write { path: PathBuf, message: String },
    #[error("{path} exists already: this directory belongs to a node. Choose another, or remove it first")]
    Exists { path: PathBuf },
    #[error("{path} belongs to node {found} of cluster {cluster}, but node.toml says node {expected}")]
    Foreign { path: PathBuf, found: NodeId, cluster: String, expected: NodeId },
}

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: String,
    pub node: NodeId,
}

pub struct Store {
    path: PathBuf,
    db: Database,
}

impl Store {
    /// Makes the state of a new cluster's first node.
    pub fn create_first(
        config: &NodeConfig,
        system_identifier: u64,
        settings: Settings,
    ) -> Result<Identity, StoreError> {
        let member = Member {
            id: config.node,
            ip: config.ip,
            db_port: config.db_port,
            api_port: config.api_port,
            role: Role::Node,
            down: false,
            auto_upgrade: false,
        };
        let cluster_id = format!("{:032x}", rand::random::<u128>());
        let cluster = Cluster::new(cluster_id.clone(), system_identifier, member, settings);
        let identity = Identity { cluster_id, node: config.node };
        Store::create(&config.store_file(), &identity, &first_state(&cluster, config.node))?;
        Ok(identity)
    }

    /// Makes the empty state of a node that its leader will tell everything.
    pub fn create_joiner(config: &NodeConfig, cluster_id: &str) -> Result<Identity, StoreError> {
        let identity = Identity { cluster_id: cluster_id.to_owned(), node: config.node };
        Store::create(&config.store_file(), &identity, &Restored::default())?;
        Ok(identity)
    }

    fn create(path: &Path, identity: &Identity, state: &Restored) -> Result<(), StoreError> {
        if path.exists() {
            return Err(StoreError::Exists { path: path.to_owned() });
        }
        let db = Database::create(path).map_err(|e| open_error(path, e))?;
        let store = Store { path: path.to_owned(), db };
        let first = Persist {
            hard_state: Some(state.hard_state.clone()),
            install: Some(state.snapshot.clone()),
            pledge: Some(state.pledge),
            sync: true,
            ..Persist::default()
        };
        store.transact(true, |meta, entries| {
            meta.insert("format", FORMAT.to_be_bytes().as_slice())?;
            meta.insert("cluster", identity.cluster_id.as_bytes())?;
            meta.insert("node", identity.node.to_be_bytes().as_slice())?;
            write(meta, entries, &first)
        })
    }

    /// Opens the file and reads everything back. One process at a time can have it open.
    pub fn open(path: &Path, expected: NodeId) -> Result<(Store, Identity, Restored), StoreError> {
        let db = Database::open(path).map_err(|e| open_error(path, e))?;
        let store = Store { path: path.to_owned(), db };
        let (identity, restored) = store.load().map_err(|e| open_error(path, e))?;
        if identity.node != expected {
            return Err(StoreError::Foreign {
                path: path.to_owned(),
                found: identity.node,
                cluster: identity.cluster_id,
                expected,
            });
        }
        Ok((store, identity, restored))
    }

    fn load(&self) -> Result<(Identity, Restored), Box<dyn std::error::Error>> {
        let read = self.db.begin_read()?;
        let meta = read.open_table(META)?;
        let bytes = |key: &str| -> Result<Vec<u8>, Box<dyn std::error::Error>> {
            Ok(meta.get(key)?.ok_or_else(|| format!("{key} is missing"))?.value().to_vec())
        };
        let number = |key: &str| -> Result<u64, Box<dyn std::error::Error>> {
            Ok(u64::from_be_bytes(bytes(key)?.as_slice().try_into()?))
        };
        let format = number("format")?;
        if format != FORMAT {
            return Err(format!("its layout is version {format}, this program knows version {FORMAT}").into());
        }
        let identity = Identity { cluster_id: String::from_utf8(bytes("cluster")?)?, node: number("node")? };
        let mut entries = Vec::new();
        for item in read.open_table(ENTRIES)?.iter()? {
            entries.push(Entry::decode(item?.1.value())?);
        }
        let restored = Restored {
            hard_state: HardState::decode(bytes("hard-state")?.as_slice())?,
            snapshot: Snapshot::decode(bytes("snapshot")?.as_slice())?,
            entries,
            pledge: number("pledge")?,
        };
        Ok((identity, restored))
    }

    /// Writes a change; when it returns, the change survives a crash of the machine (if it says `sync`).
    pub fn write(&self, change: &Persist) -> Result<(), StoreError> {
        self.transact(change.sync, |meta, entries| write(meta, entries, change))
    }

    fn transact(
        &self,
        sync: bool,
        body: impl FnOnce(&mut Meta<'_>, &mut Entries<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let run = || -> Result<(), redb::Error> {
            let mut transaction = self.db.begin_write()?;
            transaction.set_durability(if sync { Durability::Immediate } else { Durability::None })?;
            {
                let mut meta = transaction.open_table(META)?;
                let mut entries = transaction.open_table(ENTRIES)?;
                body(&mut meta, &mut entries)?;
            }
            transaction.commit()?;
            Ok(())
        };
        run().map_err(|e| StoreError::Write { path: self.path.clone(), message: e.to_string() })
    }
}

type Meta<'t> = redb::Table<'t, &'static str, &'static [u8]>;
type Entries<'t> = redb::Table<'t, u64, &'static [u8]>;

fn open_error(path: &Path, error: impl std::fmt::Display) -> StoreError {
    StoreError::Open { path: path.to_owned(), message: error.to_string() }
}

fn write(meta: &mut Meta<'_>, entries: &mut Entries<'_>, change: &Persist) -> Result<(), redb::Error> {
    if let Some(hard_state) = &change.hard_state {
        meta.insert("hard-state", hard_state.encode_to_vec().as_slice())?;
    }
    if let Some(snapshot) = &change.install {
        meta.insert("snapshot", snapshot.encode_to_vec().as_slice())?;
        entries.retain(|_, _| false)?;
    }
    if let Some(first) = change.entries.first() {
        entries.retain_in(first.index.., |_, _| false)?;
        for entry in &change.entries {
            entries.insert(entry.index, entry.encode_to_vec().as_slice())?;
        }
    }
    if let Some((snapshot, first_kept)) = &change.compact {
        meta.insert("snapshot", snapshot.encode_to_vec().as_slice())?;
        entries.retain_in(..*first_kept, |_, _| false)?;
    }
    if let Some(pledge) = change.pledge {
        meta.insert("pledge", pledge.to_be_bytes().as_slice())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![1, 2, 3], ..Entry::default() }
    }

    #[test]
    fn everything_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raft.redb");
        let identity = Identity { cluster_id: "c".into(), node: 3 };
        let mut expected = Restored::default();
        Store::create(&path, &identity, &expected).unwrap();
        assert!(matches!(Store::create(&path, &identity, &expected), Err(StoreError::Exists { .. })));
        let changes = [
            Persist {
                entries: vec![entry(1, 1), entry(2, 1), entry(3, 1)],
                hard_state: Some(HardState { term: 1, vote: 3, commit: 1 }),
                sync: true,
                ..Persist::default()
            },
            Persist { entries: vec![entry(2, 2)], pledge: Some(7), sync: true, ..Persist::default() },
        ];
        for change in &changes {
            let (store, found, restored) = Store::open(&path, 3).unwrap();
            assert_eq!((found, restored), (identity.clone(), expected.clone()));
            store.write(change).unwrap();
            expected.absorb(change);
        }
        let (_store, _, restored) = Store::open(&path, 3).unwrap();
        assert_eq!(restored, expected);
        assert_eq!(restored.entries.len(), 2);
        assert_eq!(restored.pledge, 7);
    }

    #[test]
    fn another_nodes_file_and_a_damaged_one_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raft.redb");
        Store::create(&path, &Identity { cluster_id: "c".into(), node: 3 }, &Restored::default()).unwrap();
        assert!(matches!(Store::open(&path, 4), Err(StoreError::Foreign { found: 3, .. })));
        std::fs::write(&path, b"nonsense").unwrap();
        assert!(matches!(Store::open(&path, 3), Err(StoreError::Open { .. })));
    }
}
