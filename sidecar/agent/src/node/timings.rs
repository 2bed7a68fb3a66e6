//! The cluster's timings while they change.
//!
//! A lease must have run out before anybody who stopped hearing the leader votes for another, and the nodes take a change
//! in one after the other. So for a while both count: leases last as long as the shorter node timeout allows, and nobody
//! votes before the longer one is over. That while is the longer one: no lease of before outlasts it, and who answers
//! heartbeats has the entry by then.

use super::Node;
use crate::settings::Settings;
use crate::types::Millis;

/// Settings that count beside the present ones, until then.
pub(crate) type Earlier = (Settings, Millis);

impl Node {
    /// The settings, with the timings that count now.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = self.cluster.settings.clone();
        for earlier in self.settings_before() {
            settings.node_timeout = settings.node_timeout.max(earlier.node_timeout);
            // As often as the shorter leases need it.
            settings.heartbeat_interval = settings.heartbeat_interval.min(earlier.heartbeat_interval);
        }
        settings
    }

    /// How long a lease lasts that is given now, from the moment its heartbeat was sent.
    pub(crate) fn lease_ms(&self) -> Millis {
        let earlier = self.settings_before().map(Settings::lease_ms);
        earlier.fold(self.cluster.settings.lease_ms(), Millis::min)
    }

    fn settings_before(&self) -> impl Iterator<Item = &Settings> {
        let now = self.now;
        self.earlier.iter().filter(move |(_, until)| now < *until).map(|(settings, _)| settings)
    }

    /// The state has changed, and these were the settings before.
    pub(super) fn note_settings(&mut self, before: Settings) {
        let (now, present) = (self.now, &self.cluster.settings);
        let timings = |settings: &Settings| (settings.node_timeout, settings.heartbeat_interval);
        if timings(&before) == timings(present) {
            return;
        }
        let until = now + before.node_timeout.max(present.node_timeout).ms();
        self.earlier.retain(|(_, until)| now < *until);
        self.earlier.push((before, until));
    }
}
