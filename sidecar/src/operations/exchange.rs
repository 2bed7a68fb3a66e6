//! Adding, changing and removing nodes: both ends of what flows between this cluster and another one.

use super::engine::Engine;
use super::fault::Fault;
use super::known::{self, Flow, Known, Neighbour};
use super::others::{NodeInfo, Others};
use super::request::{Mode, NodeRequest};
use super::tables::{self, Leader, Present};
use super::wanted::{Described, Named, Wanted};
use crate::follow::{Remote, Source as _, Subscription};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long another cluster may take to do its half: it may have to make databases, and wait for locks on tables.
const MIRROR_DEADLINE: Duration = Duration::from_secs(25);
/// How long it may take to say what tables look like.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a node that is removed is tried to be told.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(3);
/// How long it may take to find the position that a time means.
const START_DEADLINE: Duration = Duration::from_secs(20);

impl Engine<'_> {
    /// Adds a node, or changes what is exchanged with it.
    pub async fn exchange(&self, mode: Mode, request: &NodeRequest) -> Result<Value, Fault> {
        let known = self.known().await?;
        let name = request.name.as_str();
        if name == known.name() {
            return Err(Fault::invalid("'node_name' cannot be this nodes name"));
        }
        match (mode, known.node(name)) {
            (Mode::Add, Some(_)) => {
                let message =
                    format!("Node '{name}' has already been added, perform update_node to proceed.");
                return Err(Fault::invalid(message));
            }
            (Mode::Update, None) => {
                let message = format!("Node '{name}' has not been added, perform add_node to proceed.");
                return Err(Fault::invalid(message));
            }
            _ => {}
        }
        let request = self.with_port(request);
        let others = self.others(&known);
        let found = others.find(&known, name, request.at.as_ref()).await?;
        self.link(&known, &others, &found, &request.tables).await?;
        if let Some(route) = &request.at {
            known::set_routes(self.source, "hub", std::slice::from_ref(route)).await?;
        }
        Ok(match mode {
            Mode::Add => json!({"message": format!("Successfully added '{name}' to manifest")}),
            Mode::Update | Mode::Either => json!({"message": format!("Successfully updated '{name}'")}),
        })
    }

    /// Drops all nodes, and adds these.
    pub async fn configure(&self, requests: &[NodeRequest]) -> Result<Value, Fault> {
        let known = self.known().await?;
        let others = self.others(&known);
        // All must be found, and all tables, before anything is dropped.
        let mut found = Vec::with_capacity(requests.len());
        for request in requests {
            if request.name == known.name() {
                return Err(Fault::invalid("'node_name' cannot be this nodes name"));
            }
            let request = self.with_port(request);
            found.push(others.find(&known, &request.name, request.at.as_ref()).await?);
        }
        for (request, node) in requests.iter().zip(&found) {
            self.prepare(&others, node, &request.tables).await?;
        }
        for node in &known.nodes {
            if let Err(why) = self.part(&known, node).await? {
                tracing::warn!(node = node.name, why, "a node that was removed could not be told");
            }
        }
        let known = self.known().await?;
        for (request, node) in requests.iter().zip(&found) {
            self.link(&known, &others, node, &request.tables).await?;
        }
        Ok(json!({"message": "Cluster successfully configured."}))
    }

    pub async fn remove(&self, name: &str) -> Result<Value, Fault> {
        let known = self.known().await?;
        let node = known.node(name).ok_or_else(|| Fault::no_node(name))?;
        let told = self.part(&known, node).await?;
        let mut answer = json!({"message": format!("Successfully removed '{name}' from manifest")});
        if let Err(why) = told {
            answer["warning"] = format!(
                "'{name}' could not be told, and goes on to follow this cluster if it did: remove '{}' there, too ({why})",
                known.name()
            )
            .into();
        }
        Ok(answer)
    }

    /// What another cluster was asked to do with this one.
    pub async fn mirror(
        &self,
        from: &str,
        addresses: &[String],
        tables: &[Described],
    ) -> Result<Value, Fault> {
        let known = self.known().await?;
        if from == known.name() {
            return Err(Fault::invalid(format!(
                "both clusters have the name '{from}'; set_configuration with clustering_nodeName gives one of them another"
            )));
        }
        for table in tables.iter().filter(|table| table.flows()) {
            tables::offer(self.source, &table.named, table.description.as_ref()).await?;
        }
        let mut positions = serde_json::Map::new();
        for database in databases(tables.iter().map(|table| &table.named)) {
            if tables.iter().any(|table| table.publish && table.named.database == database) {
                positions.insert(database.to_owned(), tables::end(self.source, database).await?.into());
            }
        }
        let starts: BTreeMap<&str, &str> = tables
            .iter()
            .filter_map(|table| Some((table.named.database.as_str(), table.position.as_deref()?)))
            .collect();
        let flow = |table: &Described| Flow {
            named: table.named.clone(),
            subscribe: table.subscribe,
            publish: table.publish,
        };
        let flows: Vec<Flow> = tables.iter().map(flow).collect();
        self.follow(&known, from, addresses, &flows, |database| starts.get(database).copied()).await?;
        known::put(self.source, from, addresses, &flows).await?;
        Ok(json!({"node_name": known.name(), "positions": positions}))
    }

    /// Another cluster has removed this one.
    pub async fn forget(&self, from: &str) -> Result<Value, Fault> {
        let known = self.known().await?;
        if let Some(node) = known.node(from) {
            self.unfollow(&known, node).await?;
        }
        Ok(json!({"message": format!("Successfully removed '{from}' from manifest")}))
    }

    /// What tables look like here; `null` for one that there is not.
    pub async fn describe(&self, tables: &[Named]) -> Result<Value, Fault> {
        let mut descriptions = Vec::with_capacity(tables.len());
        for named in tables {
            descriptions.push(match tables::describe(self.source, named).await? {
                Present::Table(description) => json!({"database": true, "table": description}),
                Present::Database => json!({"database": true, "table": null}),
                Present::Nothing => json!({"database": false, "table": null}),
            });
        }
        Ok(json!({ "tables": descriptions }))
    }

    /// Sets up both ends of what flows between the clusters. Doing it again changes nothing.
    async fn link(
        &self,
        known: &Known,
        others: &Others,
        found: &NodeInfo,
        wanted: &[Wanted],
    ) -> Result<(), Fault> {
        let name = found.node_name.as_str();
        // What flows from here begins before anything flows from there, so that the other side can begin at once.
        let descriptions = self.prepare(others, found, wanted).await?;
        let mut starts: BTreeMap<&str, Option<String>> = BTreeMap::new();
        for one in wanted.iter().filter(|one| one.publish) {
            if !starts.contains_key(one.table.database.as_str()) {
                let end = tables::end(self.source, &one.table.database).await?;
                starts.insert(&one.table.database, end);
            }
        }
        let described = |one: &Wanted| Described {
            named: one.table.clone(),
            // Seen from there.
            subscribe: one.publish,
            publish: one.subscribe,
            description: descriptions.get(&one.table).cloned(),
            position: starts.get(one.table.database.as_str()).cloned().flatten().filter(|_| one.publish),
        };
        let mirror = json!({
            "operation": "mirror_node",
            "node_name": known.name(),
            "addresses": self.addresses(),
            "subscriptions": wanted.iter().map(described).collect::<Vec<_>>(),
        });
        let answer = others.ask(&found.addresses, &mirror, MIRROR_DEADLINE).await;
        let answer = answer.map_err(|silence| silence.of(name))?;
        let flow =
            |one: &Wanted| Flow { named: one.table.clone(), subscribe: one.subscribe, publish: one.publish };
        let flows: Vec<Flow> = wanted.iter().map(flow).collect();
        let position = |database: &str| answer["positions"][database].as_str();
        let replayed = self.replayed(known, found, wanted).await?;
        self.follow(known, name, &found.addresses, &flows, position).await?;
        for (named, position) in replayed {
            tables::replay(self.source, name, named, &position).await?;
        }
        known::put(self.source, name, &found.addresses, &flows).await?;
        self.nudge.notify_one();
        Ok(())
    }

    /// Sees that all tables are here and offered, those that are missing as the other side has them. Returns what they look
    /// like.
    async fn prepare(
        &self,
        others: &Others,
        found: &NodeInfo,
        wanted: &[Wanted],
    ) -> Result<BTreeMap<Named, Value>, Fault> {
        let mut descriptions = BTreeMap::new();
        let mut missing: Vec<(&Named, Present)> = Vec::new();
        for one in wanted.iter().filter(|one| one.flows()) {
            match tables::describe(self.source, &one.table).await? {
                Present::Table(description) => {
                    descriptions.insert(one.table.clone(), description);
                }
                absent => missing.push((&one.table, absent)),
            }
        }
        if !missing.is_empty() {
            let asked: Vec<&Named> = missing.iter().map(|(named, _)| *named).collect();
            let body = json!({"operation": "describe_tables", "tables": asked});
            let answer = others.ask(&found.addresses, &body, DESCRIBE_DEADLINE).await;
            let answer = answer.map_err(|silence| silence.of(&found.node_name))?;
            for (place, (named, present)) in missing.into_iter().enumerate() {
                let there = &answer["tables"][place];
                if there["table"].is_object() {
                    descriptions.insert(named.clone(), there["table"].clone());
                } else if present == Present::Nothing && there["database"] != true {
                    return Err(Fault::no_database(&named.database));
                } else {
                    return Err(Fault::no_table(&named.database, &named.table.short()));
                }
            }
        }
        for (named, description) in &descriptions {
            tables::offer(self.source, named, Some(description)).await?;
        }
        Ok(descriptions)
    }

    /// The positions from which on tables are wanted that have a time to begin.
    async fn replayed<'a>(
        &self,
        known: &Known,
        found: &NodeInfo,
        wanted: &'a [Wanted],
    ) -> Result<Vec<(&'a Named, String)>, Fault> {
        let mut replayed = Vec::new();
        for one in wanted.iter().filter(|one| one.subscribe) {
            let Some(time) = one.start_us else { continue };
            let remote = Remote::new(&Subscription {
                remote: found.addresses.clone(),
                remote_database: Some(one.table.database.clone()),
                channel: tables::CHANNEL.to_owned(),
                ..known.login.subscription()
            })?;
            let position = tokio::time::timeout(START_DEADLINE, remote.position_at(time)).await;
            let position = position.map_err(|_| {
                Fault::not_now(format!(
                    "Node '{}' did not say in time where {} was at its start_time",
                    found.node_name, one.table
                ))
            })??;
            replayed.push((&one.table, position.to_string()));
        }
        Ok(replayed)
    }

    /// Follows a node in all databases that these tables are in: with them, and with what was followed there before.
    async fn follow<'a>(
        &self,
        known: &Known,
        name: &str,
        remote: &[String],
        flows: &[Flow],
        start: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<(), Fault> {
        let none = Vec::new();
        let before = known.node(name).map_or(&none, |node| &node.tables);
        let kept = before.iter().filter(|old| !flows.iter().any(|new| new.named == old.named));
        let all: Vec<&Flow> = kept.chain(flows).collect();
        let leader = Leader { name, remote, login: &known.login };
        for database in databases(flows.iter().map(|flow| &flow.named)) {
            let nothing = !all.iter().any(|flow| flow.subscribe && flow.named.database == database);
            let flows: &[&Flow] = if nothing { &[] } else { &all };
            tables::follow(self.source, &leader, database, flows, start(database)).await?;
        }
        self.nudge.notify_one();
        Ok(())
    }

    /// The nodes that were added are followed with another login.
    pub async fn follow_anew(&self, known: &Known) -> Result<(), Fault> {
        for node in &known.nodes {
            self.follow(known, &node.name, &node.remote, &node.tables, |_| None).await?;
        }
        Ok(())
    }

    /// Forgets a node here, and tries to tell it.
    async fn part(&self, known: &Known, node: &Neighbour) -> Result<Result<(), String>, Fault> {
        self.unfollow(known, node).await?;
        let farewell = json!({"operation": "forget_node", "node_name": known.name()});
        let told = self.others(known).ask(&node.remote, &farewell, FAREWELL_DEADLINE).await;
        Ok(told.map(drop).map_err(|silence| silence.message().to_owned()))
    }

    async fn unfollow(&self, known: &Known, node: &Neighbour) -> Result<(), Fault> {
        let leader = Leader { name: &node.name, remote: &node.remote, login: &known.login };
        for database in databases(node.tables.iter().map(|flow| &flow.named)) {
            tables::follow(self.source, &leader, database, &[], None).await?;
        }
        known::forget(self.source, &node.name).await?;
        self.nudge.notify_one();
        Ok(())
    }
}

fn databases<'a>(tables: impl Iterator<Item = &'a Named>) -> BTreeSet<&'a str> {
    tables.map(|named| named.database.as_str()).collect()
}
