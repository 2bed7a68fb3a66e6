//! What is wrong with a machine is said in one clear line, in the log and by `pgquorum doctor`, and costs nothing.

use pgquorum_tests::{
    Cluster, PATIENCE, StalledDisk, await_until, pgquorum, pgquorum_program, server_command,
    server_directory, skipped,
};
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

fn config(cluster: &Cluster, id: u64) -> PathBuf {
    cluster.dir().join(format!("node{id}/node.toml"))
}

/// The first of doctor's checks with this name that fails, in its words.
fn diagnosis(cluster: &Cluster, id: u64, check: &str) -> Result<String, String> {
    let said = pgquorum(["doctor", "--config", &config(cluster, id).display().to_string()]);
    let checks: Vec<Value> = said.json.as_array().cloned().unwrap_or_default();
    let failed = checks.iter().find(|c| c["check"] == check && c["verdict"] == "fail");
    failed.and_then(|c| c["message"].as_str()).map(str::to_owned).ok_or_else(|| said.json.to_string())
}

/// Waits until a line of the sidecar's log, written since `from`, holds all of these words.
fn await_line(cluster: &Cluster, id: u64, from: usize, words: &[&str]) {
    let file = cluster.dir().join(format!("node{id}/sidecar.log"));
    await_until(PATIENCE, &format!("a line with {words:?}"), || {
        let log = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
        let new = log.get(from..).unwrap_or_default();
        if new.lines().any(|line| words.iter().all(|word| line.contains(word))) {
            Ok(())
        } else {
            Err(new.to_owned())
        }
    });
}

fn log_length(cluster: &Cluster, id: u64) -> usize {
    std::fs::metadata(cluster.dir().join(format!("node{id}/sidecar.log"))).map_or(0, |m| m.len() as usize)
}

/// Starts a node that cannot come up whole: the command may say so.
fn start_sick(cluster: &Cluster, id: u64) {
    let dir = cluster.dir().display().to_string();
    let _ = pgquorum(["local", "start", "--dir", &dir, "--node", &id.to_string()]);
}

fn edit(file: &Path, change: impl Fn(&str) -> String) {
    let text = std::fs::read_to_string(file).expect("the file");
    let changed = change(&text);
    assert_ne!(text, changed, "{} was not changed", file.display());
    std::fs::write(file, changed).expect("the file");
}

#[test]
fn a_port_in_use() {
    let cluster = Cluster::start(3);
    let probe = cluster.probe();
    let id = cluster.follower();
    let port = cluster.node(id).db_port;
    cluster.stop(id);
    let (squatter, from) =
        (TcpListener::bind(("127.0.0.1", port)).expect("the port"), log_length(&cluster, id));
    start_sick(&cluster, id);
    await_line(&cluster, id, from, &[&port.to_string(), "in use"]);
    let said = diagnosis(&cluster, id, "database port").expect("doctor names it");
    assert!(said.contains(&port.to_string()) && said.contains("in use"), "{said}");
    drop(squatter);
    cluster.await_replicas(2);
    probe.finish().assert_nothing_lost();
}

#[test]
fn a_wrong_password() {
    let cluster = Cluster::start(3);
    let probe = cluster.probe();
    let id = cluster.follower();
    cluster.stop(id);
    let secrets = cluster.node(id).state_dir().join("secrets.toml");
    let right = std::fs::read_to_string(&secrets).expect("secrets.toml");
    edit(&secrets, |text| {
        text.lines()
            .map(|line| match line.split_once('=') {
                Some((name, _)) if name.trim() == "superuser-password" => {
                    "superuser-password = \"guessed\"\n".to_owned()
                }
                _ => format!("{line}\n"),
            })
            .collect()
    });
    let from = log_length(&cluster, id);
    start_sick(&cluster, id);
    await_line(&cluster, id, from, &["password", "secrets.toml"]);
    let said = await_until(PATIENCE, "doctor names it", || diagnosis(&cluster, id, "login"));
    assert!(said.contains("secrets.toml") && !said.contains("guessed"), "{said}");
    cluster.kill(id, None);
    std::fs::write(&secrets, right).expect("secrets.toml");
    cluster.start_node(id);
    cluster.await_replicas(2);
    probe.finish().assert_nothing_lost();
}

/// A copy of PostgreSQL, which finds its files from where it lies, without the extension.
fn bare_postgres() -> (PathBuf, PathBuf) {
    let root = server_directory("pgquorum-bare-");
    let version = std::env::var("PG_MAJOR").unwrap_or_else(|_| "15".to_owned());
    let script = format!(
        "set -e; mkdir -p {0}/usr/lib/postgresql {0}/usr/share/postgresql; \
         cp -a /usr/lib/postgresql/{version} {0}/usr/lib/postgresql/; \
         cp -a /usr/share/postgresql/{version} {0}/usr/share/postgresql/; \
         rm -f {0}/usr/lib/postgresql/{version}/lib/pgquorum* {0}/usr/share/postgresql/{version}/extension/pgquorum* \
         {0}/usr/lib/postgresql/{version}/bin/pg_config",
        root.display()
    );
    let made = server_command("/bin/sh".as_ref()).args(["-c", &script]).status().expect("sh");
    assert!(made.success(), "{script}");
    let bin = root.join(format!("usr/lib/postgresql/{version}/bin"));
    (root, bin)
}

#[test]
fn a_missing_extension() {
    let (root, bin) = bare_postgres();
    let mut init = server_command(&pgquorum_program());
    let node = root.join("node");
    init.args(["init", "--api-port", "3", "--db-port", "4", "--bin-dir"])
        .arg(&bin)
        .arg("--dir")
        .arg(&node)
        .stdin(Stdio::null());
    let out = init.output().expect("pgquorum init");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("not installed for this PostgreSQL"), "{said}");
    assert!(!node.join("data").exists(), "what was begun is taken away");

    let cluster = Cluster::start(3);
    let probe = cluster.probe();
    let id = cluster.follower();
    cluster.stop(id);
    let file = config(&cluster, id);
    let right = std::fs::read_to_string(&file).expect("node.toml");
    edit(&file, |text| {
        let others = text.lines().filter(|line| !line.starts_with("bin-dir"));
        others.map(|line| format!("{line}\n")).collect::<String>()
            + &format!("bin-dir = \"{}\"\n", bin.display())
    });
    let from = log_length(&cluster, id);
    start_sick(&cluster, id);
    await_line(&cluster, id, from, &["pgquorum", "not installed"]);
    let said = diagnosis(&cluster, id, "extension").expect("doctor names it");
    assert!(said.contains("not installed") && said.contains("make install"), "{said}");
    let dir = cluster.dir().display().to_string();
    let _ = pgquorum(["local", "kill", "--dir", &dir, "--node", &id.to_string()]);
    std::fs::write(&file, right).expect("node.toml");
    cluster.start_node(id);
    cluster.await_replicas(2);
    probe.finish().assert_nothing_lost();
    let _ = std::fs::remove_dir_all(root);
}

#[test]
fn a_full_disk() {
    if let Some(why) = StalledDisk::refused() {
        skipped(&why);
        return;
    }
    let cluster = Cluster::start(3);
    let id = cluster.follower();
    let data = cluster.node(id).data_dir;
    cluster.stop(id);
    // Less than 256 MiB free is a finding already, so there must be more room than that at first.
    let disk = StalledDisk::of_size(&data, 512);
    cluster.start_node(id);
    cluster.await_replicas(2);
    let probe = cluster.probe();
    let well = diagnosis(&cluster, id, "space for data");
    assert!(well.is_err(), "there is room still: {well:?}");
    disk.fill();
    let said = diagnosis(&cluster, id, "space for data").expect("doctor names it");
    assert!(said.contains(" free of ") && said.contains(&format!("node{id}/data")), "{said}");
    assert!(said.contains("Make room or enlarge the disk") && said.lines().count() == 1, "{said}");
    await_until(PATIENCE, "doctor says what it does to the node", || {
        match diagnosis(&cluster, id, "trouble")? {
            said if said.contains("No space left") => Ok(()),
            other => Err(other),
        }
    });
    disk.empty();
    cluster.await_replicas(2);
    await_until(PATIENCE, "doctor finds nothing of it any more", || {
        let left: Vec<String> = ["space for data", "trouble"]
            .into_iter()
            .filter_map(|check| diagnosis(&cluster, id, check).ok())
            .collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    });
    probe.finish().assert_nothing_lost();
    cluster.kill(id, None);
    drop(disk);
}
