//! Removes servers whose lease is over.

use super::{Registrar, unix_ms};
use crate::clock;
use crate::rest::leads;
use futures_util::future::join_all;
use pgquorum_agent::registry::leases::Expired;
use pgquorum_agent::registry::{BATCH_MAX, RegistryChange, RegistryOutcome};
use pgquorum_agent::types::Millis;
use std::sync::Weak;
use std::time::Duration;

/// How often is looked: so many times in a lease, within these limits in milliseconds.
const TIMES: Millis = 20;
const EVERY_MIN: Millis = 100;
const EVERY_MAX: Millis = 5000;

pub(super) async fn sweep(registrar: Weak<Registrar>) {
    loop {
        let every = match registrar.upgrade() {
            Some(registrar) => registrar.sweep().await,
            None => return,
        };
        tokio::time::sleep(Duration::from_millis(every)).await;
    }
}

impl Registrar {
    /// One look; returns when the next one is due, in milliseconds.
    async fn sweep(&self) -> Millis {
        let view = self.handle.view();
        let (now, lease) = (clock::now(), view.cluster.settings.registry_lease.ms());
        let every = (lease / TIMES).clamp(EVERY_MIN, EVERY_MAX);
        if view.cluster.registry.is_empty() {
            self.leases(&view).rest();
            return every;
        }
        if !leads(&view, now) {
            return every;
        }
        let expired = self.leases(&view).sweep(&view.cluster.registry, now, lease, every, BATCH_MAX);
        if !expired.is_empty() {
            join_all(expired.into_iter().map(|(kind, expired)| self.expire(kind, expired))).await;
        }
        every
    }

    async fn expire(&self, kind: String, expired: Expired) {
        let Expired { service, server, updated } = expired;
        let remove = RegistryChange::Remove {
            service,
            server: server.clone(),
            not_after: Some(updated),
            at: unix_ms(),
        };
        let outcome = self.change(remove).await;
        let view = self.handle.view();
        let lease = view.cluster.settings.registry_lease.ms();
        match outcome {
            Ok(RegistryOutcome::Done) => {
                tracing::info!(server, kind, "a registered server did not renew its lease and was removed");
            }
            // It has registered meanwhile.
            Ok(_) => self.leases(&view).registered(&kind, &server, clock::now(), lease),
            Err(error) => {
                tracing::debug!(server, kind, %error, "a server whose lease is over could not be removed");
                self.leases(&view).still_there(&kind, &server, clock::now());
            }
        }
    }
}
