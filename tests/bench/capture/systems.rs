//! The systems that capture changes, each with a server of its own, and those that do not.

use crate::usage::{Tree, process_seconds};
use pgquorum_tests::{PATIENCE, Plain, await_until, free_ports, postgres_program, server_directory_below};
use postgres::Client;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The channel of all benchmarks.
pub const CHANNEL: &str = "bench";

const SLOT: &str = "bench";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL that captures nothing.
    Plain,
    /// Another one. Its ratio to the first would be 1 if measuring were exact.
    Control,
    /// This extension captures, and does nothing else: it learns no statements. Nobody reads.
    Captured,
    /// The same with default settings, so statements are learned, too.
    Default,
    /// Row triggers that do nothing on the same tables: what no capture by triggers can be cheaper than.
    Idle,
    /// A row trigger in PL/pgSQL that keeps old and new row as jsonb.
    Trigger,
    /// A logical slot whose changes `pg_recvlogical` writes to /dev/null.
    Wal2json,
    /// PostgreSQL's logical replication: a subscriber on this machine applies the changes in a second server.
    Pgoutput,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::Control => "control",
            Kind::Captured => "captured",
            Kind::Default => "default",
            Kind::Idle => "idle_trigger",
            Kind::Trigger => "trigger",
            Kind::Wal2json => "wal2json",
            Kind::Pgoutput => "pgoutput",
        }
    }

    fn conf(self) -> String {
        match self {
            Kind::Plain | Kind::Control | Kind::Trigger => String::new(),
            Kind::Default => "shared_preload_libraries = 'pgquorum'\n".to_owned(),
            Kind::Captured | Kind::Idle => {
                "shared_preload_libraries = 'pgquorum'\npgquorum.learn_statements = off\n".to_owned()
            }
            Kind::Wal2json => wal2json_conf(),
            Kind::Pgoutput => "wal_level = logical\n".to_owned(),
        }
    }
}

/// A table to capture.
pub struct Table {
    pub name: &'static str,
    /// Without one the captured change holds the whole old row.
    pub has_key: bool,
}

const AUDIT: &str = r#"
CREATE TABLE audit_log (id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    transaction bigint NOT NULL DEFAULT txid_current(), "table" text NOT NULL, op "char" NOT NULL, old jsonb, new jsonb);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN INSERT INTO audit_log ("table", op, new) VALUES (TG_TABLE_NAME, 'I', to_jsonb(NEW));
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO audit_log ("table", op, old, new) VALUES (TG_TABLE_NAME, 'U', to_jsonb(OLD), to_jsonb(NEW));
    ELSE INSERT INTO audit_log ("table", op, old) VALUES (TG_TABLE_NAME, 'D', to_jsonb(OLD));
    END IF;
    RETURN NULL;
END $$;
"#;

/// The capture's own entry point, which looks for the table among those that are tracked and finds that it is not.
const IDLE: &str = "CREATE FUNCTION idle() RETURNS trigger LANGUAGE c AS 'pgquorum', 'pgquorum_capture_row'";

/// Why the peer with the logical slot cannot be measured here, if it cannot.
pub fn wal2json_refused() -> Option<String> {
    let out = Command::new(postgres_program("pg_config")).arg("--pkglibdir").output().ok()?;
    let library = Path::new(String::from_utf8_lossy(&out.stdout).trim()).join("wal2json.so");
    let there = library.is_file();
    (!there).then(|| format!("the package of wal2json is missing (there is no {})", library.display()))
}

/// Lines for a server with a wal2json slot.
pub fn wal2json_conf() -> String {
    let mut conf = "wal_level = logical\n".to_owned();
    // Newer minor versions load only plugins that are on a list.
    let known = Command::new(postgres_program("postgres")).arg("--describe-config").output();
    if known.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("output_plugin_libraries")) {
        conf += "output_plugin_libraries = 'pgoutput, wal2json'\n";
    }
    conf
}

/// One server and what captures there.
pub struct System {
    pub kind: Kind,
    server: Plain,
    pub session: Client,
    receiver: Option<Child>,
    subscriber: Option<Box<System>>,
}

/// Whoever reads what is captured, if anybody does.
#[derive(Clone, Copy)]
pub struct Reader {
    receiver: Option<i32>,
    subscriber: Option<Tree>,
}

impl Reader {
    /// CPU seconds since its start.
    pub fn seconds(&self) -> f64 {
        self.receiver.map_or(0.0, process_seconds) + self.subscriber.map_or(0.0, |tree| tree.seconds())
    }
}

impl System {
    /// A new server with these lines of configuration. Sessions need no password: checking it would cost as much as
    /// many transactions.
    pub fn start(kind: Kind, dir: &Path, conf: &str) -> System {
        let [port] = free_ports();
        let server = Plain::init(dir, port, &format!("{conf}{}", kind.conf()));
        let trust = "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";
        std::fs::write(dir.join("pg_hba.conf"), trust).expect("pg_hba.conf");
        server.sql("SELECT pg_reload_conf()");
        let session = server.connect().unwrap_or_else(|e| panic!("{}: {e:?}", kind.name()));
        System { kind, server, session, receiver: None, subscriber: None }
    }

    pub fn dsn(&self) -> String {
        Plain::dsn(&[&self.server])
    }

    pub fn data(&self) -> &Path {
        self.server.dir()
    }

    pub fn tree(&self) -> Tree {
        Tree::of(self.data())
    }

    pub fn connect(&self) -> Client {
        self.server.connect().unwrap_or_else(|e| panic!("{}: {e:?}", self.kind.name()))
    }

    pub fn sql(&mut self, statements: &str) {
        let name = self.kind.name();
        self.session.batch_execute(statements).unwrap_or_else(|e| panic!("{name}: {statements}: {e:?}"));
    }

    /// One value as text.
    pub fn ask(&mut self, query: &str) -> String {
        let name = self.kind.name();
        let row = self.session.query_one(query, &[]).unwrap_or_else(|e| panic!("{name}: {query}: {e:?}"));
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }

    /// From now on changes of these tables are captured.
    pub fn capture(&mut self, tables: &[Table]) {
        match self.kind {
            Kind::Plain | Kind::Control => {}
            Kind::Captured | Kind::Default => {
                self.sql("CREATE EXTENSION pgquorum");
                self.sql(&track(tables));
            }
            Kind::Idle => {
                self.sql("CREATE EXTENSION pgquorum");
                self.sql(IDLE);
                for Table { name, .. } in tables {
                    self.sql(&format!(
                        "CREATE TRIGGER idle AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION idle()"
                    ));
                }
            }
            Kind::Trigger => {
                self.sql(AUDIT);
                for Table { name, .. } in tables {
                    self.sql(&format!(
                        "CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION audit()"
                    ));
                }
            }
            Kind::Wal2json => {
                self.sql(&format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'wal2json')"));
                self.receiver = Some(receive(&self.dsn(), SLOT, "/dev/null", &["-F", "1", "-s", "1"]));
                let sql = "SELECT count(*)::text FROM pg_stat_replication WHERE state = 'streaming'";
                await_until(PATIENCE, "pg_recvlogical", || match self.ask(sql).as_str() {
                    "1" => Ok(()),
                    other => Err(other.to_owned()),
                });
            }
            Kind::Pgoutput => {
                let names: Vec<&str> = tables.iter().map(|table| table.name).collect();
                self.sql(&format!("CREATE PUBLICATION {SLOT} FOR TABLE {}", names.join(", ")));
                let dsn = self.dsn();
                let subscriber = self.subscriber.as_mut().expect("a second server with the same tables");
                // It has the same rows already.
                subscriber.sql(&format!(
                    "CREATE SUBSCRIPTION {SLOT} CONNECTION '{dsn}' PUBLICATION {SLOT} WITH (copy_data = false)"
                ));
                let sql = "SELECT count(*)::text FROM pg_stat_replication WHERE state = 'streaming'";
                await_until(PATIENCE, "the subscriber", || match self.ask(sql).as_str() {
                    "1" => Ok(()),
                    other => Err(other.to_owned()),
                });
            }
        }
    }

    /// Waits until whoever reads here has been sent everything that is committed; a subscriber has applied it.
    pub fn drain(&mut self) {
        let place = match (&self.receiver, &self.subscriber) {
            (Some(_), _) => "sent_lsn",
            (None, Some(_)) => "replay_lsn",
            (None, None) => return,
        };
        // What is decoded is WAL that has been flushed, and only a commit in good time sees to that.
        self.sql("SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'bench', ''); RESET synchronous_commit");
        let end = self.ask("SELECT pg_current_wal_flush_lsn()::text");
        let sql = format!("SELECT (bool_and({place} >= '{end}'))::text FROM pg_stat_replication");
        await_until(3 * PATIENCE, "the reader to have everything", || match self.ask(&sql).as_str() {
            "true" => Ok(()),
            other => Err(other.to_owned()),
        });
    }

    pub fn reader(&self) -> Reader {
        Reader {
            receiver: self.receiver.as_ref().map(|child| child.id() as i32),
            subscriber: self.subscriber.as_ref().map(|subscriber| subscriber.tree()),
        }
    }

    pub fn checkpoint(&mut self) {
        self.sql("CHECKPOINT");
        self.subscriber.iter_mut().for_each(|subscriber| subscriber.sql("CHECKPOINT"));
    }

    /// Bytes of WAL between two places, full-page images aside.
    pub fn wal_bytes(&self, from: &str, to: &str) -> f64 {
        let mut command = Command::new(postgres_program("pg_waldump"));
        command.arg("-p").arg(self.data().join("pg_wal")).args(["-s", from, "-e", to, "--stats"]);
        let out = command.stdin(Stdio::null()).output().expect("pg_waldump");
        let text = String::from_utf8_lossy(&out.stdout);
        record_bytes(&text)
            .unwrap_or_else(|| panic!("pg_waldump: {text}{}", String::from_utf8_lossy(&out.stderr)))
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if let Some(mut child) = self.receiver.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Statements that make the channel and track these tables in it.
pub fn track(tables: &[Table]) -> String {
    let each = |table: &Table| {
        let image = if table.has_key { "key" } else { "full" };
        format!("SELECT quorum.track('{}', '{CHANNEL}', old_image => '{image}');", table.name)
    };
    format!("SELECT quorum.create_channel('{CHANNEL}'); {}", tables.iter().map(each).collect::<String>())
}

/// Starts `pg_recvlogical` on a slot.
pub fn receive(dsn: &str, slot: &str, file: &str, more: &[&str]) -> Child {
    let mut command = Command::new(postgres_program("pg_recvlogical"));
    command.args(["-d", dsn, "-S", slot, "--start", "-f", file, "-o", "format-version=2"]).args(more);
    let out = if file == "-" { Stdio::piped() } else { Stdio::null() };
    command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null()).spawn().expect("pg_recvlogical")
}

/// Systems that are measured in turns, below one directory.
pub struct Fleet {
    root: PathBuf,
    pub systems: Vec<System>,
}

impl Fleet {
    /// One server of each kind, and a subscriber where one belongs to it; `fill` makes its tables, with the same rows
    /// everywhere, which are captured from then on.
    pub fn start(
        base: &Path,
        kinds: &[Kind],
        conf: &str,
        tables: &[Table],
        fill: impl Fn(&mut System),
    ) -> Fleet {
        let root = server_directory_below(base, "pgquorum-capture-");
        let mut fleet = Fleet { root, systems: Vec::new() };
        for kind in kinds {
            eprintln!("setting up {}", kind.name());
            let mut system = System::start(*kind, &fleet.root.join(kind.name()), conf);
            fill(&mut system);
            if *kind == Kind::Pgoutput {
                let mut subscriber = System::start(Kind::Plain, &fleet.root.join("subscriber"), conf);
                fill(&mut subscriber);
                system.subscriber = Some(Box::new(subscriber));
            }
            system.capture(tables);
            fleet.systems.push(system);
        }
        fleet
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn checkpoint(&mut self) {
        self.systems.iter_mut().for_each(System::checkpoint);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.systems.clear();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Where servers are in memory, if this machine has such a place.
pub fn memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { disk() }
}

pub fn disk() -> &'static Path {
    Path::new("/var/tmp")
}

/// From the last line of `pg_waldump --stats`: count, bytes of records, bytes of full-page images, bytes of both.
fn record_bytes(text: &str) -> Option<f64> {
    let total = text.lines().find(|line| line.starts_with("Total"))?;
    total.split_whitespace().filter_map(|word| word.parse::<f64>().ok()).nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_page_images_do_not_count() {
        let text = "WAL statistics between 0/1 and 0/2:\nType  N (%)  Record size (%)\nHeap  7 (70.00)  500 ( 61.0)\n\
                    Total            10                          827 [9.16%]          8196 [90.84%]           9023 [100%]\n";
        assert_eq!(record_bytes(text), Some(827.0));
        assert_eq!(record_bytes("pg_waldump: error"), None);
    }
}
