//! The applier's settings, with ArangoDB's names and defaults.

use super::fault::{Fault, INVALID_CONFIG, Result};
use crate::follow::{Base, Subscription, Wire};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use std::time::Duration;

/// A time in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Seconds(f64);

impl Serialize for Seconds {
    /// Whole ones without a point, as clients know them.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        if self.0.fract() == 0.0 {
            // The settings' limits are far below.
            serializer.serialize_i64(self.0 as i64)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

impl Seconds {
    pub fn duration(self) -> Duration {
        Duration::try_from_secs_f64(self.0).unwrap_or(Duration::MAX)
    }

    /// The same, where 0 stands for the default.
    pub fn or(self, seconds: f64) -> Duration {
        if self.0 == 0.0 { Seconds(seconds).duration() } else { self.duration() }
    }
}

/// What the applier follows, and how. Serialised in the order in which ArangoDB shows it, without the password.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// `tcp://host:port` or `ssl://host:port`; several nodes of one cluster with commas between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    pub request_timeout: Seconds,
    pub connect_timeout: Seconds,
    /// How many events that do not fit may be passed over before the applier stops.
    pub ignore_errors: u64,
    pub max_connect_retries: u64,
    pub lock_timeout_retries: u64,
    pub ssl_protocol: u64,
    /// Bytes of one answer; 0: a megabyte.
    pub chunk_size: u64,
    pub skip_create_drop: bool,
    pub auto_start: bool,
    pub adaptive_polling: bool,
    pub auto_resync: bool,
    pub auto_resync_retries: u64,
    /// Bytes of the largest answer that is read.
    pub max_packet_size: u64,
    pub include_system: bool,
    pub include_foxx_queues: bool,
    pub require_from_present: bool,
    pub verbose: bool,
    pub incremental: bool,
    /// `include`, `exclude`, or empty.
    pub restrict_type: String,
    pub restrict_collections: Vec<String>,
    pub connection_retry_wait_time: Seconds,
    pub initial_sync_max_wait_time: Seconds,
    pub idle_min_wait_time: Seconds,
    pub idle_max_wait_time: Seconds,
    /// PEM text of the authority that signed the certificate of an `ssl://` endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            endpoint: None,
            database: None,
            username: None,
            request_timeout: Seconds(600.0),
            connect_timeout: Seconds(10.0),
            ignore_errors: 0,
            max_connect_retries: 100,
            lock_timeout_retries: 0,
            ssl_protocol: 0,
            chunk_size: 0,
            skip_create_drop: false,
            auto_start: false,
            adaptive_polling: true,
            auto_resync: false,
            auto_resync_retries: 2,
            max_packet_size: 536_870_912,
            include_system: true,
            include_foxx_queues: false,
            require_from_present: true,
            verbose: false,
            incremental: false,
            restrict_type: String::new(),
            restrict_collections: Vec::new(),
            connection_retry_wait_time: Seconds(15.0),
            initial_sync_max_wait_time: Seconds(300.0),
            idle_min_wait_time: Seconds(1.0),
            idle_max_wait_time: Seconds(2.5),
            ca: None,
        }
    }
}

/// What a setting takes.
#[derive(Clone, Copy)]
enum Is {
    Text,
    Flag,
    /// Up to this.
    Whole(u64),
    /// Seconds, up to a day.
    Time,
    Texts,
}

const TIME_MAX: f64 = 86400.0;

const SETTINGS: &[(&str, Is)] = &[
    ("endpoint", Is::Text),
    ("database", Is::Text),
    ("username", Is::Text),
    ("password", Is::Text),
    ("requestTimeout", Is::Time),
    ("connectTimeout", Is::Time),
    ("ignoreErrors", Is::Whole(u64::MAX >> 11)),
    ("maxConnectRetries", Is::Whole(u64::MAX >> 11)),
    ("lockTimeoutRetries", Is::Whole(u64::MAX >> 11)),
    ("sslProtocol", Is::Whole(99)),
    ("chunkSize", Is::Whole(128 << 20)),
    ("skipCreateDrop", Is::Flag),
    ("autoStart", Is::Flag),
    ("adaptivePolling", Is::Flag),
    ("autoResync", Is::Flag),
    ("autoResyncRetries", Is::Whole(u64::MAX >> 11)),
    ("maxPacketSize", Is::Whole(4 << 30)),
    ("includeSystem", Is::Flag),
    ("includeFoxxQueues", Is::Flag),
    ("requireFromPresent", Is::Flag),
    ("verbose", Is::Flag),
    ("incremental", Is::Flag),
    ("restrictType", Is::Text),
    ("restrictCollections", Is::Texts),
    ("connectionRetryWaitTime", Is::Time),
    ("initialSyncMaxWaitTime", Is::Time),
    ("idleMinWaitTime", Is::Time),
    ("idleMaxWaitTime", Is::Time),
    ("ca", Is::Text),
];

impl Config {
    /// Reads what the extension keeps.
    ///
    /// # Errors
    /// It was written by a program of another version.
    pub fn read(kept: &Value) -> Result<Config> {
        Config::deserialize(kept).map_err(|_| {
            Fault::stopped(
                INVALID_CONFIG,
                "the settings of the applier do not read as this program writes them; set them anew with PUT \
                 /_api/replication/applier-config",
            )
        })
    }

    /// These settings with those of a request in place of what was there; null is the default. Also the password, if the request
    /// has one. Settings that nobody knows are passed over, as by ArangoDB.
    ///
    /// # Errors
    /// A value is none that the setting takes.
    pub fn merged(&self, body: &Map<String, Value>) -> Result<(Config, Option<String>)> {
        let mut merged = match serde_json::to_value(self) {
            Ok(Value::Object(merged)) => merged,
            _ => Map::new(),
        };
        let mut password = None;
        for (name, is) in SETTINGS {
            let Some(value) = body.get(*name) else { continue };
            if value.is_null() {
                merged.remove(*name);
                continue;
            }
            if let Some(expected) = refused(value, *is) {
                // The value is not shown: it may be what belongs into another field.
                return Err(Fault::stopped(INVALID_CONFIG, format!("{name} must be {expected}")));
            }
            if *name == "password" {
                password = value.as_str().map(str::to_owned);
            } else {
                merged.insert((*name).to_owned(), value.clone());
            }
        }
        for empty in ["database", "username", "ca"] {
            if merged.get(empty).is_some_and(|value| value == "") {
                merged.remove(empty);
            }
        }
        let config = Config::read(&Value::Object(merged))?;
        if config.endpoint.is_some() {
            config.bases()?;
        }
        let (kind, list) = (config.restrict_type.as_str(), &config.restrict_collections);
        if !matches!((kind, list.is_empty()), ("", true) | ("include" | "exclude", false)) {
            let message = "invalid value for <restrictCollections> or <restrictType>: restrictType is include or exclude, and \
                           restrictCollections then names at least one collection; or neither is given";
            return Err(Fault::event(400, message));
        }
        Ok((config, password))
    }

    /// The addresses of the remote's nodes.
    ///
    /// # Errors
    /// There is none, or one is not of the form that endpoints have.
    pub fn bases(&self) -> Result<Vec<Base>> {
        let wrong = || {
            // Not shown: somebody may have put a password into it.
            let message = "<endpoint> must be a valid endpoint: tcp://host:port or ssl://host:port, several nodes of one cluster \
                           with commas between them";
            Fault::stopped(INVALID_CONFIG, message)
        };
        let parse = |one: &str| {
            let one = one.trim();
            let (scheme, rest) = one.split_once("://")?;
            let scheme = match scheme {
                "tcp" | "http" | "http+tcp" => "http",
                "ssl" | "https" | "http+ssl" => "https",
                _ => return None,
            };
            let rest = rest.trim_end_matches('/');
            (!rest.contains(['@', '/', '?'])).then(|| Base::parse(&format!("{scheme}://{rest}"))).flatten()
        };
        let endpoint = self.endpoint.as_deref().filter(|text| !text.is_empty()).ok_or_else(wrong)?;
        endpoint.split(',').map(parse).collect::<Option<Vec<_>>>().ok_or_else(wrong)
    }

    /// Connections by these settings.
    ///
    /// # Errors
    /// There is no valid endpoint, or an authority is missing where it is needed.
    pub fn wire(&self, password: Option<&str>) -> Result<(Wire, Vec<Base>)> {
        let bases = self.bases()?;
        let login = Subscription {
            login: self.username.clone(),
            // Without a name there is nothing to log in with.
            secret: self.username.as_ref().map(|_| password.unwrap_or_default().to_owned()),
            ca: self.ca.clone(),
            ..Subscription::default()
        };
        let wire = Wire::new(&login, &bases).map_err(|_| {
            let message = "an endpoint with ssl:// needs <ca>, the PEM text of the authority that signed its certificate; and what \
                           is given as <ca> must be such a text";
            Fault::stopped(INVALID_CONFIG, message)
        })?;
        Ok((wire.connecting_within(self.connect_timeout.or(10.0)), bases))
    }

    /// Whether a collection of this name is wanted. `ours`: the remote is one of ours, where none is a system collection.
    pub fn wants(&self, collection: &str, ours: bool) -> bool {
        let listed = || self.restrict_collections.iter().any(|name| name == collection);
        let restricted = match self.restrict_type.as_str() {
            "include" => !listed(),
            "exclude" => listed(),
            _ => false,
        };
        !restricted && (self.include_system || ours || !is_system(collection))
    }
}

/// ArangoDB's own collections begin so.
pub fn is_system(collection: &str) -> bool {
    collection.starts_with('_')
}

/// What the setting takes, if this is something else.
fn refused(value: &Value, is: Is) -> Option<String> {
    let (fits, expected) = match is {
        Is::Text => (value.is_string(), "a text".to_owned()),
        Is::Flag => (value.is_boolean(), "true or false".to_owned()),
        Is::Whole(max) => {
            (value.as_u64().is_some_and(|n| n <= max), format!("a whole number from 0 to {max}"))
        }
        Is::Time => (
            value.as_f64().is_some_and(|n| (0.0..=TIME_MAX).contains(&n)),
            format!("a number of seconds from 0 to {TIME_MAX}"),
        ),
        Is::Texts => {
            let fits = value.as_array().is_some_and(|all| all.iter().all(Value::is_string));
            (fits, "a list of names".to_owned())
        }
    };
    (!fits).then_some(expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn settings_are_merged_and_shown_without_the_password() {
        let first = body(json!({"endpoint": "tcp://10.0.0.1:8529", "username": "root", "password": "hush",
            "idleMaxWaitTime": 2.5, "requestTimeout": 5, "unknown": {}}));
        let (config, password) = Config::default().merged(&first).unwrap();
        assert_eq!(password.as_deref(), Some("hush"));
        let shown = serde_json::to_string(&config).unwrap();
        assert!(!shown.contains("hush") && !shown.contains("unknown"), "{shown}");
        assert!(
            shown.starts_with(
                r#"{"endpoint":"tcp://10.0.0.1:8529","username":"root","requestTimeout":5,"connectTimeout":10,"ignoreErrors":0"#
            ),
            "{shown}"
        );
        assert!(shown.ends_with(r#""idleMinWaitTime":1,"idleMaxWaitTime":2.5}"#), "{shown}");
        let second = body(json!({"chunkSize": 1000, "requestTimeout": null}));
        let (merged, none) = config.merged(&second).unwrap();
        assert_eq!((merged.chunk_size, merged.request_timeout, none), (1000, Seconds(600.0), None));
        assert_eq!(merged.username.as_deref(), Some("root"));
        assert_eq!(Config::read(&serde_json::to_value(&merged).unwrap()).unwrap(), merged);
    }

    #[test]
    fn what_a_setting_does_not_take_is_refused() {
        for (wrong, number) in [
            (json!({"chunkSize": -1}), 1410),
            (json!({"chunkSize": "many"}), 1410),
            (json!({"autoStart": 1}), 1410),
            (json!({"idleMinWaitTime": 1e9}), 1410),
            (json!({"restrictCollections": "a"}), 1410),
            (json!({"endpoint": "10.0.0.1:8529"}), 1410),
            (json!({"endpoint": "tcp://me:hush@a:1"}), 1410),
            (json!({"endpoint": "tcp://a:1,,tcp://b:1"}), 1410),
            (json!({"restrictType": "include"}), 400),
            (json!({"restrictType": "some", "restrictCollections": ["a"]}), 400),
            (json!({"restrictCollections": ["a"]}), 400),
        ] {
            let fault = Config::default().merged(&body(wrong.clone())).unwrap_err();
            assert_eq!(fault.number, number, "{wrong}: {fault}");
            assert!(!fault.message.contains("hush"), "{fault}");
        }
        assert_eq!(Config::default().bases().unwrap_err().number, 1410);
    }

    #[test]
    fn endpoints_are_of_arangodbs_forms() {
        let config = |endpoint: &str| Config { endpoint: Some(endpoint.to_owned()), ..Config::default() };
        let bases = config("tcp://a:1, ssl://[::1]:2,http://b:3").bases().unwrap();
        let texts: Vec<String> = bases.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["http://a:1", "https://[::1]:2", "http://b:3"]);
        assert_eq!(config("ssl://a:1").wire(None).err().unwrap().number, 1410);
    }

    #[test]
    fn collections_are_wanted_by_name() {
        let restricted = |kind: &str| {
            let given = body(json!({"restrictType": kind, "restrictCollections": ["a", "_b"]}));
            Config::default().merged(&given).unwrap().0
        };
        assert!(restricted("include").wants("a", false) && !restricted("include").wants("c", false));
        assert!(!restricted("exclude").wants("_b", false) && restricted("exclude").wants("c", false));
        let plain = Config { include_system: false, ..Config::default() };
        assert!(plain.wants("a", false) && !plain.wants("_graphs", false) && plain.wants("_graphs", true));
    }
}
