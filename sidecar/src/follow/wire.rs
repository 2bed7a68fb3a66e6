//! Connections to the nodes of a source: TCP or TLS, one request each, every step with a deadline.

use super::subscription::Subscription;
use super::trouble::{Kind, Result, Trouble};
use base64::Engine;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// The address of a source's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    https: bool,
    host: String,
    port: u16,
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl Base {
    /// Reads `http://host:port` or `https://host:port`.
    pub fn parse(text: &str) -> Option<Base> {
        let uri: Uri = text.parse().ok()?;
        let https = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(Base { https, host, port: uri.port_u16()? })
    }

    /// Another node of the same cluster, from `host:port`.
    pub fn sibling(&self, address: &str) -> Option<Base> {
        Base::parse(&format!("{}://{address}", if self.https { "https" } else { "http" }))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// How the nodes are talked to.
pub struct Wire {
    authorization: Option<String>,
    tls: Option<TlsConnector>,
    /// How long a connection may take.
    connect: Duration,
}

impl Wire {
    /// # Errors
    /// The certificate authority cannot be used, or is missing where it is needed.
    pub fn new(subscription: &Subscription, bases: &[Base]) -> Result<Wire> {
        let tls = subscription.ca.as_deref().map(connector).transpose()?;
        if tls.is_none() && bases.iter().any(|base| base.https) {
            return Err(Trouble::stopped(
                "certificate",
                "an address in remote is https, and the subscription has no ca: give it the PEM text of the authority that \
                 signed the certificates of the source's nodes",
            ));
        }
        let authorization = subscription.secret.as_deref().map(|secret| match &subscription.login {
            None => format!("Bearer {secret}"),
            Some(login) => {
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{login}:{secret}"));
                format!("Basic {pair}")
            }
        });
        Ok(Wire { authorization, tls, connect: CONNECT_DEADLINE })
    }

    /// The same with so much time for a connection.
    pub fn connecting_within(self, connect: Duration) -> Wire {
        Wire { connect, ..self }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// The node cannot be reached, is not whom it should be, or breaks the connection.
    pub async fn send(
        &self,
        base: &Base,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<String>,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, base.authority())
            .header(header::ACCEPT, accept)
            .header(header::CONNECTION, "close");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).map_err(|_| {
            // The error itself could show the secret.
            Trouble::stopped("login", "login and secret must be printable characters, as HTTP carries them")
        })?;
        let io = tokio::time::timeout(self.connect, self.connect(base))
            .await
            .map_err(|_| unreachable(base, &format!("no connection within {:?}", self.connect)))??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(io))
            .await
            .map_err(|error| unreachable(base, &error.to_string()))?;
        // It ends with the answer, or when that is dropped.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| unreachable(base, &error.to_string()))
    }

    async fn connect(&self, base: &Base) -> Result<Box<dyn Io>> {
        let failed = |error: std::io::Error| unreachable(base, &error.to_string());
        let stream = TcpStream::connect((base.host.as_str(), base.port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(tls) = self.tls.as_ref().filter(|_| base.https) else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(base.host.clone())
            .map_err(|error| unreachable(base, &format!("{} is no name of a server: {error}", base.host)))?;
        let stream = tls.connect(name, stream).await.map_err(|error| not_trusted(base, &error))?;
        Ok(Box::new(stream))
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub fn unreachable(base: &Base, why: &str) -> Trouble {
    Trouble::waiting("unreachable", format!("{base} cannot be asked: {why}"))
}

/// A certificate that is not trusted will not be trusted later either.
fn not_trusted(base: &Base, error: &std::io::Error) -> Trouble {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(why)) => Trouble::new(
            Kind::Stopped,
            "certificate",
            format!(
                "{base} shows a certificate that is not trusted ({why:?}): it is not signed by the authority that is given \
                 as ca, is not for this address, or has expired. Nothing was sent to it"
            ),
        ),
        _ => unreachable(base, &format!("TLS: {error}")),
    }
}

fn connector(pem: &str) -> Result<TlsConnector> {
    let refused = |why: String| {
        Trouble::stopped(
            "certificate",
            format!("the subscription's ca cannot be used: {why}. It must be PEM text"),
        )
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| refused(error.to_string()))?;
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(refused("it has no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in ["http://10.0.0.1:8008", "https://db1:1", "https://[::1]:8008"] {
            assert_eq!(Base::parse(text).unwrap().to_string(), text);
        }
        for wrong in ["", "10.0.0.1:8008", "ftp://a:1", "http://a"] {
            assert_eq!(Base::parse(wrong), None, "{wrong:?}");
        }
        let sibling = Base::parse("https://a:1").unwrap().sibling("b:2").unwrap();
        assert_eq!(sibling.to_string(), "https://b:2");
    }

    #[test]
    fn an_authority_that_is_none_is_refused() {
        let subscription = Subscription { ca: Some("/etc/ca.pem".to_owned()), ..Subscription::default() };
        assert_eq!(Wire::new(&subscription, &[]).err().unwrap().code, "certificate");
        let https = Base::parse("https://a:1").unwrap();
        assert_eq!(Wire::new(&Subscription::default(), &[https]).err().unwrap().code, "certificate");
    }
}
