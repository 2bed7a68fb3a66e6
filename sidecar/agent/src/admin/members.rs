//! Requests about members: who comes, goes, votes, and is marked down.

use super::{Goal, REMOVAL};
use crate::entry::Entry;
use crate::member::{Member, Role};
use crate::node::Node;
use crate::quorum::majority;
use crate::types::NodeId;
use raft::eraftpb::ConfChangeType;
use std::net::IpAddr;

impl Node {
    pub(super) fn add_node(
        &mut self,
        id: u64,
        ip: IpAddr,
        db_port: Option<u16>,
        api_port: Option<u16>,
        role: Role,
        auto_upgrade: bool,
    ) {
        let me = self.cluster.member(self.id).expect("checked: this node is a member").clone();
        let (db_port, api_port) = (db_port.unwrap_or(me.db_port), api_port.unwrap_or(me.api_port));
        if ip.is_unspecified() || ip.is_multicast() || db_port == 0 || api_port == 0 {
            return self.reject_value(
                id,
                "invalid_address",
                format!("{ip} is not an address that nodes can reach"),
            );
        }
        let clash = self.cluster.members.values().find(|m| {
            m.ip == ip && (m.api_port == api_port || m.db_port == db_port || m.api_port == db_port)
        });
        if let Some(other) = clash {
            let text = format!("node {} already has these ports on {ip}; give others", other.id);
            return self.reject_value(id, "address_in_use", text);
        }
        let node = self.cluster.next_node;
        let (role, auto_upgrade) = match role {
            Role::Node => (Role::Listener, true),
            other => (other, auto_upgrade && other == Role::Listener),
        };
        let member =
            Member { id: node, ip, db_port, api_port, role, down: false, auto_upgrade, identity: None };
        let entry = Entry::AddNode { member }.encode();
        let proposed = self.consensus.propose_change(node, ConfChangeType::AddLearnerNode, entry);
        self.wait_for(id, proposed, Goal::Added(node));
    }

    pub(super) fn upgrade_node(&mut self, id: u64, node: NodeId, db_port: u16, api_port: u16) {
        let Some(member) = self.known(id, node) else { return };
        if db_port == 0 || api_port == 0 {
            return self.reject_value(
                id,
                "invalid_port",
                "db-port and api-port must be from 1 to 65535".to_owned(),
            );
        }
        if member.role == Role::Witness {
            let text = format!("node {node} is a witness: it holds no data and cannot become a node");
            return self.precondition(id, "wrong_role", text);
        }
        if member.role == Role::Node && !member.down {
            let text = format!("node {node} is a proper node already");
            return self.precondition(id, "already_a_node", text);
        }
        if member.identity.is_none() {
            let text = format!("node {node} was never heard of; start its sidecar, then try again");
            return self.precondition(id, "not_caught_up", text);
        }
        if let Err(lacks) = self.catching_up(node) {
            let text = format!("node {node} has not caught up: {lacks}. Try again when it has");
            return self.precondition(id, "not_caught_up", text);
        }
        let proposed = self.propose_upgrade(node, db_port, api_port);
        self.wait_for(id, proposed, Goal::Upgraded(node));
    }

    pub(crate) fn propose_upgrade(&mut self, node: NodeId, db_port: u16, api_port: u16) -> bool {
        let entry = Entry::UpgradeNode { node, db_port, api_port };
        self.consensus.propose_change(node, ConfChangeType::AddNode, entry.encode())
    }

    pub(crate) fn propose_up(&mut self, node: NodeId) -> bool {
        self.consensus.propose_change(node, ConfChangeType::AddNode, Entry::NodeUp { node }.encode())
    }

    pub(super) fn remove_node(&mut self, id: u64, node: NodeId) {
        if self.known(id, node).is_none() {
            return;
        }
        if self.cluster.members.len() == 1 {
            let text = "this is the last node; a cluster cannot be left without one";
            return self.precondition(id, "last_node", text.to_owned());
        }
        if node == self.id {
            let text =
                format!("node {node} leads; change the leader first (POST /leader?node=…), then remove it");
            return self.precondition(id, "is_leader", text);
        }
        if self.leaves_no_majority(node) {
            return self.reject_no_majority(id, node);
        }
        // As long as its pledge may be asked for it stays, marked as down; `drive_pending` takes it out afterwards.
        let waits = self.cluster.member(node).is_some_and(|m| m.down) && !self.durability_settled();
        let proposed = waits || self.propose_removal(node, REMOVAL.to_owned());
        self.wait_for(id, proposed, Goal::Removed(node));
    }

    pub(crate) fn propose_removal(&mut self, node: NodeId, reason: String) -> bool {
        // One that pledges and acknowledges is marked down first. The durability must have shrunk before it is gone:
        // a leader elected in between could not ask it for its pledge any more.
        if self.cluster.member(node).is_some_and(Member::is_data_voter) {
            let entry = Entry::NodeDown { node, reason: format!("it is being removed: {reason}") };
            return self.consensus.propose_change(node, ConfChangeType::AddLearnerNode, entry.encode());
        }
        let entry = Entry::RemoveNode { node, reason };
        self.consensus.propose_change(node, ConfChangeType::RemoveNode, entry.encode())
    }

    /// Whether a node is connected and was heard of lately, or has had no time yet to say how it is. A leader that was
    /// frozen has connections that are older than what became of the nodes meanwhile, and finds in them what they said
    /// before: to read that takes it less than the time of two heartbeats.
    fn is_present(&self, node: NodeId) -> bool {
        let settings = &self.cluster.settings;
        let read_up = self.woke_at + 2 * settings.heartbeat_interval.ms();
        let lately = self.now.saturating_sub(settings.node_timeout.ms()).max(read_up);
        let heard = self.statuses.get(&node).is_some_and(|(_, at)| *at >= lately);
        let just_elected = self.lead.as_ref().is_some_and(|lead| lead.since >= lately);
        node == self.id || (self.linked(node) && (heard || just_elected))
    }

    /// Whether those that are connected would be no majority of the voters any more without this one.
    fn leaves_no_majority(&self, node: NodeId) -> bool {
        let rest: Vec<NodeId> =
            self.cluster.members.values().filter(|m| m.is_voter() && m.id != node).map(|m| m.id).collect();
        let votes = self.cluster.member(node).is_some_and(Member::is_voter);
        votes && rest.iter().filter(|&&n| self.is_present(n)).count() < majority(rest.len())
    }

    fn reject_no_majority(&mut self, id: u64, node: NodeId) {
        let away: Vec<String> = self
            .cluster
            .members
            .values()
            .filter(|m| m.is_voter() && m.id != node && !self.is_present(m.id))
            .map(|m| m.id.to_string())
            .collect();
        let text = format!(
            "without node {node} the voters that are connected would be no majority, and the cluster would stand still; \
             not connected: {}. Bring these back or mark them down first; nothing was changed",
            away.join(", ")
        );
        self.precondition(id, "no_majority_left", text);
    }

    pub(super) fn node_down(&mut self, id: u64, node: NodeId, reason: String) {
        let Some(member) = self.known(id, node) else { return };
        if node == self.id {
            let text = format!("node {node} leads; change the leader first (POST /leader?node=…)");
            return self.precondition(id, "is_leader", text);
        }
        if member.role != Role::Node {
            let text = format!("node {node} is a {}; only a proper node can be marked down", member.role);
            return self.precondition(id, "wrong_role", text);
        }
        if self.leaves_no_majority(node) {
            return self.reject_no_majority(id, node);
        }
        let entry = Entry::NodeDown { node, reason };
        let proposed = self.consensus.propose_change(node, ConfChangeType::AddLearnerNode, entry.encode());
        self.wait_for(id, proposed, Goal::Down(node));
    }
}
