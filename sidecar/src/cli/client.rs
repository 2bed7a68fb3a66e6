//! A small client of the cluster's REST interface: every step has a deadline, answers have a size limit, and a request
//! that changes something is never sent twice when its outcome is unknown.

mod stream;
mod target;

pub use stream::{Lines, Opened};
pub use target::Target;

use super::failure::{Context, Failure};
use crate::config::Secrets;
use crate::login::cluster_key;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than the server takes at most for a change of the cluster.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Ten thousand statements with their texts are some 15 MB.
const BODY_LIMIT: usize = 32 * 1024 * 1024;
/// How often a request follows "I am not the leader, ask there".
const REDIRECTS: usize = 3;

/// The address of a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    https: bool,
    host: String,
    port: u16,
}

impl Base {
    /// The sidecar of a node whose address is known from the map.
    pub fn of(&self, ip: &str, port: u16) -> Base {
        Base { https: self.https, host: ip.to_owned(), port }
    }

    fn parse(url: &str) -> Result<Base, Failure> {
        let bad = || {
            Failure::usage(format!(
                "{url:?} is not the address of a sidecar; write for example http://10.0.0.1:8008"
            ))
        };
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = with_scheme.parse().map_err(|_| bad())?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(bad)?;
        let has_port = uri.authority().is_some_and(|a| a.as_str().len() > host.len());
        if uri.path() != "/" || uri.query().is_some() || (has_port && uri.port_u16().is_none()) {
            return Err(bad());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Base { https, host, port: uri.port_u16().unwrap_or(8008) })
    }
}

impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        let brackets = if self.host.contains(':') { ["[", "]"] } else { ["", ""] };
        write!(f, "{scheme}://{}{}{}:{}", brackets[0], self.host, brackets[1], self.port)
    }
}

/// Why no answer came.
enum NoAnswer {
    /// Nothing was sent.
    Connect(String),
    /// The request may have been carried out.
    Unknown(String),
}

/// The client.
#[derive(Clone)]
pub struct Client {
    bases: Vec<Base>,
    /// The header `Authorization`.
    authorization: Option<String>,
    tls: Option<tokio_rustls::TlsConnector>,
    answer_timeout: Duration,
}

impl Client {
    fn new(urls: &[String], authorization: Option<String>, tls_ca: Option<&Path>) -> Result<Client, Failure> {
        let bases = urls.iter().map(|u| Base::parse(u)).collect::<Result<Vec<_>, _>>()?;
        let tls = tls_ca.map(connector).transpose()?;
        if tls.is_none() && bases.iter().any(|b| b.https) {
            return Err(Failure::usage(
                "https needs --tls-ca, the file of the authority that signed the certificates",
            ));
        }
        Ok(Client { bases, authorization, tls, answer_timeout: ANSWER_TIMEOUT })
    }

    /// A client of one sidecar on this machine, whose secrets can be read here.
    pub fn local(port: u16, secrets: Option<&Secrets>, answer_timeout: Duration) -> Client {
        let base = Base { https: false, host: "127.0.0.1".to_owned(), port };
        let authorization = secrets.map(|secrets| format!("Bearer {}", cluster_key(&secrets.cluster_secret)));
        Client { bases: vec![base], authorization, tls: None, answer_timeout }
    }

    /// The same client for answers that take so long.
    pub fn patient(&self, wait: Duration) -> Client {
        Client { answer_timeout: ANSWER_TIMEOUT + wait, ..self.clone() }
    }

    /// The same client for this sidecar alone.
    pub fn at(&self, base: &Base) -> Client {
        Client {
            bases: vec![base.clone()],
            answer_timeout: ANSWER_TIMEOUT.min(Duration::from_secs(5)),
            ..self.clone()
        }
    }

    /// # Errors
    /// Nobody can be reached, or the answer was an error.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, None).await
    }

    /// Sends a request, to the leader if the first node says that only the leader can do it.
    ///
    /// # Errors
    /// Nobody can be reached, or the answer was an error.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let mut tried = Vec::new();
        for first in &self.bases {
            let mut base = first.clone();
            for _ in 0..=REDIRECTS {
                match self.once(&base, &method, path, body).await {
                    Ok((status, value)) if (200..300).contains(&status) => return Ok(value),
                    Ok((417, value)) if leader_of(&value, base.https).is_some_and(|l| l != base) => {
                        base = leader_of(&value, base.https).unwrap_or(base);
                    }
                    Ok((status, value)) => return Err(refusal(&base, status, &value)),
                    Err(NoAnswer::Unknown(why)) if method != Method::GET => {
                        return Err(Failure::unreachable(
                            "outcome_unknown",
                            format!(
                                "{base} did not answer ({why}): the change may or may not have been made. Look at \
                                 `pgquorum status` before you try again"
                            ),
                        ));
                    }
                    Err(NoAnswer::Connect(why) | NoAnswer::Unknown(why)) => {
                        tried.push(format!("{base} ({why})"));
                        break;
                    }
                }
            }
        }
        Err(Failure::unreachable(
            "unreachable",
            format!(
                "no sidecar answers at {}. Is `pgquorum run` running there? Name another node with --url",
                tried.join(", ")
            ),
        ))
    }

    async fn once(
        &self,
        base: &Base,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), NoAnswer> {
        let request = self
            .request(base, method, path, body, "application/json")
            .map_err(|f| NoAnswer::Connect(f.message))?;
        let answer = async {
            let response = self.send(base, request).await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
            let bytes = body.map_err(|e| NoAnswer::Unknown(e.to_string()))?.to_bytes();
            let value = serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).trim().to_owned()));
            Ok((status, value))
        };
        tokio::time::timeout(self.answer_timeout, answer)
            .await
            .unwrap_or_else(|_| Err(NoAnswer::Unknown("no answer in time".to_owned())))
    }

    fn request(
        &self,
        base: &Base,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        accept: &str,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(header::HOST, base.to_string().split("://").nth(1).unwrap_or_default())
            .header(header::ACCEPT, accept)
            .header(header::CONNECTION, if accept == "application/json" { "close" } else { "keep-alive" });
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let bytes = match body {
            Some(value) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(value.to_string())
            }
            None => Bytes::new(),
        };
        request.body(Full::new(bytes)).map_err(|e| Failure::usage(format!("cannot ask for {path}: {e}")))
    }

    async fn send(&self, base: &Base, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, NoAnswer> {
        let connect = TcpStream::connect((base.host.as_str(), base.port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return Err(NoAnswer::Connect(e.to_string())),
            Err(_) => return Err(NoAnswer::Connect("no connection in time".to_owned())),
        };
        match self.tls.as_ref().filter(|_| base.https) {
            Some(tls) => {
                let name =
                    ServerName::try_from(base.host.clone()).map_err(|e| NoAnswer::Connect(e.to_string()))?;
                let stream = match tokio::time::timeout(CONNECT_TIMEOUT, tls.connect(name, stream)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(e)) => return Err(NoAnswer::Connect(format!("TLS: {e}"))),
                    Err(_) => return Err(NoAnswer::Connect("no TLS handshake in time".to_owned())),
                };
                exchange(stream, request).await
            }
            None => exchange(stream, request).await,
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, NoAnswer>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| NoAnswer::Connect(e.to_string()))?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|e| NoAnswer::Unknown(e.to_string()))
}

fn connector(ca: &Path) -> Result<tokio_rustls::TlsConnector, Failure> {
    let doing = || format!("cannot use the certificate authority {}", ca.display());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).or_fail(doing())? {
        roots.add(certificate.or_fail(doing())?).or_fail(doing())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .or_fail(doing())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}

/// How a command is let in.
const LOGIN_HINT: &str = "This command takes --login NAME, --token-file FILE, or --config with the node.toml of a node \
                          of this machine, run as the user who owns it";

/// The leader that an error body names: `{"leader": {"api": "10.0.0.1:8008"}}`.
fn leader_of(body: &Value, https: bool) -> Option<Base> {
    let api = body.get("leader")?.get("api")?.as_str()?;
    let mut base = Base::parse(api).ok()?;
    base.https |= https;
    Some(base)
}

fn refusal(base: &Base, status: u16, body: &Value) -> Failure {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    // The delta interface has names of its own; the registry's refusals are in the words of its clients, with ours beside
    // them.
    let theirs = || body.pointer("/info/code").and_then(Value::as_str);
    let code = text("code").or_else(theirs).or_else(|| text("error")).unwrap_or("http_error");
    let message = match text("message").or_else(|| text("errorDescription")) {
        Some(message) => message.to_owned(),
        None => format!("{base} answered with status {status}"),
    };
    let hint = match status {
        401 => format!(". {LOGIN_HINT}"),
        _ => body.get("hint").and_then(Value::as_str).map(|h| format!(". {h}")).unwrap_or_default(),
    };
    Failure::from_status(status, code, message + &hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_read_and_nonsense_is_usage() {
        assert_eq!(Base::parse("10.0.0.1:8009").unwrap().to_string(), "http://10.0.0.1:8009");
        assert_eq!(Base::parse("https://[::1]:1").unwrap().to_string(), "https://[::1]:1");
        assert_eq!(Base::parse("http://db1").unwrap().port, 8008);
        for bad in ["", "ftp://x", "http://", "http://a/b", "http://a:99999"] {
            assert!(Base::parse(bad).is_err(), "{bad:?} was taken for an address");
        }
    }

    #[test]
    fn a_refusal_shows_the_servers_words() {
        let base = Base::parse("http://a:1").unwrap();
        let failure = refusal(&base, 530, &json!({"code": "no_leader", "message": "nobody leads"}));
        assert_eq!(
            (failure.exit as u8, failure.code.as_str(), failure.message.as_str()),
            (3, "no_leader", "nobody leads")
        );
        assert_eq!(
            leader_of(&json!({"leader": {"api": "127.0.0.1:7"}}), false),
            Base::parse("http://127.0.0.1:7").ok()
        );
        assert_eq!(leader_of(&json!({"leader": null}), false), None);
    }
}
