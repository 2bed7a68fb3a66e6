//! Requests of administrators: checked, proposed, and answered when their effect is there.

mod members;
mod registry;
mod users;

pub use registry::RegistryPending;
pub use users::UserPending;

use crate::entry::Entry;
use crate::lead::{Lead, Phase};
use crate::member::Member;
use crate::node::Node;
use crate::postgres::{PgFailure, PgFailureKind, PgOp, PgOutcome, is_reserved_parameter, wrong_value};
use crate::request::{LeaderAddress, RejectionKind, Reply, Request};
use crate::settings::Settings;
use crate::standing::Outcast;
use crate::types::{Millis, NodeId};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// How long a change may take before its outcome is called unknown.
const PENDING_MS: Millis = 15_000;
/// How long a request waits for the leader's own work on members and durability.
const PATIENCE_MS: Millis = 5_000;
/// A listener has caught up, a successor is close enough, when it lacks no more than this.
const CAUGHT_UP_BYTES: u64 = 1 << 20;
/// A change of leader to a node further behind than this would keep writers waiting.
const SWITCH_LAG_BYTES: u64 = 16 << 20;

const REMOVAL: &str = "asked for by an administrator";

/// A change on its way, and how to tell that it has arrived.
#[derive(Debug)]
pub struct Pending {
    id: u64,
    until: Millis,
    goal: Goal,
}

/// A request that waits until the leader has finished what it does by itself.
#[derive(Debug)]
pub struct Waiting {
    id: u64,
    request: Request,
    until: Millis,
}

/// PostgreSQL parameters that the server is being asked about.
#[derive(Debug)]
pub struct Checking {
    id: u64,
    set: BTreeMap<String, Option<String>>,
    wanted: BTreeMap<String, String>,
}

#[derive(Debug)]
enum Goal {
    Added(NodeId),
    Upgraded(NodeId),
    Removed(NodeId),
    Down(NodeId),
    Settings(Settings),
    DbConfig(BTreeMap<String, String>),
    Leads(NodeId),
}

impl Node {
    pub(crate) fn address_of(&self, node: NodeId) -> Option<LeaderAddress> {
        let m = self.cluster.member(node)?;
        Some(LeaderAddress { id: m.id, api: m.api_address(), db: SocketAddr::new(m.ip, m.db_port) })
    }

    pub(crate) fn requested(&mut self, id: u64, request: Request) {
        if let Some(why) = self.outcast {
            let code = match why {
                Outcast::Removed => "node_removed",
                Outcast::Forgotten => "node_forgotten",
                Outcast::Superseded => "node_superseded",
            };
            return self.reject(id, RejectionKind::Gone, code, why.explain(self.id));
        }
        if self.cluster.member(self.id).is_none() {
            let text = "this node is not a member of a cluster yet; run `pgquorum join`, or ask another node";
            return self.reject(id, RejectionKind::NotMember, "not_a_member", text.to_owned());
        }
        if !self.consensus.is_leader() {
            return match self.consensus.leader().and_then(|n| self.cluster.member(n)) {
                Some(m) => {
                    let text = format!("this node does not lead; ask node {} at {}", m.id, m.api_address());
                    self.reject(id, RejectionKind::NotLeader, "not_leader", text)
                }
                None => self.reject_no_leader(id),
            };
        }
        // Who is lost for good may be what an epoch waits for to open, so that can be said before.
        let says_lost = matches!(request, Request::NodeDown { .. } | Request::RemoveNode { .. });
        // Whoever may log in, and servers of others, have to do with none of the rest.
        let apart = matches!(request, Request::User(_) | Request::Registry { .. });
        let open = self.lead.as_ref().is_some_and(|l| matches!(l.phase, Phase::Open(_)));
        if !(open || says_lost && self.lead.as_ref().is_some_and(Lead::is_on_its_way)) {
            return self.reject_no_leader(id);
        }
        if says_lost && !self.consensus.has_pending_change() {
            // What waits for a lost node would keep it from ever being said that it is lost.
            self.overtake();
        }
        let busy = !apart
            && (!says_lost && (self.checking.is_some() || self.waiting.is_some()) || self.pending.is_some());
        if !busy && !says_lost && !apart && !self.at_rest() {
            // What the leader does by itself takes moments; nobody should have to ask twice because of it.
            self.waiting = Some(Waiting { id, request, until: self.now + PATIENCE_MS });
            return;
        }
        if busy {
            let text = "another change of members, settings or leader is on its way; try again when it is done \
                        (GET /map and GET /config show it)";
            return self.reject(id, RejectionKind::ChangeInFlight, "change_in_flight", text.to_owned());
        }
        match request {
            Request::SetSettings { patch } => self.set_settings(id, patch.applied_to(&self.cluster.settings)),
            Request::SetDbConfig { set } => self.set_db_config(id, set),
            Request::ChangeLeader { node } => self.change_leader(id, node),
            Request::AddNode { ip, db_port, api_port, role, auto_upgrade } => {
                self.add_node(id, ip, db_port, api_port, role, auto_upgrade);
            }
            Request::UpgradeNode { node, db_port, api_port } => {
                self.upgrade_node(id, node, db_port, api_port)
            }
            Request::RemoveNode { node } => self.remove_node(id, node),
            Request::NodeDown { node, reason } => self.node_down(id, node, reason),
            Request::User(change) => self.change_user(id, change),
            Request::Registry { batch, changes } => self.change_registry(id, batch, changes),
        }
    }

    /// The request on its way is answered as it stands, so that a more urgent one can begin.
    fn overtake(&mut self) {
        if let Some(pending) = self.pending.take_if(|p| !matches!(p.goal, Goal::Leads(_))) {
            let text = "the change waited for nodes, and another request said that one of them is lost. It may be \
                        complete soon; look at GET /map and GET /events";
            self.reject(pending.id, RejectionKind::Unavailable, "overtaken", text.to_owned());
        }
    }

    /// Nothing is under way that members, settings or durability depend on.
    fn at_rest(&self) -> bool {
        !self.consensus.has_pending_change() && self.durability_settled()
    }

    /// Takes the request that waited for the leader's own work, as soon as that is done.
    fn drive_waiting(&mut self) {
        let leads = self.lead.as_ref().is_some_and(|l| matches!(l.phase, Phase::Open(_)));
        let ready = !leads || self.at_rest();
        let now = self.now;
        let Some(waiting) = self.waiting.take_if(|w| ready || now >= w.until) else { return };
        if ready {
            return self.requested(waiting.id, waiting.request);
        }
        let text = "a change of members or durability is still on its way (GET /map shows it); nothing was changed, \
                    try again when it is done";
        self.reject(waiting.id, RejectionKind::ChangeInFlight, "change_in_flight", text.to_owned());
    }

    fn reject_no_leader(&mut self, id: u64) {
        let text = "no node leads at this moment; an election is on its way, try again in a second";
        self.reject(id, RejectionKind::NoLeader, "no_leader", text.to_owned());
    }

    fn reject_value(&mut self, id: u64, code: &str, message: String) {
        self.reject(id, RejectionKind::InvalidValue, code, message);
    }

    fn precondition(&mut self, id: u64, code: &str, message: String) {
        self.reject(id, RejectionKind::Precondition, code, message);
    }

    fn known(&mut self, id: u64, node: NodeId) -> Option<Member> {
        let member = self.cluster.member(node).cloned();
        if member.is_none() {
            let gone = self.cluster.removed.contains(&node);
            let text = if gone {
                format!("node {node} was removed from the cluster")
            } else {
                format!("there is no node {node} in this cluster; GET /map lists them")
            };
            let kind = if gone { RejectionKind::Gone } else { RejectionKind::UnknownNode };
            self.reject(id, kind, if gone { "node_removed" } else { "unknown_node" }, text);
        }
        member
    }

    fn wait_for(&mut self, id: u64, proposed: bool, goal: Goal) {
        if proposed {
            self.pending = Some(Pending { id, until: self.now + PENDING_MS, goal });
        } else {
            let text = "another change is on its way through the cluster's log; try again in a moment";
            self.reject(id, RejectionKind::ChangeInFlight, "change_in_flight", text.to_owned());
        }
    }

    fn set_settings(&mut self, id: u64, settings: Settings) {
        if let Err(text) = settings.check() {
            return self.reject_value(id, "invalid_settings", text);
        }
        let standbys = self.cluster.wanted_durability().voters.len().saturating_sub(1);
        if !settings.quorum_replication && settings.replication_factor as usize > standbys {
            return self.reject_value(
                id,
                "invalid_settings",
                format!(
                    "replication-factor is {}, but the cluster has {standbys} data nodes beside the leader: no commit \
                     would ever return. Add nodes first, or choose at most {standbys}",
                    settings.replication_factor
                ),
            );
        }
        let proposed = self.propose(&Entry::Settings { settings: settings.clone() });
        self.wait_for(id, proposed, Goal::Settings(settings));
    }

    fn set_db_config(&mut self, id: u64, set: BTreeMap<String, Option<String>>) {
        for (name, value) in &set {
            let valid = name.len() <= 63
                && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.');
            if !valid {
                return self.reject_value(
                    id,
                    "invalid_parameter",
                    format!("{name:?} is not a parameter's name"),
                );
            }
            if is_reserved_parameter(name) {
                let text = format!(
                    "{name} is kept by the cluster itself, because its safety depends on it; it cannot be set here"
                );
                return self.reject_value(id, "reserved_parameter", text);
            }
            if let Some(expected) = value.as_deref().and_then(|value| wrong_value(name, value)) {
                return self.reject_value(id, "invalid_parameter", format!("{name} takes {expected}"));
            }
        }
        if set.values().flatten().any(|v| v.len() > 4096 || v.contains(['\n', '\r', '\0'])) {
            let text = "a value is longer than 4096 bytes or has line breaks".to_owned();
            return self.reject_value(id, "invalid_parameter", text);
        }
        let mut wanted = self.cluster.db_config.clone();
        for (name, value) in &set {
            match value {
                Some(value) => wanted.insert(name.clone(), value.clone()),
                None => wanted.remove(name),
            };
        }
        // PostgreSQL itself says whether it would take them, before the cluster decides anything.
        let asked: BTreeMap<String, String> =
            set.iter().filter_map(|(n, v)| v.as_ref().map(|v| (n.clone(), v.clone()))).collect();
        self.checking = Some(Checking { id, set, wanted });
        self.start_operation(PgOp::CheckParameters(asked));
    }

    pub(crate) fn parameters_checked(&mut self, result: Result<PgOutcome, PgFailure>) {
        let Some(Checking { id, set, wanted }) = self.checking.take() else { return };
        match result {
            Ok(_) => {
                let proposed = self.lead.is_some() && self.propose(&Entry::DbConfig { set });
                self.wait_for(id, proposed, Goal::DbConfig(wanted));
            }
            Err(failure) if failure.kind == PgFailureKind::Other => {
                self.reject_value(id, "invalid_parameter", failure.message);
            }
            Err(failure) => {
                let text = format!("the parameters could not be checked, nothing was changed: {failure}");
                self.reject(id, RejectionKind::Unavailable, "not_checked", text);
            }
        }
    }

    fn change_leader(&mut self, id: u64, node: NodeId) {
        let Some(member) = self.known(id, node) else { return };
        if node == self.id {
            return self.out.replies.push((id, Ok(Reply::Leader { node })));
        }
        if !member.is_data_voter() || !self.cluster.durability.voters.contains(&node) {
            let state = if member.down { "marked down".to_owned() } else { format!("a {}", member.role) };
            let text = format!("node {node} is {state}; only a node that votes and holds data can lead");
            return self.precondition(id, "cannot_lead", text);
        }
        if !self.linked(node) {
            let text = format!("node {node} is not connected; bring it back first, or choose another");
            return self.precondition(id, "node_unreachable", text);
        }
        match self.behind(node) {
            None => {
                let text = format!(
                    "node {node} does not stream from this one; wait until GET /map shows it streaming"
                );
                self.precondition(id, "not_streaming", text);
            }
            Some(bytes) if bytes > SWITCH_LAG_BYTES => {
                let text = format!(
                    "node {node} is {bytes} bytes behind; try again when it is less than {SWITCH_LAG_BYTES}"
                );
                self.precondition(id, "behind", text);
            }
            Some(_) => {
                self.begin_hand_over(node);
                self.pending = Some(Pending { id, until: self.now + PENDING_MS, goal: Goal::Leads(node) });
            }
        }
    }

    /// Bytes of WAL that a streaming standby lacks; `None` when it does not stream.
    pub(crate) fn behind(&self, node: NodeId) -> Option<u64> {
        let obs = &self.local.obs;
        let standby = obs.standbys.iter().find(|s| s.node == node && s.streaming)?;
        Some(obs.flush_lsn.bytes_after(standby.flush_lsn))
    }

    /// Whether a standby has caught up; otherwise what it lacks, in words.
    pub(crate) fn catching_up(&self, node: NodeId) -> Result<(), String> {
        match self.behind(node) {
            None => Err("it does not stream from the leader yet".to_owned()),
            Some(bytes) if bytes > CAUGHT_UP_BYTES => Err(format!("it is {bytes} bytes of WAL behind")),
            Some(_) => Ok(()),
        }
    }

    /// Answers the pending request when its effect is there, or cannot come any more.
    pub(crate) fn drive_pending(&mut self) {
        self.drive_waiting();
        self.drive_user_changes();
        self.drive_registry_changes();
        let Some(pending) = &self.pending else { return };
        let id = pending.id;
        if let Some(reply) = self.reached(&pending.goal) {
            self.pending = None;
            self.out.replies.push((id, Ok(reply)));
            return;
        }
        if let Goal::Removed(node) = pending.goal
            && self.cluster.member(node).is_some_and(|m| !m.is_data_voter())
            && self.durability_settled()
            && !self.consensus.has_pending_change()
        {
            self.propose_removal(node, REMOVAL.to_owned());
            return;
        }
        let leadership_may_go = matches!(pending.goal, Goal::Leads(_));
        if !leadership_may_go && self.lead.is_none() {
            self.pending = None;
            let text = "this node lost leadership before the change was made; look at GET /map on the new leader \
                        whether it was, before you try again";
            self.reject(id, RejectionKind::Gone, "proposal_gone", text.to_owned());
        } else if self.now >= pending.until {
            self.pending = None;
            let text =
                "the change was not complete in time; it may still come. Look at GET /map and GET /events";
            self.reject(id, RejectionKind::Unavailable, "timed_out", text.to_owned());
        }
    }

    fn reached(&self, goal: &Goal) -> Option<Reply> {
        let settled = || self.durability_settled();
        match goal {
            Goal::Added(node) => {
                self.cluster.member(*node).map(|m| Reply::Node { member: m.clone() }).filter(|_| settled())
            }
            Goal::Upgraded(node) => {
                let member = self.cluster.member(*node).filter(|m| m.is_data_voter())?;
                settled().then(|| Reply::Node { member: member.clone() })
            }
            Goal::Removed(node) => {
                (self.cluster.member(*node).is_none() && settled()).then_some(Reply::Removed { node: *node })
            }
            Goal::Down(node) => {
                let member = self.cluster.member(*node).filter(|m| m.down)?;
                settled().then(|| Reply::Node { member: member.clone() })
            }
            Goal::Settings(settings) => (self.cluster.settings == *settings && settled())
                .then(|| Reply::Settings { settings: settings.clone() }),
            Goal::DbConfig(wanted) => (self.cluster.db_config == *wanted
                && self.local.configured.as_ref() == Some(wanted))
            .then(|| Reply::DbConfig {
                parameters: wanted.clone(),
                restart_required: self.local.obs.pending_restart.clone(),
            }),
            Goal::Leads(node) => {
                let opened = self.known_primary(0).is_some_and(|o| o.accepts_writes && o.node == *node);
                (opened && self.cluster.appointment.as_ref().is_some_and(|a| a.node == *node))
                    .then_some(Reply::Leader { node: *node })
            }
        }
    }
}
