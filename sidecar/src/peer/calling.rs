//! The connection that this node opens to a peer, and sends over.

use super::frame::{self, Frame, Hello, MAGIC, Welcome};
use super::{HANDSHAKE_TIMEOUT, Identity, Roll, SILENCE, read};
use crate::rest::PeerIo;
use pgquorum_agent::message::Wire;
use pgquorum_agent::node::{Input, Link};
use pgquorum_agent::standing::Standing;
use pgquorum_agent::types::NodeId;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the machine behind a connection that its other end has closed gets to take a new one. A living process
/// takes it within a round trip.
const PROBE_TIMEOUT: Duration = Duration::from_millis(150);
/// How often a quiet connection is tried.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Pause between attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// Keeps the connection to one peer for as long as it is a member.
pub(super) async fn keep_connected(
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
    let (read, mut write) = tokio::io::split(io);
    let mut read = BufReader::new(read);
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
