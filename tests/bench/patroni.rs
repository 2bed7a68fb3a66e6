//! The peer on the same machine, on request only (`--with-patroni`): Debian's Patroni with one etcd, three nodes and a
//! synchronous standby, at the shortest settings it takes. SIGKILL of the whole leader node, as on our side.

use crate::failover::STEADY;
use pgquorum_tests::{
    PATIENCE, Probe, ProbeOptions, Report, await_rows, await_until, free_ports, kill_tree, request,
    server_command, server_directory,
};
use postgres::{Client, Config, NoTls};
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

pub const SETTINGS: &str = "ttl 5, loop_wait 1, retry_timeout 2, synchronous_mode on";

const PATRONI: &str = "/usr/bin/patroni";
const ETCD: &str = "/usr/bin/etcd";
const NODES: usize = 3;
const PASSWORD: &str = "patroni";

pub struct Peer {
    root: PathBuf,
    etcd: Child,
    patronis: Vec<Child>,
    rest: [u16; NODES],
    database: [u16; NODES],
}

impl Peer {
    /// `None`, and why on standard error, where it is not installed.
    pub fn start() -> Option<Peer> {
        if let Some(missing) = [PATRONI, ETCD].iter().find(|program| !Path::new(program).exists()) {
            eprintln!("patroni is left out: there is no {missing} (apt-get install patroni etcd-server)");
            return None;
        }
        let root = server_directory("pgquorum-patroni-");
        let [client, member, r1, r2, r3, d1, d2, d3] = free_ports();
        let (client_url, member_url) =
            (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{member}"));
        let data = root.join("etcd").display().to_string();
        let etcd = spawn(
            &root,
            "etcd",
            ETCD,
            &[
                ["--name", "one"],
                ["--data-dir", &data],
                ["--listen-client-urls", &client_url],
                ["--advertise-client-urls", &client_url],
                ["--listen-peer-urls", &member_url],
                ["--initial-advertise-peer-urls", &member_url],
                ["--initial-cluster", &format!("one={member_url}")],
            ]
            .concat(),
        );
        await_until(PATIENCE, "etcd", || {
            request(client, "GET", "/health", None).map(drop).map_err(|e| e.to_string())
        });
        let mut peer = Peer { root, etcd, patronis: Vec::new(), rest: [r1, r2, r3], database: [d1, d2, d3] };
        await_until(PATIENCE, "etcd", || request(client, "GET", "/health", None).map_err(|e| e.to_string()));
        for i in 0..NODES {
            peer.configure(i, client);
            let child = peer.spawn_node(i);
            peer.patronis.push(child);
            peer.await_whole(i);
        }
        Some(peer)
    }

    fn configure(&self, i: usize, etcd: u16) {
        let name = name(i);
        let (rest, database) =
            (format!("127.0.0.1:{}", self.rest[i]), format!("127.0.0.1:{}", self.database[i]));
        let role = |user: &str| json!({ "username": user, "password": PASSWORD });
        let document = json!({
            "scope": "bench", "name": name,
            "restapi": { "listen": rest, "connect_address": rest },
            "etcd3": { "host": format!("127.0.0.1:{etcd}") },
            "bootstrap": {
                "dcs": {
                    "ttl": 5, "loop_wait": 1, "retry_timeout": 2, "synchronous_mode": true,
                    "postgresql": { "use_pg_rewind": true, "parameters": {
                        "wal_log_hints": "on", "wal_keep_size": "512MB", "wal_retrieve_retry_interval": "100ms",
                    } },
                },
                "initdb": [{ "encoding": "UTF8" }, "data-checksums"],
            },
            "postgresql": {
                "listen": database, "connect_address": database,
                "data_dir": self.root.join(&name), "bin_dir": pgquorum_tests::postgres_program("postgres").parent(),
                "pgpass": self.root.join(format!("{name}.pgpass")),
                "authentication": {
                    "superuser": role("postgres"), "replication": role("replicator"), "rewind": role("rewinder"),
                },
                "pg_hba": ["local all all trust", "host all all 127.0.0.1/32 md5",
                           "host replication all 127.0.0.1/32 md5"],
                "parameters": { "unix_socket_directories": self.root },
            },
        });
        // JSON is YAML.
        std::fs::write(self.file(i), document.to_string()).expect("the configuration of a node");
    }

    fn file(&self, i: usize) -> PathBuf {
        self.root.join(format!("{}.yml", name(i)))
    }

    fn spawn_node(&self, i: usize) -> Child {
        spawn(&self.root, &name(i), PATRONI, &[&self.file(i).display().to_string()])
    }

    /// Waits for a leader and so many replicas that stream.
    fn await_whole(&self, replicas: usize) -> usize {
        await_until(2 * PATIENCE, "patroni's cluster", || {
            let cluster = self.rest.iter().find_map(|port| {
                request(*port, "GET", "/cluster", None).ok().filter(|(code, _)| *code == 200)
            });
            let (_, cluster) = cluster.ok_or("no answer")?;
            let empty = Vec::new();
            let members = cluster["members"].as_array().unwrap_or(&empty);
            let streams = |m: &&Value| {
                m["role"] != "leader" && ["running", "streaming"].iter().any(|s| m["state"] == *s)
            };
            let ready = members.iter().filter(streams).count() == replicas;
            // Only a member that is named a synchronous standby may be promoted.
            let synchronous = replicas == 0 || members.iter().any(|m| m["role"] == "sync_standby");
            let leader =
                (0..NODES).find(|i| members.iter().any(|m| m["role"] == "leader" && m["name"] == *name(*i)));
            leader.filter(|_| ready && synchronous).ok_or_else(|| cluster.to_string())
        })
    }

    fn dsn(&self) -> String {
        let hosts: Vec<String> = self.database.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!(
            "postgresql://postgres:{PASSWORD}@{}/postgres?target_session_attrs=read-write",
            hosts.join(",")
        )
    }

    /// One failover as a client sees it.
    pub fn once(&mut self) -> Report {
        let leader = self.await_whole(NODES - 1);
        let probe = Probe::start(&self.dsn(), &ProbeOptions::default());
        await_rows(&mut self.writable(), STEADY);
        self.kill(leader);
        let mut session = self.writable();
        await_rows(&mut session, STEADY);
        let child = self.spawn_node(leader);
        let _ = std::mem::replace(&mut self.patronis[leader], child).wait();
        self.await_whole(NODES - 1);
        probe.finish()
    }

    /// A session where writes are taken.
    fn writable(&self) -> Client {
        await_until(2 * PATIENCE, "a primary", || {
            let mut config: Config = self.dsn().parse().map_err(|e| format!("{e:?}"))?;
            config.connect_timeout(Duration::from_secs(1)).connect(NoTls).map_err(|e| format!("{e:?}"))
        })
    }

    fn kill(&mut self, i: usize) {
        let data = self.root.join(name(i));
        let file = std::fs::read_to_string(data.join("postmaster.pid")).ok();
        let server: Option<i32> = file.and_then(|text| text.lines().next()?.parse().ok());
        // The number in an old file may be somebody else's by now.
        let is_ours = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
        if let Some(server) = server.filter(is_ours) {
            kill_tree(server);
        }
        if let Some(patroni) = self.patronis.get_mut(i) {
            kill_tree(patroni.id() as i32);
            let _ = patroni.wait();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for i in 0..self.patronis.len() {
            // First the one that would start the other again.
            if let Some(patroni) = self.patronis.get_mut(i) {
                let _ = patroni.kill();
            }
            self.kill(i);
        }
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn name(i: usize) -> String {
    format!("node{}", i + 1)
}

fn spawn(root: &Path, name: &str, program: &str, args: &[&str]) -> Child {
    let log = root.join(format!("{name}.log"));
    let log = File::options().create(true).append(true).open(log).expect("a log");
    let errors = log.try_clone().expect("a log");
    let mut command = server_command(Path::new(program));
    command.args(args).current_dir(root).env("LC_ALL", "C.UTF-8");
    let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
    child.unwrap_or_else(|e| panic!("{program}: {e}"))
}
