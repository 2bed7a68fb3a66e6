//! The server's configuration files. `pgquorum.conf`, `pg_hba.conf` and the password file are wholly ours;
//! `postgresql.conf` gets one line that includes ours; our parameters are taken out of `postgresql.auto.conf`, which
//! PostgreSQL reads last.

use super::config::{PostgresConfig, REPLICATION_ROLE, SUPERUSER, rejoining_name, standby_name};
use super::durable;
use super::error::{Result, io};
use super::parameters::{DEFAULTS, is_owned, is_valid_name, quote};
use pgquorum_agent::postgres::{SyncSet, Upstream};
use pgquorum_agent::types::Timeline;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

const CONF: &str = "pgquorum.conf";
const INCLUDE: &str = "include 'pgquorum.conf'";
const STATE_PREFIX: &str = "# pgquorum-state: ";
/// A standby that does not exist: commits that wait for it wait until the real names are written.
const NOBODY: &str = "pgquorum_nobody";
/// What the extension compares `synchronous_standby_names` with.
pub const ACKNOWLEDGEMENT_RULE: &str = "pgquorum.acknowledgement_rule";

/// What the files shall say beside the fixed part. Kept in the first line of `pgquorum.conf`, so that a restarted
/// sidecar goes on from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// The server to stream from; `None` receives nothing.
    pub upstream: Option<Upstream>,
    /// `None` until the server is promoted: then commits would wait for ever. So a server that became writable by any
    /// other way acknowledges nothing, and `synchronous_standby_names` is never seen empty by mistake.
    pub sync: Option<SyncSet>,
    /// It was a primary, was rewound, copied or given WAL to come up, and has not replayed the beginning of the newest
    /// epoch since: the server streams under a name that acknowledges nothing.
    #[serde(default)]
    pub rejoining: bool,
    /// The cluster's PostgreSQL parameters.
    pub parameters: BTreeMap<String, String>,
    /// The server was promoted on this timeline, and it is not settled yet what became of its last commits: the next
    /// start holds clients. Written before every promotion, removed when a later epoch was replayed.
    #[serde(default)]
    pub primary_on: Option<Timeline>,
    /// The least that a standby may set, or recovery stops: what the primary had when the WAL was written.
    #[serde(default)]
    pub floors: BTreeMap<String, u64>,
}

/// The value of `synchronous_standby_names`. Empty only if no standby has to acknowledge.
pub fn synchronous_standby_names(sync: Option<&SyncSet>) -> String {
    match sync {
        None => format!("ANY 1 ({NOBODY})"),
        Some(set) if set.k == 0 => String::new(),
        Some(set) if set.standbys.is_empty() => format!("ANY {} ({NOBODY})", set.k),
        Some(set) => {
            let names: Vec<String> = set.standbys.iter().map(|n| standby_name(*n)).collect();
            format!("ANY {} ({})", set.k, names.join(", "))
        }
    }
}

/// `primary_conninfo` for this upstream. No password: libpq takes it from the password file.
pub fn primary_conninfo(config: &PostgresConfig, upstream: &Upstream, rejoining: bool) -> String {
    let name = if rejoining { rejoining_name(config.node) } else { standby_name(config.node) };
    let timeout = config.wal_timeout_ms;
    let passfile = config.passfile().display().to_string().replace('\\', "\\\\").replace('\'', "\\'");
    format!(
        "host={} port={} user={REPLICATION_ROLE} application_name={name} passfile='{passfile}' connect_timeout=2 \
         tcp_user_timeout={timeout} keepalives=1 keepalives_idle=2 keepalives_interval=1 keepalives_count=3",
        upstream.ip, upstream.port,
    )
}

fn render(config: &PostgresConfig, desired: &Desired) -> String {
    let mut text = String::new();
    // JSON has no line breaks of its own, so the state stays one comment line.
    let state = serde_json::to_string(desired).unwrap_or_default();
    let _ = writeln!(text, "{STATE_PREFIX}{state}");
    text.push_str(
        "# Written by pgquorum at every change. Do not edit: change parameters with `pgquorum db-config set`.\n",
    );
    let mut put = |name: &str, value: &str| {
        let _ = writeln!(text, "{name} = {}", quote(value));
    };
    for (name, value) in DEFAULTS {
        put(name, value);
    }
    let mut libraries: Vec<String> = config.extension_library.iter().cloned().collect();
    for (name, value) in &desired.parameters {
        if name.eq_ignore_ascii_case("shared_preload_libraries") {
            let more = value.split(',').map(|l| l.trim().trim_matches('"').to_owned());
            libraries.extend(more.filter(|l| !l.is_empty()));
        } else if !is_valid_name(name) || is_owned(name) {
            tracing::warn!(parameter = %name, "this parameter is kept by the cluster itself and was left out");
        } else {
            put(name, value);
        }
    }
    for (name, floor) in &desired.floors {
        let set = desired.parameters.get(name).map(String::as_str);
        let set = set.or(DEFAULTS.iter().find(|(n, _)| n == name).map(|(_, v)| *v));
        if set.and_then(|v| v.trim().parse::<u64>().ok()).is_none_or(|v| v < *floor) {
            put(name, &floor.to_string());
        }
    }
    let mut seen = std::collections::HashSet::new();
    libraries.retain(|l| seen.insert(l.clone()));
    put("shared_preload_libraries", &libraries.join(", "));
    for (name, value) in owned_values(config, desired) {
        put(name, &value);
    }
    text
}

fn owned_values(config: &PostgresConfig, desired: &Desired) -> Vec<(&'static str, String)> {
    let timeout = format!("{}ms", config.wal_timeout_ms);
    let conninfo =
        desired.upstream.as_ref().map(|u| primary_conninfo(config, u, desired.rejoining)).unwrap_or_default();
    let mut values = vec![
        ("listen_addresses", config.listen.to_string()),
        ("port", config.port.to_string()),
        ("unix_socket_directories", config.socket_dir.display().to_string()),
        ("cluster_name", standby_name(config.node)),
        ("wal_level", "replica".to_owned()),
        ("hot_standby", "on".to_owned()),
        ("hot_standby_feedback", "off".to_owned()),
        ("wal_log_hints", "on".to_owned()),
        ("full_page_writes", "on".to_owned()),
        ("fsync", "on".to_owned()),
        ("wal_keep_size", format!("{}MB", config.wal_keep_size_mb)),
        ("max_slot_wal_keep_size", format!("{}MB", config.max_slot_wal_keep_size_mb)),
        ("wal_retrieve_retry_interval", format!("{}ms", config.wal_retrieve_retry_interval_ms)),
        ("wal_receiver_status_interval", "1s".to_owned()),
        ("wal_receiver_timeout", timeout.clone()),
        ("wal_sender_timeout", timeout),
        ("recovery_target_timeline", "latest".to_owned()),
        ("restore_command", String::new()),
        ("recovery_min_apply_delay", "0".to_owned()),
        ("restart_after_crash", "off".to_owned()),
        ("password_encryption", "scram-sha-256".to_owned()),
        ("synchronous_commit", "on".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("primary_conninfo", conninfo),
        ("primary_slot_name", String::new()),
    ];
    let rule = synchronous_standby_names(desired.sync.as_ref());
    if config.extension_library.is_some() {
        // The extension takes no other value of synchronous_standby_names, so this one is read before it.
        values.push((ACKNOWLEDGEMENT_RULE, rule.clone()));
        values.push(("pgquorum.fence", "on".to_owned()));
        values.push(("pgquorum.last_primary_timeline", desired.primary_on.unwrap_or(0).to_string()));
        values.push(("pgquorum.node_id", config.node.to_string()));
    }
    values.push(("synchronous_standby_names", rule));
    values
}

/// Reads back what the last write asked for; the default where there is no such file yet.
pub fn load(config: &PostgresConfig) -> Desired {
    let Ok(text) = std::fs::read_to_string(config.data_dir.join(CONF)) else { return Desired::default() };
    let state = text.lines().next().and_then(|l| l.strip_prefix(STATE_PREFIX));
    state.and_then(|s| serde_json::from_str(s).ok()).unwrap_or_default()
}

/// Writes `pgquorum.conf` alone: the path of every change at run time.
pub fn write_settings(config: &PostgresConfig, desired: &Desired) -> Result<bool> {
    let path = config.data_dir.join(CONF);
    let content = render(config, desired);
    strip_auto_conf(&config.data_dir)?;
    durable::replace_if_changed(&path, content.as_bytes()).map_err(io(format!("writing {}", path.display())))
}

/// Writes all files: before a start, and after a copy or a rewind brought those of another node.
pub fn write_configuration(config: &PostgresConfig, desired: &Desired) -> Result<()> {
    write_passfile(config)?;
    write_data_dir(config, desired)
}

/// Writes those that are in the data directory.
pub fn write_data_dir(config: &PostgresConfig, desired: &Desired) -> Result<()> {
    let write = |path: &Path, content: &str| {
        durable::replace_if_changed(path, content.as_bytes())
            .map_err(io(format!("writing {}", path.display())))
    };
    write(&config.data_dir.join("pg_hba.conf"), &render_hba(config))?;
    let main = config.data_dir.join("postgresql.conf");
    let present = std::fs::read_to_string(&main).map_err(io(format!("reading {}", main.display())))?;
    if !present.lines().any(|l| l.trim() == INCLUDE) {
        let end = if present.is_empty() || present.ends_with('\n') { "" } else { "\n" };
        write(&main, &format!("{present}{end}{INCLUDE}\n"))?;
    }
    write_settings(config, desired)?;
    Ok(())
}

fn render_hba(config: &PostgresConfig) -> String {
    let mut text = String::from(
        "# Written by pgquorum. Do not edit: put further rules into the node's configuration (extra-hba).\n",
    );
    let peers = ["samehost", "samenet"];
    let mut rule = |kind: &str, database: &str, user: &str, address: &str| {
        let _ = writeln!(text, "{kind:<6} {database:<12} {user:<20} {address:<16} scram-sha-256");
    };
    rule("local", "all", SUPERUSER, "");
    for address in peers {
        rule("host", "replication", REPLICATION_ROLE, address);
        rule("host", "all", SUPERUSER, address);
    }
    for line in &config.extra_hba {
        text.push_str(line.trim());
        text.push('\n');
    }
    let mut rule = |kind: &str, address: &str| {
        let _ = writeln!(text, "{kind:<6} {:<12} {:<20} {address:<16} scram-sha-256", "all", "all");
    };
    rule("local", "");
    for address in peers {
        rule("host", address);
    }
    text
}

pub fn write_passfile(config: &PostgresConfig) -> Result<()> {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    let secrets = &config.secrets;
    let content = format!(
        "*:*:*:{REPLICATION_ROLE}:{}\n*:*:*:{SUPERUSER}:{}\n",
        escape(&secrets.replication_password),
        escape(&secrets.superuser_password)
    );
    let path = config.passfile();
    let written = durable::replace_if_changed(&path, content.as_bytes());
    written.map_err(io(format!("writing {}", path.display()))).map(drop)
}

/// Takes our parameters out of what ALTER SYSTEM wrote, since that file wins over ours.
fn strip_auto_conf(data_dir: &Path) -> Result<()> {
    let path = data_dir.join("postgresql.auto.conf");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io(format!("reading {}", path.display()))(e)),
    };
    let name = |line: &str| {
        let end = line.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(line.len());
        line[..end].to_owned()
    };
    // The list of libraries is the cluster's to add to; set here it would replace ours, and the server would start
    // without a fence.
    let ours = |name: &str| is_owned(name) || name.eq_ignore_ascii_case("shared_preload_libraries");
    let kept: String =
        text.lines().filter(|l| !ours(&name(l.trim_start()))).map(|l| format!("{l}\n")).collect();
    if kept.len() != text.len() {
        tracing::warn!(
            "parameters that the cluster keeps itself were set with ALTER SYSTEM and were taken out"
        );
        durable::replace(&path, kept.as_bytes()).map_err(io(format!("writing {}", path.display())))?;
    }
    Ok(())
}

/// Makes sure that the next start of this directory is that of a standby.
pub fn ensure_standby_signal(config: &PostgresConfig) -> Result<()> {
    let path = config.data_dir.join("standby.signal");
    if path.exists() {
        return Ok(());
    }
    durable::replace(&path, b"").map_err(io(format!("writing {}", path.display())))
}

#[cfg(test)]
#[path = "config_files_tests.rs"]
mod tests;
