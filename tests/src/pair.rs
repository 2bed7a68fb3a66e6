//! Two clusters, of which one follows the other.

use crate::{Cluster, PATIENCE, await_until};
use serde_json::{Value, json};

/// A source and a target with one subscription, `mirror`.
pub struct Pair {
    pub source: Cluster,
    pub target: Cluster,
}

impl Pair {
    /// Two clusters of so many nodes each, with these statements run on both leaders.
    pub fn start(nodes: (usize, usize), tables: &str) -> Pair {
        let (source, target) = std::thread::scope(|scope| {
            let source = scope.spawn(move || Cluster::start_steady(nodes.0));
            let target = Cluster::start_steady(nodes.1);
            (source.join().expect("a cluster"), target)
        });
        let pair = Pair { source, target };
        pair.source.sql(tables);
        pair.target.sql(tables);
        pair
    }

    /// Puts tables of the source into channel `shop`.
    ///
    /// # Panics
    /// The source does not take that.
    pub fn track(&self, tables: &[&str]) {
        let ask = |path: &str, body: Value| {
            await_until(PATIENCE, path, || match self.source.post(self.source.leader(), path, Some(&body)) {
                (200 | 409, _) => Ok(()),
                // Nobody leads for a moment, or somebody else does.
                (status @ (417 | 530 | 531), answer) => Err(format!("{status} {answer}")),
                (status, answer) => panic!("{path} {body}: {status} {answer}"),
            });
        };
        ask("/channels", json!({"name": "shop"}));
        for table in tables {
            ask("/channels/shop/tables", json!({"table": table}));
        }
    }

    /// The addresses of all nodes of the source.
    pub fn remote(&self) -> Value {
        let nodes = self.source.status().nodes;
        nodes.iter().map(|node| format!("http://127.0.0.1:{}", node.api_port())).collect::<Vec<_>>().into()
    }

    /// Subscribes over REST, with further settings.
    ///
    /// # Panics
    /// It is refused.
    pub fn subscribe(&self, more: &Value) -> Value {
        let mut body = json!({"name": "mirror", "remote": self.remote(), "channel": "shop"});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let (status, answer) = self.target.post(self.target.leader(), "/subscriptions", Some(&body));
        assert_eq!(status, 200, "{body}: {answer}");
        answer
    }

    /// The subscription as the target's leader shows it.
    ///
    /// # Errors
    /// The leader does not answer now.
    pub fn state(&self) -> Result<Value, String> {
        let leader = self.target.status().leader.ok_or("no leader")?;
        let port = self.target.node(leader).api_port();
        match crate::request(port, "GET", "/subscriptions/mirror", None) {
            Ok((200, state)) => Ok(state),
            Ok((status, answer)) => Err(format!("{status} {answer}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits until the subscription is in this state, with this code.
    ///
    /// # Panics
    /// The time is over.
    pub fn await_state(&self, state: &str, code: Option<&str>) -> Value {
        await_until(PATIENCE, &format!("state {state}, code {code:?}"), || {
            let found = self.state()?;
            if found["state"] == state && found["code"].as_str() == code {
                Ok(found)
            } else {
                Err(found.to_string())
            }
        })
    }

    /// Waits until everything that is committed at the source now is applied.
    ///
    /// # Panics
    /// The time is over.
    pub fn await_applied(&self) {
        let end = await_until(PATIENCE, "the end of the channel", || {
            let leader = self.source.status().leader.ok_or("no leader")?;
            self.source.try_ask(leader, "SELECT quorum.cut('shop')")
        });
        let tick = |text: &str| text.split_once(':').and_then(|(_, tick)| tick.parse::<u64>().ok());
        await_until(PATIENCE * 2, &format!("position {end}"), || {
            let found = self.state()?;
            let here = found["position"].as_str().and_then(tick);
            if here.is_some_and(|here| Some(here) >= tick(&end)) { Ok(()) } else { Err(found.to_string()) }
        });
    }

    /// The table has the same rows on both sides.
    ///
    /// # Panics
    /// It has not.
    pub fn assert_same(&self, table: &str) {
        let sum = format!(
            "SELECT count(*) || ' rows, ' || coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '-') FROM {table} AS t"
        );
        let there = self.source.ask(self.source.leader(), &sum);
        let here = self.target.ask(self.target.leader(), &sum);
        assert_eq!(here, there, "{table}");
    }

    /// Waits until changes are applied that come after those that are applied now.
    ///
    /// # Panics
    /// None is, in time.
    pub fn await_progress(&self) {
        let position = || Ok::<_, String>(self.state()?["position"].clone());
        let mut before = None;
        await_until(PATIENCE, "further changes are applied", || {
            let now = position()?;
            let first = before.get_or_insert_with(|| now.clone());
            if *first == now { Err(format!("still at {now}")) } else { Ok(()) }
        });
    }

    /// Waits until nobody works for the subscription any more, by the metrics of the target's leader. What is committed at the
    /// source from then on is not applied.
    ///
    /// # Panics
    /// Somebody does when the time is over.
    pub fn await_rest(&self) {
        await_until(PATIENCE, "nobody works for it", || {
            let (_, answer) = self.target.get(self.target.leader(), "/metrics");
            let text = answer.as_str().unwrap_or_default();
            match text.lines().find(|line| line.contains("subscription=\"mirror\"")) {
                Some(line) => Err(line.to_owned()),
                None if text.contains("pgquorum_") => Ok(()),
                None => Err(answer.to_string()),
            }
        });
    }

    /// The tables of the subscription, as the target's leader shows them.
    ///
    /// # Errors
    /// The leader does not answer now.
    pub fn tables(&self) -> Result<Vec<Value>, String> {
        let leader = self.target.status().leader.ok_or("no leader")?;
        match crate::request(self.target.node(leader).api_port(), "GET", "/subscriptions/mirror/tables", None)
        {
            Ok((200, Value::Array(tables))) => Ok(tables),
            Ok((status, answer)) => Err(format!("{status} {answer}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits until a table of schema `public` is in this state, with this code, and returns what is said of it.
    ///
    /// # Panics
    /// The time is over.
    pub fn await_table(&self, table: &str, state: &str, code: Option<&str>) -> String {
        await_until(PATIENCE, &format!("table {table} {state}, code {code:?}"), || {
            let tables = self.tables()?;
            let found = tables.iter().find(|one| one["schema"] == "public" && one["table"] == table);
            match found {
                Some(one) if one["state"] == state && one["code"].as_str() == code => {
                    Ok(one["message"].as_str().unwrap_or_default().to_owned())
                }
                Some(one) => Err(one.to_string()),
                None => Err(format!("not among {tables:?}")),
            }
        })
    }

    /// Lets a stopped table go on, as `quorum.resume_table` does, or copied anew.
    ///
    /// # Panics
    /// It is refused.
    pub fn resume(&self, table: &str, copy: bool) {
        let path = format!("/subscriptions/mirror/tables/public.{table}/resume");
        let (status, answer) = self.target.post(self.target.leader(), &path, Some(&json!({"copy": copy})));
        assert_eq!(status, 200, "{table}: {answer}");
    }

    /// Changes settings of the subscription.
    ///
    /// # Panics
    /// It is refused.
    pub fn alter(&self, settings: &Value) {
        let leader = self.target.leader();
        let (status, answer) = self.target.send(leader, "PATCH", "/subscriptions/mirror", Some(settings));
        assert_eq!(status, 200, "{settings}: {answer}");
    }
}
