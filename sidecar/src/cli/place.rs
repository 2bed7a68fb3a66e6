//! Where a new node lives on this machine: makes its directories and files, and takes away again what it made when
//! something goes wrong. What was there before is never touched.

use super::failure::{Context, Failure};
use crate::config::{NodeConfig, Secrets, default_bin_dir};
use pgquorum_agent::settings::Span;
use pgquorum_agent::types::NodeId;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where a new node is put and how it is reached.
#[derive(Clone, Debug, clap::Args)]
pub struct PlaceArgs {
    /// Directory for the new node: holds node.toml, data/ and state/.
    #[arg(long, value_name = "DIR", required_unless_present = "config", conflicts_with = "config")]
    dir: Option<PathBuf>,
    /// Use this node.toml, written by hand, instead of writing one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This machine's address, as the other nodes and the clients reach it.
    #[arg(long, default_value = "127.0.0.1")]
    pub ip: IpAddr,
    /// Port of the sidecar.
    #[arg(long, default_value_t = 8008, value_parser = clap::value_parser!(u16).range(1..))]
    pub api_port: u16,
    /// Port of PostgreSQL.
    #[arg(long, default_value_t = 5432, value_parser = clap::value_parser!(u16).range(1..))]
    pub db_port: u16,
    /// Where initdb, postgres, pg_basebackup and pg_rewind are. Default: where Debian puts those of version 15, else those
    /// of the newest version that is installed.
    #[arg(long, env = "PGQUORUM_BIN_DIR", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// A node in the making. Dropped without [`Place::finish`], it removes what it made.
pub struct Place {
    pub config: NodeConfig,
    pub config_file: PathBuf,
    writes_config: bool,
    made: Vec<PathBuf>,
    /// What stood beside the data directory before, under its name and something.
    beside: Vec<PathBuf>,
    /// Set once it is certain that nothing of anybody else's is in the way.
    armed: bool,
}

impl Place {
    /// Makes the directories of the node.
    ///
    /// # Errors
    /// Something is there already, or this is root.
    pub fn prepare(args: &PlaceArgs, node: NodeId, command: &str) -> Result<Place, Failure> {
        refuse_root(command)?;
        let (config, config_file, writes_config) = match (&args.config, &args.dir) {
            (Some(file), _) => (NodeConfig::load(file)?, file.clone(), false),
            (None, Some(dir)) => {
                let dir = std::path::absolute(dir).or_fail(dir.display())?;
                (described(args, &dir, node), dir.join("node.toml"), true)
            }
            (None, None) => return Err(Failure::usage("--dir or --config is needed")),
        };
        let mut place =
            Place { config, config_file, writes_config, made: Vec::new(), beside: Vec::new(), armed: false };
        if place.writes_config {
            place.must_be_free(&place.config_file.clone())?;
        }
        place.must_be_free(&place.config.store_file())?;
        place.must_be_free(&place.config.data_dir.clone())?;
        place.armed = true;
        let data_parent = place.config.data_dir.parent().unwrap_or(Path::new("/")).to_owned();
        place.beside = place.neighbours();
        for dir in [place.config.state_dir.clone(), data_parent] {
            place.directory(&dir)?;
        }
        Ok(place)
    }

    /// Writes the secrets and, where a token is needed, the token.
    pub fn write_secrets(&mut self, secrets: &Secrets, token: Option<&str>) -> Result<(), Failure> {
        let file = self.config.secrets_file();
        if !file.exists() {
            self.made.push(file.clone());
        }
        secrets.save(&file).or_fail(format!("cannot write {}", file.display()))?;
        if let (Some(file), Some(token)) = (self.config.token_file.clone(), token)
            && !file.exists()
        {
            self.write(&file, token)?;
        }
        Ok(())
    }

    /// Writes node.toml, the last thing of all: a node without it does not start.
    pub fn finish(mut self) -> Result<(NodeConfig, PathBuf), Failure> {
        if self.writes_config {
            self.config.check()?;
            let text = toml::to_string(&self.config).or_fail("cannot write node.toml")?;
            self.write(&self.config_file.clone(), &text)?;
        }
        self.armed = false;
        Ok((self.config.clone(), self.config_file.clone()))
    }

    /// The data directory and what is beside it under its name and a suffix.
    fn neighbours(&self) -> Vec<PathBuf> {
        let data_dir = &self.config.data_dir;
        let name = data_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_one = |p: &PathBuf| {
            let other = p.file_name().unwrap_or_default().to_string_lossy();
            other.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let entries = data_dir.parent().and_then(|parent| std::fs::read_dir(parent).ok());
        entries.into_iter().flatten().flatten().map(|e| e.path()).filter(is_one).collect()
    }

    fn must_be_free(&self, path: &Path) -> Result<(), Failure> {
        let empty = match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => !path.exists(),
        };
        if empty {
            return Ok(());
        }
        Err(Failure::failed(
            "not_empty",
            format!(
                "{} exists already and is left as it is. Take another directory, or move it away if it is not needed",
                path.display()
            ),
        ))
    }

    fn directory(&mut self, path: &Path) -> Result<(), Failure> {
        let mut missing: Vec<&Path> = path.ancestors().take_while(|p| !p.exists()).collect();
        while let Some(dir) = missing.pop() {
            let made = std::fs::DirBuilder::new().mode(0o700).create(dir);
            made.or_fail(format!("cannot make the directory {}", dir.display()))?;
            self.made.push(dir.to_owned());
        }
        Ok(())
    }

    fn write(&mut self, path: &Path, text: &str) -> Result<(), Failure> {
        let doing = || format!("cannot write {}", path.display());
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .or_fail(doing())?;
        self.made.push(path.to_owned());
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).or_fail(doing())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // The data directory was empty before, so all that is in it now is ours, also where the directory is not; so are
        // new neighbours of it: the password file, a copy that was broken off.
        if let Ok(entries) = std::fs::read_dir(&self.config.data_dir) {
            self.made.extend(entries.flatten().map(|e| e.path()));
        }
        let new = self.neighbours().into_iter().filter(|p| !self.beside.contains(p)).collect::<Vec<_>>();
        self.made.extend(new);
        self.made.push(self.config.store_file());
        for path in self.made.iter().rev() {
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
    }
}

fn described(args: &PlaceArgs, dir: &Path, node: NodeId) -> NodeConfig {
    let state_dir = dir.join("state");
    let mut config = NodeConfig {
        node,
        ip: args.ip,
        listen: None,
        api_port: args.api_port,
        db_listen: None,
        db_port: args.db_port,
        data_dir: dir.join("data"),
        token_file: (!args.ip.is_loopback()).then(|| state_dir.join("token")),
        state_dir,
        bin_dir: default_bin_dir(),
        socket_dir: None,
        admin_database: "postgres".to_owned(),
        lost_wal_keep_mb: 1024,
        hba: Vec::new(),
        log: "info".to_owned(),
        log_json: false,
        tls_cert: None,
        tls_key: None,
        tls_ca: None,
        watchdog: None,
        watchdog_timeout: Span(5000),
        watchdog_required: false,
    };
    if let Some(bin_dir) = &args.bin_dir {
        config.bin_dir.clone_from(bin_dir);
    }
    config
}

/// PostgreSQL does not run as root, and neither does what supervises it.
pub fn refuse_root(command: &str) -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        return Err(Failure::failed(
            "root",
            format!(
                "`pgquorum {command}` does not run as root, because PostgreSQL does not. Become the user that owns the \
                 data, for example: sudo -u postgres pgquorum {command} …"
            ),
        ));
    }
    Ok(())
}

/// 256 random bits as text.
pub fn random_text() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> PlaceArgs {
        PlaceArgs {
            dir: Some(dir.to_owned()),
            config: None,
            ip: [127, 0, 0, 1].into(),
            api_port: 1,
            db_port: 2,
            bin_dir: None,
        }
    }

    fn made_in(dir: &Path) -> Place {
        let config = described(&place(dir), dir, 1);
        Place {
            config,
            config_file: dir.join("node.toml"),
            writes_config: true,
            made: Vec::new(),
            beside: Vec::new(),
            armed: true,
        }
    }

    #[test]
    fn what_was_made_goes_away_and_what_was_there_stays() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("mine"), "x").unwrap();
        let dir = root.path().join("a/b");
        let mut half = made_in(&dir);
        half.directory(&dir.join("data")).unwrap();
        half.directory(&dir.join("state")).unwrap();
        half.write_secrets(&Secrets::generate(), None).unwrap();
        std::fs::write(dir.join("data/PG_VERSION"), "15").unwrap();
        std::fs::write(dir.join("data.pgpass"), "x").unwrap();
        drop(half);
        assert!(!root.path().join("a").exists());
        assert!(root.path().join("mine").exists());
    }

    #[test]
    fn a_finished_place_stays_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let mut done = made_in(root.path());
        done.directory(&root.path().join("data")).unwrap();
        done.directory(&root.path().join("state")).unwrap();
        done.write_secrets(&Secrets::generate(), None).unwrap();
        let (config, file) = done.finish().unwrap();
        assert_eq!(NodeConfig::load(&file).unwrap(), config);
        for path in [file, config.secrets_file()] {
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn beyond_loopback_there_is_a_token() {
        let dir = Path::new("/srv/pg");
        let mut args = place(dir);
        assert!(described(&args, dir, 1).token_file.is_none());
        args.ip = [10, 0, 0, 1].into();
        let config = described(&args, dir, 1);
        assert!(config.token_file.is_some());
        config.check().unwrap();
    }
}
