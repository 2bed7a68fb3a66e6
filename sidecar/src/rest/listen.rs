//! The port: bind, accept, tell peers from HTTP, serve, drain.

use super::api::Api;
use super::forward::Forward;
use super::guard::Guard;
use super::guarded::Guarded;
use super::refusal::Refusal;
use super::tls::{PEER_PROTOCOL, Tls};
use crate::feed::Source;
use crate::handle::Handle;
use crate::login::Logins;
use crate::peer::MAGIC;
use crate::statements::Statements;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use warp::filters::BoxedFilter;
use warp::http::Request;
use warp::reply::Response;

/// How long a new connection may take to show what it is, its TLS handshake included.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// How long a client may take to send a request's head; an idle connection is closed after the same time.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long requests may take to finish once the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Connections that have not shown yet what they are. When so many wait, the next ones stay in the kernel's queue.
const HELLOS_MAX: usize = 256;

/// HTTP connections at a time. Peers are not counted, so clients cannot keep the nodes from talking to each other.
const CONNECTIONS_MAX: usize = 1024;

/// Where and how to serve.
#[derive(Clone)]
pub struct RestConfig {
    pub listen: SocketAddr,
    /// What may do everything, as `Authorization: Bearer …`. `None` on loopback: as long as there are no users, everybody
    /// may.
    pub token: Option<String>,
    /// The key that follows from the cluster's secret ([`crate::login::cluster_key`]); counts as much.
    pub cluster_key: Option<String>,
    pub tls: Option<TlsFiles>,
}

/// PEM files: this node's certificate chain and key, and the authority that signed those of all nodes.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: Option<PathBuf>,
}

/// Why the port cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    #[error(
        "port {port} of {ip} is in use: another sidecar or another program listens there. `ss -ltnp 'sport = :{port}'` \
         shows which; stop it, or set another api-port in node.toml",
        port = .0.port(), ip = .0.ip()
    )]
    PortInUse(SocketAddr),
    #[error("cannot listen on {listen}: {source}. Check ip, listen and api-port in node.toml")]
    Bind { listen: SocketAddr, source: io::Error },
    #[error("{path} cannot be used for TLS: {message}")]
    Tls { path: PathBuf, message: String },
    #[error(
        "the token is empty or has characters that no HTTP header may carry; write one line of printable ASCII"
    )]
    BadToken,
}

/// What a peer's connection can do.
pub trait PeerIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> PeerIo for T {}

/// A connection of another node, from its first byte on.
pub struct PeerConnection {
    pub stream: PeerStream,
    pub remote: SocketAddr,
}

/// What it comes over, until whoever serves it takes it.
pub enum PeerStream {
    /// No runtime looks after it yet.
    Plain(std::net::TcpStream),
    /// The runtime in which it was accepted reads and writes for it.
    Tls(Box<dyn PeerIo>),
}

impl PeerStream {
    /// The runtime of whoever calls looks after it from now on, if it can be moved.
    pub fn open(self) -> io::Result<Box<dyn PeerIo>> {
        Ok(match self {
            PeerStream::Plain(stream) => Box::new(TcpStream::from_std(stream)?),
            PeerStream::Tls(io) => io,
        })
    }
}

/// A port that is ours and not served yet.
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    token: Option<Arc<str>>,
    cluster_key: Option<Arc<str>>,
    tls: Option<Tls>,
}

/// Binds the port and reads the TLS files.
///
/// # Errors
/// In words for the administrator: the port is in use, a file cannot be used, the token is no token.
pub async fn bind(config: &RestConfig) -> Result<Bound, RestError> {
    let token = config.token.as_deref().map(str::trim);
    if token.is_some_and(|token| token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(RestError::BadToken);
    }
    let tls = config.tls.as_ref().map(Tls::load).transpose()?;
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => RestError::PortInUse(config.listen),
        _ => RestError::Bind { listen: config.listen, source },
    };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let cluster_key = config.cluster_key.as_deref().map(Arc::from);
    Ok(Bound { listener, address, token: token.map(Arc::from), cluster_key, tls })
}

impl Bound {
    /// The address it listens on, with the port that the system chose if the configured one was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves, then gives running requests 2 s to finish. Channels are read from `source`,
    /// the hashes of read-only statements come from `statements`.
    ///
    /// Peers' connections go to `peers`; one that finds the queue full is closed, its node comes again.
    pub async fn serve(
        self,
        handle: Handle,
        source: Arc<dyn Source>,
        statements: Arc<Statements>,
        peers: mpsc::Sender<PeerConnection>,
        shutdown: impl Future<Output = ()>,
    ) {
        let address = self.address();
        let Bound { listener, token, cluster_key, tls, .. } = self;
        let (stop, stopping) = watch::channel(false);
        let required = token.is_some() || !address.ip().is_loopback();
        let keys = [token.clone(), cluster_key.clone()].into_iter().flatten().collect();
        let logins = Logins::new(keys, required).with_grants(cluster_key.as_deref());
        // The key is as good as a secret of the cluster: it is sent only where there is nothing else.
        let key = token.or(cluster_key);
        let forward = Forward::new(key, tls.as_ref().map(|tls| Arc::clone(&tls.client)));
        let api = Api::new(handle, logins, Arc::new(forward), source, statements, stopping.clone());
        super::routes::delta::work_for_sql(&api);
        let server = Arc::new(Server {
            filter: super::filter(&api),
            guard: Guard::new(api),
            peers_are_checked: tls.as_ref().is_some_and(|tls| tls.peers_are_checked),
            tls: tls.map(|tls| TlsAcceptor::from(tls.server)),
            peers,
            stopping,
            connections: Semaphore::new(CONNECTIONS_MAX),
        });
        tracing::info!(%address, tls = server.tls.is_some(), "REST is served");
        let hellos = Arc::new(Semaphore::new(HELLOS_MAX));
        let mut tasks = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let accept = async {
                let place = Arc::clone(&hellos).acquire_owned().await;
                listener.accept().await.map(|(stream, remote)| (stream, remote, place))
            };
            let accepted =
                tokio::select! { biased; () = &mut shutdown => break, accepted = accept => accepted };
            match accepted {
                Ok((stream, remote, place)) => {
                    let server = Arc::clone(&server);
                    tasks.spawn(async move { server.connection(stream, remote, place).await });
                }
                Err(error) => {
                    // Out of file descriptors, most likely; the wait keeps the loop from spinning.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            while tasks.try_join_next().is_some() {}
        }
        drop(listener);
        stop.send_replace(true);
        let drained = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_DEADLINE, drained).await.is_err() {
            tracing::info!(open = tasks.len(), "requests are cut off at shutdown");
            tasks.shutdown().await;
        }
    }
}

/// What every connection needs.
struct Server {
    guard: Guard,
    filter: BoxedFilter<(Response,)>,
    tls: Option<TlsAcceptor>,
    peers_are_checked: bool,
    peers: mpsc::Sender<PeerConnection>,
    stopping: watch::Receiver<bool>,
    connections: Semaphore,
}

/// A connection that has shown what it is.
enum Hello {
    Peer(PeerStream),
    Http(Box<dyn PeerIo>),
}

impl Server {
    async fn connection<P>(&self, stream: TcpStream, remote: SocketAddr, place: P) {
        let mut stopping = self.stopping.clone();
        let hello = tokio::select! {
            hello = tokio::time::timeout(HELLO_DEADLINE, self.hello(stream)) => hello,
            () = stopped(&mut stopping) => return,
        };
        drop(place);
        match hello {
            Ok(Ok(Hello::Peer(stream))) => {
                if self.peers.try_send(PeerConnection { stream, remote }).is_err() {
                    tracing::warn!(%remote, "a peer's connection was dropped: too many of them wait");
                }
            }
            Ok(Ok(Hello::Http(io))) => self.http(io, remote).await,
            Ok(Err(error)) => tracing::debug!(%remote, %error, "a connection ended before it said anything"),
            Err(_) => tracing::debug!(%remote, "a connection said nothing in time"),
        }
    }

    async fn hello(&self, stream: TcpStream) -> io::Result<Hello> {
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(match starts_with_magic(&stream).await? {
                true => Hello::Peer(PeerStream::Plain(stream.into_std()?)),
                false => Hello::Http(Box::new(stream)),
            });
        };
        let stream = tls.accept(stream).await?;
        let session = stream.get_ref().1;
        let peer = session.alpn_protocol() == Some(PEER_PROTOCOL);
        if peer && self.peers_are_checked && session.peer_certificates().is_none() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a peer showed no certificate"));
        }
        let io = Box::new(stream);
        Ok(if peer { Hello::Peer(PeerStream::Tls(io)) } else { Hello::Http(io) })
    }

    async fn http(&self, mut io: Box<dyn PeerIo>, remote: SocketAddr) {
        let Ok(_permit) = self.connections.try_acquire() else {
            // The client may be gone; then nobody misses the answer.
            let _ = tokio::time::timeout(HELLO_DEADLINE, io.write_all(too_many().as_bytes())).await;
            return;
        };
        let filter = TowerToHyperService::new(warp::service(self.filter.clone()));
        let service = service_fn(move |request: Request<Incoming>| {
            let (guard, filter) = (self.guard.clone(), filter.clone());
            let answer = async move {
                guard
                    .answer(request, remote, |request| async move { never_fails(filter.call(request).await) })
                    .await
            };
            let answer = AssertUnwindSafe(answer).catch_unwind();
            async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|_| panicked().map(Guarded::new))) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(64 * 1024);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        let mut stopping = self.stopping.clone();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection broke");
        }
    }
}

fn never_fails(answer: Result<Response, Infallible>) -> Response {
    answer.unwrap_or_else(|never| match never {})
}

fn panicked() -> Response {
    Refusal::new(500, "panic", "a fault in the sidecar; its log has the place").into_response()
}

/// Resolves when the server stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The sender gone means the same as its signal.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Written by hand, because no request has been read to answer to.
fn too_many() -> String {
    let body = r#"{"code":"too_many_connections","message":"too many clients are connected; try later"}"#;
    let length = body.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// Looks at the first bytes without taking them.
async fn starts_with_magic(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; MAGIC.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[..seen] != MAGIC[..seen] {
            return Ok(false);
        }
        if seen == MAGIC.len() {
            return Ok(true);
        }
        // The beginning fits and more must come. Peeking returns at once while anything is there, so wait a little;
        // the caller's deadline bounds this.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
