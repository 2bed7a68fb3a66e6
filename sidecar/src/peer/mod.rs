//! Connections between sidecars: each node keeps one to every other, over which it sends; what it hears comes over
//! theirs. When a connection breaks, the next attempt tells at once whether the other process is dead.

mod answering;
mod calling;
mod frame;
mod tls;

use crate::rest::PeerConnection;
pub use frame::MAGIC;
use pgquorum_agent::message::Wire;
use pgquorum_agent::node::Input;
use pgquorum_agent::types::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
pub use tls::PeerTls;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Messages that may wait for one peer; more are dropped, Raft sends again.
const QUEUE: usize = 1024;
/// Callers that may wait for the driver to hear of them.
const CALLERS: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// After so long without an answer a connection counts as lost; it is tried more often.
const SILENCE: Duration = Duration::from_millis(1500);

/// Who this node is among its peers.
pub struct Identity {
    pub cluster: String,
    pub node: NodeId,
    /// Where other nodes reach this one.
    pub address: SocketAddr,
    /// Of this node's store.
    pub identity: u64,
    pub secret: String,
    pub tls: Option<PeerTls>,
}

/// What the cluster's log says of numbers: who was taken out, and which store speaks for whom.
#[derive(Clone, Debug, Default)]
pub struct Roll {
    pub removed: BTreeSet<NodeId>,
    pub identities: BTreeMap<NodeId, u64>,
}

type SharedRoll = Arc<Mutex<Roll>>;

fn read(roll: &Mutex<Roll>) -> std::sync::MutexGuard<'_, Roll> {
    roll.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connections to all peers.
pub struct Peers {
    identity: Arc<Identity>,
    inputs: mpsc::Sender<Input>,
    links: BTreeMap<NodeId, (SocketAddr, mpsc::Sender<Wire>, JoinHandle<()>)>,
    roll: SharedRoll,
    callers: mpsc::Receiver<(NodeId, SocketAddr)>,
}

impl Peers {
    /// `incoming` brings the connections that other nodes opened on this node's port; they are served in `runtime`, where
    /// everything else is to be called, too.
    pub fn new(
        identity: Identity,
        inputs: mpsc::Sender<Input>,
        mut incoming: mpsc::Receiver<PeerConnection>,
        runtime: &Handle,
    ) -> Peers {
        let identity = Arc::new(identity);
        let roll = SharedRoll::default();
        let (called, callers) = mpsc::channel(CALLERS);
        let (me, to, shared) = (Arc::clone(&identity), inputs.clone(), Arc::clone(&roll));
        runtime.spawn(async move {
            while let Some(connection) = incoming.recv().await {
                let (me, to, roll, called) =
                    (Arc::clone(&me), to.clone(), Arc::clone(&shared), called.clone());
                tokio::spawn(async move {
                    let remote = connection.remote;
                    if let Err(error) = answering::listen(connection, &me, &to, &roll, &called).await {
                        if error.kind() == io::ErrorKind::PermissionDenied {
                            tracing::warn!(%remote, %error, "a connection to this node's peer protocol was refused");
                        } else {
                            tracing::debug!(%remote, %error, "a peer's connection ended");
                        }
                    }
                });
            }
        });
        Peers { identity, inputs, links: BTreeMap::new(), roll, callers }
    }

    /// The next node that called and proved itself, and where it listens.
    pub async fn caller(&mut self) -> Option<(NodeId, SocketAddr)> {
        self.callers.recv().await
    }

    /// Connects back to a node that called, for a node that knows no members yet.
    pub fn answer(&mut self, id: NodeId, address: SocketAddr) {
        if id != self.identity.node && !self.links.contains_key(&id) {
            self.link(id, address);
        }
    }

    fn link(&mut self, id: NodeId, address: SocketAddr) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let (me, inputs, roll) = (Arc::clone(&self.identity), self.inputs.clone(), Arc::clone(&self.roll));
        let task =
            tokio::spawn(
                async move { calling::keep_connected(id, address, &me, &roll, queue, &inputs).await },
            );
        self.links.insert(id, (address, sender, task));
    }

    /// Connects with exactly these nodes, and tells callers that have no part in the cluster so, by `roll`.
    pub fn set_members(&mut self, members: &BTreeMap<NodeId, SocketAddr>, roll: Roll) {
        *read(&self.roll) = roll;
        self.links.retain(|id, (address, _, task)| {
            let keep = members.get(id) == Some(address);
            if !keep {
                task.abort();
            }
            keep
        });
        for (&id, &address) in members {
            if id == self.identity.node || self.links.contains_key(&id) {
                continue;
            }
            self.link(id, address);
        }
    }

    /// Sends without waiting; a message that finds the queue full is lost.
    pub fn send(&self, to: NodeId, wire: Wire) {
        if let Some((_, sender, _)) = self.links.get(&to) {
            let _ = sender.try_send(wire);
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for (_, _, task) in self.links.values() {
            task.abort();
        }
    }
}
