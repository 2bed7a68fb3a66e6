//! Random faults and random requests of administrators.

use crate::machine::{DiskFault, Machine};
use crate::postgres::Server;
use crate::standstill::Processes;
use crate::world::{Time, World};
use pgquorum_agent::force::whole_log;
use pgquorum_agent::logstore::Restored;
use pgquorum_agent::member::Role;
use pgquorum_agent::node::Input;
use pgquorum_agent::request::{Reply, Request};
use pgquorum_agent::settings::{SettingsPatch, Span};
use pgquorum_agent::types::NodeId;
use rand::Rng;
use rand::seq::IndexedRandom;

impl World {
    fn some_node(&mut self) -> NodeId {
        let ids: Vec<NodeId> = self.machines.values().filter(|m| !m.retired).map(|m| m.id).collect();
        *ids.choose(&mut self.rng).expect("there are nodes")
    }

    /// The node that leads and whose primary is open, if any.
    pub fn open_leader(&self) -> Option<NodeId> {
        let open = |m: &&Machine| {
            let lease = m.server.lease_holds(m.clock(self.now));
            lease && m.agent.as_ref().is_some_and(|a| a.view().is_open_leader)
        };
        self.machines.values().filter(open).max_by_key(|m| m.server.lease.epoch).map(|m| m.id)
    }

    /// The node that leads in the highest term, whether its primary is open or not.
    pub fn elected_leader(&self) -> Option<NodeId> {
        let views = self.machines.values().filter_map(|m| m.agent.as_ref()).map(|a| a.view());
        let leads = views.filter(|v| v.raft_leader == Some(v.id) && v.outcast.is_none());
        leads.max_by_key(|v| v.term).map(|v| v.id)
    }

    /// Sends a request to a node's sidecar. Returns its number.
    pub fn request(&mut self, node: NodeId, request: Request) -> u64 {
        let id = self.next_request;
        self.next_request += 1;
        self.note(node, format!("request {id}: {request:?}"));
        if self.machines[&node].alive() {
            self.input(node, Input::Request { id, request });
        }
        id
    }

    pub fn reply(&self, id: u64) -> Option<&Result<Reply, pgquorum_agent::request::Rejection>> {
        self.replies.iter().find(|(_, i, _)| *i == id).map(|(_, _, r)| r)
    }

    /// A new machine joins under the number the leader will give.
    pub fn join(&mut self, leader: NodeId, role: Role) -> NodeId {
        let agent = self.machines[&leader].agent.as_ref().expect("the leader lives");
        let id = agent.cluster().next_node;
        let (db_port, api_port) = (Some(5000 + id as u16), Some(8000 + id as u16));
        if !self.machines.contains_key(&id) {
            let identity = 1_000 + self.token();
            self.add_machine(id, Restored { identity, ..Restored::default() }, Server::absent());
            let cluster = self.machines[&leader].cluster.clone();
            self.machines.get_mut(&id).expect("it was just added").cluster = cluster;
            self.start(id);
        }
        let ip = [127, 0, 0, 1].into();
        self.request(leader, Request::AddNode { ip, db_port, api_port, role, auto_upgrade: false });
        id
    }

    /// One fault, and the end of it later.
    pub fn fault(&mut self) {
        let node = self.some_node();
        let lasts: Time = self.rng.random_range(50..4000);
        let leader = self.open_leader().filter(|_| self.rng.random_bool(0.5)).unwrap_or(node);
        match self.rng.random_range(0..19) {
            14 | 15 => {
                if self.can_lose_a_store(leader) {
                    self.lose_store(leader);
                    if self.rng.random_bool(0.4) {
                        self.rebear(leader);
                    }
                    self.script(lasts, World::replace_lost);
                }
            }
            12 | 13 => {
                // Told to stop; after a while it is killed, as a service manager would.
                if self.machines[&leader].alive() {
                    self.note(leader, "told to leave");
                    self.input(leader, Input::Leave);
                    self.script(lasts * 2, move |w| {
                        w.kill_sidecar(leader);
                        w.start(leader);
                    });
                }
            }
            16 => {
                let state_too = self.rng.random_bool(0.5);
                self.break_disk(leader, DiskFault::Hangs { state_too });
                self.script(lasts * 2, move |w| w.mend_disk(leader));
            }
            17 => {
                let all = self.rng.random_bool(0.2);
                let ids: Vec<NodeId> = self.machines.keys().copied().collect();
                for id in ids.into_iter().filter(|&id| all || id == leader) {
                    self.break_disk(id, DiskFault::Full);
                    self.script(lasts * 2, move |w| w.mend_disk(id));
                }
            }
            0 => {
                self.kill_node(leader);
                self.script(lasts, move |w| w.start(leader));
            }
            1 => {
                self.kill_node(leader);
                self.machines.get_mut(&leader).expect("machines stay").reachable = false;
                self.script(lasts, move |w| w.start(leader));
            }
            2 => self.kill_server(leader),
            3 => {
                self.kill_sidecar(leader);
                self.script(lasts, move |w| w.start(leader));
            }
            4 | 5 | 18 => self.stand_still(leader, lasts),
            6 | 7 => {
                let peers: Vec<NodeId> = self.machines.keys().copied().filter(|&n| n != leader).collect();
                let one_way = self.rng.random_range(0..3);
                let streams = self.rng.random_bool(0.3);
                for peer in peers {
                    if self.rng.random_bool(0.7) {
                        match one_way {
                            0 => self.net.block(leader, peer),
                            1 => self.net.block(peer, leader),
                            _ => self.net.block_both(leader, peer),
                        }
                        if streams {
                            self.net.wal_open.extend([(leader, peer), (peer, leader)]);
                        }
                    }
                }
                self.note(leader, format!("partition, kind {one_way}"));
                self.script(lasts, |w| w.heal_network());
            }
            8 if self.rng.random_bool(0.3) => {
                // To one, or to all, and then also for so long that somebody else should lead.
                let one = self.some_node();
                let all = self.rng.random_bool(0.5);
                let peers: Vec<NodeId> = self.machines.keys().copied().filter(|&n| all || n == one).collect();
                self.note(leader, format!("its streams to {peers:?} stall"));
                for peer in peers {
                    self.net.wal_blocks.extend([(leader, peer), (peer, leader)]);
                }
                let lasts = if all { lasts * self.rng.random_range(1..6) } else { lasts };
                self.script(lasts, |w| w.heal_network());
            }
            8 => {
                let ids: Vec<NodeId> = self.machines.keys().copied().collect();
                let side: Vec<bool> = ids.iter().map(|_| self.rng.random_bool(0.5)).collect();
                for (i, &a) in ids.iter().enumerate() {
                    for (j, &b) in ids.iter().enumerate() {
                        if side[i] != side[j] {
                            self.net.block(a, b);
                        }
                    }
                }
                self.note(node, format!("split {side:?}"));
                self.script(lasts, |w| w.heal_network());
            }
            9 => {
                self.net.loss = self.rng.random_range(0.0..0.3);
                self.net.duplication = self.rng.random_range(0.0..0.2);
                let worst = self.rng.random_range(5..150);
                self.net.delay = (1, worst);
                self.note(node, "bad network");
                self.script(lasts, |w| w.heal_network());
            }
            10 => {
                let ids: Vec<NodeId> = self.machines.keys().copied().collect();
                for id in ids {
                    if self.rng.random_bool(0.6) {
                        self.kill_node(id);
                        let back = self.rng.random_range(20..1500);
                        self.script(back, move |w| w.start(id));
                    }
                }
            }
            _ => {
                self.op_failures = self.rng.random_range(0.0..0.3);
                let usual = self.setup.op_failures;
                self.script(lasts, move |w| w.op_failures = usual);
            }
        }
    }

    /// SIGSTOP of a part of a node, and SIGCONT. What is not noticed does not last long.
    fn stand_still(&mut self, node: NodeId, lasts: Time) {
        match self.rng.random_range(0..4) {
            0 => {
                self.freeze(node);
                self.script(lasts / 2, move |w| w.thaw(node));
            }
            1 => {
                self.freeze(node);
                self.freeze_server(node, Processes::All);
                let sidecar_first = self.rng.random_bool(0.5);
                self.script(lasts, move |w| {
                    if sidecar_first {
                        w.thaw(node);
                    }
                    w.thaw_server(node);
                    w.thaw(node);
                });
            }
            part => {
                let processes = if part == 2 { Processes::All } else { Processes::Postmaster };
                self.freeze_server(node, processes);
                self.script(lasts * 2, move |w| w.thaw_server(node));
            }
        }
    }

    /// The cluster goes on without this node's word for good: three vote, and nobody else is lost.
    fn can_lose_a_store(&self, node: NodeId) -> bool {
        let nobody = !self.machines.values().any(Machine::needs_replacement);
        // Nobody is marked down, not even in a log that may yet win.
        let marked = |m: &Machine| whole_log(&m.disk.state).is_ok_and(|c| c.members.values().any(|m| m.down));
        if self.machines.values().any(marked) {
            return false;
        }
        let clusters = self.machines.values().filter_map(|m| m.agent.as_ref()).map(|a| a.cluster());
        let newest = clusters.max_by_key(|c| c.applied_index);
        let enough = newest.is_some_and(|c| {
            let wanted = c.wanted_durability();
            let counts = c.durability.voters == wanted.voters && c.members.values().all(|m| !m.down);
            counts && wanted.voters.len() >= 3 && wanted.voters.contains(&node)
        });
        nobody && enough
    }

    /// What an administrator does about a node that lost its store: take it out. Repeated until it is out.
    pub fn replace_lost(&mut self) {
        let lost: Vec<NodeId> =
            self.machines.values().filter(|m| m.needs_replacement()).map(|m| m.id).collect();
        for node in lost {
            // An epoch may wait for the lost node to open; then whoever leads is told before.
            let Some(leader) = self.open_leader().or_else(|| self.elected_leader()) else { continue };
            let cluster = self.machines[&leader].agent.as_ref().expect("it leads").cluster();
            if cluster.members.contains_key(&node) {
                self.request(leader, Request::RemoveNode { node });
            } else {
                self.kill_node(node);
                self.machines.get_mut(&node).expect("machines stay").retired = true;
            }
        }
    }

    pub fn heal_network(&mut self) {
        self.net.heal();
        self.note(0, "network healed");
    }

    /// Something an administrator might ask for.
    pub fn administrate(&mut self) {
        if self.machines.values().any(Machine::needs_replacement) {
            return self.replace_lost();
        }
        let node = self.some_node();
        let Some(leader) = self.open_leader() else {
            // Nobody is open: whom the next primary shall not wait for can be said all the same.
            if let Some(elected) = self.elected_leader() {
                self.request(elected, Request::NodeDown { node, reason: "it seems lost".to_owned() });
            }
            return;
        };
        let request = match self.rng.random_range(0..8) {
            0 | 1 => Request::ChangeLeader { node },
            2 => {
                let patch = SettingsPatch {
                    quorum_replication: Some(self.rng.random_bool(0.5)),
                    replication_factor: Some(self.rng.random_range(1..3)),
                    autoremove_enabled: Some(self.rng.random_bool(0.2)),
                    ..SettingsPatch::default()
                };
                Request::SetSettings { patch }
            }
            3 => {
                let node_timeout = Some(Span(self.rng.random_range(6..20) * 100));
                let patch = SettingsPatch { node_timeout, ..SettingsPatch::default() };
                Request::SetSettings { patch }
            }
            4 => Request::NodeDown { node, reason: "asked for".to_owned() },
            5 if self.machines.values().filter(|m| !m.retired).count() > 3 => Request::RemoveNode { node },
            5 | 6 => {
                let alive = self.machines.values().filter(|m| !m.retired).count();
                if alive < 6 && self.machines.len() < 9 {
                    self.join(leader, Role::Node);
                }
                return;
            }
            _ => {
                let value = Some(self.rng.random_range(1..99).to_string());
                Request::SetDbConfig { set: [("work_mem".to_owned(), value)].into() }
            }
        };
        self.request(leader, request);
    }

    /// Everything works again.
    pub fn heal_everything(&mut self) {
        self.heal_network();
        self.op_failures = 0.0;
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        for id in ids {
            self.mend_disk(id);
            self.thaw_server(id);
            self.thaw(id);
            self.start(id);
        }
    }

    /// What the newest view of the cluster says of its members; machines outside it are retired.
    pub fn newest_members(&self) -> Vec<NodeId> {
        let clusters = self.machines.values().filter_map(|m| m.agent.as_ref()).map(|a| a.cluster());
        let newest = clusters.max_by_key(|c| c.applied_index);
        newest
            .map_or_else(Vec::new, |c| c.members.values().filter(|m| m.holds_data()).map(|m| m.id).collect())
    }

    /// (f) One open primary, and every other data node streams from it.
    pub fn converged(&self) -> bool {
        let Some(leader) = self.open_leader() else { return false };
        self.newest_members().iter().filter(|&&n| n != leader).all(|n| {
            let m = &self.machines[n];
            let streams = m.server.receiver.is_some_and(|r| r.upstream == leader);
            m.server.is_running() && streams && !m.server.unheard
        })
    }
}
