//! What an administrator asks for while things go wrong.

use super::Nemesis;
use crate::disks;
use crate::notes::Notes;
use crate::plan::Who;
use pgquorum_tests::{NetCluster, poll_until};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than the cluster takes at most to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the usual durability is asked for.
const USUAL: Duration = Duration::from_secs(60);
const QUICK: Duration = Duration::from_secs(2);

/// The number that a machine's node has in the cluster; another one after it has joined again.
fn node_id(cluster: &NetCluster, place: u64) -> Option<u64> {
    let text = std::fs::read_to_string(cluster.node_dir(place).join("node.toml")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("node = "))?;
    line.trim().parse().ok()
}

fn known(cluster: &NetCluster, place: u64) -> Result<u64, String> {
    node_id(cluster, place).ok_or_else(|| "it is no member now".to_owned())
}

impl Nemesis {
    pub(super) fn change_leader(&mut self, who: Who) -> Result<(), String> {
        let (leader, place) = (self.leader(), self.place(who));
        let id = known(&self.cluster, place)?;
        self.ask(move |cluster| {
            let answer = cluster.request_within(ANSWER, leader, "POST", &format!("/leader?node={id}"));
            format!("node {place} as leader: {answer:?}")
        });
        Ok(())
    }

    /// The machine is emptied only when the cluster has said that the node is gone. It joins again when all is healed.
    pub(super) fn replace(&mut self, who: Who) -> Result<(), String> {
        let (leader, place) = (self.leader(), self.place(who));
        let id = known(&self.cluster, place)?;
        self.ask(move |cluster| {
            let answer = cluster.request_within(ANSWER, leader, "DELETE", &format!("/node/{id}"));
            if matches!(answer, Ok((200, _))) {
                cluster.kill(place);
                disks::remove(cluster, place);
            }
            format!("node {place} (number {id}) out: {answer:?}")
        });
        Ok(())
    }

    pub(super) fn change_durability(&mut self, k: u64) -> Result<(), String> {
        let leader = self.leader();
        if self.weak {
            return Err("commits are to wait for nobody".to_owned());
        }
        if self.durability.is_some() {
            return Err("it is changed already".to_owned());
        }
        self.ask(move |cluster| {
            let factor = format!("replication-factor={k}");
            format!("{factor}: {:?}", set(cluster, leader, &["quorum-replication=false", &factor]))
        });
        self.durability = self.asking.pop();
        Ok(())
    }

    /// Asked for until it is done: whoever leads takes it.
    pub(super) fn usual_durability(&mut self, change: JoinHandle<()>) {
        let recorder = self.recorder.clone();
        self.ask(move |cluster| {
            // A change that is still on its way would come after this.
            change.join().expect("a request does not panic");
            let done =
                poll_until(USUAL, || set(cluster, recorder.newest().1.max(1), &["quorum-replication=true"]));
            format!("quorum-replication=true: {done:?}")
        });
    }

    pub(super) fn mark_down(&mut self, who: Who) -> Result<(), String> {
        let (leader, place) = (self.leader(), self.place(who));
        let id = known(&self.cluster, place)?;
        self.power_cut(&[place])?;
        self.ask(move |cluster| {
            let answer = cluster.request_within(ANSWER, leader, "POST", &format!("/node-down/{id}"));
            format!("node {place} marked down: {answer:?}")
        });
        Ok(())
    }
}

fn set(cluster: &NetCluster, node: u64, settings: &[&str]) -> Result<(), String> {
    let config = cluster.node_dir(node).join("node.toml").display().to_string();
    cluster.try_program(node, &[["config", "set", "--config", &config].as_slice(), settings].concat())
}

/// Lets machines join again whose node is no member any more.
pub fn mend_members(cluster: &NetCluster, leader: u64, notes: &Notes) {
    for place in cluster.ids() {
        if is_member(cluster, leader, place) != Some(false) {
            continue;
        }
        cluster.kill(place);
        disks::remove(cluster, place);
        match cluster.join(place, leader) {
            Ok(()) => {
                notes.say(&format!("  node {place} has joined as number {:?}", node_id(cluster, place)))
            }
            Err(e) => notes.say(&format!("  node {place} could not join: {}", e.trim())),
        }
    }
}

/// Takes away marks that nobody takes away by himself: a leader does so only where it saw the node unwell itself
/// (docs/operations.md), and leaders change.
pub fn unmark(cluster: &NetCluster, leader: u64, notes: &Notes) {
    let Ok((200, map)) = cluster.request_within(QUICK, leader, "GET", "/map") else { return };
    let config = cluster.node_dir(leader).join("node.toml").display().to_string();
    for node in map["nodes"].as_array().into_iter().flatten() {
        if node["down"] == true && node["state"] == "replica" && node["streaming"] == true {
            let done = cluster
                .try_program(leader, &["node", "upgrade", "--config", &config, &node["id"].to_string()]);
            notes.say(&format!("  number {} is well and still marked down; upgraded: {done:?}", node["id"]));
        }
    }
}

/// `None`: the leader does not say.
fn is_member(cluster: &NetCluster, leader: u64, place: u64) -> Option<bool> {
    let (200, map) = cluster.request_within(QUICK, leader, "GET", "/map").ok()? else { return None };
    let id = node_id(cluster, place);
    let nodes = map["nodes"].as_array()?;
    Some(nodes.iter().any(|n| n["id"].as_u64().is_some_and(|listed| Some(listed) == id)))
}

/// What keeps the cluster from being whole: all machines are full nodes that stream and lack little.
///
/// # Errors
/// What was seen.
pub fn member_trouble(cluster: &NetCluster, leader: u64) -> Result<(), String> {
    let (code, map) = cluster.request_within(QUICK, leader, "GET", "/map")?;
    let nodes = map["nodes"].as_array().into_iter().flatten();
    let full = nodes.filter(|n| n["role"] == "node" && n["down"] == false).count();
    let sql = "SELECT count(*)::text FROM pg_stat_replication WHERE state = 'streaming' AND application_name LIKE \
               'pgquorum_%' AND flush_lsn >= pg_current_wal_flush_lsn() - 1000000";
    let streams = cluster.ask(leader, sql)?;
    let all = cluster.ids().len();
    if full == all && streams == (all - 1).to_string() {
        Ok(())
    } else {
        let nodes = map["nodes"].as_array().into_iter().flatten();
        let each = nodes.map(|n| {
            format!("{}: {} {} down {} {}", n["id"], n["role"], n["state"], n["down"], n["trouble"])
        });
        Err(format!("{code} from node {leader}, {streams} stream; {}", each.collect::<Vec<_>>().join(", ")))
    }
}
