//! A cluster on this machine, made and destroyed by `pgquorum local`.

use crate::{Probe, ProbeOptions, await_until, pgquorum, pgquorum_as_server, request};
use postgres::{Client, Config, NoTls};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Long enough for a loaded machine; a healthy one needs a second.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Refusals for something that passes by itself.
const PASSING: [&str; 4] = ["change_in_flight", "no_leader", "not_streaming", "behind"];

/// How long `local up` may take.
const UP: [&str; 2] = ["--timeout", "5m"];

/// `local status --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub dsn: String,
    pub leader: Option<u64>,
    pub nodes: Vec<Node>,
}

/// A node as `local status --json` shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub id: u64,
    pub role: String,
    pub state: String,
    pub api: String,
    pub db_host: String,
    pub db_port: u16,
    pub data_dir: PathBuf,
    pub sidecar_pid: i32,
    pub postgres_pid: i32,
    pub epoch: u64,
    pub lsn: String,
}

impl Node {
    /// Where the sidecar keeps what it must not forget.
    pub fn state_dir(&self) -> PathBuf {
        self.data_dir.with_file_name("state")
    }

    pub fn api_port(&self) -> u16 {
        self.api.rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(0)
    }
}

/// A running cluster. Destroyed at the end, or left with its logs when the test fails.
pub struct Cluster {
    dir: PathBuf,
    keep: bool,
}

impl Cluster {
    /// A cluster of `n` nodes that have all caught up.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(n: usize) -> Cluster {
        Cluster::start_with(n, &[])
    }

    /// The same with settings such as `("node-timeout", "2s")`.
    pub fn start_with(n: usize, settings: &[(&str, &str)]) -> Cluster {
        Cluster::start_as(Path::new("/var/tmp"), n, &[], settings)
    }

    /// The same for scenarios that are not about nodes which stand still. On a loaded machine each process may do so for
    /// seconds: with the usual `node-timeout` its primary then refuses writes and ends its sessions, or another node
    /// leads, as it should be. One that is killed is noticed as soon as ever.
    pub fn start_steady(n: usize) -> Cluster {
        Cluster::start_with(n, &[("node-timeout", if n == 1 { "10s" } else { "5s" })])
    }

    /// The same with its data and state below this directory.
    pub fn start_below(base: &Path, n: usize) -> Cluster {
        Cluster::start_as(base, n, &[], &[])
    }

    /// A cluster whose last node is a witness.
    pub fn start_with_witness(n: usize) -> Cluster {
        Cluster::start_as(Path::new("/var/tmp"), n, &["--witness"], &[])
    }

    fn start_as(base: &Path, n: usize, options: &[&str], settings: &[(&str, &str)]) -> Cluster {
        let root = tempfile::Builder::new().prefix("pgquorum-test-").tempdir_in(base).expect("a directory");
        open_to_all(root.path());
        let cluster = Cluster { dir: root.keep().join("cluster"), keep: false };
        let mut args = vec!["local".to_owned(), "up".to_owned(), "--nodes".to_owned(), n.to_string()];
        args.extend(["--base-port".to_owned(), crate::ports::free_base_port(n).to_string()]);
        args.extend(options.iter().chain(&UP).map(|&o| o.to_owned()));
        for (name, value) in settings {
            args.extend(["--set".to_owned(), format!("{name}={value}")]);
        }
        args.extend(["--dir".to_owned(), cluster.dir.display().to_string()]);
        pgquorum(args).expect("local up");
        cluster
    }

    /// A cluster that somebody else made, left as it is at the end.
    pub fn at(dir: &Path) -> Cluster {
        Cluster { dir: dir.to_owned(), keep: true }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn local(&self, command: &str, more: &[&str]) -> Value {
        let dir = self.dir.display().to_string();
        let mut args = vec!["local", command, "--dir", &dir];
        args.extend(more);
        pgquorum(args).expect(&format!("local {command} {}", more.join(" ")))
    }

    pub fn status(&self) -> Status {
        serde_json::from_value(self.local("status", &[])).expect("the shape of local status --json")
    }

    pub fn node(&self, id: u64) -> Node {
        let status = self.status();
        status.nodes.into_iter().find(|n| n.id == id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    /// `local up` again, for a cluster that is down or shall grow.
    pub fn up(&self, nodes: usize) {
        self.local("up", &["--nodes", &nodes.to_string(), UP[0], UP[1]]);
    }

    /// Makes node `number` by `pgquorum join` with these options, where `local up` would have made it, and starts it.
    ///
    /// # Panics
    /// It is refused.
    pub fn join(&self, number: u16, options: &[&str]) {
        let first = self.node(1);
        let db_port = (first.db_port + number - 1).to_string();
        let api_port = (first.api_port() + number - 1).to_string();
        let secrets = first.state_dir().join("secrets.toml").display().to_string();
        let dir = self.dir.join(format!("node{number}")).display().to_string();
        let mut args = vec!["join", "--no-run", "--leader", &first.api, "--secrets", &secrets, "--dir", &dir];
        args.extend(["--ip", "127.0.0.1", "--db-port", &db_port, "--api-port", &api_port]);
        args.extend(options);
        pgquorum_as_server(args).expect("join");
        self.start_node(u64::from(number));
    }

    pub fn down(&self) {
        self.local("down", &[]);
    }

    /// Kills a node, or the part of it that is named; returns the moment in Unix milliseconds.
    pub fn kill(&self, id: u64, only: Option<&str>) -> u64 {
        self.signal("kill", id, only)
    }

    pub fn stop(&self, id: u64) -> u64 {
        self.signal("stop", id, None)
    }

    pub fn start_node(&self, id: u64) -> u64 {
        self.signal("start", id, None)
    }

    pub fn freeze(&self, id: u64, only: Option<&str>) -> u64 {
        self.signal("freeze", id, only)
    }

    pub fn thaw(&self, id: u64, only: Option<&str>) -> u64 {
        self.signal("thaw", id, only)
    }

    fn signal(&self, command: &str, id: u64, only: Option<&str>) -> u64 {
        let id = id.to_string();
        let mut more = vec!["--node", &id];
        more.extend(only.into_iter().flat_map(|part| ["--only", part]));
        self.local(command, &more)["at_ms"].as_u64().expect("the moment of the signal")
    }

    /// The leader now.
    ///
    /// # Panics
    /// There is none within a minute.
    pub fn leader(&self) -> u64 {
        self.await_leader(None)
    }

    /// Waits for a leader that is not this node.
    pub fn await_leader(&self, not: Option<u64>) -> u64 {
        await_until(PATIENCE, "a leader", || {
            let status = self.status();
            status.leader.filter(|l| Some(*l) != not).ok_or_else(|| format!("{:?}", states(&status)))
        })
    }

    /// Waits until `n` nodes stream from the leader as replicas.
    pub fn await_replicas(&self, n: usize) {
        await_until(PATIENCE, &format!("{n} replicas that stream"), || {
            let map = self.leader_map()?;
            let streams = |node: &&Value| node["state"] == "replica" && node["streaming"] == true;
            let count = map["nodes"].as_array().into_iter().flatten().filter(streams).count();
            if count == n { Ok(()) } else { Err(map.to_string()) }
        });
    }

    /// Waits until the node is in this role and state, by the leader's map.
    pub fn await_node(&self, id: u64, role: &str, state: &str) {
        await_until(PATIENCE, &format!("node {id} as {role}, {state}"), || {
            let map = self.leader_map()?;
            let mut nodes = map["nodes"].as_array().into_iter().flatten();
            let found = nodes.any(|n| n["id"] == id && n["role"] == role && n["state"] == state);
            if found { Ok(()) } else { Err(map.to_string()) }
        });
    }

    fn leader_map(&self) -> Result<Value, String> {
        let status = self.status();
        let leader = status.nodes.iter().find(|n| Some(n.id) == status.leader).ok_or("no leader")?;
        let (code, map) = request(leader.api_port(), "GET", "/map", None).map_err(|e| e.to_string())?;
        if code == 200 { Ok(map) } else { Err(format!("GET /map: {code} {map}")) }
    }

    /// Waits until the database of a node has replayed what the leader has written so far.
    pub fn await_replayed(&self, id: u64) {
        let leader = self.leader();
        if id == leader {
            return;
        }
        let lsn = await_until(PATIENCE, "the end of the leader's WAL", || {
            self.try_ask(self.leader(), "SELECT pg_current_wal_flush_lsn()::text")
        });
        let sql = format!("SELECT (pg_last_wal_replay_lsn() >= '{lsn}')::text");
        await_until(PATIENCE, &format!("node {id} replays up to {lsn}"), || {
            match self.try_ask(id, &sql)?.as_str() {
                "true" => Ok(()),
                other => Err(other.to_owned()),
            }
        });
    }

    /// GET from one node.
    pub fn get(&self, id: u64, path: &str) -> (u16, Value) {
        self.send(id, "GET", path, None)
    }

    /// GET from a node that may not answer now.
    pub fn try_get(&self, id: u64, path: &str) -> Result<(u16, Value), String> {
        request(self.node(id).api_port(), "GET", path, None).map_err(|e| e.to_string())
    }

    /// POST to one node.
    pub fn post(&self, id: u64, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.send(id, "POST", path, body)
    }

    pub fn send(&self, id: u64, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let text = body.map(ToString::to_string);
        let port = self.node(id).api_port();
        request(port, method, path, text.as_deref())
            .unwrap_or_else(|e| panic!("{method} {path} at node {id}: {e}"))
    }

    /// A session on this very node, whoever leads.
    pub fn connect(&self, id: u64) -> Result<Client, postgres::Error> {
        self.connect_to(id, "postgres")
    }

    /// The same in another database.
    pub fn connect_to(&self, id: u64, database: &str) -> Result<Client, postgres::Error> {
        let status = self.status();
        let mut config: Config = status.dsn.parse()?;
        if let Some(node) = status.nodes.iter().find(|n| n.id == id) {
            let mut one = Config::new();
            one.host(&node.db_host).port(node.db_port).user("postgres").dbname(database);
            one.password(config.get_password().unwrap_or_default()).application_name("pgquorum-tests");
            config = one;
        }
        config.connect_timeout(Duration::from_secs(2)).connect(NoTls)
    }

    /// Runs statements on the leader.
    pub fn sql(&self, statements: &str) {
        await_until(PATIENCE, statements, || {
            let mut client = self.connect(self.leader()).map_err(|e| format!("{e:?}"))?;
            match client.batch_execute(statements) {
                Ok(()) => Ok(()),
                // The server gets its lease a moment after its sidecar says that it leads, and is without one while that
                // stands still. Nothing was done.
                Err(error) if error.code() == Some(&postgres::error::SqlState::READ_ONLY_SQL_TRANSACTION) => {
                    Err(format!("{error:?}"))
                }
                Err(error) => panic!("{statements}: {error:?}"),
            }
        });
    }

    /// One value as text from one node, as soon as it gives one: it may let nobody in for a moment, or have no lease.
    pub fn ask(&self, id: u64, query: &str) -> String {
        await_until(PATIENCE, &format!("node {id}: {query}"), || self.try_ask(id, query))
    }

    pub fn try_ask(&self, id: u64, query: &str) -> Result<String, String> {
        let mut client = self.connect(id).map_err(|e| format!("{e:?}"))?;
        let row = client.query_one(query, &[]).map_err(|e| format!("{e:?}"))?;
        row.try_get::<_, Option<String>>(0).map(Option::unwrap_or_default).map_err(|e| e.to_string())
    }

    /// Writers in the background with default options.
    pub fn probe(&self) -> Probe {
        self.probe_with(&ProbeOptions::default())
    }

    pub fn probe_with(&self, options: &ProbeOptions) -> Probe {
        Probe::start(&self.status().dsn, options)
    }

    /// No two servers that would take a write. Asked of the servers, not of the sidecars.
    ///
    /// # Panics
    /// Two nodes accept writes at the same time.
    pub fn assert_one_writable(&self) {
        let writes = |id: u64| {
            let mut client = self.connect(id).ok()?;
            // What counts is the commit, so the row is really written.
            let sql = "CREATE TABLE IF NOT EXISTS pgquorum_writable (node bigint); \
                       INSERT INTO pgquorum_writable VALUES (0)";
            client.batch_execute(&format!("SET statement_timeout = '3s'; {sql}")).ok().map(|()| id)
        };
        let leading = || -> Vec<(u64, u64)> {
            let nodes = self.status().nodes.into_iter();
            nodes.filter(|n| n.state == "leader").map(|n| (n.id, n.epoch)).collect()
        };
        await_until(PATIENCE, "at most one node leads", || {
            let before = leading();
            let open: Vec<u64> = self.status().nodes.iter().filter_map(|n| writes(n.id)).collect();
            let after = leading();
            let seen =
                format!("nodes {open:?} take writes; of nodes and epochs {before:?}, then {after:?} lead");
            // Leadership may move between two questions; then both may have answered rightly, one after the other.
            assert!(open.len() <= 1 || before != after, "{seen}");
            // A sidecar that stands still goes on saying that it leads; its server takes no writes then.
            if open.len() <= 1 && after.len() <= 1 { Ok(()) } else { Err(seen) }
        });
    }

    /// A change of settings on the leader that must succeed.
    pub fn configure(&self, settings: Value) {
        let (code, answer) = self.settled("POST", "/config", Some(&settings));
        assert_eq!(code, 200, "POST /config {settings}: {answer}");
    }

    /// Asks for another leader and waits until it leads.
    pub fn hand_over(&self, to: u64) -> (u16, Value) {
        self.settled("POST", &format!("/leader?node={to}"), None)
    }

    /// Sends a request to the leader, again while it is refused for something that passes: another change is on its way, or
    /// the leader has not seen yet that a node streams from it.
    pub fn settled(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut last = (0, Value::Null);
        let _ = crate::poll_until(PATIENCE, || {
            last = self.send(self.leader(), method, path, body);
            let passes = last.1["code"].as_str().is_some_and(|code| PASSING.contains(&code));
            if passes { Err(last.1.to_string()) } else { Ok(()) }
        });
        last
    }

    /// A follower that is up.
    pub fn follower(&self) -> u64 {
        await_until(PATIENCE, "a replica", || {
            let status = self.status();
            let leader = status.leader.ok_or("no leader")?;
            let found = status.nodes.iter().find(|n| n.id != leader && n.state == "replica");
            found.map(|n| n.id).ok_or_else(|| states(&status).to_string())
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let dir = self.dir.display().to_string();
        if std::thread::panicking() {
            let _ = pgquorum(["local", "down", "--dir", &dir]);
            eprintln!("logs and data of the failed test are kept in {dir}");
            return;
        }
        let gone = pgquorum(["local", "destroy", "--dir", &dir]);
        if gone.code == 0
            && let Some(root) = self.dir.parent()
        {
            let _ = std::fs::remove_dir(root);
        } else {
            eprintln!("{dir} could not be removed: {}", gone.said);
        }
    }
}

fn states(status: &Status) -> Value {
    status.nodes.iter().map(|n| json!([n.id, n.role, n.state, n.epoch, n.lsn])).collect()
}

/// The servers run as another user than the tests, if those run as root.
fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
        .expect("permissions of the directory");
}
