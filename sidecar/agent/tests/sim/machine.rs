//! One node of the simulated cluster: its sidecar, its server, its disk and its clock.

use crate::disk::Disk;
use crate::postgres::Server;
use crate::standstill::Standstill;
use crate::world::{Event, Time, World};
use pgquorum_agent::force::force;
use pgquorum_agent::logstore::Restored;
use pgquorum_agent::node::{Input, Link, Node};
use pgquorum_agent::postgres::PgOp;
use pgquorum_agent::types::{Millis, NodeId};
use pgquorum_agent::write_path::WritePath;
use rand::Rng;
use std::collections::{BTreeMap, VecDeque};

/// An operation that the server's supervisor carries out.
#[derive(Clone, Debug)]
pub struct RunningOp {
    pub id: u64,
    pub op: PgOp,
    pub token: u64,
    pub stage: u32,
    pub since: Time,
}

/// What may be wrong with the disk under a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// It takes no writes and gives no errors. `state_too`: the sidecar's own file lies on it.
    Hangs {
        state_too: bool,
    },
    Full,
}

pub struct Machine {
    pub id: NodeId,
    /// The id of its cluster, as its store has it.
    pub cluster: String,
    /// Its store was lost; it has an empty one, and the old number.
    pub reborn: bool,
    /// The sidecar, if its process lives.
    pub agent: Option<Node>,
    /// Counts the lives of the sidecar.
    pub life: u64,
    pub frozen: bool,
    /// The machine answers at all (else its silence is all that others see).
    pub reachable: bool,
    pub inbox: VecDeque<Input>,
    pub disk: Disk,
    /// What is wrong with the disk under the database, and since when.
    pub disk_fault: Option<(DiskFault, Time)>,
    pub server: Server,
    /// If processes of the server were stopped; see `standstill()`.
    pub standstill: Option<Standstill>,
    pub process_op: Option<RunningOp>,
    /// A rewind that a later operation waits for.
    pub sealed: Option<RunningOp>,
    pub side_ops: BTreeMap<u64, RunningOp>,
    pub links: BTreeMap<NodeId, Link>,
    /// Speed of the clock in thousandths, and where it began.
    pub rate: u64,
    pub offset: u64,
    /// It left the cluster for good.
    pub retired: bool,
    /// Highest index of its applied log that was checked.
    pub checked: u64,
    /// When the newest observation arrives.
    pub observed_at: Time,
}

impl Machine {
    pub fn new(id: NodeId, disk: Disk, server: Server, rate: u64, offset: u64) -> Machine {
        Machine {
            id,
            cluster: "sim".to_owned(),
            reborn: false,
            agent: None,
            life: 0,
            frozen: false,
            reachable: true,
            inbox: VecDeque::new(),
            disk,
            disk_fault: None,
            server,
            standstill: None,
            process_op: None,
            sealed: None,
            side_ops: BTreeMap::new(),
            links: BTreeMap::new(),
            rate,
            offset,
            retired: false,
            checked: 0,
            observed_at: 0,
        }
    }

    /// This node's clock.
    pub fn clock(&self, now: Time) -> Millis {
        self.offset + now * self.rate / 1000
    }

    pub fn alive(&self) -> bool {
        self.agent.is_some()
    }

    pub fn hangs(&self) -> bool {
        matches!(self.disk_fault, Some((DiskFault::Hangs { .. }, _)))
    }

    pub fn state_hangs(&self) -> bool {
        matches!(self.disk_fault, Some((DiskFault::Hangs { state_too: true }, _)))
    }

    /// What the sidecar measures of its node's writes.
    pub fn write_path(&self, now: Time) -> WritePath {
        let primary = self.server.is_primary();
        let mut path = match self.disk_fault {
            None => WritePath::default(),
            Some((DiskFault::Hangs { .. }, since)) => {
                let waits = (now - since).max(1);
                let commit_waits = if primary { waits } else { 0 };
                WritePath { commit_waits, disk_waits: waits, ..WritePath::default() }
            }
            Some((DiskFault::Full, _)) => WritePath {
                commit_refused: primary.then(|| "no space".to_owned()),
                disk_refused: Some("no space".to_owned()),
                ..WritePath::default()
            },
        };
        self.add_standstill(now, &mut path);
        path
    }
}

impl Machine {
    /// It can never take part again as what it was.
    pub fn needs_replacement(&self) -> bool {
        !self.retired && (self.disk.lost || self.reborn || self.disk.state.superseded)
    }
}

/// What scripts do to nodes.
impl World {
    /// The sidecar's store is lost or torn, with a power cut.
    pub fn lose_store(&mut self, id: NodeId) {
        self.kill_node(id);
        self.note(id, "its store is lost");
        self.machines.get_mut(&id).expect("machines stay").disk.lost = true;
    }

    /// Somebody makes an empty store for a number that was in use.
    pub fn rebear(&mut self, id: NodeId) {
        let identity = 1_000 + self.token();
        let m = self.machines.get_mut(&id).expect("machines stay");
        m.disk = Disk::new(Restored { identity, ..Restored::default() });
        m.reborn = true;
        self.note(id, "starts with an empty store");
        self.start(id);
    }

    /// `pgquorum force-leader` on a stopped node.
    pub fn force(&mut self, id: NodeId) {
        let random = self.rng.random();
        let m = self.machines.get_mut(&id).expect("machines stay");
        let forced = force(&m.disk.state, id, random).expect("it can be forced");
        m.cluster.clone_from(&forced.cluster.cluster_id);
        m.disk = Disk::new(forced.restored);
        m.checked = 0;
        self.note(id, format!("is forced to lead: {}", forced.cluster.cluster_id));
        // What it does not have was given up.
        let server = &self.machines[&id].server;
        self.check.acks.retain(|a| server.has(a.index, a.uid));
        self.check.seen.retain(|s| server.has(s.index, s.uid));
    }

    pub fn kill_sidecar(&mut self, id: NodeId) {
        let Some(m) = self.machines.get_mut(&id) else { return };
        if m.agent.take().is_none() {
            return;
        }
        m.life += 1;
        m.frozen = false;
        m.disk.crash(&mut self.rng);
        m.inbox.clear();
        self.note(id, "sidecar dies");
        self.abandon_operations(id);
        let soon = self.rng.random_range(3..20);
        self.after(soon, Event::Upkeep { again: false });
    }

    pub fn kill_server(&mut self, id: NodeId) {
        let m = self.machines.get_mut(&id).expect("machines stay");
        m.server.halt(false);
        self.note(id, "server dies");
        self.after(3, Event::Observe { node: id, again: false });
        self.after(5, Event::Upkeep { again: false });
    }

    /// As a power cut.
    pub fn kill_node(&mut self, id: NodeId) {
        self.kill_sidecar(id);
        self.kill_server(id);
    }

    /// A standby is shut down in good order, and what it had not replayed of its WAL is deleted.
    pub fn lose_wal(&mut self, id: NodeId) {
        self.kill_sidecar(id);
        let server = &mut self.machines.get_mut(&id).expect("machines stay").server;
        server.halt(true);
        let len = server.wal.len();
        server.whole_at = server.wal.last().map(|r| (len - 1, *r));
        server.lost_wal = true;
        server.truncate(len.saturating_sub(5).max(1));
        self.note(id, "its WAL is lost");
    }

    pub fn break_disk(&mut self, id: NodeId, fault: DiskFault) {
        self.note(id, format!("its disk: {fault:?}"));
        self.machines.get_mut(&id).expect("machines stay").disk_fault = Some((fault, self.now));
    }

    pub fn mend_disk(&mut self, id: NodeId) {
        if self.machines.get_mut(&id).expect("machines stay").disk_fault.take().is_some() {
            self.note(id, "its disk is mended");
        }
    }

    pub fn freeze(&mut self, id: NodeId) {
        self.note(id, "sidecar frozen");
        self.machines.get_mut(&id).expect("machines stay").frozen = true;
    }

    pub fn thaw(&mut self, id: NodeId) {
        self.machines.get_mut(&id).expect("machines stay").frozen = false;
        self.note(id, "sidecar thawed");
        self.work(id);
    }
}
