//! Checks of files, programs and disks.

use super::Check;
use super::look::{LIMIT, Look};
use crate::config::{NodeConfig, POSTGRES_VERSIONS};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const FULL_BYTES: u64 = 256 * 1024 * 1024;
const WAL_SPACE: &str = "space for WAL";
const STATE_SPACE: &str = "space for state";

pub fn user() -> Check {
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return Check::warn(
            "user",
            "running as root: permissions are not tested. Run doctor as the sidecar's user",
        );
    }
    Check::ok("user", format!("uid {user}"))
}

/// A part of what is looked at.
type Part = fn(&NodeConfig) -> Vec<Check>;

/// All that files, programs and disks tell. What did not tell it in time is a check that failed.
pub fn checks(config: &NodeConfig, limit: Duration) -> Vec<Check> {
    let parts: [(&'static str, Part); 10] = [
        ("secrets", |c| vec![private_file("secrets", &c.secrets_file())]),
        ("token", |c| c.token_file.iter().map(|file| private_file("token", file)).collect()),
        ("tls key", |c| c.tls_key.iter().map(|file| private_file("tls key", file)).collect()),
        ("programs", |c| vec![programs(c)]),
        ("extension", |c| vec![extension_files(c)]),
        ("data directory", |c| vec![data_directory(c)]),
        ("cluster log", |c| vec![store(c)]),
        ("space for data", |c| disk_space("space for data", &c.data_dir)),
        (WAL_SPACE, wal_space),
        (STATE_SPACE, |c| disk_space(STATE_SPACE, &c.state_dir)),
    ];
    // All at once: a disk that hangs holds more than one of them.
    let looks = parts.map(|(name, part)| {
        let config = config.clone();
        (name, Look::begin(limit, move || part(&config)))
    });
    looks.into_iter().flat_map(|(name, look)| look.checks(name)).collect()
}

/// Secrets, token and TLS key must be there and nobody else's business.
fn private_file(name: &'static str, file: &Path) -> Check {
    let shown = file.display();
    let mode = match std::fs::metadata(file) {
        Ok(metadata) => metadata.permissions().mode() & 0o777,
        Err(e) => return Check::fail(name, format!("{shown}: {e}. Copy it from another node")),
    };
    if mode & 0o077 != 0 {
        return Check::fail(name, format!("{shown} can be read by others ({mode:04o}): chmod 600 {shown}"));
    }
    if let Err(e) = std::fs::File::open(file) {
        return Check::fail(name, format!("{shown} cannot be read by this user: {e}"));
    }
    if name == "secrets"
        && let Err(e) = crate::config::Secrets::load(file)
    {
        return Check::fail(name, e.to_string());
    }
    Check::ok(name, format!("{shown}, {mode:04o}"))
}

/// First words of `program --version`'s last field, or why there are none.
fn version(program: &Path) -> Result<String, String> {
    let out = Command::new(program).arg("--version").output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    if out.status.success() { Ok(text) } else { Err(format!("{} {text}", out.status)) }
}

fn programs(config: &NodeConfig) -> Check {
    let mut postgres = String::new();
    for name in ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata"] {
        let program = config.bin_dir.join(name);
        match version(&program) {
            Ok(text) if name == "postgres" => postgres = text,
            Ok(_) => {}
            Err(e) => {
                let hint = "install the package postgresql-15, or set bin-dir in node.toml";
                return Check::fail("programs", format!("{}: {e}. {hint}", program.display()));
            }
        }
    }
    judge_version(postgres)
}

/// The major version in what `postgres --version` says.
fn major(postgres: &str) -> Option<u32> {
    let number = postgres.rsplit("PostgreSQL) ").next()?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Is this a version that pgquorum is made for?
fn judge_version(postgres: String) -> Check {
    let tested = POSTGRES_VERSIONS[0];
    match major(&postgres) {
        Some(major) if !POSTGRES_VERSIONS.contains(&major) => {
            let (first, last) =
                POSTGRES_VERSIONS.iter().fold((tested, tested), |(a, b), v| (a.min(*v), b.max(*v)));
            let message = format!("{postgres}: pgquorum is made for PostgreSQL {first} to {last}");
            Check::fail("programs", message)
        }
        Some(major) if major != tested => {
            Check::warn("programs", format!("{postgres}: pgquorum is tested with PostgreSQL {tested} only"))
        }
        _ => Check::ok("programs", postgres),
    }
}

/// `pg_config` of the server if it is installed, else where Debian and a plain installation put the files.
fn places(config: &NodeConfig) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let asked = |option: &str| {
        let out = Command::new(config.bin_dir.join("pg_config")).arg(option).output().ok()?;
        out.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()))
    };
    let root = config.bin_dir.parent().unwrap_or(Path::new("/"));
    let major = root.file_name().unwrap_or_default();
    let mut share: Vec<PathBuf> = asked("--sharedir").into_iter().collect();
    share.extend([
        Path::new("/usr/share/postgresql").join(major),
        root.join("share"),
        root.join("share/postgresql"),
    ]);
    let mut lib: Vec<PathBuf> = asked("--pkglibdir").into_iter().collect();
    lib.extend([root.join("lib"), root.join("lib/postgresql")]);
    (
        share.iter().map(|d| d.join("extension/pgquorum.control")).collect(),
        lib.iter().map(|d| d.join("pgquorum.so")).collect(),
    )
}

fn extension_files(config: &NodeConfig) -> Check {
    let (control, library) = places(config);
    for (what, candidates) in [("pgquorum.control", control), ("pgquorum.so", library)] {
        if !candidates.iter().any(|f| f.exists()) {
            let first = candidates.first().map(|f| f.display().to_string()).unwrap_or_default();
            return Check::fail(
                "extension",
                format!(
                    "{what} is not installed (looked for {first}): run `make install`, or copy it from another node"
                ),
            );
        }
    }
    Check::ok("extension", "pgquorum.control and pgquorum.so are installed")
}

fn data_directory(config: &NodeConfig) -> Check {
    const NAME: &str = "data directory";
    let dir = &config.data_dir;
    let shown = dir.display();
    let metadata = match std::fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(e) => {
            return Check::fail(
                NAME,
                format!("{shown}: {e}. Make it with `pgquorum init` or `pgquorum join`"),
            );
        }
    };
    let user = nix::unistd::geteuid();
    if !user.is_root() && metadata.uid() != user.as_raw() {
        return Check::fail(
            NAME,
            format!("{shown} belongs to uid {}, but the sidecar would run as {user}", metadata.uid()),
        );
    }
    if metadata.mode() & 0o027 != 0 {
        return Check::fail(
            NAME,
            format!("{shown} has the mode {:04o}: chmod 700 {shown}", metadata.mode() & 0o777),
        );
    }
    let data = match std::fs::read_to_string(dir.join("PG_VERSION")) {
        Ok(text) => text.trim().to_owned(),
        Err(e) => return Check::fail(NAME, format!("{shown} holds no database (PG_VERSION: {e})")),
    };
    let program = version(&config.bin_dir.join("postgres")).unwrap_or_default();
    if let Some(major) = major(&program).filter(|major| major.to_string() != data) {
        return Check::fail(
            NAME,
            format!("{shown} is of version {data}, but {} is version {major}", config.bin_dir.display()),
        );
    }
    Check::ok(NAME, format!("{shown}, version {data}"))
}

/// The number by which PostgreSQL tells one database from another.
pub fn system_identifier(config: &NodeConfig) -> Option<u64> {
    let config = config.clone();
    Look::begin(LIMIT, move || read_system_identifier(&config)).end().flatten()
}

fn read_system_identifier(config: &NodeConfig) -> Option<u64> {
    let mut command = Command::new(config.bin_dir.join("pg_controldata"));
    let out = command.env("LC_ALL", "C").arg(&config.data_dir).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines().find_map(|l| l.strip_prefix("Database system identifier:"))?.trim().parse().ok()
}

fn store(config: &NodeConfig) -> Check {
    let file = config.store_file();
    match std::fs::metadata(&file) {
        Ok(metadata) if metadata.len() > 0 => Check::ok("cluster log", file.display().to_string()),
        Ok(_) => Check::fail("cluster log", format!("{} is empty", file.display())),
        Err(e) => Check::fail(
            "cluster log",
            format!(
                "{}: {e}. Without it this node is not part of a cluster; use `pgquorum join`",
                file.display()
            ),
        ),
    }
}

/// Nothing is said of a directory that is not there; another check does.
fn disk_space(name: &'static str, dir: &Path) -> Vec<Check> {
    if !dir.exists() {
        return Vec::new();
    }
    vec![match nix::sys::statvfs::statvfs(dir) {
        Ok(disk) => {
            let size = disk.fragment_size();
            space(name, dir, disk.blocks_available() * size, disk.blocks() * size)
        }
        Err(e) => Check::warn(name, format!("{}: {e}", dir.display())),
    }]
}

/// Where the WAL lies on a disk of its own.
fn wal_space(config: &NodeConfig) -> Vec<Check> {
    let wal = config.data_dir.join("pg_wal");
    match (std::fs::metadata(&config.data_dir), std::fs::metadata(&wal)) {
        (Ok(data), Ok(own)) if data.dev() != own.dev() => disk_space(WAL_SPACE, &wal),
        _ => Vec::new(),
    }
}

fn space(name: &'static str, dir: &Path, free: u64, total: u64) -> Check {
    use crate::cli::output::bytes;
    let text = format!("{} free of {} at {}", bytes(free), bytes(total), dir.display());
    if free < FULL_BYTES {
        let ends = if name == STATE_SPACE { "the sidecar ends" } else { "PostgreSQL stops" };
        return Check::fail(
            name,
            format!(
                "{text}: {ends} when it cannot write. Make room or enlarge the disk; never remove files in pg_wal"
            ),
        );
    }
    if free < total / 10 {
        return Check::warn(name, format!("{text}: less than a tenth is free"));
    }
    Check::ok(name, text)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// The configuration of a node whose data and state belong into this directory.
    fn node_in(dir: &Path) -> NodeConfig {
        let file = dir.join("node.toml");
        let text = "node = 1\nip = '127.0.0.1'\napi-port = 8008\ndb-port = 5432\n\
                    data-dir = 'data'\nstate-dir = 'state'";
        std::fs::write(&file, text).unwrap();
        NodeConfig::load(&file).unwrap()
    }

    #[test]
    fn full_disks_are_told_apart() {
        let at = |free| space("space", Path::new("/x"), free, 100 << 30).verdict;
        assert_eq!(at(1 << 20), Verdict::Fail);
        assert_eq!(at(5 << 30), Verdict::Warn);
        assert_eq!(at(50 << 30), Verdict::Ok);
        let said = |name| space(name, Path::new("/x"), 0, 100 << 30).message;
        assert!(said("space for data").contains("PostgreSQL stops when it cannot write. Make room"));
        assert!(said(STATE_SPACE).contains("the sidecar ends when it cannot write. Make room"));
    }

    #[test]
    fn the_disk_of_the_wal_is_looked_at_where_it_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let config = node_in(dir.path());
        let wal = config.data_dir.join("pg_wal");
        std::fs::create_dir_all(&wal).unwrap();
        assert!(wal_space(&config).is_empty());
        std::fs::remove_dir(&wal).unwrap();
        // Another file system on every machine, and one without any room.
        std::os::unix::fs::symlink("/proc", &wal).unwrap();
        let found = wal_space(&config);
        assert!(found.len() == 1 && found[0].verdict == Verdict::Fail, "{found:?}");
        assert!(found[0].message.starts_with("0 B free of"), "{found:?}");
    }

    #[test]
    fn versions_are_tested_or_known_or_refused() {
        let judged = |version: &str| judge_version(format!("postgres (PostgreSQL) {version}")).verdict;
        assert_eq!(judged("15.14 (Debian 15.14-0+deb12u1)"), Verdict::Ok);
        assert_eq!([judged("14.19"), judged("17rc1"), judged("18.0")], [Verdict::Warn; 3]);
        assert_eq!([judged("13.22"), judged("19devel")], [Verdict::Fail; 2]);
        assert_eq!(major("no version"), None);
    }

    #[test]
    fn a_disk_that_hangs_holds_up_only_the_checks_that_need_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = node_in(dir.path());
        std::fs::create_dir(&config.state_dir).unwrap();
        std::fs::write(config.store_file(), "a log").unwrap();
        // Who opens a pipe for reading into which nobody writes waits, as on a disk that hangs.
        nix::unistd::mkfifo(&config.secrets_file(), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let found = checks(&config, Duration::from_secs(1));
        let of = |name: &str| found.iter().find(|c| c.check == name).map(|c| (c.verdict, c.message.as_str()));
        let hangs = "did not answer within 1 s: the disk or the program hangs";
        assert_eq!(of("secrets"), Some((Verdict::Fail, hangs)));
        assert_eq!(of("cluster log").map(|(verdict, _)| verdict), Some(Verdict::Ok));
        assert!(of("space for state").is_some_and(|(_, message)| message.contains("free of")), "{found:?}");
        assert_eq!(of("token"), None, "there is none");
    }

    #[test]
    fn a_file_that_others_can_read_is_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secrets.toml");
        assert_eq!(private_file("secrets", &file).verdict, Verdict::Fail);
        crate::config::Secrets::generate().save(&file).unwrap();
        assert_eq!(private_file("secrets", &file).verdict, Verdict::Ok);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(private_file("secrets", &file).message.contains("chmod 600"));
    }
}
