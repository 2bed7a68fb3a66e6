//! Servers of others that register here: who they are and where they are reached. It is part of the replicated state, so
//! that no registration is lost, whichever node it came through and whoever leads.
//!
//! What changes what is known of a server goes through the cluster's log. That a server is still there does not: leases are
//! counted by the leader alone ([`leases`]), and a new leader gives every server a whole one, so that a change of leader
//! never ends a lease early.

pub mod leases;
mod shared;

pub use shared::Shared;

use crate::types::Millis;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// How many servers and how many types there may be. The state travels as a whole.
pub const SERVERS_MAX: usize = 20_000;
pub const TYPES_MAX: usize = 1000;

/// How many bytes the texts of all servers may have together.
pub const BYTES_MAX: usize = 16 << 20;

/// How many changes one entry of the log may have, and how many bytes of texts.
pub const BATCH_MAX: usize = 256;
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Registration {
    /// Unique among the servers of its type.
    pub server: String,
    /// Where clients reach it.
    pub public_url: String,
    /// Where the other servers of its type do.
    pub cluster_url: String,
    /// Whatever the server says of where it is.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub location: Value,
}

impl Registration {
    /// Bytes of its texts, as far as bounds are concerned.
    pub fn bytes(&self) -> usize {
        let location = if self.location.is_null() { 0 } else { self.location.to_string().len() };
        self.server.len() + self.public_url.len() + self.cluster_url.len() + location
    }
}

/// A server that is registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Server {
    #[serde(flatten)]
    pub registration: Registration,
    /// When it came, in Unix milliseconds by the clock of the leader of then.
    pub created: Millis,
    /// When what is known of it was said last. Grows with each registration; a renewal of the lease leaves it alone.
    pub updated: Millis,
}

/// All servers of one type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Service {
    pub id: String,
    pub public_url: String,
    pub servers: BTreeMap<String, Shared<Server>>,
    /// The entry of the cluster's log that changed it last.
    pub changed_at: u64,
    /// When it was changed, in Unix milliseconds.
    pub updated: Millis,
}

/// One change. A change that no longer makes sense when it is committed changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum RegistryChange {
    /// The server is there, and is as it says.
    Register {
        kind: String,
        /// The id of the service, if this is the first server of its type.
        service: String,
        #[serde(flatten)]
        server: Registration,
        at: Millis,
    },
    /// Another server knows of it. Counts only if nothing newer is known.
    Merge {
        service: String,
        #[serde(flatten)]
        server: Registration,
        updated: Millis,
    },
    Remove {
        service: String,
        server: String,
        /// Only if it was not updated after this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_after: Option<Millis>,
        at: Millis,
    },
}

impl RegistryChange {
    pub fn bytes(&self) -> usize {
        match self {
            RegistryChange::Register { kind, service, server, .. } => {
                kind.len() + service.len() + server.bytes()
            }
            RegistryChange::Merge { service, server, .. } => service.len() + server.bytes(),
            RegistryChange::Remove { service, server, .. } => service.len() + server.len(),
        }
    }
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum RegistryOutcome {
    /// It was made.
    Done,
    /// Nothing had to be changed: it is so, or something newer is known.
    Known,
    /// It was not removed: it has registered since. This is what is known now.
    Newer { server: Server },
    /// There is no such service.
    NoService,
    /// There is no room; what there is too much of.
    Full { of: String },
}

/// All services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Registry {
    by_type: BTreeMap<String, Shared<Service>>,
    servers: usize,
    bytes: usize,
    /// When anything was changed last, in Unix milliseconds.
    updated: Millis,
    /// The entry of the cluster's log that did so.
    changed_at: u64,
}

impl Registry {
    /// Nobody has ever registered.
    pub fn is_untouched(&self) -> bool {
        *self == Registry::default()
    }

    pub fn is_empty(&self) -> bool {
        self.servers == 0
    }

    /// How many servers there are.
    pub fn len(&self) -> usize {
        self.servers
    }

    /// When anything was changed last; 0: never.
    pub fn updated(&self) -> Millis {
        self.updated
    }

    /// The entry of the cluster's log that changed anything last; 0: none did.
    pub fn changed_at(&self) -> u64 {
        self.changed_at
    }

    pub fn of_type(&self, kind: &str) -> Option<&Service> {
        self.by_type.get(kind).map(|service| &**service)
    }

    /// Each type with its servers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Service)> {
        self.by_type.iter().map(|(kind, service)| (kind.as_str(), &**service))
    }

    /// The type and the service of this id.
    pub fn by_id(&self, id: &str) -> Option<(&str, &Service)> {
        self.iter().find(|(_, service)| service.id == id)
    }

    /// Makes the changes of the entry `index` of the cluster's log, each after the one before it.
    pub fn apply(&mut self, index: u64, changes: &[RegistryChange]) -> Vec<RegistryOutcome> {
        changes.iter().map(|change| self.make(index, change)).collect()
    }

    fn make(&mut self, index: u64, change: &RegistryChange) -> RegistryOutcome {
        match change {
            RegistryChange::Register { kind, service, server, at } => {
                if !self.by_type.contains_key(kind) {
                    if self.by_type.len() >= TYPES_MAX {
                        return RegistryOutcome::Full { of: format!("{TYPES_MAX} types") };
                    }
                    // Without its first server there is no service, so there must be room for that one, too.
                    if let Some(full) = self.no_room(0, server) {
                        return full;
                    }
                    let public_url = server.public_url.clone();
                    let new = Service { id: service.clone(), public_url, ..Service::default() };
                    self.by_type.insert(kind.clone(), Shared::new(new));
                }
                self.put(index, kind, server, *at, true)
            }
            RegistryChange::Merge { service, server, updated } => {
                let Some((kind, known)) = self.by_id(service) else { return RegistryOutcome::NoService };
                if known.servers.get(&server.server).is_some_and(|known| known.updated >= *updated) {
                    return RegistryOutcome::Known;
                }
                let kind = kind.to_owned();
                self.put(index, &kind, server, *updated, false)
            }
            RegistryChange::Remove { service, server, not_after, at } => {
                let Some((kind, known)) = self.by_id(service) else { return RegistryOutcome::NoService };
                let Some(known) = known.servers.get(server) else { return RegistryOutcome::Known };
                if not_after.is_some_and(|limit| known.updated > limit) {
                    return RegistryOutcome::Newer { server: (**known).clone() };
                }
                let (kind, bytes) = (kind.to_owned(), known.registration.bytes());
                self.take(index, &kind, server, bytes, *at);
                RegistryOutcome::Done
            }
        }
    }

    fn no_room(&self, freed: usize, server: &Registration) -> Option<RegistryOutcome> {
        if freed == 0 && self.servers >= SERVERS_MAX {
            return Some(RegistryOutcome::Full { of: format!("{SERVERS_MAX} servers") });
        }
        let bytes = (self.bytes + server.bytes()).saturating_sub(freed);
        (bytes > BYTES_MAX).then(|| RegistryOutcome::Full { of: format!("{BYTES_MAX} bytes of texts") })
    }

    /// `again`: the server itself says so, and what it says is newer than all that is known of it.
    fn put(
        &mut self,
        index: u64,
        kind: &str,
        registration: &Registration,
        at: Millis,
        again: bool,
    ) -> RegistryOutcome {
        let known = self.of_type(kind).and_then(|service| service.servers.get(&registration.server)).cloned();
        let freed = known.as_ref().map_or(0, |known| known.registration.bytes());
        if let Some(full) = self.no_room(freed, registration) {
            return full;
        }
        let (created, updated) = match &known {
            // Clocks of leaders differ; what came later must look later.
            Some(known) if again => (known.created, at.max(known.updated + 1)),
            Some(known) => (known.created, at),
            None => (at, at),
        };
        let server = Server { registration: registration.clone(), created, updated };
        let Some(service) = self.by_type.get_mut(kind) else { return RegistryOutcome::NoService };
        let service = service.make_mut();
        service.servers.insert(registration.server.clone(), Shared::new(server));
        service.changed_at = index;
        service.updated = service.updated.max(updated);
        self.servers += usize::from(known.is_none());
        self.bytes = self.bytes + registration.bytes() - freed;
        (self.updated, self.changed_at) = (self.updated.max(updated), index);
        RegistryOutcome::Done
    }

    fn take(&mut self, index: u64, kind: &str, server: &str, bytes: usize, at: Millis) {
        let Some(service) = self.by_type.get_mut(kind) else { return };
        let service = service.make_mut();
        service.servers.remove(server);
        service.changed_at = index;
        service.updated = service.updated.max(at);
        if service.servers.is_empty() {
            self.by_type.remove(kind);
        }
        self.servers -= 1;
        self.bytes -= bytes;
        (self.updated, self.changed_at) = (self.updated.max(at), index);
    }
}

#[cfg(test)]
mod tests;
