//! A node of a remote that a test plays: it answers each request by its line.

use super::config::Config;
use super::remote::Remote;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// It ends when this is dropped.
pub struct Played {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Played {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Played {
    /// Answers with what is made of `GET /path?query HTTP/1.1`, see [`answer`].
    pub async fn start(answers: impl Fn(&str) -> String + Send + 'static) -> Played {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                    if !stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
                        break;
                    }
                }
                let said = {
                    let text = String::from_utf8_lossy(&request);
                    answers(text.lines().next().unwrap_or_default())
                };
                let _ = stream.write_all(said.as_bytes()).await;
                let _ = stream.shutdown().await;
                // What was not read would break the answer off.
                while stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {}
            }
        });
        Played { address, task }
    }

    pub fn endpoint(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// A remote of this node alone.
    pub fn remote(&self) -> Remote {
        remote(&[self.endpoint()])
    }
}

/// A remote of these nodes, which are asked in this order.
pub fn remote(endpoints: &[String]) -> Remote {
    let config = Config { endpoint: Some(endpoints.join(",")), ..Config::default() };
    Remote::new(&config, None, "shop").unwrap()
}

/// An answer with these fields of the protocol, without the `x-arango-replication-` in front of their names.
pub fn answer(fields: &[(&str, &str)], body: &str) -> String {
    let fields: String =
        fields.iter().map(|(name, value)| format!("x-arango-replication-{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n{fields}\r\n{body}", body.len())
}
