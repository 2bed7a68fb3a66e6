//! The contract with the PostgreSQL server beside this node: what is observed of it, what it is told to do.
//!
//! The adapter in the sidecar does the work; this crate only decides. A server is always started as a standby without
//! an upstream. Only [`PgOp::Promote`], after a committed appointment, makes it a primary; so a restarted server can
//! never come up writable by itself.

use crate::types::{Epoch, Lsn, NodeId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The server that a standby streams from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub node: NodeId,
    pub ip: IpAddr,
    pub port: u16,
    /// What it was appointed for, and the timeline that it is on; 0 where only the address is known.
    #[serde(default)]
    pub epoch: Epoch,
    #[serde(default)]
    pub timeline: Timeline,
}

/// Parameters that the cluster keeps itself: its safety, or the way its servers find each other, depends on them.
/// They cannot be set for the cluster, and are taken out of ALTER SYSTEM's file.
const RESERVED_PARAMETERS: &[&str] = &[
    "cluster_name",
    "fsync",
    "full_page_writes",
    "hot_standby",
    "hot_standby_feedback",
    "listen_addresses",
    "log_destination",
    "logging_collector",
    "max_slot_wal_keep_size",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "recovery_end_command",
    "restart_after_crash",
    "restore_command",
    "synchronous_commit",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_keep_size",
    "wal_level",
    "wal_log_hints",
    "wal_receiver_status_interval",
    "wal_receiver_timeout",
    "wal_retrieve_retry_interval",
    "wal_sender_timeout",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "include",
    "include_dir",
    "include_if_exists",
];

/// What a value may be.
#[derive(Clone, Copy)]
enum Value {
    Switch,
    Number { min: u32, max: u32 },
}

/// Settings of the extension on which nothing depends but what it learns of statements: the administrator's to set, and
/// better the same on all nodes. PostgreSQL does not know their values where the library is not loaded, so they are
/// checked here.
const STATEMENT_PARAMETERS: &[(&str, Value)] = &[
    ("pgquorum.learn_statements", Value::Switch),
    ("pgquorum.serve_observed_statements", Value::Switch),
    ("pgquorum.statements_max", Value::Number { min: 0, max: 1_000_000 }),
    ("pgquorum.statements_min_calls", Value::Number { min: 1, max: i32::MAX.unsigned_abs() }),
];

fn statement_parameter(name: &str) -> Option<Value> {
    let found = STATEMENT_PARAMETERS.iter().find(|(one, _)| one.eq_ignore_ascii_case(name));
    found.map(|(_, value)| *value)
}

/// What a setting of the extension takes, if that is not this value.
pub fn wrong_value(name: &str, value: &str) -> Option<String> {
    match statement_parameter(name)? {
        Value::Switch if ["on", "off", "true", "false"].contains(&value) => None,
        Value::Switch => Some("on or off".to_owned()),
        Value::Number { min, max } if value.parse().is_ok_and(|n: u32| (min..=max).contains(&n)) => None,
        Value::Number { min, max } => Some(format!("a number from {min} to {max}")),
    }
}

/// Whether only the cluster itself sets this parameter.
pub fn is_reserved_parameter(name: &str) -> bool {
    let ours = name.get(..9).is_some_and(|prefix| prefix.eq_ignore_ascii_case("pgquorum."));
    ours && statement_parameter(name).is_none()
        || RESERVED_PARAMETERS.iter().any(|reserved| reserved.eq_ignore_ascii_case(name))
}

/// `synchronous_standby_names`: any `k` of `standbys` must have a transaction before its commit returns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSet {
    pub k: usize,
    pub standbys: BTreeSet<NodeId>,
}

/// How a server is stopped. Never a smart shutdown: sessions would go on committing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopMode {
    /// Ends sessions, sends all WAL to connected standbys, writes a shutdown checkpoint.
    Fast,
    /// Ends everything at once; the next start replays the WAL.
    Immediate,
}

/// One thing that the server is told to do. Process operations replace each other: a new one ends an unfinished one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgOp {
    /// Start as a standby that receives nothing. Does nothing if the server runs already.
    Start,
    Stop(StopMode),
    /// Stop receiving WAL, durably (a restart does not resume it), and report how far the WAL reaches once no
    /// receiver is left and the end is known. On a server that is not running, or is a primary, it fails.
    CutReception,
    /// Receive WAL from this server.
    Follow(Upstream),
    /// Receive WAL from this server on one that is starting and may not come up without it, under a name that
    /// acknowledges nothing: whether its history is the upstream's is not known before it has. Fails on a server that
    /// answers.
    Feed(Upstream),
    /// Leave recovery on exactly this timeline, with `sync` in force from the first write on.
    /// A server that is a primary on it already only gets `sync`; a standby whose WAL is on it already refuses, because
    /// nothing may be written on a timeline twice.
    Promote {
        timeline: Timeline,
        sync: SyncSet,
    },
    /// Give up the part of the own WAL that `upstream` does not have, and follow it. While it writes into the data
    /// directory it is not cut short: a later operation waits for it, and the data count as [`PgProcess::Absent`].
    Rewind(Upstream),
    /// Copy the whole database from `upstream` into a side directory, put it in place, and follow.
    Clone(Upstream),
    /// Write the epoch's row and return when k standbys have it.
    OpenEpoch {
        epoch: Epoch,
        timeline: Timeline,
        switch_lsn: Lsn,
        sync: SyncSet,
    },
    /// Put `synchronous_standby_names` in force and report the barrier from which on every walsender follows it.
    SetSync(SyncSet),
    Checkpoint,
    /// Have exactly these physical slots for the peers.
    Slots(BTreeSet<NodeId>),
    /// Ask PostgreSQL whether it takes these parameters; changes nothing.
    CheckParameters(BTreeMap<String, String>),
    /// Make these the cluster's PostgreSQL parameters.
    Configure(BTreeMap<String, String>),
    /// Record committed entries in the database, in order.
    RecordEntries(Vec<EntryRecord>),
}

impl PgOp {
    /// Process operations run one at a time and replace each other; the others need a running primary and run beside.
    pub fn is_process_operation(&self) -> bool {
        matches!(
            self,
            PgOp::Start
                | PgOp::Stop(_)
                | PgOp::CutReception
                | PgOp::Follow(_)
                | PgOp::Feed(_)
                | PgOp::Promote { .. }
                | PgOp::Rewind(_)
                | PgOp::Clone(_)
        )
    }

    pub fn name(&self) -> &'static str {
        match self {
            PgOp::Start => "start",
            PgOp::Stop(_) => "stop",
            PgOp::CutReception => "cut-reception",
            PgOp::Follow(_) => "follow",
            PgOp::Feed(_) => "feed",
            PgOp::Promote { .. } => "promote",
            PgOp::Rewind(_) => "rewind",
            PgOp::Clone(_) => "clone",
            PgOp::OpenEpoch { .. } => "open-epoch",
            PgOp::SetSync(_) => "set-sync",
            PgOp::Checkpoint => "checkpoint",
            PgOp::Slots(_) => "slots",
            PgOp::CheckParameters(_) => "check-parameters",
            PgOp::Configure(_) => "configure",
            PgOp::RecordEntries(_) => "record-entries",
        }
    }
}

/// A committed entry in the form in which `quorum.apply_entry` takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRecord {
    pub index: u64,
    pub term: u64,
    /// JSON object; see `docs/cluster-log.md`.
    pub payload: serde_json::Value,
    /// The payload holds the whole state instead of one change (`quorum.apply_snapshot`).
    pub snapshot: bool,
}

/// What an operation brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgOutcome {
    Done,
    /// `CutReception`: the end of the WAL, and the timeline it was written on.
    Cut {
        timeline: Timeline,
        lsn: Lsn,
    },
    /// `Promote`: the new timeline and where it left the old one.
    Promoted {
        timeline: Timeline,
        switch_lsn: Lsn,
    },
    /// `SetSync`: WAL up to here was acknowledged under the old rule at worst.
    SyncBarrier(Lsn),
    /// `Configure`: parameters that a restart must bring into force.
    Configured {
        restart_required: Vec<String>,
    },
    /// `RecordEntries`: the highest index that the database has.
    Recorded {
        index: u64,
    },
}

/// Why an operation failed, for policy; the text is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PgFailureKind {
    /// Replaced by another operation.
    Cancelled,
    NotRunning,
    TimedOut,
    /// The database directory is missing or cannot be used.
    NoData,
    /// The promoted server is on another timeline than it was told to take.
    WrongTimeline,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PgFailure {
    pub kind: PgFailureKind,
    pub message: String,
}

/// Whether the server process lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PgProcess {
    /// No usable data directory.
    #[default]
    Absent,
    Stopped,
    /// The process lives and does not answer yet.
    Starting,
    Running,
}

/// A standby as the primary sees it in `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyState {
    pub node: NodeId,
    pub streaming: bool,
    pub flush_lsn: Lsn,
    pub replay_lsn: Lsn,
    /// `sync_state` is `quorum`: the walsender counts its acknowledgements.
    pub acknowledges: bool,
}

/// What is known of the server now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgObservation {
    pub process: PgProcess,
    /// Tells one run of the server from the next; what is said of a process that was stopped is not believed.
    pub pid: u32,
    pub system_identifier: u64,
    pub in_recovery: bool,
    /// Of a process that has started and does not answer: its files say that it is a primary.
    #[serde(default)]
    pub in_production: bool,
    /// The timeline on which the end of the WAL lies.
    pub timeline: Timeline,
    /// End of the WAL that is on this node's disk.
    pub flush_lsn: Lsn,
    pub replay_lsn: Lsn,
    /// Standby: a WAL receiver is there (streaming or connecting).
    pub receiver: bool,
    /// Standby: the receiver streams; `upstream_port` says from which port.
    pub streaming: bool,
    pub upstream_port: u16,
    /// Standby: all WAL on disk is replayed and nothing is being received, so `flush_lsn` is the true end.
    pub settled: bool,
    /// Primary: what its standbys have.
    pub standbys: Vec<StandbyState>,
    /// Timelines this server's history went through and where each ended, oldest first; the present one is not in it.
    pub history: Vec<(Timeline, Lsn)>,
    /// The segment of WAL that a server which starts is at, timelines aside; `None`: it has not come to that, or does not
    /// say.
    #[serde(default)]
    pub replaying: Option<u64>,
    /// Whoever logs in now gets nowhere: the restart barrier refuses clients, or the server takes no new sessions.
    #[serde(default)]
    pub closed: bool,
    /// Highest index of the cluster's log that the database holds.
    pub recorded_index: u64,
    /// Parameters that wait for a restart.
    pub pending_restart: Vec<String>,
    /// Progress of a copy, if one runs: bytes done and bytes in all (0 if not known).
    pub copy_progress: Option<(u64, u64)>,
    /// Why the server is not as it should be, in a sentence.
    pub trouble: Option<String>,
    /// The data were rewound, and fit together only when WAL up to `flush_lsn` of `timeline` is replayed. That WAL may
    /// have to come from an upstream; until then the server is starting, and there is nothing to pledge.
    #[serde(default)]
    pub rewound: bool,
}

impl PgObservation {
    pub fn is_running(&self) -> bool {
        self.process == PgProcess::Running
    }

    /// Whether clients may log in.
    pub fn admits_clients(&self) -> bool {
        self.is_running() && !self.closed
    }

    pub fn is_primary(&self) -> bool {
        self.is_running() && !self.in_recovery
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_of_statements_may_be_set_and_to_what_they_take() {
        for (name, value, right) in [
            ("pgquorum.learn_statements", "off", true),
            ("pgquorum.learn_statements", "no way", false),
            ("pgquorum.Serve_Observed_Statements", "true", true),
            ("pgquorum.statements_max", "0", true),
            ("pgquorum.statements_max", "1000001", false),
            ("pgquorum.statements_max", "10kB", false),
            ("pgquorum.statements_min_calls", "0", false),
            ("pgquorum.statements_min_calls", "2147483647", true),
            ("work_mem", "lots", true),
        ] {
            assert!(!is_reserved_parameter(name), "{name}");
            assert_eq!(wrong_value(name, value).is_none(), right, "{name} = {value}");
        }
        for ours in ["pgquorum.fence", "pgquorum.statements", "PGQUORUM.lease_wait", "fsync"] {
            assert!(is_reserved_parameter(ours), "{ours}");
        }
        for ours in ["wal_keep_size", "hot_standby_feedback", "logging_collector", "Recovery_Target_XID"] {
            assert!(is_reserved_parameter(ours), "{ours}");
        }
    }
}
