//! What a node answers that has no part in a cluster, not yet or not any more.

use super::{Seen, channels, registry, users};
use pgquorum_tests::{
    Cluster, PATIENCE, await_until, free_ports, pgquorum_program, request, server_command, server_directory,
};
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// A sidecar that the cluster's nodes have not reached yet.
struct Stranger {
    child: Child,
    dir: PathBuf,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub(super) fn stranger(seen: &mut Seen) {
    let cluster = Cluster::start_steady(1);
    let dir = server_directory("pgquorum-stranger-");
    let node = dir.join("node");
    let [api_port, db_port] = free_ports();
    let mut join = server_command(&pgquorum_program());
    join.args(["join", "--no-run", "--no-upgrade", "--leader", &cluster.node(1).api, "--secrets"]);
    join.arg(cluster.node(1).state_dir().join("secrets.toml")).arg("--dir").arg(&node);
    join.args(["--api-port", &api_port.to_string(), "--db-port", &db_port.to_string()]);
    let joined = join.stdin(Stdio::null()).output().expect("pgquorum join");
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    cluster.stop(1);
    let mut run = server_command(&pgquorum_program());
    run.arg("run").arg("--config").arg(node.join("node.toml")).stdin(Stdio::null());
    let child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a sidecar");
    let _stranger = Stranger { child, dir };
    await_until(PATIENCE, "the sidecar answers", || {
        request(api_port, "GET", "/liveness", None).map_err(|e| e.to_string()).map(drop)
    });
    for path in ["/is-leader", "/leader"] {
        seen.want(412, api_port, "GET", path, "", "");
    }
    seen.want_reads(412, api_port);
    seen.want_changes(412, "not_a_member", api_port);
    channels::want_reads(seen, 412, api_port);
    channels::want_changes(seen, 412, api_port);
    users::want_reads(seen, 412, api_port);
    users::want_changes(seen, 412, api_port);
    registry::want_reads(seen, 412, api_port);
    registry::want_changes(seen, 412, api_port);
    for path in ["/read-only", "/readiness"] {
        seen.want(503, api_port, "GET", path, "", "");
    }
}

pub(super) fn removed(seen: &mut Seen) {
    let cluster = Cluster::start_steady(3);
    let port = cluster.node(3).api_port();
    if cluster.leader() == 3 {
        assert_eq!(cluster.hand_over(1).0, 200);
    }
    let at_leader = cluster.node(cluster.leader()).api_port();
    seen.want(200, at_leader, "DELETE", "/node/{node}", "", "");
    await_until(PATIENCE, "the node knows that it was removed", || {
        match request(port, "GET", "/map", None).expect("an answer") {
            (412, answer) if answer["code"] == "removed" => Ok(()),
            (_, answer) => Err(answer.to_string()),
        }
    });
    for path in ["/is-leader", "/leader"] {
        seen.want(412, port, "GET", path, "", "");
    }
    seen.want_reads(412, port);
    seen.want_changes(410, "removed", port);
    channels::want_reads(seen, 412, port);
    channels::want_changes(seen, 410, port);
    users::want_reads(seen, 412, port);
    users::want_changes(seen, 410, port);
    registry::want_reads(seen, 412, port);
    registry::want_changes(seen, 410, port);
    // Of the number itself nothing more can be asked, at any other node either.
    seen.want(410, at_leader, "GET", "/node/{node}", "", "");
    for (method, path, query) in [
        ("DELETE", "/node/{node}", ""),
        ("PATCH", "/node/{node}", "?db-port=1&api-port=2"),
        ("POST", "/node-down/{node}", ""),
    ] {
        let answer = seen.want(410, at_leader, method, path, query, "");
        assert_eq!(answer["code"], "node_removed", "{method} {path}: {answer}");
    }
}
