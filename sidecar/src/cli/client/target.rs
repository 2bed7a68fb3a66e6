//! Which nodes a command asks, and what it shows them.

use super::Client;
use crate::cli::failure::{Context, Failure};
use crate::cli::secret_input;
use crate::config::{NodeConfig, Secrets};
use crate::login::{basic, cluster_key};
use std::path::{Path, PathBuf};

const DEFAULT_URL: &str = "http://127.0.0.1:8008";

/// Which nodes to ask.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Target {
    /// Sidecar to ask, e.g. http://10.0.0.1:8008; several, separated by commas, are tried in turn [default:
    /// http://127.0.0.1:8008, or the node that --config describes].
    #[arg(long, env = "PGQUORUM_URL", value_delimiter = ',', global = true)]
    pub url: Vec<String>,
    /// This node's node.toml: gives address, token or secrets, and certificate authority.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// File with a token: the cluster's, or a user's.
    #[arg(long, value_name = "FILE", global = true)]
    pub token_file: Option<PathBuf>,
    /// PEM file of the authority that signed the nodes' certificates; needed for https.
    #[arg(long, value_name = "FILE", global = true)]
    pub tls_ca: Option<PathBuf>,
    /// Log in as this user; the password is asked for, without a terminal read from standard input.
    #[arg(long, env = "PGQUORUM_LOGIN", value_name = "NAME", global = true)]
    pub login: Option<String>,
    /// File with the password for --login in its first line.
    #[arg(long, value_name = "FILE", global = true)]
    pub login_password_file: Option<PathBuf>,
    /// What lets those in who know the cluster's secrets, where there is nothing else.
    #[arg(skip)]
    pub key: Option<String>,
}

impl Target {
    /// One sidecar, asked by somebody who knows the cluster's secrets.
    pub fn at(
        url: &str,
        token_file: Option<PathBuf>,
        tls_ca: Option<PathBuf>,
        secrets: Option<&Secrets>,
    ) -> Target {
        let key = secrets.map(|secrets| cluster_key(&secrets.cluster_secret));
        Target { url: vec![url.to_owned()], token_file, tls_ca, key, ..Target::default() }
    }

    /// The client for this target.
    ///
    /// # Errors
    /// A file cannot be read, or an address is not a URL.
    pub fn client(&self) -> Result<Client, Failure> {
        let config = self.config.as_deref().map(NodeConfig::load).transpose()?;
        let mut urls = self.url.clone();
        if urls.is_empty() {
            urls.push(match &config {
                Some(c) => {
                    let scheme = if c.tls_cert.is_some() { "https" } else { "http" };
                    format!("{scheme}://{}", c.api_listen())
                }
                None => DEFAULT_URL.to_owned(),
            });
        }
        let tls_ca = self.tls_ca.clone().or_else(|| config.as_ref().and_then(|c| c.tls_ca.clone()));
        Client::new(&urls, self.authorization(config.as_ref())?, tls_ca.as_deref())
    }

    /// What the nodes are shown: what was named here, else what the node's configuration has.
    fn authorization(&self, config: Option<&NodeConfig>) -> Result<Option<String>, Failure> {
        if let Some(file) = &self.token_file {
            return token(file).map(Some);
        }
        if let Some(name) = &self.login {
            let file = self.login_password_file.as_deref();
            let password = secret_input::read(file, &format!("Password of {name}: "))?;
            return Ok(Some(basic(name, &password)));
        }
        if self.login_password_file.is_some() {
            return Err(Failure::usage("--login-password-file needs --login, the name of the user"));
        }
        if let Some(file) = config.and_then(|config| config.token_file.as_ref()) {
            return token(file).map(Some);
        }
        // Whoever cannot read the secrets may still ask what everybody may ask.
        let secrets = config.and_then(|config| Secrets::load(&config.secrets_file()).ok());
        let key = secrets.map(|secrets| cluster_key(&secrets.cluster_secret)).or_else(|| self.key.clone());
        Ok(key.map(|key| format!("Bearer {key}")))
    }
}

/// A file's token as it is sent.
fn token(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).or_fail(format!("cannot read the token {}", file.display()))?;
    Ok(format!("Bearer {}", text.trim()))
}
