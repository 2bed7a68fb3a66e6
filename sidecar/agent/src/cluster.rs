//! The replicated state: what all committed entries together say. Every node computes the same.

use crate::entry::{Appointment, Entry};
use crate::lost::LostReport;
use crate::member::{Member, Role};
use crate::postgres::EntryRecord;
use crate::quorum::Durability;
use crate::registry::{Registry, RegistryChange, RegistryOutcome, Shared};
use crate::rules::{Rule, holds};
use crate::settings::Settings;
use crate::types::{Epoch, Lsn, NodeId, Position, Timeline};
use crate::users::Users;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How many committed entries are kept for `GET /info` and for recording them in the database.
const LOG_KEPT: usize = 256;
/// How many reports of lost transactions are known again when they are sent twice.
const LOST_KNOWN: usize = 64;

/// A committed entry with its place, as `GET /info` lists it: without what is secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogRecord {
    pub index: u64,
    pub term: u64,
    pub payload: Entry,
}

/// The state of the cluster after all entries up to `applied_index`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// Random text that tells clusters apart.
    pub cluster_id: String,
    /// PostgreSQL's identity of the database; every node's server must have the same.
    pub system_identifier: u64,
    pub settings: Settings,
    pub members: BTreeMap<NodeId, Member>,
    /// Nodes that were members once; their numbers are not given again.
    pub removed: BTreeSet<NodeId>,
    pub next_node: NodeId,
    pub durability: Durability,
    pub db_config: BTreeMap<String, String>,
    pub appointment: Option<Appointment>,
    /// Which epochs wrote on which timeline; the newest epoch of each.
    pub timelines: BTreeMap<Timeline, Epoch>,
    /// The highest timeline that was ever given out.
    pub last_timeline: Timeline,
    pub applied_index: u64,
    pub applied_term: u64,
    pub log: VecDeque<LogRecord>,
    /// Reports of lost transactions that the log holds, the newest last.
    #[serde(default)]
    pub lost_reports: VecDeque<String>,
    /// Who may log in at the REST interface.
    #[serde(default)]
    pub users: Users,
    /// Servers of others that registered.
    #[serde(default, skip_serializing_if = "no_servers")]
    pub registry: Shared<Registry>,
}

fn no_servers(registry: &Shared<Registry>) -> bool {
    registry.is_untouched()
}

impl Cluster {
    /// A cluster of one node that holds data.
    pub fn new(cluster_id: String, system_identifier: u64, first: Member, settings: Settings) -> Cluster {
        let durability = Durability { voters: BTreeSet::from([first.id]), ..Durability::default() };
        Cluster {
            cluster_id,
            system_identifier,
            settings,
            next_node: first.id + 1,
            members: BTreeMap::from([(first.id, first)]),
            removed: BTreeSet::new(),
            durability,
            db_config: BTreeMap::new(),
            appointment: None,
            timelines: BTreeMap::from([(1, 0)]),
            last_timeline: 1,
            applied_index: 0,
            applied_term: 0,
            log: VecDeque::new(),
            lost_reports: VecDeque::new(),
            users: Users::default(),
            registry: Shared::default(),
        }
    }

    /// What a node knows before it has heard of its cluster: nothing.
    pub fn unknown() -> Cluster {
        Cluster {
            cluster_id: String::new(),
            system_identifier: 0,
            settings: Settings::default(),
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            next_node: 1,
            durability: Durability::default(),
            db_config: BTreeMap::new(),
            appointment: None,
            timelines: BTreeMap::new(),
            last_timeline: 0,
            applied_index: 0,
            applied_term: 0,
            log: VecDeque::new(),
            lost_reports: VecDeque::new(),
            users: Users::default(),
            registry: Shared::default(),
        }
    }

    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The epoch of WAL that ends on `timeline`; 0 for a timeline that no appointment gave out.
    pub fn epoch_of(&self, timeline: Timeline) -> Epoch {
        self.timelines.get(&timeline).copied().unwrap_or(0)
    }

    /// How many epochs were appointed since the last one that was opened, as far as the log is kept.
    pub fn unopened(&self) -> u32 {
        let newest = self.log.iter().rev().take_while(|r| !matches!(r.payload, Entry::Opened { .. }));
        newest.filter(|r| matches!(r.payload, Entry::Appoint(_))).count() as u32
    }

    pub fn position(&self, timeline: Timeline, lsn: Lsn) -> Position {
        let epoch = if holds(Rule::PositionByEpoch) { self.epoch_of(timeline) } else { 0 };
        Position { epoch, lsn }
    }

    /// The durability that the present members and settings ask for.
    pub fn wanted_durability(&self) -> Durability {
        let voters: BTreeSet<NodeId> =
            self.members.values().filter(|m| m.is_data_voter()).map(|m| m.id).collect();
        let k = self.settings.acknowledging_standbys(voters.len());
        let witnesses = self.members.values().filter(|m| m.role == Role::Witness && m.is_voter()).count();
        Durability { voters, k, witnesses }
    }

    /// A timeline that was never given out and lies above `present`.
    pub fn fresh_timeline(&self, present: Timeline) -> Timeline {
        let highest = if holds(Rule::FreshTimeline) { self.last_timeline } else { 0 };
        highest.max(present) + 1
    }

    /// Applies a committed entry. Entries that no longer make sense (a change of a node that was removed meanwhile)
    /// change nothing: every node decides that alike.
    pub fn apply(&mut self, index: u64, term: u64, entry: &Entry) {
        debug_assert!(index > self.applied_index, "entries are applied once and in order");
        if let Entry::LostTransactions(report) = entry {
            if self.has_lost_report(&report.id) {
                return self.passed(index, term);
            }
            self.lost_reports.push_back(report.id.clone());
            while self.lost_reports.len() > LOST_KNOWN {
                self.lost_reports.pop_front();
            }
        }
        if let Entry::User(change) = entry
            && self.users.apply(index, change).is_err()
        {
            return self.passed(index, term);
        }
        if let Entry::Registry { changes, .. } = entry {
            self.apply_registry(index, term, changes);
            return;
        }
        match entry {
            Entry::AddNode { member } => {
                self.next_node = self.next_node.max(member.id + 1);
                self.members.insert(member.id, member.clone());
            }
            Entry::UpgradeNode { node, db_port, api_port } => {
                if let Some(member) = self.members.get_mut(node) {
                    member.db_port = *db_port;
                    member.api_port = *api_port;
                    member.down = false;
                    member.auto_upgrade = false;
                    if member.role == Role::Listener {
                        member.role = Role::Node;
                    }
                }
            }
            Entry::RemoveNode { node, .. } => {
                if self.members.remove(node).is_some() {
                    self.removed.insert(*node);
                }
            }
            Entry::NodeDown { node, .. } => {
                if let Some(member) = self.members.get_mut(node) {
                    member.down = true;
                }
            }
            Entry::NodeUp { node } => {
                if let Some(member) = self.members.get_mut(node) {
                    member.down = false;
                }
            }
            Entry::Identified { node, identity } => {
                if let Some(member) = self.members.get_mut(node) {
                    member.identity.get_or_insert(*identity);
                }
            }
            Entry::Durability(durability) => self.durability = durability.clone(),
            Entry::Settings { settings } => self.settings = settings.clone(),
            Entry::DbConfig { set } => {
                for (name, value) in set {
                    match value {
                        Some(value) => self.db_config.insert(name.clone(), value.clone()),
                        None => self.db_config.remove(name),
                    };
                }
            }
            Entry::Appoint(appointment) => {
                self.last_timeline = self.last_timeline.max(appointment.timeline);
                self.timelines.insert(appointment.timeline, appointment.epoch);
                self.appointment = Some(appointment.clone());
            }
            Entry::Opened { .. }
            | Entry::LostTransactions(_)
            | Entry::User(_)
            | Entry::Registry { .. }
            | Entry::Note { .. } => {}
        }
        self.log.push_back(LogRecord { index, term, payload: entry.without_secrets() });
        while self.log.len() > LOG_KEPT {
            self.log.pop_front();
        }
        self.passed(index, term);
    }

    /// Applies what is said of registered servers. It is kept neither in the log that people look at nor in the database:
    /// there may be much of it, and what counts is who is there now.
    pub fn apply_registry(
        &mut self,
        index: u64,
        term: u64,
        changes: &[RegistryChange],
    ) -> Vec<RegistryOutcome> {
        let outcomes = self.registry.make_mut().apply(index, changes);
        self.passed(index, term);
        outcomes
    }

    pub fn has_lost_report(&self, id: &str) -> bool {
        self.lost_reports.iter().any(|known| known == id)
    }

    /// An entry without content (Raft's own) was applied.
    pub fn passed(&mut self, index: u64, term: u64) {
        self.applied_index = index;
        self.applied_term = term;
    }

    /// The members as `quorum.apply_entry` takes them.
    fn nodes_json(&self) -> Value {
        let node = |m: &Member| json!({"id": m.id, "ip": m.ip, "db-port": m.db_port, "api-port": m.api_port, "role": m.role, "down": m.down});
        Value::Array(self.members.values().map(node).collect())
    }

    /// The entry at the end of the log in the form in which the database records it: the entry itself, and the state
    /// that it changed.
    pub fn record(&self, log: &LogRecord) -> EntryRecord {
        let mut payload = json!({ "entry": log.payload });
        match &log.payload {
            Entry::AddNode { .. }
            | Entry::UpgradeNode { .. }
            | Entry::RemoveNode { .. }
            | Entry::NodeDown { .. }
            | Entry::NodeUp { .. } => payload["nodes"] = self.nodes_json(),
            Entry::Settings { .. } => payload["config"] = settings_json(&self.settings),
            Entry::DbConfig { .. } => payload["db-config"] = json!(self.db_config),
            Entry::LostTransactions(report) => payload["lost"] = json!(report),
            _ => {}
        }
        if let Some((kind, node, message)) = describe(&log.payload) {
            // The list of lost transactions has a table of its own.
            let details = match &log.payload {
                Entry::LostTransactions(report) => {
                    json!(LostReport { transactions: Vec::new(), ..report.clone() })
                }
                entry => json!(entry),
            };
            payload["event"] = json!({"kind": kind, "node": node, "message": message, "details": details});
        }
        EntryRecord { index: log.index, term: log.term, payload, snapshot: false }
    }

    /// What the database must still record after `recorded`: single entries where they are still known, else the
    /// whole state at once.
    pub fn records_after(&self, recorded: u64) -> Vec<EntryRecord> {
        let Some(last) = self.log.back() else { return Vec::new() };
        if last.index <= recorded {
            return Vec::new();
        }
        let first_kept = self.log.front().map_or(0, |r| r.index);
        // The state keys of an entry carry the newest state, so an old entry recorded late already shows what came
        // after it; the end result is the same.
        if recorded == 0 || (recorded < first_kept && self.log.len() == LOG_KEPT) {
            let payload = json!({
                "entry": {"type": "snapshot"},
                "nodes": self.nodes_json(),
                "config": settings_json(&self.settings),
                "db-config": self.db_config,
            });
            return vec![EntryRecord { index: last.index, term: last.term, payload, snapshot: true }];
        }
        self.log.iter().filter(|r| r.index > recorded).map(|r| self.record(r)).collect()
    }
}

/// Settings as text values, for `quorum.config`.
fn settings_json(settings: &Settings) -> Value {
    serde_json::to_value(settings).expect("settings are plain data")
}

/// What an entry means to people: kind, node and a sentence. `None` for entries that are no event.
pub fn describe(entry: &Entry) -> Option<(String, Option<NodeId>, String)> {
    let event = |kind: &str, node: Option<NodeId>, message: String| Some((kind.to_owned(), node, message));
    match entry {
        Entry::AddNode { member } => event(
            "node-added",
            Some(member.id),
            format!("node {} at {} was added as {}", member.id, member.ip, member.role),
        ),
        Entry::UpgradeNode { node, .. } => {
            event("node-upgraded", Some(*node), format!("node {node} now votes and acknowledges"))
        }
        Entry::RemoveNode { node, reason } => {
            event("node-removed", Some(*node), format!("node {node} was removed: {reason}"))
        }
        Entry::NodeDown { node, reason } => event(
            "node-down",
            Some(*node),
            format!("node {node} takes no part in votes and acknowledgements: {reason}"),
        ),
        Entry::NodeUp { node } => event("node-up", Some(*node), format!("node {node} takes part again")),
        Entry::Identified { .. } => None,
        Entry::Durability(d) => event(
            "durability",
            None,
            format!("commits wait for {} of {} other data nodes", d.k, d.voters.len().saturating_sub(1)),
        ),
        Entry::Settings { .. } => event("settings", None, "the cluster's settings were changed".to_owned()),
        Entry::DbConfig { set } => {
            let names: Vec<&str> = set.keys().map(String::as_str).collect();
            event("db-config", None, format!("PostgreSQL parameters were changed: {}", names.join(", ")))
        }
        Entry::Appoint(a) => event(
            "appointed",
            Some(a.node),
            format!("node {} was appointed primary of epoch {} on timeline {}", a.node, a.epoch, a.timeline),
        ),
        Entry::Opened { epoch, node, .. } => {
            event("opened", Some(*node), format!("node {node} accepts writes in epoch {epoch}"))
        }
        Entry::LostTransactions(report) => event("lost-transactions", Some(report.node), report.sentence()),
        Entry::User(change) => {
            let (kind, message) = change.describe();
            event(kind, None, message)
        }
        Entry::Registry { .. } => None,
        Entry::Note { kind, node, message } => event(kind, *node, message.clone()),
    }
}
