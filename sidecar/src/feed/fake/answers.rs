//! What the database answers.

use super::super::error::{FeedError, Kind};
use super::super::position::Position;
use super::super::schemas;
use super::super::source::{Answer, Call, ChannelId, DumpTable, Rows, Shared, SharedTable, Snapshot, Source};
use super::{DOCUMENTS, Fake, is_known, neighbours, schema, snapshots};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Counts a wait as long as it lasts.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Source for Fake {
    fn default_database(&self) -> &str {
        "postgres"
    }

    fn states<'a>(&'a self, database: &'a str, channel: Option<&'a str>) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            Ok(if channel.is_none_or(|name| name == "shop") { vec![self.state()] } else { vec![] })
        })
    }

    fn tables<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(&id.database)?;
            Ok(vec![json!({"channel": "shop", "schema": "public", "table": "orders"})])
        })
    }

    fn schemas<'a>(&'a self, id: &'a ChannelId, version: Option<u64>) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(&id.database)?;
            let known = [1, 2].into_iter().filter(|one| version.is_none_or(|v| v == *one));
            let known = known.chain(version.filter(|v| *v == DOCUMENTS));
            Ok(if is_known(&id.channel) { known.map(schema).collect() } else { vec![] })
        })
    }

    fn followers<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(&id.database)?;
            Ok(self.log().followers.clone())
        })
    }

    fn log<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Value> {
        Box::pin(async move {
            self.admit(&id.database)?;
            let state = if self.unknown_logger.load(Ordering::Relaxed) { Value::Null } else { self.state() };
            Ok(json!({"database": 16000, "server": 7, "state": state, "epochs": self.epochs(),
                "segments": [[1, 1]]}))
        })
    }

    fn table_details<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(&id.database)?;
            Ok([1, 2].into_iter().map(schema).collect())
        })
    }

    fn wait<'a>(&'a self, id: &'a ChannelId, after: &'a str, timeout: Duration) -> Answer<'a, Position> {
        Box::pin(async move {
            self.channel(id)?;
            let after = self.place(after)?;
            self.waits.fetch_add(1, Ordering::Relaxed);
            let _counted = Counted(&self.waits);
            let mut end = self.end.subscribe();
            let _ = tokio::time::timeout(timeout, end.wait_for(|end| end.tick > after)).await;
            Ok(*self.end.borrow())
        })
    }

    fn read<'a>(&'a self, id: &'a ChannelId, after: &'a str, max_bytes: usize) -> Answer<'a, Rows> {
        Box::pin(async move {
            self.channel(id)?;
            let slowness = *self.slowness.lock().unwrap();
            if !slowness.is_zero() {
                tokio::time::sleep(slowness).await;
            }
            self.read_rows(self.place(after)?, max_bytes)
        })
    }

    fn find<'a>(&'a self, id: &'a ChannelId, tick: u64) -> Answer<'a, Position> {
        Box::pin(async move {
            self.channel(id)?;
            let tick = self.place(&tick.to_string())?;
            let log = self.log();
            let holder = log.rows.iter().rfind(|row| row.ticks.0 <= tick);
            Ok(Position { epoch: holder.map_or(5, |row| row.epoch), tick })
        })
    }

    fn subscriptions<'a>(&'a self, database: &'a str, name: Option<&'a str>) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            if let Some(kept) = &*self.kept.lock().unwrap() {
                let named = |one: &&Value| name.is_none_or(|name| one["name"] == name);
                return Ok(kept.iter().filter(named).cloned().collect());
            }
            let known = name.is_none_or(|name| name == "mirror");
            Ok(if known { vec![json!({"name": "mirror", "state": "following"})] } else { vec![] })
        })
    }

    fn subscription_tables<'a>(&'a self, database: &'a str, _name: &'a str) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            Ok(vec![json!({"schema": "public", "table": "orders", "state": "following"})])
        })
    }

    fn conflicts<'a>(&'a self, database: &'a str, _name: &'a str) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            Ok(vec![
                json!({"table": "orders", "conflict": "insert_exists", "resolution": "rejected", "count": 2}),
            ])
        })
    }

    fn rejected<'a>(
        &'a self,
        database: &'a str,
        _name: &'a str,
        after: u64,
        limit: u64,
    ) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            let all = [17, 19].into_iter().filter(|id| *id > after);
            Ok(all.take(limit as usize).map(|id| json!({"id": id, "op": "insert"})).collect())
        })
    }

    fn sequences<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.channel(id)?;
            Ok(vec![json!({"schema": "public", "table": "orders", "column": "id", "last_value": 7})])
        })
    }

    fn subscription<'a>(&'a self, database: &'a str, _name: &'a str) -> Answer<'a, Option<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            Ok(self.subscription.lock().unwrap().clone())
        })
    }

    fn ask<'a>(&'a self, database: &'a str, call: Call) -> Answer<'a, Value> {
        Box::pin(async move {
            self.admit(database)?;
            let says = self.says.lock().unwrap().get(call.function).cloned();
            match call.function {
                "publications_state" => {
                    Ok(says.unwrap_or_else(|| json!([{"name": "mirror", "state": "established"}])))
                }
                _ => says.ok_or_else(|| FeedError::new(Kind::UnknownChannel, "there is no such channel")),
            }
        })
    }

    fn call<'a>(&'a self, database: &'a str, call: Call) -> Answer<'a, String> {
        Box::pin(async move {
            self.admit(database)?;
            let text = |name| {
                let found = call.arguments.iter().find(|one| one.name == name);
                found.map(|one| format!("{:?}", one.value)).unwrap_or_default()
            };
            if call.function == "register_follower" {
                self.log().followers.push(json!({"name": "cache", "tick": 0}));
            } else if call.function.ends_with("follower") && !text("name").contains("cache") {
                return Err(FeedError::new(Kind::UnknownChannel, "there is no such follower"));
            }
            if matches!(call.function, "stop_channel" | "start_channel") {
                self.stopped_logger.store(call.function == "stop_channel", Ordering::Relaxed);
            }
            if call.function == "restore_collection"
                && text("table").contains("orders")
                && !text("overwrite").contains("true")
            {
                return Err(FeedError::new(Kind::AlreadyExists, "table public.orders exists"));
            }
            let known = self.neighbours.lock().unwrap().clone();
            let known = known.filter(|_| call.function == "neighbours");
            let answer = known.map_or_else(|| neighbours::answer(call.function), |known| known.to_string());
            neighbours::keep(&mut self.kept.lock().unwrap(), &call);
            self.calls.lock().unwrap().push((database.to_owned(), call));
            let later = self.later.lock().unwrap().take();
            self.says.lock().unwrap().extend(later);
            Ok(answer)
        })
    }

    fn create_database<'a>(&'a self, database: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.admit(database) })
    }

    fn dump<'a>(&'a self, id: &'a ChannelId, _tables: &'a [String]) -> Answer<'a, Box<dyn Snapshot>> {
        Box::pin(async move {
            self.channel(id)?;
            let schema = schemas::parse(&schema(1))?;
            let tables = vec![DumpTable { schema, from: String::new() }];
            // COPY's lines may come in any pieces.
            let copy = ["1\ta\n2\t", "\\N\n3\tc\\n\n"].map(Bytes::from).to_vec();
            self.snapshots.fetch_add(1, Ordering::Relaxed);
            let (held, hangs) = (Arc::clone(&self.snapshots), self.copies_hang.load(Ordering::Relaxed));
            let copied = snapshots::Copied { position: *self.end.borrow(), tables, copy, hangs, held };
            Ok(Box::new(copied) as Box<dyn Snapshot>)
        })
    }

    fn share<'a>(&'a self, id: &'a ChannelId, _tables: &'a [String]) -> Answer<'a, Box<dyn Shared>> {
        Box::pin(async move {
            self.channel(id)?;
            let table = DumpTable { schema: schemas::parse(&schema(1))?, from: String::new() };
            let tables = vec![SharedTable { table, relid: 16_384, rows: Some(2), bytes: 8192 }];
            self.snapshots.fetch_add(1, Ordering::Relaxed);
            let (held, hangs) = (Arc::clone(&self.snapshots), self.copies_hang.load(Ordering::Relaxed));
            Ok(Box::new(snapshots::Together { position: *self.end.borrow(), tables, hangs, held })
                as Box<dyn Shared>)
        })
    }
}
