//! A cluster whose nodes are machines of a [`Network`], made by `init`, `join` and `run` as on several machines.

mod asking;

use crate::command::pgquorum_program;
use crate::user::{give, server_directory_below};
use crate::{Authority, CLIENT, Network, PATIENCE, Probe, ProbeOptions, await_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const API_PORT: u16 = 8008;
const DB_PORT: u16 = 5432;

/// A running cluster. Destroyed at the end, or left with its logs when the test fails.
pub struct NetCluster {
    pub network: Arc<Network>,
    dir: PathBuf,
    size: u64,
    /// Node 1 is at the place after this one; the others follow.
    before: u64,
    /// Who signed its nodes' certificates, if they use TLS.
    authority: Option<Arc<Authority>>,
    sidecars: Mutex<BTreeMap<u64, Child>>,
    token: String,
    password: String,
    keep: AtomicBool,
    prepare: Prepare,
}

/// What is done to a node between `init` or `join` and its first start.
pub type Prepare = Box<dyn Fn(&NetCluster, u64) + Send + Sync>;

impl NetCluster {
    /// A cluster of `size` nodes that all stream.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn start(size: u64) -> NetCluster {
        NetCluster::start_prepared(Path::new("/var/tmp"), size, Box::new(|_, _| {}))
    }

    /// The same below this directory, with something done to each node before its first start.
    ///
    /// # Panics
    /// As [`NetCluster::start`].
    pub fn start_prepared(base: &Path, size: u64, prepare: Prepare) -> NetCluster {
        NetCluster::start_in((Arc::new(Network::new(size)), 0), base, size, None, prepare)
    }

    /// A cluster of one node, at a place of a network in which others are, too. With an authority it serves over TLS, with
    /// a certificate that this one has signed.
    ///
    /// # Panics
    /// As [`NetCluster::start`].
    pub fn start_at(network: &Arc<Network>, place: u64, authority: Option<&Arc<Authority>>) -> NetCluster {
        let certify: Prepare = match authority {
            None => Box::new(|_, _| {}),
            Some(authority) => {
                let authority = Arc::clone(authority);
                Box::new(move |cluster: &NetCluster, id: u64| cluster.use_tls(id, &authority))
            }
        };
        let at = (Arc::clone(network), place - 1);
        let cluster = NetCluster::start_in(at, Path::new("/var/tmp"), 1, authority.cloned(), certify);
        // Several clusters are much for one machine: it is not to be taken for a dead node.
        cluster.set_node_timeout("3s");
        cluster
    }

    fn start_in(
        (network, before): (Arc<Network>, u64),
        base: &Path,
        size: u64,
        authority: Option<Arc<Authority>>,
        prepare: Prepare,
    ) -> NetCluster {
        let dir = server_directory_below(base, "pgquorum-net-");
        // The servers' user may not be able to enter the folder that the program was built in.
        std::fs::copy(pgquorum_program(), dir.join("pgquorum")).expect("a copy of the program");
        let mut cluster = NetCluster {
            network,
            dir,
            size,
            before,
            authority,
            sidecars: Mutex::default(),
            token: String::new(),
            password: String::new(),
            keep: AtomicBool::new(false),
            prepare,
        };
        let ip = cluster.address(1).to_string();
        let first = cluster.node_dir(1);
        cluster.program(1, &["init", "--dir", &text(&first), "--ip", &ip]);
        let (token, secrets) = (first.join("state/token"), first.join("state/secrets.toml"));
        cluster.token = read(&token).trim().to_owned();
        let password =
            read(&secrets).lines().find_map(|l| l.strip_prefix("superuser-password = ").map(unquoted));
        cluster.password = password.expect("the password in secrets.toml");
        // Nodes that join later get them from here, as an administrator's would: node 1 may be gone by then.
        for file in [&token, &secrets] {
            std::fs::copy(file, cluster.dir.join(file.file_name().expect("a file"))).expect("a copy");
            give(&cluster.dir.join(file.file_name().expect("a file")));
        }
        (cluster.prepare)(&cluster, 1);
        cluster.start_node(1);
        cluster.await_leader(&[1]);
        for id in 2..=size {
            cluster.join(id, 1).expect("join");
            cluster.await_streaming(id as usize - 1);
            cluster.await_nothing_under_way();
        }
        cluster
    }

    /// Waits until the cluster has taken in its members: until commits wait for a new one, it counts for nothing when
    /// another is lost.
    fn await_nothing_under_way(&self) {
        await_until(PATIENCE, "no change of the cluster is under way", || {
            let leader =
                self.ids().into_iter().find(|id| self.leads(*id).is_some()).ok_or_else(|| self.seen())?;
            match self.request(leader, "GET", "/map")? {
                (200, map) if map["change-in-flight"] == false => Ok(()),
                (status, map) => Err(format!("{status} {map}")),
            }
        });
    }

    /// Where a node is in the network.
    pub fn place(&self, id: u64) -> u64 {
        self.before + id
    }

    pub fn address(&self, id: u64) -> Ipv4Addr {
        self.network.address(self.place(id))
    }

    /// The address of a node's sidecar, as others are told it.
    pub fn api(&self, id: u64) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{API_PORT}", self.address(id))
    }

    /// Gives a node a certificate, before it is started.
    fn use_tls(&self, id: u64, authority: &Authority) {
        let state = self.node_dir(id).join("state");
        let files = authority.certify(self.address(id), &state);
        for file in [&files.cert, &files.key, &files.ca] {
            give(file);
        }
        let config = self.node_dir(id).join("node.toml");
        let (cert, key, ca) = (text(&files.cert), text(&files.key), text(&files.ca));
        let tls = format!("tls-cert = \"{cert}\"\ntls-key = \"{key}\"\ntls-ca = \"{ca}\"\n");
        // Before everything else, in case that ends in a table.
        std::fs::write(&config, tls + &read(&config)).expect("node.toml");
    }

    /// Makes a new node at a place that has no files of a node, and starts it. Any node that is up may be asked.
    ///
    /// # Errors
    /// What the program said.
    pub fn join(&self, place: u64, ask: u64) -> Result<(), String> {
        let leader = self.api(ask);
        let (ip, dir) = (self.address(place).to_string(), text(&self.node_dir(place)));
        let (token, secrets) = (text(&self.dir.join("token")), text(&self.dir.join("secrets.toml")));
        let given = ["--secrets", &secrets, "--token-file", &token, "--dir", &dir, "--ip", &ip];
        self.try_program(place, &[["join", "--no-run", "--leader", &leader].as_slice(), &given].concat())?;
        (self.prepare)(self, place);
        self.start_node(place);
        Ok(())
    }

    /// Where everything of this cluster is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn node_dir(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node{id}"))
    }

    /// The password of the role postgres.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Logs and data stay when this is dropped.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    pub fn ids(&self) -> Vec<u64> {
        (1..=self.size).collect()
    }

    pub fn others(&self, than: u64) -> Vec<u64> {
        self.ids().into_iter().filter(|id| *id != than).collect()
    }

    /// Runs the program to its end on a node.
    fn program(&self, id: u64, args: &[&str]) {
        self.try_program(id, args).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The same for those to whom a refusal is an answer.
    ///
    /// # Errors
    /// What the program said.
    pub fn try_program(&self, id: u64, args: &[&str]) -> Result<(), String> {
        let mut command = self.network.server_command(self.place(id), &self.dir.join("pgquorum"));
        let out =
            command.args(args).current_dir(&self.dir).stdin(Stdio::null()).output().expect("the program");
        match out.status.success() {
            true => Ok(()),
            false => Err(format!("{}: {}", args[0], String::from_utf8_lossy(&out.stderr))),
        }
    }

    /// Starts the sidecar of a node.
    pub fn start_node(&self, id: u64) {
        let dir = self.node_dir(id);
        let log = File::options().create(true).append(true).open(dir.join("sidecar.log")).expect("the log");
        let mut command = self.network.service_command(self.place(id), &self.dir.join("pgquorum"));
        command.arg("run").arg("--config").arg(dir.join("node.toml")).current_dir(&self.dir);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the sidecar");
        self.sidecars.lock().expect("not poisoned").insert(id, child);
    }

    /// The process of a node's sidecar, if it has not ended.
    pub fn sidecar(&self, id: u64) -> Option<i32> {
        let mut sidecars = self.sidecars.lock().expect("not poisoned");
        let child = sidecars.get_mut(&id)?;
        matches!(child.try_wait(), Ok(None)).then_some(child.id() as i32)
    }

    /// SIGKILL to all that runs on a node.
    pub fn kill(&self, id: u64) {
        self.network.kill_all(self.place(id));
        if let Some(mut child) = self.sidecars.lock().expect("not poisoned").remove(&id) {
            let _ = child.wait();
        }
    }

    /// A signal to the sidecar of a node, and to nothing else there.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal_sidecar(&self, id: u64, signal: Signal) {
        let sidecars = self.sidecars.lock().expect("not poisoned");
        let child = sidecars.get(&id).unwrap_or_else(|| panic!("the sidecar of node {id} does not run"));
        kill(Pid::from_raw(child.id() as i32), signal).expect("a signal to the sidecar");
    }

    /// The epoch in which a node says that it leads.
    pub fn leads(&self, id: u64) -> Option<u64> {
        match self.request(id, "GET", "/is-leader") {
            Ok((200, answer)) => answer["epoch"].as_u64(),
            _ => None,
        }
    }

    /// Waits until one of these says that it leads; returns it and its epoch.
    pub fn await_leader(&self, among: &[u64]) -> (u64, u64) {
        await_until(PATIENCE, &format!("a leader among {among:?}"), || {
            among.iter().find_map(|id| Some((*id, self.leads(*id)?))).ok_or_else(|| self.seen())
        })
    }

    pub fn leader(&self) -> (u64, u64) {
        self.await_leader(&self.ids())
    }

    /// Makes another node the leader, as soon as that can be, and waits for it.
    ///
    /// # Panics
    /// It cannot be in time.
    pub fn hand_over(&self, to: u64) {
        await_until(PATIENCE, &format!("node {to} is made the leader"), || {
            let (leader, _) = self.leader();
            match self.request(leader, "POST", &format!("/leader?node={to}"))? {
                (200, _) => Ok(()),
                (status, answer) => Err(format!("{status} {answer}")),
            }
        });
        self.await_leader(&[to]);
    }

    /// How long a node may be silent until it is taken for dead, from now on, on all nodes.
    ///
    /// # Panics
    /// It is refused, or not everywhere in time.
    pub fn set_node_timeout(&self, span: &str) {
        let settings = json!({"node-timeout": span});
        await_until(PATIENCE, "the leader takes a setting", || {
            match self.send(self.leader().0, "POST", "/config", Some(&settings))? {
                (200, _) => Ok(()),
                (status, answer) => Err(format!("{status} {answer}")),
            }
        });
        for id in self.ids() {
            await_until(PATIENCE, &format!("node {id} has the setting"), || {
                let (_, now) = self.request(id, "GET", "/config")?;
                if now["node-timeout"] == settings["node-timeout"] { Ok(()) } else { Err(now.to_string()) }
            });
        }
    }

    /// Waits until `n` full nodes stream from the leader and have all that it has. The server itself is asked whether they
    /// do, because only that ends a disturbance; the map of the leader must say it, too, because by what the map says a
    /// change of leader is done or refused.
    pub fn await_streaming(&self, n: usize) {
        let stream = "SELECT count(*)::text FROM pg_stat_replication WHERE state = 'streaming' AND \
                      flush_lsn >= pg_current_wal_flush_lsn() - 1000000";
        await_until(PATIENCE, &format!("{n} nodes that stream"), || {
            let leader =
                self.ids().into_iter().find(|id| self.leads(*id).is_some()).ok_or_else(|| self.seen())?;
            let (_, map) = self.request(leader, "GET", "/map")?;
            let full = |node: &&Value| {
                node["state"] == "replica" && node["role"] == "node" && node["streaming"] == true
            };
            let listed = map["nodes"].as_array().into_iter().flatten().filter(full).count();
            let streams = self.ask(leader, stream)?;
            if listed == n && streams == n.to_string() {
                Ok(())
            } else {
                Err(format!("{streams} stream, {map}"))
            }
        });
    }

    /// What the nodes say, for messages.
    fn seen(&self) -> String {
        let one = |id| match self.request(id, "GET", "/is-leader") {
            Ok((code, answer)) => format!("node {id}: {code} {answer}"),
            Err(why) => format!("node {id}: {why}"),
        };
        self.ids().into_iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// Waits until a node has replayed what the leader has written so far.
    pub fn await_replayed(&self, id: u64) {
        let (leader, _) = self.leader();
        let lsn = self.ask(leader, "SELECT pg_current_wal_flush_lsn()::text").expect("the leader's position");
        let sql = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{lsn}', true)::text");
        await_until(PATIENCE, &format!("node {id} replays up to {lsn}"), || {
            match self.ask(id, &sql)?.as_str() {
                "true" => Ok(()),
                other => Err(other.to_owned()),
            }
        });
    }

    /// Writers at the client's place.
    pub fn probe(&self, options: &ProbeOptions) -> Probe {
        Probe::launch(self.network.command(CLIENT, &pgquorum_program()), &self.dsn(), options)
    }

    /// One node leads, says so alone, and alone takes writes.
    ///
    /// # Panics
    /// Two nodes accept writes, or none does in time.
    pub fn assert_one_writable(&self) {
        await_until(PATIENCE, "one node leads, and takes writes", || {
            let before = self.leading();
            let open: Vec<u64> = self.ids().into_iter().filter(|id| self.write(*id).is_ok()).collect();
            let after = self.leading();
            let seen = format!("nodes {open:?} take writes, nodes and epochs {after:?} lead");
            // Where leadership moves between two questions both have answered rightly, one after the other.
            assert!(open.len() <= 1 || before != after, "{seen}");
            let lead: Vec<u64> = after.iter().map(|(id, _)| *id).collect();
            if open.len() == 1 && open == lead { Ok(()) } else { Err(seen) }
        });
    }

    /// The nodes that say that they lead, and in which epochs.
    fn leading(&self) -> Vec<(u64, u64)> {
        self.ids().into_iter().filter_map(|id| Some((id, self.leads(id)?))).collect()
    }
}

impl Drop for NetCluster {
    fn drop(&mut self) {
        self.network.heal();
        for id in self.ids() {
            self.kill(id);
        }
        if std::thread::panicking() || self.keep.load(Ordering::Relaxed) {
            eprintln!("logs and data of the failed test are kept in {}", self.dir.display());
        } else if let Err(e) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("{} could not be removed: {e}", self.dir.display());
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn unquoted(value: &str) -> String {
    value.trim().trim_matches('"').to_owned()
}
