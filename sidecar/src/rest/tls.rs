//! TLS from PEM files. The protocol name that the client offers tells peers from HTTP clients.
//!
//! With an authority configured, a peer must show a certificate that it signed; HTTP clients need none.

use super::listen::{RestError, TlsFiles};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;

/// The ALPN name of the nodes' own protocol.
pub(super) const PEER_PROTOCOL: &[u8] = b"pgquorum-peer";

/// How this node proves itself, and how it checks the leader when it passes a request on.
pub(super) struct Tls {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    /// Peers must show a certificate.
    pub(super) peers_are_checked: bool,
}

impl Tls {
    pub(super) fn load(files: &TlsFiles) -> Result<Tls, RestError> {
        let chain = certificates(&files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unusable(&files.key, &error))?;
        // Without an authority of its own the cluster shares one certificate, or chains that end in their root.
        let trusted = match &files.ca {
            Some(path) => certificates(path)?,
            None => chain.clone(),
        };
        let mut roots = RootCertStore::empty();
        for certificate in trusted {
            let path = files.ca.as_ref().unwrap_or(&files.cert);
            roots.add(certificate).map_err(|error| unusable(path, &error))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(ring::default_provider());
        let verifier = files.ca.as_ref().map(|path| verifier(&roots, &provider, path)).transpose()?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&files.cert, &error))?
            .with_client_cert_verifier(verifier.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
            .with_single_cert(chain, key)
            .map_err(|error| unusable(&files.key, &error))?;
        server.alpn_protocols = vec![PEER_PROTOCOL.to_vec(), b"http/1.1".to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&files.cert, &error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls { server: Arc::new(server), client: Arc::new(client), peers_are_checked: files.ca.is_some() })
    }
}

fn verifier(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    path: &Path,
) -> Result<Arc<dyn ClientCertVerifier>, RestError> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(path, &error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RestError> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(path, &error))?;
    if all.is_empty() { Err(unusable(path, &"no certificate in it")) } else { Ok(all) }
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> RestError {
    RestError::Tls { path: path.to_owned(), message: error.to_string() }
}
