//! Certificates, made by OpenSSL, and a connection to those who show them.

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::io::Error;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// Who signs certificates. Its key goes when this is dropped.
pub struct Authority {
    dir: TempDir,
}

/// What a node needs to show who it is: PEM files.
pub struct Certified {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl Authority {
    /// # Panics
    /// There is no OpenSSL.
    pub fn new(name: &str) -> Authority {
        let authority = Authority { dir: tempfile::tempdir().expect("a directory") };
        authority.make(authority.dir.path(), "ca", &["-subj", &format!("/CN={name}")]);
        authority
    }

    /// Its own certificate, as PEM text.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn pem(&self) -> String {
        std::fs::read_to_string(self.file()).expect("the authority's certificate")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Makes a key and a certificate for an address, and puts them into a directory.
    ///
    /// # Panics
    /// That cannot be done.
    pub fn certify(&self, address: Ipv4Addr, into: &Path) -> Certified {
        let (name, ca) = (format!("subjectAltName=IP:{address}"), self.dir.path().display());
        let signed = ["-CA", &format!("{ca}/ca.pem"), "-CAkey", &format!("{ca}/ca.key"), "-addext", &name];
        let leaf = ["-subj", "/CN=node", "-addext", "basicConstraints=critical,CA:FALSE"];
        self.make(into, "node", &[signed.as_slice(), &leaf].concat());
        let ca = into.join("ca.pem");
        std::fs::copy(self.file(), &ca).expect("a copy of the authority's certificate");
        Certified { cert: into.join("node.pem"), key: into.join("node.key"), ca }
    }

    fn make(&self, into: &Path, name: &str, more: &[&str]) {
        let (key, cert) = (format!("{name}.key"), format!("{name}.pem"));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        command.args(["-days", "2", "-keyout", &key, "-out", &cert]).args(more).current_dir(into);
        let made = command.output().expect("openssl; `make setup` installs it");
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    }

    /// Encrypts a connection to an address, if who is there shows a certificate of this authority.
    ///
    /// # Errors
    /// It cannot be used for that. Whether the certificate is good shows when something is sent.
    pub fn encrypt(&self, io: TcpStream) -> Result<StreamOwned<ClientConnection, TcpStream>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.file()).map_err(Error::other)?).map_err(Error::other)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::IpAddress(io.peer_addr()?.ip().into());
        let client = ClientConnection::new(Arc::new(config), name).map_err(Error::other)?;
        Ok(StreamOwned::new(client, io))
    }
}
