//! `GET /metrics`: gauges and counters in Prometheus' text format, read from the view and from what is counted beside it.

use crate::clock;
use crate::follow::Board;
use crate::postgres::WeakCommits;
use crate::rest::api::{Api, is_running, leads, read};
use crate::rest::refusal::with_body;
use crate::statements::{Counts, Tally};
use pgquorum_agent::member::Role;
use pgquorum_agent::types::Millis;
use pgquorum_agent::view::View;
use std::fmt::Write;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path!("metrics")
        .and(read())
        .map(move || {
            let mut out = text(&api.view(), clock::now(), api.readers());
            out.weak_commits(&api.handle().weak_commits.borrow());
            out.statements(api.statements().tally());
            out.subscriptions(&api.handle().subscriptions);
            with_body(200, "text/plain; version=0.0.4", out.0)
        })
        .boxed()
}

/// The lines so far.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn metric(
        &mut self,
        kind: &str,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (String, u64)>,
    ) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP pgquorum_{name} {help}\n# TYPE pgquorum_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(self.0, "pgquorum_{name}{labels} {value}");
        }
    }

    fn weak_commits(&mut self, counts: &[WeakCommits]) {
        let labels =
            |database, role| format!("{{database=\"{}\",role=\"{}\"}}", escaped(database), escaped(role));
        let mut values: Vec<_> = counts.iter().map(|c| (labels(&c.database, &c.role), c.commits)).collect();
        // A counter that first appears with 1 has not grown, for Prometheus; one that was 0 has.
        if counts.iter().all(|c| !c.database.is_empty() || !c.role.is_empty()) {
            values.push((labels("", ""), 0));
        }
        let help =
            "Commits that were allowed to return before the standbys had them, since the server started.";
        self.metric("counter", "weak_commits_total", help, values);
    }

    /// Read-only statements, of the databases with the extension that were visited lately.
    fn statements(&mut self, tally: &Tally) {
        let counts = tally.counts();
        let each = |count: &dyn Fn(&Counts) -> u64| -> Vec<_> {
            let label = |database| format!("{{database=\"{}\"}}", escaped(database));
            counts.iter().map(|(database, counts)| (label(database), count(counts))).collect()
        };
        let served = each(&|counts| counts.served);
        self.metric("gauge", "readonly_statements", "Read-only statements that are served.", served);
        let help = "Statements that are known and not served any more.";
        self.metric("gauge", "withdrawn_statements", help, each(&|counts| counts.withdrawn));
        let help = "Statements that this node learned as a standby and told the leader.";
        self.metric("counter", "carried_statements_total", help, [(String::new(), tally.carried())]);
        let help = "Failures to count statements, or to tell the leader of them.";
        self.metric("counter", "statement_failures_total", help, [(String::new(), tally.failures())]);
    }

    /// Subscriptions that this node works for: those of all databases, on the leader.
    fn subscriptions(&mut self, board: &Board) {
        let all = board.all();
        let labels = |(database, name): &(String, String)| {
            format!("database=\"{}\",subscription=\"{}\"", escaped(database), escaped(name))
        };
        let states =
            all.iter().map(|(key, seen)| (format!("{{{},state=\"{}\"}}", labels(key), seen.state), 1));
        self.metric("gauge", "subscription_state", "1 for the state that a subscription is in.", states);
        let lag = all.iter().filter_map(|(key, seen)| Some((format!("{{{}}}", labels(key)), seen.lag()?)));
        let help = "Changes of the source that are known of and not applied here yet.";
        self.metric("gauge", "subscription_lag_changes", help, lag);
        let heard = all.iter().filter_map(|(key, seen)| {
            Some((format!("{{{}}}", labels(key)), seen.end?.1.elapsed().as_secs()))
        });
        let help = "Time since it was last heard where the source's channel ends: what the lag is known by.";
        self.metric("gauge", "subscription_heard_seconds", help, heard);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.metric("gauge", name, help, [(String::new(), value)]);
    }
}

/// A label's value as Prometheus reads it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn text(view: &View, now: Millis, readers: usize) -> Exposition {
    let mut out = Exposition::default();
    let (cluster, postgres) = (&view.cluster, &view.postgres);
    let per_node = |value: &dyn Fn(u64) -> u64| -> Vec<(String, u64)> {
        cluster.members.keys().map(|id| (format!("{{node=\"{id}\"}}"), value(*id))).collect()
    };
    out.gauge("node_id", "This node's number.", view.id);
    out.gauge("driver_running", "1 if the sidecar's loop ran lately.", is_running(view, now).into());
    out.gauge(
        "driver_age_milliseconds",
        "Time since the sidecar's loop last ran.",
        now.saturating_sub(view.at),
    );
    out.gauge("member", "1 if this node is a member of its cluster.", (view.member && !view.removed).into());
    out.gauge("is_leader", "1 if this node is the primary and accepts writes.", leads(view, now).into());
    out.gauge("has_leader", "1 if this node knows a leader.", view.leader.is_some().into());
    out.metric("counter", "raft_term", "Raft's present term.", [(String::new(), view.term)]);
    out.metric("counter", "epoch", "Epoch of the primary this node knows.", [(String::new(), view.epoch)]);
    let index = [(String::new(), cluster.applied_index)];
    out.metric("counter", "applied_index", "Last entry of the cluster's log that this node applied.", index);
    let registered = cluster.registry.len() as u64;
    out.gauge("registered_servers", "Servers of others that are registered here.", registered);
    let lease = if leads(view, now) { view.lease_until.saturating_sub(now) } else { 0 };
    out.gauge("lease_remaining_milliseconds", "How long this node may go on accepting writes.", lease);
    out.gauge(
        "change_in_flight",
        "1 while a change of members or settings is on its way.",
        view.change_in_flight.into(),
    );
    out.gauge("postgres_running", "1 if PostgreSQL runs and answers.", postgres.is_running().into());
    out.gauge("postgres_in_recovery", "1 if PostgreSQL is a standby.", postgres.in_recovery.into());
    out.gauge("postgres_timeline", "Timeline of PostgreSQL.", postgres.timeline.into());
    out.metric(
        "counter",
        "wal_lsn_bytes",
        "End of the WAL on this node's disk.",
        [(String::new(), postgres.flush_lsn.0)],
    );
    let replayed = [(String::new(), postgres.replay_lsn.0)];
    out.metric("counter", "replay_lsn_bytes", "WAL that readers of this node see.", replayed);
    out.gauge("streaming", "1 if this standby streams from the primary.", postgres.streaming.into());
    let lag = super::node::NodeInfo::all(view).into_iter().filter_map(|node| node.lag());
    let lag = lag.map(|(id, bytes)| (format!("{{node=\"{id}\"}}"), bytes));
    out.metric(
        "gauge",
        "lag_bytes",
        "WAL of the leader that readers of a node do not see yet.",
        lag.collect::<Vec<_>>(),
    );
    let streams = |id| u64::from(view.nodes.get(&id).is_some_and(|status| status.streaming));
    out.metric("gauge", "node_streaming", "1 if the node streams.", per_node(&streams));
    let down = |id| u64::from(cluster.member(id).is_some_and(|member| member.down));
    out.metric("gauge", "node_down", "1 if the node is marked as down.", per_node(&down));
    let roles = [Role::Node, Role::Listener, Role::Witness].map(|role| {
        let count = cluster.members.values().filter(|member| member.role == role).count();
        (format!("{{role=\"{role}\"}}"), count as u64)
    });
    out.metric("gauge", "members", "Members of the cluster by role.", roles);
    out.gauge("acknowledging_standbys", "Standbys that every commit waits for.", cluster.durability.k as u64);
    out.gauge("channel_readers", "Clients that read channels from this node.", readers as u64);
    out.gauge(
        "pending_restart",
        "Parameters that wait for a restart.",
        postgres.pending_restart.len() as u64,
    );
    out
}
