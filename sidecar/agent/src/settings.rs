//! The cluster's settings. They live in the Raft log; every node follows a change at once.

use crate::rules::{Rule, holds};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A time span that people can read: `"300ms"`, `"1s"`, `"2m"`. At least one millisecond, at most one hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

impl Span {
    pub fn ms(self) -> u64 {
        self.0
    }

    /// Reads `500ms`, `1s`, `1m 30s`. The error is a sentence for the person who typed it.
    pub fn parse(text: &str) -> Result<Span, String> {
        let parsed = humantime::parse_duration(text.trim()).map_err(|e| {
            format!("{text:?} is not a duration ({e}); write for example \"500ms\" or \"1s\"")
        })?;
        let ms = u64::try_from(parsed.as_millis()).unwrap_or(u64::MAX);
        if !(1..=3_600_000).contains(&ms) || parsed != Duration::from_millis(ms) {
            return Err(format!("{text:?} is out of range: whole milliseconds from 1ms to 1h are allowed"));
        }
        Ok(Span(ms))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = humantime::format_duration(Duration::from_millis(self.0)).to_string();
        f.write_str(&text)
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Span::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The settings of the cluster, as `GET /config` shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// A node that hears of no leader for this long starts pre-voting. The lease of the primary is shorter.
    pub node_timeout: Span,
    /// How long one round of pre-votes may take.
    pub pre_voting_timeout: Span,
    /// How long one round of votes may take before the node goes back to pre-voting.
    pub leader_voting_timeout: Span,
    /// How often the leader sends a heartbeat.
    pub heartbeat_interval: Span,
    /// How many nodes beside the leader must have a transaction before its commit returns. 0: the leader alone, the
    /// last transactions may be lost with it. Not used while `quorum-replication` is on.
    pub replication_factor: u32,
    /// Derive the number from the size of the cluster: leader and standbys together make n/2+1.
    pub quorum_replication: bool,
    /// When a peer did not answer, send again after this time.
    pub replication_retry_interval: Span,
    /// Whether the leader removes nodes that half of the cluster cannot see.
    pub autoremove_enabled: bool,
    /// Automatic removal only happens while the cluster has more nodes than this.
    pub autoremove_minimum: u32,
    /// How often servers of others that registered here are to say that they are still there.
    #[serde(default = "registry_lease")]
    pub registry_lease: Span,
}

fn registry_lease() -> Span {
    Span(60_000)
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            node_timeout: Span(1000),
            pre_voting_timeout: Span(300),
            leader_voting_timeout: Span(300),
            heartbeat_interval: Span(100),
            replication_factor: 1,
            quorum_replication: true,
            replication_retry_interval: Span(300),
            autoremove_enabled: false,
            autoremove_minimum: 3,
            registry_lease: registry_lease(),
        }
    }
}

impl Settings {
    /// k for a cluster of `data_nodes` nodes that hold data, the leader among them.
    pub fn acknowledging_standbys(&self, data_nodes: usize) -> usize {
        let standbys = data_nodes.saturating_sub(1);
        if self.quorum_replication {
            data_nodes / 2
        } else {
            (self.replication_factor as usize).min(standbys)
        }
    }

    /// How long a lease lasts from the moment its heartbeat was sent: three quarters of `node-timeout`, so that it has
    /// run out before any node that stopped hearing the leader may vote for another.
    pub fn lease_ms(&self) -> u64 {
        let quarters = if holds(Rule::LeaseShorterThanTimeout) { 3 } else { 16 };
        (self.node_timeout.ms() * quarters / 4).max(1)
    }

    /// Says in one sentence what is wrong with these settings, if anything.
    pub fn check(&self) -> Result<(), String> {
        let node = self.node_timeout.ms();
        if !(100..=300_000).contains(&node) {
            return Err(format!("node-timeout is {}; it must be between 100ms and 5m", self.node_timeout));
        }
        if self.heartbeat_interval.ms() < 10 || self.heartbeat_interval.ms() * 3 > node {
            return Err(format!(
                "heartbeat-interval is {}; it must be at least 10ms and at most a third of node-timeout ({}), so that \
                 one lost heartbeat does not cost the leader its place",
                self.heartbeat_interval, self.node_timeout
            ));
        }
        for (name, span) in [
            ("pre-voting-timeout", self.pre_voting_timeout),
            ("leader-voting-timeout", self.leader_voting_timeout),
            ("replication-retry-interval", self.replication_retry_interval),
        ] {
            if !(10..=60_000).contains(&span.ms()) {
                return Err(format!("{name} is {span}; it must be between 10ms and 1m"));
            }
        }
        if self.replication_factor > 64 {
            return Err(format!("replication-factor is {}; it must be at most 64", self.replication_factor));
        }
        if !(1..=1000).contains(&self.autoremove_minimum) {
            return Err(format!(
                "autoremove-minimum is {}; it must be between 1 and 1000",
                self.autoremove_minimum
            ));
        }
        if self.registry_lease.ms() < 1000 {
            return Err(format!("registry-lease is {}; it must be between 1s and 1h", self.registry_lease));
        }
        Ok(())
    }
}

/// A change of some settings; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SettingsPatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_timeout: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_voting_timeout: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader_voting_timeout: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorum_replication: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_retry_interval: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoremove_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoremove_minimum: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_lease: Option<Span>,
}

impl SettingsPatch {
    /// The settings after the change.
    pub fn applied_to(&self, old: &Settings) -> Settings {
        Settings {
            node_timeout: self.node_timeout.unwrap_or(old.node_timeout),
            pre_voting_timeout: self.pre_voting_timeout.unwrap_or(old.pre_voting_timeout),
            leader_voting_timeout: self.leader_voting_timeout.unwrap_or(old.leader_voting_timeout),
            heartbeat_interval: self.heartbeat_interval.unwrap_or(old.heartbeat_interval),
            replication_factor: self.replication_factor.unwrap_or(old.replication_factor),
            quorum_replication: self.quorum_replication.unwrap_or(old.quorum_replication),
            replication_retry_interval: self
                .replication_retry_interval
                .unwrap_or(old.replication_retry_interval),
            autoremove_enabled: self.autoremove_enabled.unwrap_or(old.autoremove_enabled),
            autoremove_minimum: self.autoremove_minimum.unwrap_or(old.autoremove_minimum),
            registry_lease: self.registry_lease.unwrap_or(old.registry_lease),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_and_print_for_people() {
        assert_eq!(Span::parse("1s"), Ok(Span(1000)));
        assert_eq!(Span::parse("1m 30s"), Ok(Span(90_000)));
        assert_eq!(Span(300).to_string(), "300ms");
        assert_eq!(Span(1000).to_string(), "1s");
        for bad in ["", "5", "-1s", "0ms", "2h", "10us", "soon"] {
            assert!(Span::parse(bad).is_err(), "{bad:?} was taken for a duration");
        }
    }

    #[test]
    fn defaults_hold_and_the_lease_is_shorter_than_the_timeout() {
        let settings = Settings::default();
        settings.check().unwrap();
        assert!(settings.lease_ms() < settings.node_timeout.ms());
        let json = serde_json::to_value(&settings).unwrap();
        assert_eq!(json["node-timeout"], "1s");
        assert_eq!(serde_json::from_value::<Settings>(json).unwrap(), settings);
    }

    #[test]
    fn quorum_replication_makes_half_plus_one_with_the_leader() {
        let quorum = Settings::default();
        for n in 1..=9usize {
            assert_eq!(quorum.acknowledging_standbys(n) + 1, n / 2 + 1);
        }
        let fixed = Settings { quorum_replication: false, replication_factor: 2, ..Settings::default() };
        assert_eq!(fixed.acknowledging_standbys(1), 0);
        assert_eq!(fixed.acknowledging_standbys(2), 1);
        assert_eq!(fixed.acknowledging_standbys(5), 2);
    }

    #[test]
    fn a_heartbeat_as_long_as_the_timeout_is_refused() {
        let settings = Settings { heartbeat_interval: Span(900), ..Settings::default() };
        assert!(settings.check().unwrap_err().contains("heartbeat-interval"));
    }
}
