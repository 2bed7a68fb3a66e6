//! What every operation has at hand.

use super::fault::Fault;
use super::known::Known;
use super::others::{Acquaintance, NodeInfo, Others};
use super::request::{NodeRequest, RouteTo};
use crate::feed::Source;
use pgquorum_agent::view::View;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The cluster, as its leader carries operations out.
pub struct Engine<'a> {
    pub source: &'a dyn Source,
    pub view: Arc<View>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Tells those who work for subscriptions that one was changed.
    pub nudge: &'a Notify,
    /// How long this sidecar runs.
    pub uptime: Duration,
}

impl Engine<'_> {
    pub async fn known(&self) -> Result<Known, Fault> {
        Known::load(self.source, &self.view.cluster.cluster_id).await
    }

    pub fn others(&self, known: &Known) -> Others {
        Others::new(known.login.clone(), self.scheme)
    }

    /// The addresses of this cluster's sidecars that hold data, this one first.
    pub fn addresses(&self) -> Vec<String> {
        crate::follow::addresses(&self.view, self.scheme)
    }

    pub fn info(&self, known: &Known) -> NodeInfo {
        let acquaintance = |node: &super::known::Neighbour| Acquaintance {
            name: node.name.clone(),
            addresses: node.remote.clone(),
        };
        NodeInfo {
            node_name: known.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.uptime.as_secs(),
            addresses: self.addresses(),
            routes: known.routes().cloned().collect(),
            nodes: known.nodes.iter().map(acquaintance).collect(),
        }
    }

    /// The port of this node's REST interface.
    pub fn own_port(&self) -> u16 {
        self.view.cluster.member(self.view.id).map_or(0, |member| member.api_port)
    }

    /// A host without a port is at the port that is used here.
    pub fn with_port(&self, request: &NodeRequest) -> NodeRequest {
        let mut request = request.clone();
        if let Some(RouteTo { port, .. }) = &mut request.at
            && *port == 0
        {
            *port = self.own_port();
        }
        request
    }
}
