//! What will go wrong, and when: drawn from the seed alone, so the same seed gives the same plan. Who is the leader shows
//! when it happens.

use crate::random::Random;
use std::fmt;
use std::time::Duration;

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Leader,
    /// The others in order of their numbers, counted from 0.
    Other(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Sidecar,
    Postmaster,
    /// Both, and for a freeze all their processes.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    Data,
    Wal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Kill(Part, Who),
    Freeze(Part, Who),
    /// SIGKILL to everything of one node, of two, of all.
    PowerCut(Who),
    PowerCutTwo(Who, Who),
    PowerCutAll,
    /// SIGTERM to all sidecars, and all are started again.
    RestartAll,
    /// No packets between it and the other nodes; clients reach it, or not.
    Isolate(Who, bool),
    /// It and the leader's side of the rest cannot talk: the network falls into two parts.
    Split(u64),
    /// Its packets arrive, nothing reaches it; and the other way round.
    Deaf(Who),
    Mute(Who),
    /// One direction between two nodes, both directions between two nodes.
    OneWay(Who, Who),
    Link(Who, Who),
    /// Two halves that only this node reaches both of.
    Bridge(Who),
    /// Packets of and to one node are lost and late (in a thousand, milliseconds); those of all nodes.
    Slow(Who, u32, u64),
    SlowAll(u32, u64),
    Full(Disk, Who),
    /// An administrator asks for another leader; takes a node out, whose machine joins again as a new one; marks a node
    /// down whose power is cut.
    ChangeLeader(u64),
    Replace(u64),
    MarkDown(u64),
    /// An administrator ends all sessions of clients.
    EndSessions,
    /// Another number of standbys that commits wait for; the usual one when all is healed.
    Durability(u64),
    /// The time of day jumps by seconds.
    Clock(Who, i64),
}

/// Faults that lie over each other, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Each with the time since the one before.
    pub faults: Vec<(Duration, Fault)>,
    /// From the last fault until everything is healed.
    pub hold: Duration,
    /// Whether the next round waits until all nodes stream again.
    pub mend: bool,
    /// Calm after it.
    pub calm: Duration,
}

/// An endless plan.
pub struct Plan {
    random: Random,
    nodes: u64,
    clock: bool,
    /// Only faults whose kind contains this, one at a time.
    only: Option<String>,
}

type Draw = fn(&mut Plan) -> Fault;

/// How often which kind is drawn.
const WEIGHTS: &[(u64, Draw)] = &[
    (9, |p| Fault::Kill(p.part(), p.who())),
    (9, |p| Fault::Freeze(p.part(), p.who())),
    (6, |p| Fault::PowerCut(p.who())),
    (3, |p| Fault::PowerCutTwo(Who::Leader, Who::Other(p.other()))),
    (2, |p| Fault::PowerCutTwo(Who::Other(0), Who::Other(1 + p.random.below(p.nodes - 2)))),
    (3, |_| Fault::PowerCutAll),
    (2, |_| Fault::RestartAll),
    (7, |p| Fault::Isolate(p.who(), p.random.percent(60))),
    (3, |p| Fault::Split(p.random.below(p.nodes / 2))),
    (4, |p| Fault::Deaf(p.who())),
    (4, |p| Fault::Mute(p.who())),
    (3, |p| p.pair(Fault::OneWay)),
    (3, |p| p.pair(Fault::Link)),
    (4, |p| Fault::Bridge(p.who())),
    (5, |p| Fault::Slow(p.who(), p.loss(), p.delay())),
    (2, |p| Fault::SlowAll(p.loss(), p.delay())),
    (4, |p| Fault::Full(if p.random.percent(50) { Disk::Data } else { Disk::Wal }, p.who())),
    (5, |p| Fault::ChangeLeader(p.other())),
    (4, |p| Fault::Replace(p.other())),
    (2, |p| Fault::MarkDown(p.other())),
    (2, |_| Fault::EndSessions),
    (3, |p| Fault::Durability(if p.nodes == 3 { 2 } else { 1 })),
    (4, Plan::clock),
];

impl Plan {
    pub fn new(seed: u64, nodes: u64, clock: bool, only: Option<String>) -> Plan {
        Plan { random: Random::new(seed), nodes, clock, only }
    }

    fn fault(&mut self) -> Fault {
        // Enough to find the rarest; a text that no kind contains is not waited for.
        for _ in 0..100_000 {
            let draw = self.random.weighted(WEIGHTS);
            let fault = draw(self);
            if self.only.as_ref().is_none_or(|text| fault.kind().contains(text)) {
                return fault;
            }
        }
        panic!("no kind of fault contains {:?}", self.only)
    }

    fn other(&mut self) -> u64 {
        self.random.below(self.nodes - 1)
    }

    /// The leader is what faults are about, so half of them hit it.
    fn who(&mut self) -> Who {
        if self.random.percent(50) { Who::Leader } else { Who::Other(self.other()) }
    }

    fn part(&mut self) -> Part {
        self.random.weighted(&[(1, Part::Sidecar), (1, Part::Postmaster), (1, Part::Both)])
    }

    fn pair(&mut self, fault: fn(Who, Who) -> Fault) -> Fault {
        let other = self.other();
        let (one, two) = match self.random.percent(60) {
            true => (Who::Leader, Who::Other(other)),
            false => (Who::Other(other), Who::Other((other + 1) % (self.nodes - 1))),
        };
        if self.random.percent(50) { fault(one, two) } else { fault(two, one) }
    }

    fn loss(&mut self) -> u32 {
        self.random.weighted(&[(1, 0), (2, 20), (2, 100), (1, 300)])
    }

    fn delay(&mut self) -> u64 {
        self.random.weighted(&[(1, 0), (2, 20), (2, 100), (1, 400)])
    }

    fn clock(&mut self) -> Fault {
        let step = self.random.weighted(&[(1, 3), (1, 3600), (1, -3), (1, -3600), (1, 86_400 * 400)]);
        let who = self.who();
        if self.clock { Fault::Clock(who, step) } else { Fault::EndSessions }
    }

    pub fn next_round(&mut self) -> Round {
        let count = if self.only.is_some() { 1 } else { self.random.weighted(&[(5, 1), (3, 2), (2, 3)]) };
        let millis = |ms| Duration::from_millis(ms);
        let mut faults = Vec::new();
        for number in 0..count {
            let gap = if number == 0 { 0 } else { self.random.between(0, 2500) };
            faults.push((millis(gap), self.fault()));
        }
        Round {
            faults,
            hold: millis(self.random.between(500, 6000)),
            mend: self.random.percent(70),
            calm: millis(self.random.between(500, 3000)),
        }
    }
}

impl Fault {
    /// The kind, as tables name it. A fault of the leader is another thing than the same of a follower.
    pub fn kind(&self) -> String {
        let of = |who: &Who| if *who == Who::Leader { "leader" } else { "follower" };
        let part = |part: &Part| match part {
            Part::Sidecar => "sidecar",
            Part::Postmaster => "postmaster",
            Part::Both => "sidecar and PostgreSQL",
        };
        match self {
            Fault::Kill(p, who) => format!("SIGKILL of the {}'s {}", of(who), part(p)),
            Fault::Freeze(p, who) => format!("SIGSTOP of the {}'s {}", of(who), part(p)),
            Fault::PowerCut(who) => format!("power cut of the {}", of(who)),
            Fault::PowerCutTwo(Who::Leader, _) => "power cut of the leader and a follower".to_owned(),
            Fault::PowerCutTwo(..) => "power cut of two followers".to_owned(),
            Fault::PowerCutAll => "power cut of all".to_owned(),
            Fault::RestartAll => "all stopped in good order".to_owned(),
            Fault::Isolate(who, true) => format!("{} cut from the other nodes", of(who)),
            Fault::Isolate(who, false) => format!("{} cut from nodes and clients", of(who)),
            Fault::Split(_) => "network split in two".to_owned(),
            Fault::Deaf(who) => format!("{} hears nobody", of(who)),
            Fault::Mute(who) => format!("nobody hears the {}", of(who)),
            Fault::OneWay(..) => "one direction between two nodes cut".to_owned(),
            Fault::Link(..) => "link between two nodes cut".to_owned(),
            Fault::Bridge(who) => format!("two halves with the {} as bridge", of(who)),
            Fault::Slow(who, ..) => format!("packets of the {} late or lost", of(who)),
            Fault::SlowAll(..) => "packets of all late or lost".to_owned(),
            Fault::Full(Disk::Data, who) => format!("{}'s data disk full", of(who)),
            Fault::Full(Disk::Wal, who) => format!("{}'s WAL disk full", of(who)),
            Fault::ChangeLeader(_) => "change of leader asked for".to_owned(),
            Fault::Replace(_) => "member leaves, a new one joins".to_owned(),
            Fault::MarkDown(_) => "power cut of a follower, marked down".to_owned(),
            Fault::EndSessions => "all sessions ended".to_owned(),
            Fault::Durability(k) => format!("commits wait for {k} standbys"),
            Fault::Clock(who, _) => format!("{}'s time of day jumps", of(who)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn rounds(seed: u64, nodes: u64, n: usize) -> Vec<Round> {
        let mut plan = Plan::new(seed, nodes, true, None);
        (0..n).map(|_| plan.next_round()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_seed_another() {
        assert_eq!(rounds(7, 5, 50), rounds(7, 5, 50));
        assert_ne!(rounds(7, 5, 50), rounds(8, 5, 50));
    }

    #[test]
    fn one_kind_alone_can_be_asked_for() {
        let mut plan = Plan::new(3, 3, true, Some("leader's data disk".to_owned()));
        assert_eq!(plan.next_round().faults[0].1, Fault::Full(Disk::Data, Who::Leader));
    }

    #[test]
    fn every_kind_is_drawn_and_nobody_is_named_who_is_not_there() {
        for nodes in [3, 5] {
            let all = rounds(1, nodes, 1000);
            let faults: Vec<Fault> = all.iter().flat_map(|r| &r.faults).map(|(_, f)| *f).collect();
            let kinds: BTreeSet<String> = faults.iter().map(Fault::kind).collect();
            assert!(kinds.len() >= 40, "{}: {kinds:?}", kinds.len());
            let there = |who: &Who| !matches!(who, Who::Other(n) if *n >= nodes - 1);
            for fault in faults {
                let fine = match fault {
                    Fault::PowerCutTwo(a, b) | Fault::OneWay(a, b) | Fault::Link(a, b) => {
                        a != b && there(&a) && there(&b)
                    }
                    Fault::Kill(_, who) | Fault::Bridge(who) | Fault::Slow(who, ..) => there(&who),
                    Fault::ChangeLeader(n) | Fault::Replace(n) | Fault::MarkDown(n) => n < nodes - 1,
                    _ => true,
                };
                assert!(fine, "{fault}");
            }
        }
    }
}
