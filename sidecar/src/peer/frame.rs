//! Bytes on the wire between two sidecars: the handshake and the frames after it.
//!
//! Both sides prove that they know the cluster's secret without sending it: each answers the other's random number
//! with HMAC-SHA256 over it and everything else that was said. A frame is its length (4 bytes, big endian), its kind
//! (1 byte) and the payload.

use hmac::{Hmac, Mac};
use pgquorum_agent::message::{PeerMessage, Wire};
use pgquorum_agent::standing::Standing;
use pgquorum_agent::types::NodeId;
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The first bytes of every connection between sidecars; HTTP never starts so.
pub const MAGIC: &[u8; 4] = b"PGQ1";
/// No frame is longer; a state of the cluster's log is far below.
const FRAME_MAX: usize = 64 << 20;
const HELLO_MAX: usize = 4096;

const KIND_RAFT: u8 = 0;
const KIND_PEER: u8 = 1;
const KIND_PING: u8 = 2;
const KIND_PONG: u8 = 3;

/// What a frame holds.
#[derive(Debug, PartialEq)]
pub enum Frame {
    Message(Wire),
    Ping,
    Pong,
}

/// The first word: who calls whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub cluster: String,
    pub from: NodeId,
    pub to: NodeId,
    /// Where the caller itself listens: a node that has just joined knows nobody and learns it from here.
    pub address: SocketAddr,
    /// Of the caller's store.
    pub identity: u64,
    /// The store that the called node must have, as far as the caller's log says.
    pub expects: Option<u64>,
    pub nonce: String,
}

/// The answer: a random number of its own, and the proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub nonce: String,
    pub proof: String,
    /// What the caller is to the called node's cluster.
    pub standing: Standing,
}

pub fn nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The proof of `side` for this exchange.
pub fn proof(secret: &str, side: &str, hello: &Hello, answer: &str, standing: Standing) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    let (from, to, address) = (hello.from.to_string(), hello.to.to_string(), hello.address.to_string());
    let (identity, expects) = (hello.identity.to_string(), format!("{:?}", hello.expects));
    let standing = serde_json::to_string(&standing).expect("a standing is plain data");
    let parts =
        [side, &hello.cluster, &from, &to, &address, &identity, &expects, &hello.nonce, answer, &standing];
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part.as_bytes());
    }
    mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

/// Compares proofs in constant time.
pub fn same_proof(a: &str, b: &str) -> bool {
    use subtle::ConstantTimeEq;
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

pub async fn write_json<T: Serialize>(io: &mut (impl AsyncWrite + Unpin), value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    io.write_u32(bytes.len() as u32).await?;
    io.write_all(&bytes).await?;
    io.flush().await
}

pub async fn read_json<T: for<'de> Deserialize<'de>>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = io.read_u32().await? as usize;
    if length > HELLO_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "greeting too long"));
    }
    let mut bytes = vec![0; length];
    io.read_exact(&mut bytes).await?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

/// The bytes of a frame.
pub fn encode(frame: &Frame) -> Vec<u8> {
    let (kind, payload) = match frame {
        Frame::Message(Wire::Raft(message)) => (KIND_RAFT, message.encode_to_vec()),
        Frame::Message(Wire::Peer(message)) => {
            (KIND_PEER, serde_json::to_vec(message).expect("messages are plain data"))
        }
        Frame::Ping => (KIND_PING, Vec::new()),
        Frame::Pong => (KIND_PONG, Vec::new()),
    };
    let mut bytes = Vec::with_capacity(payload.len() + 5);
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.push(kind);
    bytes.extend(payload);
    bytes
}

/// Reads one frame. An error ends the connection: after it the stream has no boundaries any more.
pub async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let length = io.read_u32().await? as usize;
    if length > FRAME_MAX {
        return Err(invalid("frame too long"));
    }
    let kind = io.read_u8().await?;
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await?;
    match kind {
        KIND_RAFT => {
            let message = raft::eraftpb::Message::decode(payload.as_slice()).map_err(io::Error::other)?;
            Ok(Frame::Message(Wire::Raft(Box::new(message))))
        }
        KIND_PEER => {
            let message: PeerMessage = serde_json::from_slice(&payload).map_err(io::Error::other)?;
            Ok(Frame::Message(Wire::Peer(message)))
        }
        KIND_PING => Ok(Frame::Ping),
        KIND_PONG => Ok(Frame::Pong),
        _ => Err(invalid("unknown kind of frame")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgquorum_agent::message::Beat;
    use pgquorum_agent::standing::Outcast;
    use pgquorum_agent::types::{Lsn, Position};
    use pgquorum_agent::view::{NodeStatus, State};
    use std::collections::BTreeMap;

    #[tokio::test]
    async fn frames_round_trip_and_nonsense_ends_the_connection() {
        let status = NodeStatus {
            state: State::Replica,
            position: Position { epoch: 3, lsn: Lsn(77) },
            replay_lsn: Lsn(70),
            streaming: true,
            pid: 9,
            sees: vec![1, 2],
            pending_restart: vec!["max_connections".into()],
            trouble: None,
            copy_progress: Some((1, 2)),
            writes: Default::default(),
        };
        let beat = Beat { term: 4, open: None, nodes: BTreeMap::from([(2, status.clone())]) };
        let frames = [
            Frame::Message(Wire::Peer(PeerMessage::Pledge { term: 9 })),
            Frame::Message(Wire::Peer(PeerMessage::Status { status, identity: 7 })),
            Frame::Message(Wire::Peer(PeerMessage::Beat(beat))),
            Frame::Message(Wire::Raft(Box::new(raft::eraftpb::Message {
                from: 1,
                to: 2,
                term: 3,
                ..Default::default()
            }))),
            Frame::Ping,
            Frame::Pong,
        ];
        for frame in frames {
            let bytes = encode(&frame);
            assert_eq!(read_frame(&mut bytes.as_slice()).await.unwrap(), frame);
            assert!(read_frame(&mut &bytes[..bytes.len() - 1]).await.is_err());
        }
        assert!(read_frame(&mut [0xffu8; 16].as_slice()).await.is_err());
        assert!(read_frame(&mut [0, 0, 0, 0, 77].as_slice()).await.is_err());
    }

    #[test]
    fn a_proof_holds_for_one_side_one_secret_and_one_exchange() {
        let hello = Hello {
            cluster: "c".into(),
            from: 1,
            to: 2,
            address: "127.0.0.1:8001".parse().unwrap(),
            identity: 5,
            expects: Some(6),
            nonce: "n".into(),
        };
        let good = proof("secret", "server", &hello, "m", Standing::Accepted);
        assert!(same_proof(&good, &proof("secret", "server", &hello, "m", Standing::Accepted)));
        for other in [
            proof("other", "server", &hello, "m", Standing::Accepted),
            proof("secret", "client", &hello, "m", Standing::Accepted),
            proof("secret", "server", &hello, "k", Standing::Accepted),
            proof("secret", "server", &hello, "m", Standing::Out(Outcast::Removed)),
            proof("secret", "server", &Hello { identity: 6, ..hello.clone() }, "m", Standing::Accepted),
            proof("secret", "server", &Hello { expects: None, ..hello.clone() }, "m", Standing::Accepted),
            proof("secret", "server", &Hello { from: 3, ..hello.clone() }, "m", Standing::Accepted),
        ] {
            assert!(!same_proof(&good, &other));
        }
    }
}
