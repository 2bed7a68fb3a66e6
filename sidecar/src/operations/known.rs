//! What this cluster knows of others, as its admin database has it: so it is the same whoever leads.

use super::fault::Fault;
use super::request::{NewSelf, RouteTo};
use super::wanted::Named;
use crate::feed::{Call, Given, Source};
use crate::follow::{Base, Subscription};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A table that is exchanged with a neighbour, and in which directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    #[serde(flatten)]
    pub named: Named,
    pub subscribe: bool,
    pub publish: bool,
}

/// A cluster that was added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Neighbour {
    pub name: String,
    /// Addresses of its sidecars.
    pub remote: Vec<String>,
    pub tables: Vec<Flow>,
}

impl Neighbour {
    pub fn bases(&self) -> Vec<Base> {
        self.remote.iter().filter_map(|text| Base::parse(text)).collect()
    }
}

/// How this cluster logs in at others.
#[derive(Clone, Default)]
pub struct Login {
    pub user: Option<String>,
    pub secret: Option<String>,
    pub ca: Option<String>,
}

impl Login {
    /// A subscription with nothing in it but this.
    pub fn subscription(&self) -> Subscription {
        let Login { user, secret, ca } = self.clone();
        Subscription { login: user, secret, ca, ..Subscription::default() }
    }
}

#[derive(Deserialize)]
struct Document {
    node_name: Option<String>,
    login: Option<String>,
    has_secret: bool,
    ca: Option<String>,
    hub: Vec<RouteTo>,
    leaf: Vec<RouteTo>,
    nodes: Vec<Neighbour>,
}

/// All of it.
pub struct Known {
    /// The name that was given; `None`: none was.
    given_name: Option<String>,
    default_name: String,
    pub login: Login,
    pub hub: Vec<RouteTo>,
    pub leaf: Vec<RouteTo>,
    pub nodes: Vec<Neighbour>,
}

impl Known {
    /// Reads it. `cluster_id` is what the name is made of as long as none was given.
    pub async fn load(source: &dyn Source, cluster_id: &str) -> Result<Known, Fault> {
        let admin = source.default_database();
        let text = source.call(admin, Call::new("neighbours")).await?;
        let found: Document = serde_json::from_str(&text)
            .map_err(|error| Fault::unexpected(&format!("quorum.neighbours() cannot be read: {error}")))?;
        let secret = match found.has_secret {
            true => Some(source.call(admin, Call::new("neighbour_secret")).await?),
            false => None,
        };
        Ok(Known {
            given_name: found.node_name,
            default_name: format!("cluster-{}", cluster_id.get(..8).unwrap_or(cluster_id)),
            login: Login { user: found.login, secret, ca: found.ca },
            hub: found.hub,
            leaf: found.leaf,
            nodes: found.nodes,
        })
    }

    /// Under which name others know this cluster.
    pub fn name(&self) -> &str {
        self.given_name.as_deref().unwrap_or(&self.default_name)
    }

    pub fn node(&self, name: &str) -> Option<&Neighbour> {
        self.nodes.iter().find(|node| node.name == name)
    }

    pub fn routes(&self) -> impl Iterator<Item = &RouteTo> {
        self.hub.iter().chain(&self.leaf)
    }
}

pub async fn set_self(source: &dyn Source, new: NewSelf) -> Result<(), Fault> {
    let mut call = Call::new("set_neighbour_self");
    let arguments =
        [("node_name", new.node_name), ("login", new.login), ("secret", new.secret), ("ca", new.ca)];
    for (name, value) in arguments {
        if let Some(value) = value {
            call = call.with(name, "text", Given::Text(value));
        }
    }
    source.call(source.default_database(), call).await?;
    Ok(())
}

/// What became of the routes, as `quorum.set_neighbour_routes` says it.
pub async fn set_routes(source: &dyn Source, server: &str, routes: &[RouteTo]) -> Result<Value, Fault> {
    let routes = json!(routes).to_string();
    let call =
        Call::new("set_neighbour_routes").text("server", "text", server).text("routes", "jsonb", &routes);
    read(&source.call(source.default_database(), call).await?)
}

pub async fn delete_routes(source: &dyn Source, routes: &[RouteTo]) -> Result<Value, Fault> {
    let call = Call::new("delete_neighbour_routes").text("routes", "jsonb", &json!(routes).to_string());
    read(&source.call(source.default_database(), call).await?)
}

/// Remembers a neighbour with these tables; others that it has stay.
pub async fn put(source: &dyn Source, name: &str, remote: &[String], tables: &[Flow]) -> Result<(), Fault> {
    let call = Call::new("put_neighbour")
        .text("name", "text", name)
        .with("remote", "text[]", Given::Texts(remote.to_vec()))
        .text("tables", "jsonb", &json!(tables).to_string());
    source.call(source.default_database(), call).await?;
    Ok(())
}

pub async fn forget(source: &dyn Source, name: &str) -> Result<(), Fault> {
    source.call(source.default_database(), Call::new("drop_neighbour").text("name", "text", name)).await?;
    Ok(())
}

pub fn read(text: &str) -> Result<Value, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::unexpected(&format!("{error}: {text:?}")))
}
