//! Streaming replication and the leases: WAL to standbys, confirmations back, commits released; and the connections
//! between sidecars.

use crate::machine::Machine;
use crate::postgres::{Receiver, Sender};
use crate::world::{Event, Time, World};
use pgquorum_agent::node::{Input, Link};
use pgquorum_agent::postgres::PgProcess;
use pgquorum_agent::types::{Epoch, Lsn, Millis, NodeId};
use rand::Rng;

/// A silent connection is given up after this time.
const SILENCE_MS: Time = 2500;
const LINK_SILENCE_MS: Time = 600;

impl World {
    pub fn renew_lease(&mut self, node: NodeId, epoch: Epoch, until: Millis) {
        if self.keep_renewal(node, epoch, until) {
            return;
        }
        let m = self.machines.get_mut(&node).expect("machines stay");
        if !m.server.is_primary() {
            return;
        }
        let over = until <= m.clock(self.now);
        let lease = &mut m.server.lease;
        if epoch <= lease.revoked || epoch < lease.epoch {
            return;
        }
        let first = epoch > lease.epoch;
        // The first lease of an epoch must have something left.
        if first && over {
            return;
        }
        lease.until = if first { until } else { lease.until.max(until) };
        lease.epoch = epoch;
        if first {
            self.note(node, format!("writable in epoch {epoch}"));
            self.check_opened(node, epoch);
            self.admit_clients(node);
        }
    }

    pub fn revoke_lease(&mut self, node: NodeId, epoch: Epoch) {
        if !self.keep_revocation(node, epoch) {
            let lease = &mut self.machines.get_mut(&node).expect("machines stay").server.lease;
            lease.revoked = lease.revoked.max(epoch);
        }
    }

    /// Sends new WAL to every standby that streams from this server.
    pub fn pump(&mut self, node: NodeId) {
        let server = &mut self.machines.get_mut(&node).expect("machines stay").server;
        let len = server.wal.len();
        let mut sent = Vec::new();
        for (&to, sender) in &mut server.senders {
            if sender.sent < len {
                if len > server.reload_at {
                    sender.rule = server.sync.clone();
                }
                sent.push((to, sender.generation, sender.sent, sender.last_arrival));
                sender.sent = len;
            }
        }
        for (to, generation, first, last) in sent {
            let delay = self.net.delay(&mut self.rng) + self.rng.random_range(0..2);
            let at = (self.now + delay).max(last);
            let server = &mut self.machines.get_mut(&node).expect("machines stay").server;
            if let Some(sender) = server.senders.get_mut(&to) {
                sender.last_arrival = at;
            }
            let records = server.wal[first..].to_vec();
            self.after(at - self.now, Event::Wal { to, generation, first, records });
        }
    }

    pub fn wal_arrives(
        &mut self,
        to: NodeId,
        generation: u64,
        first: usize,
        records: Vec<crate::postgres::Record>,
    ) {
        let now = self.now;
        let Some(m) = self.machines.get_mut(&to) else { return };
        let Some(receiver) = m.server.receiver.as_mut().filter(|r| r.generation == generation) else {
            return;
        };
        let upstream = receiver.upstream;
        let stands = self.net.wal_blocked(upstream, to) || m.disk_fault.is_some();
        let again = if stands { 20 } else { 3 };
        if again == 20 || first > m.server.wal.len() {
            self.after(again, Event::Wal { to, generation, first, records });
            return;
        }
        receiver.heard = now;
        let had = m.server.wal.len() - first;
        for record in records.into_iter().skip(had) {
            m.server.receive(record);
        }
        let flush = m.server.end();
        self.become_whole(to);
        let delay = self.net.delay(&mut self.rng);
        self.after(delay, Event::Confirm { from: to, to: upstream, generation, flush });
        self.pump(to);
    }

    pub fn confirmed(&mut self, from: NodeId, to: NodeId, generation: u64, flush: Lsn) {
        let now = self.now;
        if self.net.wal_blocked(from, to) {
            self.after(20, Event::Confirm { from, to, generation, flush });
            return;
        }
        let server = &mut self.machines.get_mut(&to).expect("machines stay").server;
        let Some(sender) = server.senders.get_mut(&from).filter(|s| s.generation == generation) else {
            return;
        };
        sender.flush = sender.flush.max(flush);
        sender.heard = now;
        if server.is_primary() {
            for waiter in server.released(from) {
                self.acknowledged(to, waiter);
            }
        }
    }

    /// A standby connects to the server it was told, if that lets it.
    fn connect(&mut self, standby: NodeId, upstream: NodeId) {
        if self.net.wal_blocked(standby, upstream) || self.net.wal_blocked(upstream, standby) {
            return;
        }
        // Both ends begin a process for it.
        let stands = |n: NodeId| self.machines.get(&n).is_some_and(|m| m.standstill().is_some());
        if stands(standby) || stands(upstream) {
            return;
        }
        let generation = self.token();
        let now = self.now;
        let Some(up) = self.machines.get(&upstream) else { return };
        let own = &self.machines[&standby].server;
        if !up.server.is_running() || !up.server.accepts(own) {
            return;
        }
        if (self.wal_recycled && own.whole_at.is_some()) || self.wal_gone_for == Some(standby) {
            return;
        }
        let (sent, flush, rejoining) = (own.wal.len(), own.end(), !own.is_running() || own.unheard);
        if sent > 0 && !up.server.has(sent - 1, own.wal[sent - 1].uid) {
            let text = format!("node {standby} streams from node {upstream}, and their histories differ");
            self.check.fail(now, text);
            return;
        }
        let own = &mut self.machines.get_mut(&standby).expect("machines stay").server;
        own.receiver = Some(Receiver { generation, upstream, heard: now });
        let up = &mut self.machines.get_mut(&upstream).expect("machines stay").server;
        let rule = up.sync.clone();
        up.senders.insert(
            standby,
            Sender { generation, sent, flush, rule, last_arrival: now, heard: now, rejoining },
        );
        self.confirmed(standby, upstream, generation, flush);
        self.pump(upstream);
        self.after(2, Event::Observe { node: standby, again: false });
    }

    /// Nothing is heard over the stream between two servers: the network is in the way, or the peer stands still.
    fn is_silent(&self, id: NodeId, peer: NodeId) -> bool {
        let blocked = self.net.wal_blocked(peer, id) || self.net.wal_blocked(id, peer);
        blocked || self.machines.get(&peer).is_some_and(Machine::stands_still)
    }

    /// Connections come and go.
    pub fn upkeep(&mut self) {
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        for &id in &ids {
            self.upkeep_streams(id);
            for &peer in &ids {
                if peer != id {
                    self.upkeep_link(id, peer);
                }
            }
        }
    }

    fn upkeep_streams(&mut self, id: NodeId) {
        let now = self.now;
        if self.machines[&id].stands_still() {
            return;
        }
        let server = &self.machines[&id].server;
        if let Some(receiver) = server.receiver {
            let up = receiver.upstream;
            let blocked = self.is_silent(id, up);
            let sender = self.machines.get(&up).and_then(|m| m.server.senders.get(&id));
            let gone = sender.is_none_or(|s| s.generation != receiver.generation);
            let server = &mut self.machines.get_mut(&id).expect("machines stay").server;
            match &mut server.receiver {
                Some(r) if !blocked && !gone => r.heard = now,
                Some(r) if (gone && !blocked) || now >= r.heard + SILENCE_MS => {
                    server.receiver = None;
                    self.after(1, Event::Observe { node: id, again: false });
                }
                _ => {}
            }
        } else if (server.is_running() && server.recovery
            || server.process == PgProcess::Starting && server.whole_at.is_some())
            && let Some(upstream) = server.conninfo
            && self.rng.random_bool(0.7)
        {
            self.connect(id, upstream);
        }
        let senders: Vec<(NodeId, u64, Time)> =
            self.machines[&id].server.senders.iter().map(|(&n, s)| (n, s.generation, s.heard)).collect();
        for (peer, generation, heard) in senders {
            let blocked = self.is_silent(id, peer);
            let receiver = self.machines[&peer].server.receiver;
            let gone = receiver.is_none_or(|r| r.generation != generation);
            let server = &mut self.machines.get_mut(&id).expect("machines stay").server;
            if (gone && !blocked) || now >= heard + SILENCE_MS {
                server.senders.remove(&peer);
            } else if let Some(sender) = server.senders.get_mut(&peer)
                && !blocked
            {
                sender.heard = now;
            }
        }
    }

    fn upkeep_link(&mut self, id: NodeId, peer: NodeId) {
        let me = &self.machines[&id];
        if !me.alive() || me.frozen {
            return;
        }
        let calls = self.machines[&peer].alive()
            && me.agent.as_ref().is_some_and(|a| a.cluster().members.contains_key(&peer))
            && !self.net.is_blocked(id, peer);
        if calls && self.machines[&id].links.get(&peer) != Some(&Link::Up) && !self.handshake(id, peer) {
            return;
        }
        let me = &self.machines[&id];
        if !me.alive() || me.frozen {
            return;
        }
        let other = &self.machines[&peer];
        let blocked = self.net.is_blocked(id, peer) || self.net.is_blocked(peer, id);
        let link = match (blocked, other.alive(), other.reachable) {
            (false, true, _) => Link::Up,
            (false, false, true) => Link::Gone,
            _ => Link::Down,
        };
        if me.links.get(&peer) == Some(&link) {
            return;
        }
        let first = !me.links.contains_key(&peer);
        let machine = self.machines.get_mut(&id).expect("machines stay");
        machine.links.insert(peer, link);
        // Silence takes a while to be noticed; a refusal or a connection does not.
        if link == Link::Down && !first {
            let life = machine.life;
            self.script(LINK_SILENCE_MS, move |w| {
                let m = &w.machines[&id];
                if m.life == life && m.alive() && m.links.get(&peer) == Some(&Link::Down) {
                    w.input(id, Input::Link { peer, link: Link::Down });
                }
            });
        } else {
            self.input(id, Input::Link { peer, link });
        }
    }
}
