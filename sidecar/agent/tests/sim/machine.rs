//! One node of the simulated cluster: its sidecar, its server, its disk and its clock.

use crate::disk::Disk;
use crate::postgres::Server;
use crate::world::Time;
use pgquorum_agent::node::{Input, Link, Node};
use pgquorum_agent::postgres::PgOp;
use pgquorum_agent::types::{Millis, NodeId};
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

pub struct Machine {
    pub id: NodeId,
    /// The sidecar, if its process lives.
    pub agent: Option<Node>,
    /// Counts the lives of the sidecar.
    pub life: u64,
    pub frozen: bool,
    /// The machine answers at all (else its silence is all that others see).
    pub reachable: bool,
    pub inbox: VecDeque<Input>,
    pub disk: Disk,
    pub server: Server,
    pub process_op: Option<RunningOp>,
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
            agent: None,
            life: 0,
            frozen: false,
            reachable: true,
            inbox: VecDeque::new(),
            disk,
            server,
            process_op: None,
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
}
