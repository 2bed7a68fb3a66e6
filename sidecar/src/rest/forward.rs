//! Asking the leader in the name of this node: one connection, one request, one hop.

use super::refusal::{Refusal, with_body};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pgquorum_agent::types::NodeId;
use rustls_pki_types::ServerName;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use warp::http::{HeaderMap, HeaderValue, Method, Request, header};
use warp::reply::Response;

/// Marks a request that came from another node, so that it is not passed on again.
pub(super) const HOP_HEADER: &str = "x-pgquorum-forwarded-by";

/// How long it may take to reach the leader.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// How long the leader may take to answer: longer than it gives its own driver.
const ANSWER_DEADLINE: Duration = Duration::from_secs(25);

/// How long the leader may take to begin a stream, and to say something in it: it says where the channel ends each second.
const BEGIN_DEADLINE: Duration = Duration::from_secs(10);
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// The same for an operation, which may have to ask other clusters.
const OPERATION_DEADLINE: Duration = Duration::from_secs(120);

/// The longest answer that is passed on: what a worker has applied may be long.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

pub(super) type Failure = Box<dyn Error + Send + Sync>;

pub(super) struct Forward {
    /// What lets this node in at the others.
    key: Option<Arc<str>>,
    tls: Option<Arc<rustls::ClientConfig>>,
}

/// A request for another node.
#[derive(Clone)]
pub(super) struct Passed {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    /// Beside those that every request between nodes has.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Forward {
    pub(super) fn new(key: Option<Arc<str>>, tls: Option<Arc<rustls::ClientConfig>>) -> Forward {
        Forward { key, tls }
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Sends `POST path` to the leader in the name of node `from` and returns its answer as it is.
    pub(super) async fn post(
        &self,
        leader: SocketAddr,
        path: &str,
        from: NodeId,
    ) -> Result<Response, Refusal> {
        self.post_within(leader, path, from, ANSWER_DEADLINE).await
    }

    /// The same for what may take longer.
    pub(super) async fn post_within(
        &self,
        leader: SocketAddr,
        path: &str,
        from: NodeId,
        deadline: Duration,
    ) -> Result<Response, Refusal> {
        self.passed(leader, deadline, self.exchange(leader, path, from, String::new())).await
    }

    /// The same with a body, for what may take long.
    pub(super) async fn pass_on(
        &self,
        leader: SocketAddr,
        path: &str,
        from: NodeId,
        body: String,
    ) -> Result<Response, Refusal> {
        self.passed(leader, OPERATION_DEADLINE, self.exchange(leader, path, from, body)).await
    }

    async fn passed(
        &self,
        leader: SocketAddr,
        deadline: Duration,
        asked: impl Future<Output = Result<Response, Failure>>,
    ) -> Result<Response, Refusal> {
        match tokio::time::timeout(deadline, asked).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                tracing::warn!(%leader, error, "could not pass a request on to the leader");
                Err(Refusal::new(
                    531,
                    "leader_unreachable",
                    format!(
                        "the leader at {leader} could not be asked: {error}. Ask it yourself, or try again"
                    ),
                ))
            }
            Err(_) => Err(Refusal::new(
                531,
                "timed_out",
                format!(
                    "the leader at {leader} did not answer in time: the change may or may not have been made"
                ),
            )),
        }
    }

    /// What this node itself is let in with at the others.
    pub(super) fn own_login(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("Bearer {}", self.key.as_deref()?)).ok()
    }

    /// Sends a request to another node, in the name of node `from` and with no other login than the one in its headers.
    /// Returns status and body of the answer. For how long is the caller's to say.
    pub(super) async fn pass(
        &self,
        to: SocketAddr,
        from: NodeId,
        passed: Passed,
        answer_bytes_max: usize,
    ) -> Result<(u16, Bytes), Failure> {
        let Passed { method, path, headers, body } = passed;
        let mut request = between_nodes(method, to, &path, from).body(Full::new(body))?;
        for (name, value) in &headers {
            request.headers_mut().insert(name, value.clone());
        }
        self.answer(to, request, answer_bytes_max).await
    }

    /// Sends `GET path` to the leader and reads, and throws away, whatever it answers until it ends or says nothing for
    /// long. Returns at once if it refuses.
    pub(super) async fn hold(&self, leader: SocketAddr, path: &str, from: NodeId) -> Result<(), Failure> {
        let stream = self.connect(leader).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = self.request(Method::GET, leader, path, from, String::new())?;
        let reading = async {
            let asked = tokio::time::timeout(BEGIN_DEADLINE, sender.send_request(request)).await;
            let response = asked.map_err(|_| "no answer in 10 s")??;
            if !response.status().is_success() {
                return Err(format!("the leader answers {}", response.status()).into());
            }
            let mut body = response.into_body();
            let silent = |_| "the leader says nothing for 4 s";
            while let Some(frame) = tokio::time::timeout(SILENCE_MAX, body.frame()).await.map_err(silent)? {
                frame?;
            }
            Ok(())
        };
        let (mut connection, mut reading) = (std::pin::pin!(connection), std::pin::pin!(reading));
        tokio::select! {
            read = &mut reading => read,
            ended = &mut connection => { ended?; reading.await }
        }
    }

    async fn connect(&self, leader: SocketAddr) -> Result<Box<dyn Wire>, Failure> {
        let connect = async {
            let stream = TcpStream::connect(leader).await?;
            stream.set_nodelay(true)?;
            let io: Box<dyn Wire> = match &self.tls {
                None => Box::new(stream),
                Some(config) => {
                    let name = ServerName::IpAddress(leader.ip().into());
                    Box::new(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
                }
            };
            Ok::<_, Failure>(io)
        };
        tokio::time::timeout(CONNECT_DEADLINE, connect).await.map_err(|_| "no connection in 3 s")?
    }

    async fn exchange(
        &self,
        leader: SocketAddr,
        path: &str,
        from: NodeId,
        body: String,
    ) -> Result<Response, Failure> {
        let request = self.request(Method::POST, leader, path, from, body)?;
        let (status, body) = self.answer(leader, request, ANSWER_BYTES_MAX).await?;
        Ok(with_body(status, "application/json", String::from_utf8(body.into())?))
    }

    async fn answer(
        &self,
        to: SocketAddr,
        request: Request<Full<Bytes>>,
        bytes_max: usize,
    ) -> Result<(u16, Bytes), Failure> {
        let stream = self.connect(to).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, bytes_max).collect().await?.to_bytes();
            Ok::<_, Failure>((head.status.as_u16(), body))
        };
        // The connection moves the bytes; it ends with the answer, so no task is left behind.
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            ended = &mut connection => { ended?; answer.await }
        }
    }

    fn request(
        &self,
        method: Method,
        leader: SocketAddr,
        path: &str,
        from: NodeId,
        body: String,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = between_nodes(method, leader, path, from);
        if let Some(login) = self.own_login() {
            request = request.header(header::AUTHORIZATION, login);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        Ok(request.body(Full::new(Bytes::from(body)))?)
    }
}

fn between_nodes(method: Method, to: SocketAddr, path: &str, from: NodeId) -> warp::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, to.to_string())
        .header(header::CONNECTION, "close")
        .header(HOP_HEADER, from)
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}
