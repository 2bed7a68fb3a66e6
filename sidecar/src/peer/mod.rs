//! Connections between sidecars: each node keeps one to every other, over which it sends; what it hears comes over
//! theirs. When a connection breaks, the next attempt tells at once whether the other process is dead.

mod frame;
mod tls;

use crate::rest::{PeerConnection, PeerIo};
use frame::{Frame, Hello, MAGIC, Welcome};
use pgquorum_agent::message::Wire;
use pgquorum_agent::node::{Input, Link};
use pgquorum_agent::standing::{self, Outcast, Standing};
use pgquorum_agent::types::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
pub use tls::PeerTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// Messages that may wait for one peer; more are dropped, Raft sends again.
const QUEUE: usize = 1024;
/// Callers that may wait for the driver to hear of them.
const CALLERS: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the machine behind a connection that its other end has closed gets to take a new one. A living process
/// takes it within a round trip.
const PROBE_TIMEOUT: Duration = Duration::from_millis(150);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a quiet connection is tried, and after how long without an answer it counts as lost.
const PING_EVERY: Duration = Duration::from_millis(250);
const SILENCE: Duration = Duration::from_millis(1500);
/// Pause between attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

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
    /// `incoming` brings the connections that other nodes opened on this node's port.
    pub fn new(
        identity: Identity,
        inputs: mpsc::Sender<Input>,
        mut incoming: mpsc::Receiver<PeerConnection>,
    ) -> Peers {
        let identity = Arc::new(identity);
        let roll = SharedRoll::default();
        let (called, callers) = mpsc::channel(CALLERS);
        let (me, to, shared) = (Arc::clone(&identity), inputs.clone(), Arc::clone(&roll));
        tokio::spawn(async move {
            while let Some(connection) = incoming.recv().await {
                let (me, to, roll, called) =
                    (Arc::clone(&me), to.clone(), Arc::clone(&shared), called.clone());
                tokio::spawn(async move {
                    let remote = connection.remote;
                    if let Err(error) = listen(connection, &me, &to, &roll, &called).await {
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
        let task = tokio::spawn(async move { keep_connected(id, address, &me, &roll, queue, &inputs).await });
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

/// Keeps the connection to one peer for as long as it is a member.
async fn keep_connected(
    peer: NodeId,
    address: SocketAddr,
    me: &Identity,
    roll: &Mutex<Roll>,
    mut queue: mpsc::Receiver<Wire>,
    inputs: &mpsc::Sender<Input>,
) {
    let mut complained = false;
    loop {
        let expects = read(roll).identities.get(&peer).copied();
        let link = match connect(peer, address, me, expects).await {
            Ok((_, Standing::Out(why))) => {
                let _ = inputs.send(Input::Outcast(why)).await;
                Link::Down
            }
            Ok((_, Standing::Stranger)) => {
                if !complained {
                    tracing::warn!(peer, %address, "another cluster's node, or another node, has the peer's address");
                    complained = true;
                }
                Link::Down
            }
            Ok((io, Standing::Accepted)) => {
                complained = false;
                // What waited for a dead connection is old news.
                while queue.try_recv().is_ok() {}
                let _ = inputs.send(Input::Link { peer, link: Link::Up }).await;
                let ended = talk(io, &mut queue).await;
                tracing::debug!(peer, error = ?ended, "connection to peer ended");
                // Whether the process is dead shows at the next attempt, which follows at once.
                after_end(ended.err(), connect_probe(address).await.err())
            }
            Err(error) if is_refusal(&error) => Link::Gone,
            Err(error) => {
                // Once: a peer that is away stays away for many attempts.
                if !complained {
                    tracing::warn!(peer, %address, %error, "cannot connect to the peer; trying on");
                    complained = true;
                }
                Link::Down
            }
        };
        let closed = inputs.send(Input::Link { peer, link }).await.is_err();
        if closed || queue.is_closed() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// What the end of a connection says of the other process, given how it ended and how the attempt that followed at once
/// failed, if it did. A process that dies closes its connections; silence and a living process close none.
fn after_end(ended: Option<io::Error>, probe: Option<io::Error>) -> Link {
    let closed = ended.is_some_and(|error| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
    });
    match probe {
        Some(error) if is_refusal(&error) || closed => Link::Gone,
        _ => Link::Down,
    }
}

async fn connect_probe(address: SocketAddr) -> io::Result<()> {
    timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await.map_err(|_| io::ErrorKind::TimedOut)?.map(drop)
}

/// Opens a connection and proves who this node is. Tells what this node is to the peer.
async fn connect(
    peer: NodeId,
    address: SocketAddr,
    me: &Identity,
    expects: Option<u64>,
) -> io::Result<(Box<dyn PeerIo>, Standing)> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    let greet = async {
        let mut io: Box<dyn PeerIo> = match &me.tls {
            Some(tls) => tls.connect(stream, address.ip()).await?,
            None => Box::new(stream),
        };
        io.write_all(MAGIC).await?;
        let hello = Hello {
            cluster: me.cluster.clone(),
            from: me.node,
            to: peer,
            address: me.address,
            identity: me.identity,
            expects,
            nonce: frame::nonce(),
        };
        frame::write_json(&mut io, &hello).await?;
        let welcome: Welcome = frame::read_json(&mut io).await?;
        let expected = frame::proof(&me.secret, "server", &hello, &welcome.nonce, welcome.standing);
        if !frame::same_proof(&expected, &welcome.proof) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the peer does not know the cluster's secret",
            ));
        }
        let proof = frame::proof(&me.secret, "client", &hello, &welcome.nonce, welcome.standing);
        frame::write_json(&mut io, &proof).await?;
        Ok((io, welcome.standing))
    };
    timeout(HANDSHAKE_TIMEOUT, greet).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Sends what is queued until the connection breaks or falls silent.
async fn talk(io: Box<dyn PeerIo>, queue: &mut mpsc::Receiver<Wire>) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(io);
    let (pong_sender, mut pongs) = mpsc::channel::<io::Result<()>>(8);
    let reader = tokio::spawn(async move {
        loop {
            let heard = frame::read_frame(&mut read).await.map(drop);
            let broken = heard.is_err();
            if pong_sender.send(heard).await.is_err() || broken {
                return;
            }
        }
    });
    let mut ping = tokio::time::interval(PING_EVERY);
    let mut heard_at = Instant::now();
    let result = loop {
        tokio::select! {
            wire = queue.recv() => {
                let Some(wire) = wire else { break Ok(()) };
                let mut bytes = frame::encode(&Frame::Message(wire));
                while bytes.len() < 1 << 16 && let Ok(more) = queue.try_recv() {
                    bytes.extend(frame::encode(&Frame::Message(more)));
                }
                match timeout(SILENCE, write.write_all(&bytes)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break Err(error),
                    Err(_) => break Err(io::ErrorKind::TimedOut.into()),
                }
            }
            pong = pongs.recv() => match pong {
                Some(Ok(())) => heard_at = Instant::now(),
                Some(Err(error)) => break Err(error),
                None => break Err(io::ErrorKind::UnexpectedEof.into()),
            },
            _ = ping.tick() => {
                if heard_at.elapsed() > SILENCE {
                    break Err(io::ErrorKind::TimedOut.into());
                }
                if let Err(error) = write.write_all(&frame::encode(&Frame::Ping)).await {
                    break Err(error);
                }
            }
        }
        if let Err(error) = write.flush().await {
            break Err(error);
        }
    };
    reader.abort();
    result
}

/// Serves a connection that another node opened.
async fn listen(
    connection: PeerConnection,
    me: &Identity,
    inputs: &mpsc::Sender<Input>,
    roll: &Mutex<Roll>,
    called: &mpsc::Sender<(NodeId, SocketAddr)>,
) -> io::Result<()> {
    let mut io = connection.io;
    let caller = timeout(HANDSHAKE_TIMEOUT, welcome(&mut io, me, roll))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    if let Caller::ThinksOfAnother = caller {
        let _ = inputs.send(Input::Outcast(Outcast::Forgotten)).await;
        return Err(refusal("the caller knows this node's number with another store"));
    }
    let Caller::Peer(from, address) = caller else {
        return Err(refusal("the caller has no part in the cluster"));
    };
    let _ = called.send((from, address)).await;
    let (mut reader, mut write) = tokio::io::split(io);
    loop {
        let frame = timeout(4 * SILENCE, frame::read_frame(&mut reader))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        // The caller's next connection is told so; this one would go on for ever without a word of it.
        if read(roll).removed.contains(&from) {
            return Err(refusal("the caller was removed from the cluster"));
        }
        match frame {
            Frame::Message(wire) => {
                if inputs.send(Input::Message { from, wire }).await.is_err() {
                    return Ok(());
                }
            }
            Frame::Ping => {
                write.write_all(&frame::encode(&Frame::Pong)).await?;
                write.flush().await?;
            }
            Frame::Pong => {}
        }
    }
}

/// Who called.
enum Caller {
    Peer(NodeId, SocketAddr),
    /// It was told why it is none.
    Outcast,
    /// Its log says that this node's number belongs to another store than this node has.
    ThinksOfAnother,
}

fn refusal(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text.to_owned())
}

async fn welcome(io: &mut Box<dyn PeerIo>, me: &Identity, roll: &Mutex<Roll>) -> io::Result<Caller> {
    let mut magic = [0; 4];
    io.read_exact(&mut magic).await?;
    if magic != *MAGIC {
        return Err(refusal("not a peer of this version"));
    }
    let hello: Hello = frame::read_json(io).await?;
    let standing = {
        let roll = read(roll);
        let (known, removed) =
            (roll.identities.get(&hello.from).copied(), roll.removed.contains(&hello.from));
        let caller = standing::Caller { cluster: &hello.cluster, node: hello.from, identity: hello.identity };
        match standing::standing(&me.cluster, known, removed, &caller) {
            Standing::Accepted if hello.to != me.node || hello.from == me.node => Standing::Stranger,
            standing => standing,
        }
    };
    let nonce = frame::nonce();
    let proof = frame::proof(&me.secret, "server", &hello, &nonce, standing);
    frame::write_json(io, &Welcome { nonce: nonce.clone(), proof, standing }).await?;
    let answer: String = frame::read_json(io).await?;
    if !frame::same_proof(&answer, &frame::proof(&me.secret, "client", &hello, &nonce, standing)) {
        return Err(refusal("the caller does not know the cluster's secret"));
    }
    match standing {
        Standing::Stranger => Err(refusal("the caller wants another cluster or another node")),
        Standing::Out(why) => {
            tracing::warn!(node = hello.from, address = %hello.address, "refused: {}", why.explain(hello.from));
            Ok(Caller::Outcast)
        }
        Standing::Accepted if standing::is_other(hello.expects, me.identity) => Ok(Caller::ThinksOfAnother),
        Standing::Accepted => Ok(Caller::Peer(hello.from, hello.address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, TimedOut, UnexpectedEof};

    #[test]
    fn only_a_connection_that_its_other_end_closed_tells_of_a_death() {
        let link = |ended: Option<io::ErrorKind>, probe: Option<io::ErrorKind>| {
            after_end(ended.map(Into::into), probe.map(Into::into))
        };
        // SIGKILL of the process, on a machine that lives; and one that went down right after it.
        assert_eq!(link(Some(UnexpectedEof), Some(ConnectionRefused)), Link::Gone);
        assert_eq!(link(Some(ConnectionReset), Some(TimedOut)), Link::Gone);
        assert_eq!(link(Some(UnexpectedEof), Some(HostUnreachable)), Link::Gone);
        // Closed by a process that lives, or by one that was started again.
        assert_eq!(link(Some(UnexpectedEof), None), Link::Down);
        // A black hole closes nothing.
        assert_eq!(link(Some(TimedOut), Some(TimedOut)), Link::Down);
        assert_eq!(link(Some(TimedOut), Some(ConnectionRefused)), Link::Gone);
        assert_eq!(link(None, None), Link::Down);
    }
}
