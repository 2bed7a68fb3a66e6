//! Who follows the log: clients that say who they are, as this node saw them last.

use super::log::time;
use super::tick::Tick;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// So many are remembered, over all databases.
const MAX: usize = 256;

#[derive(Default)]
pub struct Clients {
    seen: Mutex<HashMap<(String, Name), Seen>>,
}

/// How a client calls itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Name {
    pub server: u64,
    pub syncer: u64,
    pub info: String,
}

struct Seen {
    served: Tick,
    at: SystemTime,
}

impl Clients {
    /// A client got everything up to a tick.
    pub fn served(&self, database: &str, name: Name, served: Tick, at: SystemTime) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (database.to_owned(), name);
        if seen.len() >= MAX && !seen.contains_key(&key) {
            let oldest = seen.iter().min_by_key(|(_, seen)| seen.at).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                seen.remove(&oldest);
            }
        }
        seen.insert(key, Seen { served, at });
    }

    /// Those of a database, as the logger's state lists them.
    pub fn list(&self, database: &str) -> Value {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut here: Vec<_> = seen.iter().filter(|((of, _), _)| of == database).collect();
        here.sort_by_key(|((_, name), _)| (name.server, name.syncer));
        let line = |((_, name), seen): &(&(String, Name), &Seen)| {
            let mut line = json!({"serverId": name.server.to_string(), "lastServedTick": seen.served.to_string(),
                "time": time(seen.at)});
            if name.syncer > 0 {
                line["syncerId"] = name.syncer.to_string().into();
            }
            if !name.info.is_empty() {
                line["clientInfo"] = name.info.clone().into();
            }
            line
        };
        here.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn clients_are_listed_where_they_read_and_the_oldest_are_forgotten() {
        let (clients, start) = (Clients::default(), SystemTime::UNIX_EPOCH);
        let name = |server| Name { server, ..Name::default() };
        for server in 1..=300 {
            clients.served("shop", name(server), Tick(server), start + Duration::from_secs(server));
        }
        clients.served("shop", name(300), Tick(1000), start + Duration::from_secs(1000));
        assert_eq!(clients.list("other"), json!([]));
        let list = clients.list("shop");
        assert_eq!(list.as_array().unwrap().len(), MAX);
        assert_eq!(list[0]["serverId"], "45");
        assert_eq!(
            list[MAX - 1],
            json!({"serverId": "300", "lastServedTick": "1000", "time": "1970-01-01T00:16:40Z"})
        );
        let named = Name { server: 7, syncer: 9, info: "cache".to_owned() };
        clients.served("other", named, Tick(1), start);
        assert_eq!(clients.list("other")[0]["clientInfo"], "cache");
    }
}
