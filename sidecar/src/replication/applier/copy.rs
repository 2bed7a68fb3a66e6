//! Copies all tables: what is in them here is replaced by what is in the remote's collections, in one transaction.
//!
//! The remote holds a snapshot meanwhile, and says where its log ended then. Readers here see the old rows until the commit.

use super::config::{Config, is_system};
use super::events::{self, Change};
use super::fault::{Fault, Kind, LOOP, Result};
use super::here::{Here, Parameter, Writer};
use super::keys;
use super::remote::{BATCH_RENEWAL, Batch, Identity, Remote, number_of, origin};
use super::tables::Table;
use super::writing::Tables;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::types::Type;

/// How often a part of a collection is asked for, if the remote can go on in the middle of it.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is said how far the copy is.
const SAY: Duration = Duration::from_secs(2);

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Numbers and names.
    pub collections: Vec<(String, String)>,
    /// From where the log is to be followed.
    pub tick: u64,
}

/// Copies everything that the settings name. `generation`: for the applier, which goes on from there; its state says how far the
/// copy is. Else the applier must rest meanwhile.
///
/// # Errors
/// Nothing was changed then.
pub async fn sync(
    here: &Arc<Here>,
    remote: &Remote,
    identity: &Identity,
    config: &Config,
    generation: Option<i64>,
) -> Result<Synced> {
    not_itself(here, remote, identity).await?;
    let batch = remote.begin_batch().await?;
    let copy = Copy { here: Arc::clone(here), remote, identity, config, generation, batch: &batch };
    let copied = copy.run().await;
    // It ends by itself, too.
    let _ = remote.end_batch(&batch.id).await;
    copied
}

/// # Errors
/// The remote is this database.
pub async fn not_itself(here: &Here, remote: &Remote, identity: &Identity) -> Result<()> {
    let same = remote.database == here.database || (remote.database == "_system" && here.is_system());
    if identity.ours && same && here.me().await?.to_string() == identity.server_id {
        return Err(Fault::stopped(
            LOOP,
            "the endpoint is this very cluster, and the database this very database; look at endpoint and database",
        ));
    }
    Ok(())
}

/// Names of collections by their numbers, from an inventory.
pub fn names(inventory: &Value) -> HashMap<String, String> {
    let mut names = HashMap::new();
    for one in inventory["collections"].as_array().into_iter().flatten() {
        let parameters = &one["parameters"];
        let Some(name) = parameters["name"].as_str() else { continue };
        for id in ["cid", "id", "globallyUniqueId"] {
            let id = &parameters[id];
            let id = id.as_str().map(str::to_owned).or_else(|| Some(id.as_u64()?.to_string()));
            if let Some(id) = id {
                names.insert(id, name.to_owned());
            }
        }
    }
    names
}

struct Copy<'a> {
    here: Arc<Here>,
    remote: &'a Remote,
    identity: &'a Identity,
    config: &'a Config,
    generation: Option<i64>,
    batch: &'a Batch,
}

impl Copy<'_> {
    async fn run(&self) -> Result<Synced> {
        let inventory = self.remote.inventory(&self.batch.id).await?;
        let tick = self.batch.tick.or_else(|| number_of(&inventory["state"]["lastLogTick"]));
        let tick = tick
            .ok_or_else(|| Fault::invalid("neither the batch nor the inventory says where the log ends"))?;
        let mut tables = Tables::new(Arc::clone(&self.here), self.identity.ours);
        let wanted = self.wanted(&inventory, &mut tables).await?;
        let writer = self.here.writer(false).await?;
        let origin = origin(&self.identity.server_id, &self.remote.database);
        writer.begin(&origin).await?;
        if self.generation.is_none() {
            writer.run("SELECT quorum.applier_idle()").await.map_err(busy)?;
        }
        let mut progress = Progress { renewed: Instant::now(), said: None, rows: 0 };
        for (_, name) in &wanted {
            self.collection(&writer, &mut tables, name, &mut progress).await?;
        }
        if let Some(generation) = self.generation {
            let text = tick.to_string();
            let values: [Parameter; 2] = [(&generation, Type::INT8), (&text, Type::TEXT)];
            writer.ask("SELECT quorum.applier_synced($1, $2::numeric)", &values).await?;
        }
        writer.run("COMMIT").await?;
        tracing::info!(
            database = self.here.database,
            collections = wanted.len(),
            rows = progress.rows,
            "collections of a remote were copied"
        );
        Ok(Synced { collections: wanted, tick })
    }

    /// The collections that are copied. Each has a table here afterwards; nothing else is changed.
    async fn wanted(&self, inventory: &Value, tables: &mut Tables) -> Result<Vec<(String, String)>> {
        let all = inventory["collections"].as_array();
        let all = all.ok_or_else(|| Fault::invalid("an inventory without collections"))?;
        let (mut wanted, mut missing) = (Vec::new(), Vec::new());
        for one in all {
            let parameters = &one["parameters"];
            let name =
                parameters["name"].as_str().ok_or_else(|| Fault::invalid("a collection without a name"))?;
            if parameters["deleted"] == true || !self.config.wants(name, self.identity.ours) {
                continue;
            }
            if tables.find(name).await?.is_none() {
                // What belongs to ArangoDB itself is taken where somebody has made a place for it.
                if !self.identity.ours && is_system(name) {
                    continue;
                }
                missing.push(name.to_owned());
            }
            let id = ["cid", "id"].iter().find_map(|id| number_of(&parameters[*id]));
            wanted.push((id.unwrap_or_default().to_string(), name.to_owned()));
        }
        for name in &self.config.restrict_collections {
            if self.config.restrict_type == "include" && !wanted.iter().any(|(_, known)| known == name) {
                let message = format!(
                    "the remote has no collection {name}, which restrictCollections names. At one of ours it is a table that is \
                     tracked in channel _logger"
                );
                return Err(Fault::event(1203, message));
            }
        }
        if !missing.is_empty() {
            self.make(&missing).await?;
        }
        Ok(wanted)
    }

    /// Makes tables for collections that have none here.
    async fn make(&self, missing: &[String]) -> Result<()> {
        let described = if self.identity.ours { Some(self.remote.schemas().await) } else { None };
        for name in missing {
            let no_name =
                || Fault::event(1203, format!("there can be no table for collection {name}: {NO_NAME}"));
            let (schema, table) = keys::table_of(name, self.identity.ours).ok_or_else(no_name)?;
            match &described {
                None => self.here.make_table(&table).await?,
                Some(Ok(schemas)) => match description(schemas, &schema, &table) {
                    Some(description) => self.here.make_described(&schema, &table, &description).await?,
                    None => {
                        let message = format!(
                            "the remote does not say which columns {schema}.{table} has; create it here"
                        );
                        return Err(Fault::event(1203, message));
                    }
                },
                Some(Err(fault)) if fault.kind == Kind::Remote => return Err(fault.clone()),
                Some(Err(fault)) => {
                    let message = format!(
                        "there is no table here for: {}. Create them as they are at the remote; or give the applier a login that \
                         may see there which columns they have (role reader): {fault}",
                        missing.join(", ")
                    );
                    return Err(Fault::event(1203, message));
                }
            }
            tracing::info!(
                database = self.here.database,
                table = format!("{schema}.{table}"),
                "a table was made for a collection"
            );
        }
        Ok(())
    }

    async fn collection(
        &self,
        writer: &Writer,
        tables: &mut Tables,
        name: &str,
        progress: &mut Progress,
    ) -> Result<()> {
        let missing = || Fault::event(1203, format!("the table of collection {name} was dropped"));
        let table = tables.find(name).await?.ok_or_else(missing)?;
        if self.config.incremental {
            writer.run(&table.seen_table()).await?;
        } else {
            writer.write(&table, &table.emptying(), &[]).await?;
        }
        // Ours goes on where its last answer ended unless it is told where to begin.
        let mut from = self.identity.ours.then_some(0);
        loop {
            let (changes, last, more) = self.part(name, from).await?;
            if changes.is_empty() && more && last.is_none_or(|last| Some(last) <= from) {
                return Err(Fault::invalid("the dump says that there is more, and gives nothing"));
            }
            if self.config.incremental {
                self.note_seen(writer, &table, &changes).await?;
            }
            let written = tables.write(writer, &changes, self.config.incremental).await;
            progress.rows += written.map_err(|fault| fault.at(format!("collection {name}")))?.events;
            self.go_on(name, progress).await?;
            if !more {
                break;
            }
            from = last.filter(|last| *last > 0).or(from);
        }
        if self.config.incremental {
            writer.write(&table, &table.delete_unseen(), &[]).await?;
            writer.run(&Table::drop_seen()).await?;
        }
        Ok(())
    }

    async fn note_seen(&self, writer: &Writer, table: &Table, changes: &[Change]) -> Result<()> {
        let keys = changes.iter().map(|change| table.key(change)).collect::<Result<Vec<String>>>()?;
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        // The table of keys is this session's own; but what its types call (domains, casts) is the owner's.
        writer.write(table, &table.note_seen(), &keys).await.map(drop)
    }

    /// The next part of a collection: its documents, the tick of the last one, whether there are more.
    async fn part(&self, name: &str, from: Option<u64>) -> Result<(Vec<Change>, Option<u64>, bool)> {
        let mut tries = 0;
        let reply = loop {
            match self.remote.dump(name, &self.batch.id, from).await {
                // Others go on where their last answer ended, so what was lost with it cannot be asked for again.
                Err(fault) if fault.kind == Kind::Remote && self.identity.ours && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                reply => break reply.map_err(|fault| fault.at(format!("dump of collection {name}")))?,
            }
        };
        let changes = reply.lines()?.filter_map(|line| events::dumped(line, name).transpose());
        let changes = changes.collect::<Result<Vec<Change>>>()?;
        let more = reply.flag("checkmore").ok_or_else(|| Fault::invalid("a dump without -checkmore"))?;
        Ok((changes, reply.tick("lastincluded"), more))
    }

    /// Keeps the snapshot, and says how far the copy is.
    async fn go_on(&self, name: &str, progress: &mut Progress) -> Result<()> {
        if progress.renewed.elapsed() >= BATCH_RENEWAL {
            self.remote.renew_batch(&self.batch.id).await?;
            progress.renewed = Instant::now();
        }
        if let Some(generation) =
            self.generation.filter(|_| progress.said.is_none_or(|said| said.elapsed() >= SAY))
        {
            let message = format!("copying collection {name}, {} documents so far", progress.rows);
            self.here.report(generation, &json!({"phase": "dumping", "message": message})).await?;
            progress.said = Some(Instant::now());
        }
        Ok(())
    }
}

const NO_NAME: &str = "its name is none that a table may have";

struct Progress {
    renewed: Instant,
    said: Option<Instant>,
    rows: u64,
}

fn busy(fault: Fault) -> Fault {
    if fault.kind == Kind::Here {
        let message = format!(
            "another copy is under way, or the applier is being started or stopped: {}",
            fault.message
        );
        return Fault { message, ..fault };
    }
    Fault { number: super::fault::RUNNING, ..fault }
}

/// A table as the newest version of it says, in the words of `quorum.create_described_table`.
fn description(schemas: &Value, schema: &str, table: &str) -> Option<Value> {
    let of_table = |row: &&Value| row["schema_name"] == schema && row["table_name"] == table;
    let newest = schemas.as_array()?.iter().filter(of_table).max_by_key(|row| row["id"].as_u64())?;
    let columns = newest["columns"].as_array()?;
    let described: Option<Vec<Value>> = columns
        .iter()
        .map(|column| Some(json!({"name": column["name"].as_str()?, "type": column["type"].as_str()?})))
        .collect();
    let key: Vec<&Value> =
        columns.iter().filter(|column| column["key"] == true).map(|column| &column["name"]).collect();
    Some(json!({"columns": described?, "key": key}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_made_as_its_newest_version_says() {
        let column =
            |name: &str, key: bool| json!({"name": name, "type": "integer", "type_oid": 23, "key": key});
        let row = |id: u64, table: &str, columns: Vec<Value>| json!({"id": id, "schema_name": "public", "table_name": table, "columns": columns});
        let schemas = json!([
            row(3, "t", vec![column("id", true), column("new", false)]),
            row(1, "t", vec![column("id", true)]),
            row(9, "u", vec![]),
        ]);
        let expected = json!({"columns": [{"name": "id", "type": "integer"}, {"name": "new", "type": "integer"}],
            "key": ["id"]});
        assert_eq!(description(&schemas, "public", "t"), Some(expected));
        assert_eq!(description(&schemas, "shop", "t"), None);
    }

    #[test]
    fn an_inventory_has_names_for_numbers() {
        let inventory = json!({"collections": [
            {"parameters": {"cid": "5", "name": "users", "globallyUniqueId": "h1/5"}},
            {"parameters": {"id": 6, "name": "_graphs"}},
            {"parameters": {}}]});
        let names = names(&inventory);
        assert_eq!(names.get("5").map(String::as_str), Some("users"));
        assert_eq!(names.get("h1/5").map(String::as_str), Some("users"));
        assert_eq!((names.get("6").map(String::as_str), names.len()), (Some("_graphs"), 3));
    }
}
