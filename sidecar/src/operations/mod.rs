//! The operations interface: `POST /` with `{"operation": …}`, as clients of HarperDB know it. A *node* there is a whole
//! cluster here, called a neighbour in this code; what is exchanged with it are subscriptions ([`crate::follow`]), one for
//! each neighbour and database, of the tables in channel `cluster`.
//!
//! - `request` reads what is asked for, `checks` and `wanted` its fields; all of it without asking anybody.
//! - `known` is what the admin database remembers: this cluster's name, routes, neighbours.
//! - `others` asks other clusters; `tables` does what is to be done in the databases here.
//! - `exchange` sets up and takes down both ends, `status` looks at them.
//! - `fault` is how an operation is refused.
//!
//! Only the leader carries operations out; those that change something one after the other. Whatever is done in several steps
//! can be done again from its beginning, so an operation that was broken off is mended by repeating it.

mod checks;
mod engine;
mod exchange;
mod fault;
mod known;
mod others;
mod request;
mod status;
mod tables;
mod wanted;

pub use engine::Engine;
pub use fault::Fault;
pub use request::{NAMES, Operation};

use crate::feed::Call;
use request::{NewSelf, Purged};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use wanted::Named;

/// How long an operation waits for another one that changes something. One that another cluster asks for waits less, since that
/// one may be waited for here.
const TURN: Duration = Duration::from_secs(8);
const MIRROR_TURN: Duration = Duration::from_secs(3);

/// One after the other.
#[derive(Default)]
pub struct Turns(Mutex<()>);

impl Turns {
    /// Carries an operation out.
    ///
    /// # Errors
    /// What kept it from being carried out.
    pub async fn perform(&self, engine: &Engine<'_>, operation: Operation) -> Result<Value, Fault> {
        let wait = match operation {
            Operation::GetRoutes
            | Operation::Status
            | Operation::Network { .. }
            | Operation::GetConfiguration
            | Operation::NodeInfo
            | Operation::DescribeTables { .. } => return engine.perform(operation).await,
            Operation::Mirror { .. } | Operation::Forget { .. } => MIRROR_TURN,
            _ => TURN,
        };
        let _turn = self.take(wait).await?;
        engine.perform(operation).await
    }

    async fn take(&self, wait: Duration) -> Result<MutexGuard<'_, ()>, Fault> {
        tokio::time::timeout(wait, self.0.lock()).await.map_err(|_| {
            Fault::not_now("another operation that changes nodes or routes is under way here; try again")
        })
    }
}

impl Engine<'_> {
    async fn perform(&self, operation: Operation) -> Result<Value, Fault> {
        match operation {
            Operation::SetRoutes { server, routes } => {
                let done = known::set_routes(self.source, &server, &routes).await?;
                Ok(
                    json!({"message": "cluster routes successfully set", "set": done["set"], "skipped": done["skipped"]}),
                )
            }
            Operation::GetRoutes => {
                let known = self.known().await?;
                Ok(json!({"hub": known.hub, "leaf": known.leaf}))
            }
            Operation::DeleteRoutes { routes } => {
                let done = known::delete_routes(self.source, &routes).await?;
                Ok(
                    json!({"message": "cluster routes successfully deleted", "deleted": done["deleted"], "skipped": done["skipped"]}),
                )
            }
            Operation::Exchange { mode, node } => self.exchange(mode, &node).await,
            Operation::Remove { name } => self.remove(&name).await,
            Operation::Configure { nodes } => self.configure(&nodes).await,
            Operation::Status => self.status().await,
            Operation::Network { timeout, connected_nodes, routes } => {
                self.network(timeout, connected_nodes, routes).await
            }
            Operation::Purge { table, purged } => self.purge(&table, purged).await,
            Operation::SetConfiguration(new) => self.set_configuration(new).await,
            Operation::GetConfiguration => self.configuration().await,
            Operation::NodeInfo => Ok(json!(self.info(&self.known().await?))),
            Operation::DescribeTables { tables } => self.describe(&tables).await,
            Operation::Mirror { from, addresses, tables } => self.mirror(&from, &addresses, &tables).await,
            Operation::Forget { from } => self.forget(&from).await,
        }
    }

    async fn purge(&self, table: &Named, purged: Purged) -> Result<Value, Fault> {
        match tables::describe(self.source, table).await? {
            tables::Present::Nothing => return Err(Fault::no_database(&table.database)),
            tables::Present::Database => {
                return Err(Fault::no_table(&table.database, &table.table.short()));
            }
            tables::Present::Table(_) => {}
        }
        if !tables::is_offered(self.source, table).await? {
            let message = format!("Table '{table}' has no stream: it is exchanged with no node");
            return Err(Fault::new(404, message));
        }
        let count = async || -> Result<u64, Fault> {
            let states = self.source.states(&table.database, Some(tables::CHANNEL)).await?;
            Ok(states.first().and_then(|state| state["first_tick"].as_u64()).unwrap_or_default())
        };
        let before = count().await?;
        let call = Call::new("purge").text("channel", "text", tables::CHANNEL);
        let call = match purged {
            Purged::Keep(changes) => call.with("keep", "int8", crate::feed::Given::Number(changes)),
            Purged::Before(tick) => call.text("before", "text", &tick.to_string()),
        };
        self.source.call(&table.database, call).await?;
        let gone = count().await?.saturating_sub(before);
        Ok(json!({"message": format!("Successfully purged table '{table}'"), "purged": gone}))
    }

    async fn set_configuration(&self, new: NewSelf) -> Result<Value, Fault> {
        let known = self.known().await?;
        let renamed = new.node_name.as_deref().is_some_and(|name| name != known.name());
        if renamed && !known.nodes.is_empty() {
            let message = "'clustering_nodeName' cannot be changed while nodes are added, who know this one by its name: \
                           remove_node them first";
            return Err(Fault::invalid(message));
        }
        let login_changes = new.login.is_some() || new.secret.is_some() || new.ca.is_some();
        known::set_self(self.source, new).await?;
        if login_changes {
            self.follow_anew(&self.known().await?).await?;
        }
        Ok(json!({"message": "Configuration successfully set."}))
    }

    async fn configuration(&self) -> Result<Value, Fault> {
        let known = self.known().await?;
        let port = self.own_port();
        Ok(json!({
            "clustering": {
                "enabled": true,
                "nodeName": known.name(),
                "user": known.login.user,
                "hasSecret": known.login.secret.is_some(),
                "ca": known.login.ca,
                "hubServer": {"cluster": {"network": {"port": port, "routes": known.hub}}},
                "leafServer": {"network": {"port": port, "routes": known.leaf}},
            },
            "operationsApi": {"network": {"port": port}},
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_another_operation_in_vain_is_told_so() {
        let turns = Turns::default();
        let held = turns.take(TURN).await.expect("nobody else is there");
        let refused = turns.take(Duration::from_millis(20)).await.expect_err("it is taken");
        let told = "another operation that changes nodes or routes is under way here; try again";
        assert_eq!((refused.status, refused.message.as_str()), (503, told));
        drop(held);
        assert!(turns.take(TURN).await.is_ok());
    }
}
