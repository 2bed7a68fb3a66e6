//! Whether a node may still speak for its number. Each sidecar's store has a random identity. The log says which one
//! belongs to a number, so a node that lost its store (its vote, its pledges) and came back with an empty one is not
//! taken for what it was. And a cluster that was forced to go on without its majority has a new id, so that the nodes
//! left behind are told.

use crate::cluster::Cluster;
use crate::node::Node;
use crate::rules::{Rule, holds};
use crate::types::NodeId;
use serde::{Deserialize, Serialize};

/// A primary that was heard of within so many times `node-timeout` counts as one that is there.
const OPEN_LATELY_TIMEOUTS: u64 = 10;

/// What a caller is to the cluster of the node that it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    Accepted,
    /// Of another cluster.
    Stranger,
    Out(Outcast),
}

/// Why a node has no part in its cluster any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcast {
    /// Its number was taken out.
    Removed,
    /// Its number belongs to another store: it has lost its memory.
    Forgotten,
    /// Its cluster was forced to go on without it.
    Superseded,
}

impl Outcast {
    /// What happened, and what to do.
    pub fn explain(self, node: NodeId) -> String {
        match self {
            Outcast::Removed => format!(
                "node {node} was removed from its cluster; to bring this machine back, move the node's directory away \
                 and run `pgquorum join`"
            ),
            Outcast::Forgotten => format!(
                "node {node} has lost its memory: the cluster knows this number with another raft.redb, with a vote and \
                 promises that this one does not have. It takes no part. Run `pgquorum node remove {node}` on another \
                 node, move this node's directory away, and run `pgquorum join`"
            ),
            Outcast::Superseded => format!(
                "the cluster of node {node} was forced to go on without it (`pgquorum force-leader`): what is only here \
                 was given up. It takes no part. Save what you need from its data, move the node's directory away, and \
                 run `pgquorum join` as a new node"
            ),
        }
    }
}

/// What a node says of itself when it calls.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub cluster: &'a str,
    pub node: NodeId,
    /// Of its store.
    pub identity: u64,
}

/// Judges a caller. `known` is the identity that the log has for its number, `removed` whether it was taken out.
pub fn standing(my_cluster: &str, known: Option<u64>, removed: bool, caller: &Caller<'_>) -> Standing {
    if caller.cluster != my_cluster {
        let ancestor = is_ancestor(caller.cluster, my_cluster);
        return if ancestor { Standing::Out(Outcast::Superseded) } else { Standing::Stranger };
    }
    if removed {
        return Standing::Out(Outcast::Removed);
    }
    if is_other(known, caller.identity) {
        return Standing::Out(Outcast::Forgotten);
    }
    Standing::Accepted
}

/// Whether the log names another store for a number than the one that is there.
pub fn is_other(known: Option<u64>, identity: u64) -> bool {
    known.is_some_and(|known| known != identity) && holds(Rule::ForgottenNeverVotes)
}

/// A cluster's id, and what each time that it was forced to go on has added: `ID`, then `ID.2-RANDOM`,
/// `ID.3-RANDOM-RANDOM`. The random parts keep two nodes that were both forced apart, and say who comes from whom.
fn lineage(cluster: &str) -> (&str, Vec<&str>) {
    let Some((id, rest)) = cluster.split_once('.') else { return (cluster, Vec::new()) };
    (id, rest.split('-').skip(1).collect())
}

/// Whether `cluster` was forced to go on from what `older` was, once or several times.
fn is_ancestor(older: &str, cluster: &str) -> bool {
    let ((id, before), (same, after)) = (lineage(older), lineage(cluster));
    id == same && before.len() < after.len() && after.starts_with(&before)
}

/// The id of a cluster that is forced to go on.
pub fn next_generation(cluster: &str, random: u32) -> String {
    let (id, mut parts) = lineage(cluster);
    let random = format!("{random:08x}");
    parts.push(&random);
    format!("{id}.{}-{}", parts.len() + 1, parts.join("-"))
}

impl Cluster {
    /// The store that belongs to a number, as far as the log says.
    pub fn identity_of(&self, node: NodeId) -> Option<u64> {
        self.member(node).and_then(|m| m.identity)
    }

    pub fn standing(&self, my_cluster: &str, caller: &Caller<'_>) -> Standing {
        let (known, removed) = (self.identity_of(caller.node), self.removed.contains(&caller.node));
        standing(my_cluster, known, removed, caller)
    }
}

impl Node {
    /// Somebody of the cluster says that this node has no part in it.
    pub(crate) fn cast_out(&mut self, why: Outcast) {
        if self.outcast.is_some() {
            return;
        }
        if why == Outcast::Superseded {
            // Where a primary is open, or was a moment ago, a majority never was lost: two clusters exist, and nobody but
            // an administrator can say which of them shall go on.
            if self.knew_open_primary() {
                if self.rival_seen.is_none_or(|at| self.now >= at + 10_000) {
                    self.trace("two-clusters", TWO_CLUSTERS.to_owned());
                }
                self.rival_seen = Some(self.now);
                return;
            }
            self.out.persist.superseded = true;
            self.out.persist.sync = true;
        }
        self.trace("outcast", why.explain(self.id));
        self.outcast = Some(why);
        if why != Outcast::Removed {
            self.fence("this node has no part in the cluster any more".to_owned());
            let settings = self.settings();
            self.consensus.step_down(self.now, &settings);
            self.lead = None;
        }
    }

    /// Neither hears nor says anything.
    pub(crate) fn is_silenced(&self) -> bool {
        matches!(self.outcast, Some(Outcast::Forgotten | Outcast::Superseded))
    }

    /// Whether a primary was open lately. For as long as an election may take its failing is no loss of a majority.
    fn knew_open_primary(&self) -> bool {
        let lately = self.now.saturating_sub(OPEN_LATELY_TIMEOUTS * self.cluster.settings.node_timeout.ms());
        self.open_heard.is_some_and(|at| at >= lately)
    }
}

pub(crate) const TWO_CLUSTERS: &str = "a node was forced to lead a cluster of its own (`pgquorum force-leader`) while this \
                                       one has a majority: two clusters accept writes. Stop one of them at once; its \
                                       nodes must be joined to the other anew";

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(mine: &str, cluster: &str, known: Option<u64>, identity: u64, removed: bool) -> Standing {
        standing(mine, known, removed, &Caller { cluster, node: 2, identity })
    }

    #[test]
    fn only_the_store_that_the_log_knows_speaks_for_a_number() {
        assert_eq!(judge("c", "c", Some(7), 7, false), Standing::Accepted);
        assert_eq!(judge("c", "c", None, 7, false), Standing::Accepted, "not known yet");
        assert_eq!(judge("c", "c", Some(7), 8, false), Standing::Out(Outcast::Forgotten));
        assert_eq!(judge("c", "c", Some(7), 0, false), Standing::Out(Outcast::Forgotten));
        assert_eq!(judge("c", "c", Some(7), 7, true), Standing::Out(Outcast::Removed));
        assert_eq!(judge("c", "d", Some(7), 7, false), Standing::Stranger);
    }

    #[test]
    fn a_forced_cluster_tells_those_left_behind_and_nobody_else() {
        let (second, other) = (next_generation("c", 1), next_generation("c", 2));
        let third = next_generation(&second, 3);
        assert_eq!((second.as_str(), third.as_str()), ("c.2-00000001", "c.3-00000001-00000003"));
        assert_eq!(judge(&second, "c", Some(7), 7, false), Standing::Out(Outcast::Superseded));
        assert_eq!(judge(&third, &second, None, 7, false), Standing::Out(Outcast::Superseded));
        assert_eq!(judge("c", &second, Some(7), 7, false), Standing::Stranger);
        assert_eq!(judge(&second, &other, None, 7, false), Standing::Stranger, "both were forced");
        assert_eq!(judge(&second, "d", None, 7, false), Standing::Stranger);
    }

    #[test]
    fn a_rival_that_was_forced_once_is_no_ancestor_of_one_that_was_forced_twice() {
        let (mine, rival) = (next_generation(&next_generation("c", 1), 3), next_generation("c", 2));
        assert_eq!(judge(&mine, &rival, None, 7, false), Standing::Stranger, "nobody gave up what it has");
        assert_eq!(judge(&mine, "c", None, 7, false), Standing::Out(Outcast::Superseded));
    }
}
