//! What the database says of a channel that another cluster is to follow.

use super::subscription::Subscription;
use super::trouble::{Result, Trouble};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A row of `quorum.publication`. Two that are equal are worked for in the same way.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Publication {
    pub id: i32,
    /// Also of the subscription there.
    pub name: String,
    /// Addresses of the other cluster's nodes.
    pub remote: Vec<String>,
    pub remote_database: Option<String>,
    pub channel: String,
    pub tables: Option<Vec<String>>,
    pub filter: Option<BTreeMap<String, String>>,
    pub policy: String,
    pub ddl: String,
    pub on_purged: String,
    pub forward: bool,
    pub copy: String,
    pub start: Option<String>,
    pub jobs: i32,
    pub login: Option<String>,
    pub secret: Option<String>,
    pub ca: Option<String>,
    /// `None`: those of this cluster's nodes.
    pub own_addresses: Option<Vec<String>>,
    pub own_login: Option<String>,
    pub own_secret: Option<String>,
    pub own_ca: Option<String>,
    /// It is to be ended there.
    pub removing: bool,
    pub revision: i32,
}

impl std::fmt::Debug for Publication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Publication({}, {:?})", self.id, self.name)
    }
}

/// Where the other cluster finds what it is to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Addresses of this cluster's sidecars.
    pub addresses: Vec<String>,
    /// PEM text of the authority that signed their certificates.
    pub ca: Option<String>,
    pub database: String,
    pub origin: String,
}

impl Publication {
    /// # Errors
    /// The extension has another version of it.
    pub fn read(row: Value) -> Result<Publication> {
        // The parser's own message could quote a secret.
        serde_json::from_value(row).map_err(|_| {
            Trouble::stopped(
                "version",
                "the extension's table of publications is not the one that this program knows. Are both of the same version?",
            )
        })
    }

    /// How the other cluster is asked.
    pub fn way(&self) -> Subscription {
        Subscription {
            remote: self.remote.clone(),
            login: self.login.clone(),
            secret: self.secret.clone(),
            ca: self.ca.clone(),
            ..Subscription::default()
        }
    }

    /// The addresses that the other cluster is given.
    pub fn addresses<'a>(&'a self, own: &'a Own) -> &'a [String] {
        self.own_addresses.as_deref().unwrap_or(&own.addresses)
    }

    /// The body that makes the subscription there.
    pub fn wanted(&self, own: &Own) -> Value {
        let mut body = self.access(own);
        let more = [
            ("name", Some(json!(self.name))),
            ("channel", Some(json!(self.channel))),
            ("remote_database", Some(json!(own.database))),
            ("tables", self.tables.as_ref().map(|tables| json!(tables))),
            ("filter", self.filter.as_ref().map(|filter| json!(filter))),
            ("copy", Some(json!(self.copy))),
            ("start", self.start.as_ref().map(|start| json!(start))),
            ("policy", Some(json!(self.policy))),
            ("ddl", Some(json!(self.ddl))),
            ("on_purged", Some(json!(self.on_purged))),
            ("forward", Some(json!(self.forward))),
            ("jobs", Some(json!(self.jobs))),
        ];
        body.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        body.retain(|_, value| !value.is_null());
        body.into()
    }

    /// The body that tells the subscription there how this cluster is reached; what is null is taken away.
    pub fn changed(&self, own: &Own) -> Value {
        self.access(own).into()
    }

    fn access(&self, own: &Own) -> Map<String, Value> {
        let ca = self.own_ca.as_ref().or(own.ca.as_ref());
        let fields = [
            ("remote", json!(self.addresses(own))),
            ("login", json!(self.own_login)),
            ("secret", json!(self.own_secret)),
            ("ca", json!(ca)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Whether a subscription that the other cluster shows is the one that was made for this.
    pub fn is(&self, found: &Value, own: &Own) -> bool {
        let addresses = self.addresses(own);
        let ours = match found["remote_origin"].as_str() {
            Some(origin) => origin == own.origin,
            // It has not reached anybody yet.
            None => found["remote"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|address| addresses.iter().any(|known| address.as_str() == Some(known))),
        };
        ours && found["channel"] == self.channel.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication() -> Publication {
        Publication {
            name: "mirror".to_owned(),
            channel: "shop".to_owned(),
            copy: "none".to_owned(),
            secret: Some("s3cret".to_owned()),
            own_secret: Some("t0ken".to_owned()),
            ..Publication::default()
        }
    }

    fn own() -> Own {
        let addresses = vec!["http://a:1".to_owned(), "http://b:1".to_owned()];
        Own { addresses, ca: None, database: "sales".to_owned(), origin: "berlin".to_owned() }
    }

    #[test]
    fn the_other_cluster_is_told_how_this_one_is_reached() {
        let body = publication().wanted(&own());
        assert_eq!(
            (&body["remote"], &body["remote_database"]),
            (&json!(["http://a:1", "http://b:1"]), &json!("sales"))
        );
        assert_eq!((&body["secret"], body.get("login"), body.get("ca")), (&json!("t0ken"), None, None));
        assert!(!body.to_string().contains("s3cret"), "its own secret is not sent back to it");
        let changed =
            Publication { own_secret: None, own_ca: Some("PEM".to_owned()), ..publication() }.changed(&own());
        assert_eq!(
            changed,
            json!({"remote": ["http://a:1", "http://b:1"], "login": null, "secret": null, "ca": "PEM"})
        );
        assert!(!format!("{:?}", publication()).contains("ken"));
    }

    #[test]
    fn a_subscription_of_somebody_else_is_told_apart() {
        let is = |found: Value| publication().is(&found, &own());
        assert!(is(json!({"channel": "shop", "remote_origin": "berlin", "remote": ["http://old:1"]})));
        assert!(is(json!({"channel": "shop", "remote_origin": null, "remote": ["http://b:1"]})));
        assert!(!is(json!({"channel": "shop", "remote_origin": "paris", "remote": ["http://a:1"]})));
        assert!(!is(json!({"channel": "shop", "remote_origin": null, "remote": ["http://c:1"]})));
        assert!(!is(json!({"channel": "other", "remote_origin": "berlin", "remote": ["http://a:1"]})));
    }
}
