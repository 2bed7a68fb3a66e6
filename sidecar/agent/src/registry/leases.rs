//! Until when registered servers are believed to be there. Only a leader counts, in memory: whoever begins to lead gives
//! every server a whole lease from then on, so a lease may last longer because of a failover, and never ends early.

use super::Registry;
use crate::types::Millis;
use std::collections::{BTreeMap, BTreeSet};

/// A sweep that comes later than it should by more than this was not the servers' fault: the process stood still, and so
/// may have their renewals.
const LATE_MS: Millis = 1000;

/// How often a server that renews each time that its lease says may miss it, in halves of a lease: it lasts two and a half.
const HALVES: Millis = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    Until(Millis),
    /// It is over, and the server's removal is on its way.
    Ending,
}

/// A server whose lease is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    pub service: String,
    pub server: String,
    /// What was known of it when the lease ended: a server that registers meanwhile stays.
    pub updated: Millis,
}

/// The leases of all servers, as the leader of one term counts them.
#[derive(Debug, Default)]
pub struct Leases {
    term: u64,
    by_type: BTreeMap<String, BTreeMap<String, Lease>>,
    /// When the next sweep should come at the latest.
    expected: Option<Millis>,
}

/// How long a lease lasts at the leader. `lease` is what servers are told; they renew that often.
pub fn lasts(lease: Millis) -> Millis {
    lease.saturating_mul(HALVES) / 2
}

impl Leases {
    /// This node leads in `term`. In a new one everything is counted anew.
    pub fn lead(&mut self, term: u64) {
        if self.term != term {
            *self = Leases { term, ..Leases::default() };
        }
    }

    /// Nobody is registered, so nothing is counted, and no sweep is late.
    pub fn rest(&mut self) {
        *self = Leases { term: self.term, ..Leases::default() };
    }

    /// The server says that it is there. False: its removal is on its way, so that must be said to all.
    pub fn renew(&mut self, kind: &str, server: &str, now: Millis, lease: Millis) -> bool {
        let servers = match self.by_type.get_mut(kind) {
            Some(servers) => servers,
            None => self.by_type.entry(kind.to_owned()).or_default(),
        };
        match servers.get_mut(server) {
            Some(Lease::Ending) => false,
            Some(until) => {
                *until = Lease::Until(now + lasts(lease));
                true
            }
            None => {
                servers.insert(server.to_owned(), Lease::Until(now + lasts(lease)));
                true
            }
        }
    }

    /// The server was registered: whatever was on its way does not concern it any more.
    pub fn registered(&mut self, kind: &str, server: &str, now: Millis, lease: Millis) {
        let servers = self.by_type.entry(kind.to_owned()).or_default();
        servers.insert(server.to_owned(), Lease::Until(now + lasts(lease)));
    }

    /// The removal did not come about; the next sweep asks for it again.
    pub fn still_there(&mut self, kind: &str, server: &str, now: Millis) {
        if let Some(lease) = self.by_type.get_mut(kind).and_then(|servers| servers.get_mut(server))
            && *lease == Lease::Ending
        {
            *lease = Lease::Until(now);
        }
    }

    /// Servers whose leases are over, at most `max` of them: with whom they are known, they are to be removed. The next
    /// sweep is to come within `every` milliseconds.
    pub fn sweep(
        &mut self,
        registry: &Registry,
        now: Millis,
        lease: Millis,
        every: Millis,
        max: usize,
    ) -> Vec<(String, Expired)> {
        let late = self.expected.map_or(0, |expected| now.saturating_sub(expected));
        self.expected = Some(now + every);
        if late > LATE_MS {
            self.extend(late);
        }
        let mut expired = Vec::new();
        for (kind, service) in registry.iter() {
            let leases = self.by_type.entry(kind.to_owned()).or_default();
            if leases.len() > service.servers.len() {
                leases.retain(|server, _| service.servers.contains_key(server));
            }
            for (name, server) in &service.servers {
                match leases.get_mut(name) {
                    None => {
                        leases.insert(name.clone(), Lease::Until(now + lasts(lease)));
                    }
                    Some(Lease::Until(until)) if *until > now => {
                        // A shorter lease holds for those, too, that were given a longer one.
                        *until = (*until).min(now + lasts(lease));
                    }
                    Some(Lease::Ending) => {}
                    Some(over) if expired.len() < max => {
                        *over = Lease::Ending;
                        let (service, server) = (service.id.clone(), server.updated);
                        expired.push((
                            kind.to_owned(),
                            Expired { service, server: name.clone(), updated: server },
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        let known: BTreeSet<&str> = registry.iter().map(|(kind, _)| kind).collect();
        self.by_type.retain(|kind, _| known.contains(kind.as_str()));
        expired
    }

    fn extend(&mut self, by: Millis) {
        for lease in self.by_type.values_mut().flat_map(BTreeMap::values_mut) {
            if let Lease::Until(until) = lease {
                *until += by;
            }
        }
    }
}
