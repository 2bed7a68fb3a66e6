//! Clients that write to whatever takes writes, and remember what was acknowledged.

use crate::postgres::{Record, Waiter, What};
use crate::world::{Time, World};
use pgquorum_agent::barrier::Replayed;
use pgquorum_agent::types::{Epoch, Lsn, NodeId};
use rand::Rng;

impl World {
    /// Appends a record on a primary and sends it.
    pub fn append(&mut self, node: NodeId, what: What) -> Record {
        let size = self.rng.random_range(1..6) * 8;
        self.append_of(node, what, size)
    }

    /// The same with so many bytes.
    pub fn append_of(&mut self, node: NodeId, what: What, size: u64) -> Record {
        let uid = 1000 + self.token();
        let server = &mut self.machines.get_mut(&node).expect("machines stay").server;
        let record = Record { uid, timeline: server.timeline, end: Lsn(server.end().0 + size), what };
        server.wal.push(record);
        let run = server.run;
        self.check_writer(node, run, record.timeline);
        self.pump(node);
        record
    }

    /// The sidecar lets clients in on a standby that was a primary, when it may.
    pub fn admit_if_settled(&mut self, node: NodeId) {
        let server = &self.machines[&node].server;
        if server.is_running() && server.recovery && server.replayed().is_some_and(Replayed::is_settled) {
            self.admit_clients(node);
            let server = &mut self.machines.get_mut(&node).expect("machines stay").server;
            server.primary_on = None;
        }
    }

    /// Clients come in where they were held after a restart, and read.
    pub fn admit_clients(&mut self, node: NodeId) {
        let server = &mut self.machines.get_mut(&node).expect("machines stay").server;
        if std::mem::take(&mut server.held) {
            self.note(node, "clients are let in");
            self.check_read(node);
        }
    }

    /// Every server that lets writes pass gets one.
    pub fn clients_write(&mut self) {
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        for id in ids {
            let m = &self.machines[&id];
            let stands = m.disk_fault.is_some() || m.stands_still();
            if !m.server.lease_holds(m.clock(self.now)) || stands || self.rng.random_bool(0.2) {
                continue;
            }
            let epoch = m.server.lease.epoch;
            self.commit(id, epoch, self.now);
        }
    }

    /// A client's transaction that passed the check of this epoch's lease at this time.
    pub fn commit(&mut self, node: NodeId, epoch: Epoch, entered: Time) {
        let index = self.machines[&node].server.wal.len();
        let record = self.append(node, What::Write);
        let waiter = Waiter { uid: record.uid, index, lsn: record.end, epoch, entered };
        let server = &mut self.machines.get_mut(&node).expect("machines stay").server;
        if server.sync.k == 0 {
            self.acknowledged(node, waiter);
        } else {
            server.waiters.push(waiter);
        }
    }
}
