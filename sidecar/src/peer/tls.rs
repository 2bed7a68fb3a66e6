//! TLS for connections to peers: this node's certificate is shown, the peer's is checked against the cluster's
//! authority.

use crate::config::NodeConfig;
use crate::rest::PeerIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The protocol name that tells a peer's connection from a browser's.
const ALPN: &[u8] = b"pgquorum-peer";

#[derive(Clone)]
pub struct PeerTls {
    connector: TlsConnector,
}

impl PeerTls {
    /// TLS as the configuration says; `None` when it names no certificate.
    pub fn load(config: &NodeConfig) -> Result<Option<PeerTls>, String> {
        let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else { return Ok(None) };
        let Some(ca) = &config.tls_ca else {
            return Err("tls-cert is set without tls-ca: nodes could not check each other's certificates. Set tls-ca \
                        to the authority that signed them"
                .to_owned());
        };
        let read = |what: &str, path: &std::path::Path, e: &dyn std::fmt::Display| {
            format!("cannot read the {what} {}: {e}", path.display())
        };
        let mut roots = rustls::RootCertStore::empty();
        for item in CertificateDer::pem_file_iter(ca).map_err(|e| read("authority", ca, &e))? {
            let certificate = item.map_err(|e| read("authority", ca, &e))?;
            roots.add(certificate).map_err(|e| read("authority", ca, &e))?;
        }
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| read("certificate", cert, &e))?;
        let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| read("key", key, &e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key_der)
            .map_err(|e| read("key", key, &e))?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Some(PeerTls { connector: TlsConnector::from(Arc::new(client)) }))
    }

    pub(super) async fn connect(&self, stream: TcpStream, ip: IpAddr) -> io::Result<Box<dyn PeerIo>> {
        let name = ServerName::IpAddress(ip.into());
        Ok(Box::new(self.connector.connect(name, stream).await?))
    }
}
