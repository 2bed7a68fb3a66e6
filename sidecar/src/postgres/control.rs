//! What the control file of a stopped server says, through `pg_controldata`.

use super::config::PostgresConfig;
use super::error::{Result, failure, no_data};
use super::process::run_program;
use pgquorum_agent::types::{Lsn, Timeline};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::time::Duration;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlData {
    pub system_identifier: u64,
    /// Shut down cleanly, as a primary or as a standby.
    pub clean: bool,
    /// Shut down cleanly as a standby: the WAL ends where replay ended, with no shutdown checkpoint of its own.
    pub clean_in_recovery: bool,
    /// It runs as a primary, or did when it died.
    pub in_production: bool,
    pub checkpoint: Lsn,
    pub checkpoint_timeline: Timeline,
    pub minimum_recovery_end: Lsn,
    pub minimum_recovery_timeline: Timeline,
    pub segment_bytes: u64,
    /// Parameters that a standby must not set lower than the primary did, and what the primary had.
    pub floors: BTreeMap<String, u64>,
}

/// How the control file calls them, and how the configuration does.
const FLOORS: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

impl ControlData {
    /// The newest timeline that the control file knows of.
    pub fn timeline(&self) -> Timeline {
        self.checkpoint_timeline.max(self.minimum_recovery_timeline)
    }

    pub fn parse(text: &str) -> std::result::Result<ControlData, String> {
        let fields: HashMap<&str, &str> =
            text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect();
        fn field<T: std::str::FromStr>(
            fields: &HashMap<&str, &str>,
            name: &str,
        ) -> std::result::Result<T, String> {
            let text = fields.get(name).ok_or_else(|| format!("pg_controldata did not print {name:?}"))?;
            text.parse().map_err(|_| format!("pg_controldata printed {text:?} for {name:?}"))
        }
        let state: String = field(&fields, "Database cluster state")?;
        Ok(ControlData {
            system_identifier: field(&fields, "Database system identifier")?,
            clean: state == "shut down" || state == "shut down in recovery",
            clean_in_recovery: state == "shut down in recovery",
            in_production: state == "in production",
            checkpoint: field(&fields, "Latest checkpoint location")?,
            checkpoint_timeline: field(&fields, "Latest checkpoint's TimeLineID")?,
            minimum_recovery_end: field(&fields, "Minimum recovery ending location")?,
            minimum_recovery_timeline: field(&fields, "Min recovery ending loc's timeline")?,
            segment_bytes: field(&fields, "Bytes per WAL segment")?,
            floors: FLOORS
                .iter()
                .map(|(theirs, ours)| Ok(((*ours).to_owned(), field(&fields, theirs)?)))
                .collect::<std::result::Result<_, String>>()?,
        })
    }
}

/// Refuses a data directory that holds the database of somebody else, whether it runs or not; nothing is changed there.
///
/// # Errors
/// It does, or its control file cannot be read. Without one there is nothing to be refused.
pub fn require_own(config: &PostgresConfig) -> Result<()> {
    let file = config.data_dir.join("global/pg_control");
    let mut identifier = [0; 8];
    // The file begins with it, in all versions (catalog/pg_control.h), and it never changes.
    match File::open(&file).and_then(|mut file| file.read_exact(&mut identifier)) {
        Ok(()) => {}
        // Whoever needs a whole one says what is wrong with this one.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => return Ok(()),
        Err(error) => return Err(failure(format!("{}: {error}", file.display()))),
    }
    let (found, expected) = (u64::from_ne_bytes(identifier), config.system_identifier);
    // Zeros are what a crash of the machine leaves of a file that was not written yet.
    if expected == 0 || found == 0 || found == expected {
        return Ok(());
    }
    Err(failure(format!(
        "the data directory {} belongs to another database: its system identifier is {found}, the cluster's is \
         {expected}. Nothing was changed. Point data-dir to this node's own data, or join with an empty directory",
        config.data_dir.display()
    )))
}

/// Runs `pg_controldata`. The server may run, but then the answer is as old as its last checkpoint.
pub async fn read(config: &PostgresConfig) -> Result<ControlData> {
    let mut command = tokio::process::Command::new(config.program("pg_controldata"));
    command.arg("-D").arg(&config.data_dir).env("LC_ALL", "C");
    let output = run_program("pg_controldata", command, Duration::from_secs(20)).await.map_err(|e| {
        no_data(format!(
            "the control file in {} cannot be read: {e}. The directory is not a usable PostgreSQL data directory; \
             clone it from another node, or restore it from a backup",
            config.data_dir.display()
        ))
    })?;
    ControlData::parse(&output)
        .map_err(|e| failure(format!("pg_controldata of {}: {e}", config.bin_dir.display())))
}

/// Where the WAL of a stopped server ends. For a clean shutdown of a primary this is the end of the shutdown
/// checkpoint's record, which the control file does not say: `pg_waldump` gives the record's length.
pub async fn wal_end(config: &PostgresConfig, control: &ControlData) -> (Timeline, Lsn) {
    if control.minimum_recovery_end > control.checkpoint {
        return (control.timeline(), control.minimum_recovery_end);
    }
    let mut command = tokio::process::Command::new(config.program("pg_waldump"));
    command.arg("-p").arg(config.wal_dir()).arg("-t").arg(control.checkpoint_timeline.to_string());
    command.arg("-s").arg(control.checkpoint.to_string()).arg("-n").arg("1").env("LC_ALL", "C");
    let length = match run_program("pg_waldump", command, Duration::from_secs(20)).await {
        Ok(output) => record_length(&output),
        Err(error) => {
            tracing::warn!(%error, "the length of the last checkpoint record is not known");
            None
        }
    };
    let end = length.map_or(control.checkpoint, |l| record_end(control.checkpoint, l, control.segment_bytes));
    (control.timeline(), end)
}

/// The total length in a line such as `rmgr: XLOG  len (rec/tot):    114/   114, tx: …`.
pub fn record_length(line: &str) -> Option<u64> {
    let rest = line.split_once("len (rec/tot):")?.1.split_once(',')?.0;
    rest.split_once('/')?.1.trim().parse().ok()
}

/// The end of a record of `length` bytes that starts at `start`: records are aligned to 8 bytes, and every page they
/// reach begins with a header (24 bytes, 40 on the first page of a segment).
pub fn record_end(start: Lsn, length: u64, segment_bytes: u64) -> Lsn {
    const PAGE: u64 = 8192;
    let mut position = start.0;
    let mut left = length.div_ceil(8) * 8;
    loop {
        let free = PAGE - position % PAGE;
        if left <= free {
            return Lsn(position + left);
        }
        left -= free;
        position += free;
        position += if position.is_multiple_of(segment_bytes) { 40 } else { 24 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Secrets;

    #[test]
    fn the_database_of_somebody_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets { superuser_password: String::new(), replication_password: String::new() };
        let listen = std::net::IpAddr::from([127, 0, 0, 1]);
        let mut config =
            PostgresConfig::new(1, dir.path().to_owned(), "/no/programs".into(), listen, 5432, secrets);
        config.system_identifier = 7_400_000_000_000_000_001;
        require_own(&config).expect("there is none");
        std::fs::create_dir(dir.path().join("global")).unwrap();
        let holds = |bytes: &[u8]| std::fs::write(dir.path().join("global/pg_control"), bytes).unwrap();
        holds(b"cut");
        require_own(&config).expect("nothing can be said of it");
        holds(&[0; 8192]);
        require_own(&config).expect("nothing can be said of it");
        holds(&7_400_000_000_000_000_001_u64.to_ne_bytes());
        require_own(&config).expect("it is the cluster's");
        holds(&7_400_000_000_000_000_002_u64.to_ne_bytes());
        let said = require_own(&config).unwrap_err().message;
        assert!(said.contains("7400000000000000002") && said.contains("Nothing was changed"), "{said}");
        config.system_identifier = 0;
        require_own(&config).expect("it is not known whose it is");
    }

    const SAMPLE: &str = "\
pg_control version number:            1300
Database system identifier:           7400000000000000001
Database cluster state:               shut down in recovery
Latest checkpoint location:           0/3000060
Latest checkpoint's TimeLineID:       2
Minimum recovery ending location:     0/30000D8
Min recovery ending loc's timeline:   3
Bytes per WAL segment:                16777216
max_connections setting:              120
max_worker_processes setting:         8
max_wal_senders setting:              32
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
";

    #[test]
    fn the_control_file_is_read() {
        let control = ControlData::parse(SAMPLE).unwrap();
        assert_eq!(control.system_identifier, 7_400_000_000_000_000_001);
        assert!(control.clean && control.clean_in_recovery && !control.in_production);
        assert_eq!(control.timeline(), 3);
        assert_eq!(control.floors["max_connections"], 120);
        assert_eq!(control.checkpoint, Lsn(0x300_0060));
        let crashed = SAMPLE.replace("shut down in recovery", "in production");
        let crashed = ControlData::parse(&crashed).unwrap();
        assert!(crashed.in_production && !crashed.clean);
        assert!(ControlData::parse("nonsense").is_err());
    }

    #[test]
    fn the_end_of_a_record_counts_alignment_and_page_headers() {
        let segment = 16 << 20;
        let line = "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/03000028, prev";
        assert_eq!(record_length(line), Some(114));
        assert_eq!(record_end(Lsn(0x300_0028), 114, segment), Lsn(0x300_0028 + 120));
        assert_eq!(record_end(Lsn(0x300_1FF8), 114, segment), Lsn(0x300_2000 + 24 + 112));
        assert_eq!(record_end(Lsn(0x3FF_FFF8), 114, segment), Lsn(0x400_0000 + 40 + 112));
        assert_eq!(record_end(Lsn(0x300_1F88), 120, segment), Lsn(0x300_2000));
    }
}
