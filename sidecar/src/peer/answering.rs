//! Connections that other nodes open to this one; what they say comes over these.

use super::frame::{self, Frame, Hello, MAGIC, Welcome};
use super::{HANDSHAKE_TIMEOUT, Identity, Roll, SILENCE, read};
use crate::rest::{PeerConnection, PeerIo};
use pgquorum_agent::node::Input;
use pgquorum_agent::standing::{self, Outcast, Standing};
use pgquorum_agent::types::NodeId;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Serves a connection that another node opened.
pub(super) async fn listen(
    connection: PeerConnection,
    me: &Identity,
    inputs: &mpsc::Sender<Input>,
    roll: &Mutex<Roll>,
    called: &mpsc::Sender<(NodeId, SocketAddr)>,
) -> io::Result<()> {
    let mut io = connection.stream.open()?;
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
    let (reader, mut write) = tokio::io::split(io);
    let mut reader = BufReader::new(reader);
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
