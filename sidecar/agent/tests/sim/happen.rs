//! What an event does: inputs reach a sidecar, and what it puts out is carried out.

use crate::disk::Disk;
use crate::machine::Machine;
use crate::world::{Event, OBSERVE_MS, TICK_MS, UPKEEP_MS, World};
use pgquorum_agent::message::Wire;
use pgquorum_agent::node::{Action, Input, Output};
use pgquorum_agent::standing::{Caller, Outcast, Standing, is_other};
use pgquorum_agent::types::NodeId;
use rand::Rng;
use std::hash::Hash;

impl World {
    pub fn happen(&mut self, event: Event) {
        let Some(event) = self.let_wait(event) else { return };
        match event {
            Event::Tick { node, life } => {
                if self.machines[&node].life == life && self.machines[&node].alive() {
                    self.after(TICK_MS, Event::Tick { node, life });
                    let (now, machine) = (self.now, &self.machines[&node]);
                    let due = machine.agent.as_ref().is_some_and(|a| machine.clock(now) >= a.next_tick());
                    if due && !machine.frozen && machine.disk.writing.is_none() {
                        self.input(node, Input::Tick);
                    }
                }
            }
            Event::Deliver { from, to, life, expected, wire } => {
                // A sender that lives is asked itself.
                let lives = self.machines[&from].alive();
                let knows = |m: &Machine| lives || !is_other(expected, m.disk.state.identity);
                let connected = |m: &Machine| m.life == life && knows(m);
                if self.machines.get(&to).is_some_and(connected) {
                    self.deliver(from, to, *wire);
                }
            }
            Event::Written { node, life } => {
                let m = self.machines.get_mut(&node).expect("machines stay");
                if m.life != life || !m.alive() {
                    return;
                }
                if m.frozen || m.state_hangs() {
                    self.after(10, Event::Written { node, life });
                } else if let Some(output) = m.disk.written() {
                    self.carry_out(node, *output);
                    self.work(node);
                }
            }
            Event::Observe { node, again } => {
                if again {
                    let next = OBSERVE_MS + self.rng.random_range(0..5);
                    self.after(next, Event::Observe { node, again: true });
                }
                self.observe(node);
            }
            Event::Observed { node, life, observation } => {
                if self.machines[&node].life == life && self.machines[&node].alive() {
                    self.input(node, Input::Postgres(observation));
                }
            }
            Event::Operation { node, token } => self.operation(node, token),
            Event::OperationEnds { node, life, id, result } => {
                if self.machines[&node].life == life && self.machines[&node].alive() {
                    self.input(node, Input::PostgresDone { id, result });
                }
            }
            Event::Wal { to, generation, first, records } => self.wal_arrives(to, generation, first, records),
            Event::Confirm { from, to, generation, flush } => self.confirmed(from, to, generation, flush),
            Event::Upkeep { again } => {
                if again {
                    self.after(UPKEEP_MS, Event::Upkeep { again: true });
                }
                self.upkeep();
            }
            Event::Client => {
                let next = self.client_ms;
                self.after(next, Event::Client);
                self.clients_write();
            }
            Event::Script(script) => script(self),
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, wire: Wire) {
        if self.handshake(from, to) {
            self.input(to, Input::Message { from, wire });
        }
    }

    /// Whether two sidecars accept each other. Who has no part in the cluster any more is told.
    pub fn handshake(&mut self, from: NodeId, to: NodeId) -> bool {
        let (Some(m), Some(sender)) = (self.machines.get(&to), self.machines.get(&from)) else {
            return false;
        };
        let Some(agent) = &m.agent else { return false };
        let identity = sender.disk.state.identity;
        let caller = Caller { cluster: &sender.cluster, node: from, identity };
        let standing = agent.cluster().standing(&m.cluster, &caller);
        let expected = sender.agent.as_ref().and_then(|a| a.cluster().identity_of(to));
        match standing {
            Standing::Out(why) => {
                if !sender.retired && sender.alive() && !self.net.is_blocked(to, from) {
                    self.input(from, Input::Outcast(why));
                }
                false
            }
            Standing::Stranger => false,
            Standing::Accepted if is_other(expected, m.disk.state.identity) => {
                self.input(to, Input::Outcast(Outcast::Forgotten));
                false
            }
            Standing::Accepted => true,
        }
    }

    /// Puts an input before a node's sidecar and lets it work.
    pub fn input(&mut self, node: NodeId, input: Input) {
        let m = self.machines.get_mut(&node).expect("machines stay");
        m.inbox.push_back(input);
        self.work(node);
    }

    /// A sidecar takes its inputs one after the other; while it writes to its disk it takes none.
    pub fn work(&mut self, node: NodeId) {
        loop {
            let now = self.now;
            let m = self.machines.get_mut(&node).expect("machines stay");
            if m.frozen || m.disk.writing.is_some() || self.check.broken.is_some() {
                return;
            }
            let clock = m.clock(now);
            let Some(agent) = &mut m.agent else { return };
            let Some(input) = m.inbox.pop_front() else { return };
            let output = agent.step(clock, input);
            self.steps += 1;
            (now, node, output.messages.len(), output.actions.len()).hash(&mut self.digest);
            let delay = Disk::delay(&mut self.rng, &output);
            let (id, life) = (node, m.life);
            if delay == 0 {
                m.disk.write(&output.persist);
                self.carry_out(node, output);
            } else {
                m.disk.writing = Some(Box::new(output));
                self.after(delay, Event::Written { node: id, life });
            }
        }
    }

    fn carry_out(&mut self, node: NodeId, output: Output) {
        for (kind, text) in output.traces {
            (kind, &text).hash(&mut self.digest);
            self.note(node, format!("[{kind}] {text}"));
            self.traces.push((self.now, node, kind, text));
        }
        self.check_raft(node, &output.messages);
        if self.setup.verbose {
            for (to, wire) in &output.messages {
                if let Wire::Raft(m) = wire
                    && !matches!(m.get_msg_type() as i32, 8 | 9)
                {
                    println!(
                        "{:>6} node {node} -> {to}: {:?} term {} index {} commit {} reject {}",
                        self.now,
                        m.get_msg_type(),
                        m.term,
                        m.index,
                        m.commit,
                        m.reject
                    );
                }
            }
        }
        for (to, wire) in output.messages {
            let times = self.net.arrivals(&mut self.rng, node, to);
            let Some(life) = self.machines.get(&to).map(|m| m.life) else { continue };
            let agent = self.machines[&node].agent.as_ref();
            let expected = agent.and_then(|a| a.cluster().identity_of(to));
            let last = times.len().saturating_sub(1);
            let mut wire = Some(Box::new(wire));
            for (i, delay) in times.into_iter().enumerate() {
                let copy = if i == last { wire.take() } else { wire.clone() };
                let wire = copy.expect("the last copy is taken last");
                self.after(delay, Event::Deliver { from: node, to, life, expected, wire });
            }
        }
        for (id, reply) in output.replies {
            self.note(node, format!("answers request {id}: {reply:?}"));
            self.replies.push((node, id, reply));
        }
        for action in output.actions {
            match action {
                Action::Postgres { id, op } => self.submit(node, id, op),
                Action::RenewLease { epoch, sent_at, ms } => self.renew_lease(node, epoch, sent_at + ms),
                Action::RevokeLease { epoch, hint } => {
                    self.hints.insert(node, hint);
                    self.revoke_lease(node, epoch);
                }
                Action::LostReported { id } => self.note(node, format!("its report {id} is in the log")),
                Action::Exit => {
                    self.note(node, "exits");
                    self.kill_sidecar(node);
                }
            }
        }
        self.check_state(node);
    }
}
