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
        "the cluster's log {path} is used by another process: a sidecar runs with it already. Stop that one first"
    )]
    InUse { path: PathBuf },
    #[error(
        "the cluster's log {path} is gone, and with it the vote and the promises of node {node}. It must not take part \
         under this number again, and nothing was started. {}", come_back(*.node, .path)
    )]
    Lost { path: PathBuf, node: NodeId },
    #[error(
        "the cluster's log {path} is damaged: {message}. What node {node} voted and promised cannot be relied on, so it \
         must not take part under this number again, and nothing was started. {}", come_back(*.node, .path)
    )]
    Damaged { path: PathBuf, node: NodeId, message: String },
    #[error(
        "the cluster's log {path} cannot be written: {message}. The node stops; look for a full or broken disk"
    )]
    Write { path: PathBuf, message: String },
    #[error("{path} exists already: this directory belongs to a node. Choose another, or remove it first")]
    Exists { path: PathBuf },
    #[error("{path} belongs to node {found} of cluster {cluster}, but node.toml says node {expected}")]
    Foreign { path: PathBuf, found: NodeId, cluster: String, expected: NodeId },
}

/// How a node whose memory is lost returns. Nothing here destroys anything.
fn come_back(node: NodeId, store: &Path) -> String {
    let state = store.parent().unwrap_or(Path::new("."));
    format!(
        "To bring this machine back as a new node: 1. on another node: pgquorum node remove {node} --config \
         DIR/node.toml; 2. here: keep {}/secrets.toml and token, move the node's directory away; 3. here: pgquorum join \
         --leader http://OTHER-NODE:PORT --dir DIR --ip ADDRESS --secrets FILE (and --token-file). Do not copy another \
         node's raft.redb and do not restore it from a backup. If this was the last node: pgquorum force-leader --help",
        state.display()
    )
}

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: String,
    pub node: NodeId,
}

/// Tells one store from another. No more bits than a number in JSON has.
fn new_identity() -> u64 {
    (rand::random::<u64>() >> 11).max(1)
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
            identity: Some(new_identity()),
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
        Store::create(
            &config.store_file(),
            &identity,
            &Restored { identity: new_identity(), ..Restored::default() },
        )?;
        Ok(identity)
    }

    fn create(path: &Path, identity: &Identity, state: &Restored) -> Result<(), StoreError> {
        if path.exists() {
            return Err(StoreError::Exists { path: path.to_owned() });
        }
        let db = Database::create(path)
            .map_err(|e| StoreError::Write { path: path.to_owned(), message: e.to_string() })?;
        keep_private(path);
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
            meta.insert("identity", state.identity.to_be_bytes().as_slice())?;
            write(meta, entries, &first)
        })
    }

    /// Puts a file with this state in the place of another, at once or not at all. Returns where the other is kept.
    pub fn replace(path: &Path, identity: &Identity, state: &Restored) -> Result<PathBuf, StoreError> {
        let failed = |e: std::io::Error| StoreError::Write { path: path.to_owned(), message: e.to_string() };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seconds = now.map(|d| d.as_secs()).unwrap_or_default();
        let (new, kept) =
            (path.with_extension("redb.new"), path.with_extension(format!("redb.before-force-{seconds}")));
        if new.exists() {
            std::fs::remove_file(&new).map_err(failed)?;
        }
        Store::create(&new, identity, state)?;
        std::fs::hard_link(path, &kept).map_err(failed)?;
        std::fs::rename(&new, path).map_err(failed)?;
        let folder = std::fs::File::open(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        folder.sync_all().map_err(failed)?;
        Ok(kept)
    }

    /// Opens the file and reads everything back. One process at a time can have it open.
    pub fn open(path: &Path, expected: NodeId) -> Result<(Store, Identity, Restored), StoreError> {
        if !path.exists() {
            return Err(StoreError::Lost { path: path.to_owned(), node: expected });
        }
        keep_private(path);
        let damaged =
            |message: String| StoreError::Damaged { path: path.to_owned(), node: expected, message };
        // A torn file may make the reader panic instead of failing; both mean the same.
        let read = std::panic::catch_unwind(|| {
            let mut db = match Database::open(path) {
                Ok(db) => db,
                Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                    return Err(StoreError::InUse { path: path.to_owned() });
                }
                Err(error) => return Err(damaged(error.to_string())),
            };
            // Every page has a checksum; a store is small.
            db.check_integrity().map_err(|e| damaged(e.to_string()))?;
            let store = Store { path: path.to_owned(), db };
            let (identity, restored) = store.load().map_err(|e| damaged(e.to_string()))?;
            Ok((store, identity, restored))
        });
        let (store, identity, restored) =
            read.unwrap_or_else(|_| Err(damaged("it cannot be read".to_owned())))?;
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
            identity: if meta.get("identity")?.is_some() { number("identity")? } else { 0 },
            superseded: meta.get("superseded")?.is_some(),
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
    if change.superseded {
        meta.insert("superseded", [1].as_slice())?;
    }
    if let Some(pledge) = change.pledge {
        meta.insert("pledge", pledge.to_be_bytes().as_slice())?;
    }
    Ok(())
}

/// The hashes of users' passwords are nobody's business but the owner's. Where that cannot be had the node runs all the
/// same: its directory keeps others out, as a rule.
fn keep_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
        tracing::warn!(file = %path.display(), %error, "cannot be made unreadable to others");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![1, 2, 3], ..Entry::default() }
    }

    #[test]
    fn others_cannot_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raft.redb");
        let identity = Identity { cluster_id: "c".to_owned(), node: 1 };
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        Store::create(&path, &identity, &Restored::default()).unwrap();
        assert_eq!(mode(), 0o600);
        // As an older version left it.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        Store::open(&path, 1).map(drop).unwrap();
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn everything_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raft.redb");
        let identity = Identity { cluster_id: "c".into(), node: 3 };
        let mut expected = Restored { identity: 77, ..Restored::default() };
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
            Persist { superseded: true, sync: true, ..Persist::default() },
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
        let held = Store::open(&path, 3).unwrap();
        assert!(matches!(Store::open(&path, 3), Err(StoreError::InUse { .. })));
        drop(held);
        std::fs::write(&path, b"nonsense").unwrap();
        assert!(matches!(Store::open(&path, 3), Err(StoreError::Damaged { node: 3, .. })));
        std::fs::remove_file(&path).unwrap();
        let lost = Store::open(&path, 3).err().unwrap();
        assert!(matches!(lost, StoreError::Lost { node: 3, .. }));
        assert!(lost.to_string().contains("pgquorum node remove 3"), "{lost}");
    }

    /// A file of which a part is missing or was overwritten is never read as if it were whole.
    #[test]
    fn a_torn_file_is_refused_or_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raft.redb");
        let expected = Restored { identity: 5, ..Restored::default() };
        Store::create(&path, &Identity { cluster_id: "c".into(), node: 3 }, &expected).unwrap();
        let (store, _, _) = Store::open(&path, 3).unwrap();
        let entries: Vec<Entry> = (1..200).map(|i| entry(i, 1)).collect();
        let change = Persist { entries, pledge: Some(9), sync: true, ..Persist::default() };
        store.write(&change).unwrap();
        drop(store);
        let mut expected = expected;
        expected.absorb(&change);
        let whole = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for part in 0..32 {
            let at = whole.len() * part / 32;
            let mut overwritten = whole.clone();
            let end = (at + 512).min(whole.len());
            overwritten[at..end].fill(0xA5);
            for torn in [whole[..at].to_vec(), overwritten] {
                std::fs::write(&path, torn).unwrap();
                match Store::open(&path, 3) {
                    Ok((_, _, restored)) => assert_eq!(restored, expected, "read as whole at {at}"),
                    Err(StoreError::Damaged { .. }) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
            }
        }
        assert!(refused > 20, "only {refused} of 64 were refused");
    }
}
