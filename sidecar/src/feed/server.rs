//! The server beside this node as a [`Source`]: the functions of the extension, one query a request.

use super::dump::HeldSnapshot;
use super::error::{FeedError, Kind, Result};
use super::pool::{Pool, Purpose, Taken};
use super::position::Position;
use super::shared::SharedSnapshot;
use super::source::{Answer, Argument, Call, ChannelId, Given, Rows, Shared, Snapshot, Source};
use futures_util::TryStreamExt;
use serde_json::Value;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Row, RowStream};

const STATES: &str = "SELECT to_jsonb(s) || jsonb_build_object('origin', quorum.origin_name()) FROM quorum.channel_state s \
                      WHERE $1::text IS NULL OR s.channel = $1 ORDER BY s.channel";
const TABLES: &str =
    "SELECT to_jsonb(t) FROM quorum.tracked_tables t WHERE t.channel = $1 ORDER BY t.schema, t.\"table\"";
const SCHEMAS: &str = "SELECT to_jsonb(v) FROM quorum.schema_version v JOIN quorum.channel c ON c.id = v.channel \
                       WHERE c.name = $1 AND ($2::int8 IS NULL OR v.id = $2) ORDER BY v.id";
const FOLLOWERS: &str = "SELECT to_jsonb(f) - 'channel' || jsonb_build_object('lag_ticks', l.lag_ticks, \
                         'lag_bytes', l.lag_bytes, 'lag_seconds', l.lag_seconds) FROM quorum.follower f \
                         JOIN quorum.channel c ON c.id = f.channel \
                         JOIN quorum.followers l ON l.channel = c.name AND l.name = f.name \
                         WHERE c.name = $1 ORDER BY f.name";
const LOG: &str = "WITH c AS (SELECT id FROM quorum.channel WHERE name = $1) SELECT jsonb_build_object( \
     'database', (SELECT d.oid::int8 FROM pg_database d WHERE d.datname = current_database()), \
     'server', (SELECT system_identifier FROM pg_control_system()), \
     'state', (SELECT to_jsonb(s) FROM quorum.channel_state s WHERE s.channel = $1), \
     'epochs', (SELECT coalesce(jsonb_agg(jsonb_build_array(e.epoch, e.first_tick) ORDER BY e.epoch), '[]') \
                FROM quorum.channel_epoch e JOIN c ON c.id = e.channel), \
     'segments', (SELECT coalesce(jsonb_agg(jsonb_build_array(b.number, b.first_tick) ORDER BY b.number), '[]') \
                  FROM quorum.batch_segment b JOIN c ON c.id = b.channel))";
/// The indexes are those that the log has told of, under the same ids.
const TABLE_DETAILS: &str = "SELECT to_jsonb(v) || jsonb_build_object('relid', t.relid::int8, 'indexes', ( \
     SELECT coalesce(jsonb_agg(jsonb_build_object('id', k.id) || k.described ORDER BY k.id), '[]') \
     FROM quorum.tracked_index k WHERE k.relid = t.relid)) \
     FROM quorum.tracked_table t JOIN quorum.channel c ON c.id = t.channel \
     JOIN quorum.schema_version v ON v.id = t.schema_version WHERE c.name = $1 ORDER BY t.relid";
/// Certificates are long, and of no use to those who look.
const SUBSCRIPTIONS: &str = "SELECT to_jsonb(s) - 'id' - 'ca' || jsonb_build_object('database', current_database(), \
                             'remote_database', s.database, 'has_ca', s.ca IS NOT NULL) FROM quorum.subscription_state s \
                             WHERE $1::text IS NULL OR s.name = $1 ORDER BY s.name";
const SUBSCRIPTION_TABLES: &str = "SELECT to_jsonb(t) - 'subscription' FROM quorum.subscription_tables t \
                                   WHERE t.subscription = $1 ORDER BY t.\"schema\", t.\"table\"";
const CONFLICTS: &str = "SELECT to_jsonb(c) - 'subscription' FROM quorum.conflicts c WHERE c.subscription = $1 \
                         ORDER BY c.\"schema\", c.\"table\", c.conflict, c.resolution";
const REJECTED: &str = "SELECT to_jsonb(r) - 'subscription' FROM quorum.rejected_changes r \
                        WHERE r.subscription = $1 AND r.id > $2 ORDER BY r.id LIMIT $3";
const SUBSCRIPTION: &str = "SELECT to_jsonb(s) FROM quorum.subscription s WHERE s.name = $1";
const SEQUENCES: &str = "SELECT to_jsonb(s) FROM quorum.channel_sequences($1) s";
const WAIT: &str = "SELECT quorum.wait($1, $2, make_interval(secs => $3))";
const FIND: &str = "SELECT epoch, tick FROM quorum.find_position($1, $2)";
/// In the list, not behind FROM: there all rows would be read before the first one is sent.
const READ: &str = "SELECT quorum.read_packed($1, $2, $3)";

const HAS_DATABASE: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_database d WHERE d.datname = $1)";
const MAKE_EXTENSION: &str = "CREATE EXTENSION IF NOT EXISTS pgquorum";

/// The server itself ends a statement after 20 s. But it does not count the wait for standbys at a commit, and one that
/// is stopped or cut off from its disk ends nothing: these are limits on this side, a little later.
const READ_DEADLINE: Duration = Duration::from_secs(22);
const CHANGE_DEADLINE: Duration = Duration::from_secs(25);
/// How much later than it was asked to the server may say that nothing came.
const WAIT_GRACE: Duration = Duration::from_secs(5);

/// What it means that a read was not answered.
pub const ONLY_READ: &str = "Nothing was changed; ask another node, or try again";
const CHANGE_UNKNOWN: &str = "The change may or may not have been made: look before you try again. A commit waits as long as too few standbys \
     confirm it";

/// The server of this node.
pub struct Server {
    pool: Arc<Pool>,
}

impl Server {
    /// Nothing is connected before somebody asks.
    pub fn new(pool: Arc<Pool>) -> Server {
        Server { pool }
    }

    async fn jsons(&self, database: &str, query: &str, values: &[Parameter<'_>]) -> Result<Vec<Value>> {
        self.jsons_for(Purpose::Read, database, query, values).await
    }

    async fn jsons_for(
        &self,
        purpose: Purpose,
        database: &str,
        query: &str,
        values: &[Parameter<'_>],
    ) -> Result<Vec<Value>> {
        let session = self.pool.take(database, purpose).await?;
        let rows = within(READ_DEADLINE, ONLY_READ, said(session.query_typed(query, values))).await;
        let rows = self.pool.done(session, rows)?;
        rows.iter().map(|row| column(row, 0)).collect()
    }

    async fn read_rows(&self, id: &ChannelId, after: &str, max_bytes: usize) -> Result<Rows> {
        let session = self.pool.take(&id.database, Purpose::Read).await?;
        let max_bytes = i32::try_from(max_bytes).unwrap_or(i32::MAX);
        let values: [Parameter; 3] =
            [(&id.channel, Type::TEXT), (&after, Type::TEXT), (&max_bytes, Type::INT4)];
        let read = async { collect(said(session.query_typed_raw(READ, values)).await?).await };
        let rows = within(READ_DEADLINE, ONLY_READ, read).await;
        match rows {
            Ok(rows) if rows.broken.is_some() => Ok(rows),
            rows => self.pool.done(session, rows),
        }
    }

    async fn find_position(&self, id: &ChannelId, tick: u64) -> Result<Position> {
        let session = self.pool.take(&id.database, Purpose::Read).await?;
        let text = tick.to_string();
        let values: [Parameter; 2] = [(&id.channel, Type::TEXT), (&text, Type::TEXT)];
        let row = within(READ_DEADLINE, ONLY_READ, said(session.query_typed_one(FIND, &values))).await;
        let row = self.pool.done(session, row)?;
        Ok(Position { epoch: number(&row, 0)?, tick: number(&row, 1)? })
    }

    async fn wait_for(&self, id: &ChannelId, after: &str, timeout: Duration) -> Result<Position> {
        let session = self.pool.take(&id.database, Purpose::Wait).await?;
        let seconds = timeout.as_secs_f64();
        let values: [Parameter; 3] =
            [(&id.channel, Type::TEXT), (&after, Type::TEXT), (&seconds, Type::FLOAT8)];
        let waited = said(session.query_typed_one(WAIT, &values));
        let row = within(timeout + WAIT_GRACE, ONLY_READ, waited).await;
        let row = self.pool.done(session, row)?;
        let text: String = column(&row, 0)?;
        text.parse().map_err(|_| unreadable(&format!("the channel's end is {text:?}")))
    }

    async fn carry_out(&self, database: &str, call: Call) -> Result<String> {
        let session = self.pool.take(database, Purpose::Change).await?;
        let values: Vec<Parameter> = call.arguments.iter().map(parameter).collect();
        let statement = statement(&call);
        let called = said(session.query_typed_one(&statement, &values));
        let row = within(CHANGE_DEADLINE, CHANGE_UNKNOWN, called).await;
        let result: Option<String> = column(&self.pool.done(session, row)?, 0)?;
        Ok(result.unwrap_or_default())
    }

    async fn make_database(&self, database: &str) -> Result<()> {
        let create = format!("CREATE DATABASE \"{}\"", database.replace('"', "\"\""));
        {
            let session = self.pool.take_bare(self.pool.default_database()).await?;
            let values: [Parameter; 1] = [(&database, Type::TEXT)];
            let row = within(READ_DEADLINE, ONLY_READ, said(session.query_typed_one(HAS_DATABASE, &values)));
            if !column::<bool>(&row.await?, 0)? {
                let made = within(CHANGE_DEADLINE, CHANGE_UNKNOWN, said(session.batch_execute(&create)));
                match made.await {
                    Ok(()) => tracing::info!(database, "a database was made, because another cluster has it"),
                    // Somebody else was faster.
                    Err(error) if error.kind == Kind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let session = self.pool.take_bare(database).await?;
        within(CHANGE_DEADLINE, CHANGE_UNKNOWN, said(session.batch_execute(MAKE_EXTENSION))).await
    }

    async fn hold_snapshot(&self, id: &ChannelId, tables: &[String]) -> Result<Box<dyn Snapshot>> {
        let session: Taken = self.pool.take(&id.database, Purpose::Dump).await?;
        Ok(Box::new(HeldSnapshot::begin(session, id, tables).await?))
    }

    async fn share_snapshot(&self, id: &ChannelId, tables: &[String]) -> Result<Box<dyn Shared>> {
        Ok(Box::new(SharedSnapshot::begin(&self.pool, id, tables).await?))
    }
}

impl Source for Server {
    fn default_database(&self) -> &str {
        self.pool.default_database()
    }

    fn states<'a>(&'a self, database: &'a str, channel: Option<&'a str>) -> Answer<'a, Vec<Value>> {
        Box::pin(async move { self.jsons(database, STATES, &[(&channel, Type::TEXT)]).await })
    }

    fn tables<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move { self.jsons(&id.database, TABLES, &[(&id.channel, Type::TEXT)]).await })
    }

    fn schemas<'a>(&'a self, id: &'a ChannelId, version: Option<u64>) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            // What is no number of the database is no version of it either.
            let version = version.map(|v| i64::try_from(v).unwrap_or(-1));
            let values: [Parameter; 2] = [(&id.channel, Type::TEXT), (&version, Type::INT8)];
            self.jsons(&id.database, SCHEMAS, &values).await
        })
    }

    fn followers<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move { self.jsons(&id.database, FOLLOWERS, &[(&id.channel, Type::TEXT)]).await })
    }

    fn log<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Value> {
        Box::pin(async move {
            let mut rows = self.jsons(&id.database, LOG, &[(&id.channel, Type::TEXT)]).await?;
            Ok(rows.pop().unwrap_or_default())
        })
    }

    fn table_details<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move { self.jsons(&id.database, TABLE_DETAILS, &[(&id.channel, Type::TEXT)]).await })
    }

    fn wait<'a>(&'a self, id: &'a ChannelId, after: &'a str, timeout: Duration) -> Answer<'a, Position> {
        Box::pin(self.wait_for(id, after, timeout))
    }

    fn find<'a>(&'a self, id: &'a ChannelId, tick: u64) -> Answer<'a, Position> {
        Box::pin(self.find_position(id, tick))
    }

    fn read<'a>(&'a self, id: &'a ChannelId, after: &'a str, max_bytes: usize) -> Answer<'a, Rows> {
        Box::pin(self.read_rows(id, after, max_bytes))
    }

    fn subscriptions<'a>(&'a self, database: &'a str, name: Option<&'a str>) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.jsons_for(Purpose::Follow, database, SUBSCRIPTIONS, &[(&name, Type::TEXT)]).await
        })
    }

    fn subscription_tables<'a>(&'a self, database: &'a str, name: &'a str) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.jsons_for(Purpose::Follow, database, SUBSCRIPTION_TABLES, &[(&name, Type::TEXT)]).await
        })
    }

    fn conflicts<'a>(&'a self, database: &'a str, name: &'a str) -> Answer<'a, Vec<Value>> {
        Box::pin(
            async move { self.jsons_for(Purpose::Follow, database, CONFLICTS, &[(&name, Type::TEXT)]).await },
        )
    }

    fn rejected<'a>(
        &'a self,
        database: &'a str,
        name: &'a str,
        after: u64,
        limit: u64,
    ) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            let [after, limit] = [after, limit].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
            let values: [Parameter; 3] = [(&name, Type::TEXT), (&after, Type::INT8), (&limit, Type::INT8)];
            self.jsons_for(Purpose::Follow, database, REJECTED, &values).await
        })
    }

    fn subscription<'a>(&'a self, database: &'a str, name: &'a str) -> Answer<'a, Option<Value>> {
        Box::pin(async move {
            let found = self.jsons_for(Purpose::Follow, database, SUBSCRIPTION, &[(&name, Type::TEXT)]).await;
            Ok(found?.pop())
        })
    }

    fn sequences<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move { self.jsons(&id.database, SEQUENCES, &[(&id.channel, Type::TEXT)]).await })
    }

    fn ask<'a>(&'a self, database: &'a str, call: Call) -> Answer<'a, Value> {
        Box::pin(async move {
            let values: Vec<Parameter> = call.arguments.iter().map(parameter).collect();
            let query = format!("SELECT to_jsonb(f) FROM {} AS f", expression(&call));
            let found = self.jsons(database, &query, &values).await?;
            Ok(found.into_iter().next().unwrap_or_default())
        })
    }

    fn call<'a>(&'a self, database: &'a str, call: Call) -> Answer<'a, String> {
        Box::pin(self.carry_out(database, call))
    }

    fn create_database<'a>(&'a self, database: &'a str) -> Answer<'a, ()> {
        Box::pin(self.make_database(database))
    }

    fn dump<'a>(&'a self, id: &'a ChannelId, tables: &'a [String]) -> Answer<'a, Box<dyn Snapshot>> {
        Box::pin(self.hold_snapshot(id, tables))
    }

    fn share<'a>(&'a self, id: &'a ChannelId, tables: &'a [String]) -> Answer<'a, Box<dyn Shared>> {
        Box::pin(self.share_snapshot(id, tables))
    }
}

/// What is asked of the database, and not longer than this. Whoever is not answered must drop the session.
///
/// # Errors
/// As `asked`; or it was not answered in time, with what that means.
pub async fn within<T>(limit: Duration, meaning: &str, asked: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
        let message = format!("the database beside this node did not answer within {limit:?}. {meaning}");
        Err(FeedError::new(Kind::TimedOut, message))
    })
}

/// What the database answers, or how it refuses.
pub async fn said<T>(
    asked: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    asked.await.map_err(|error| FeedError::from_database(&error))
}

type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

fn parameter(argument: &Argument) -> Parameter<'_> {
    match &argument.value {
        Given::Text(value) => (value, Type::TEXT),
        Given::Texts(value) => (value, Type::TEXT_ARRAY),
        Given::Number(value) => (value, Type::INT8),
        Given::Nothing => (&None::<String>, Type::TEXT),
    }
}

fn statement(call: &Call) -> String {
    let call_text = expression(call);
    if call.rows {
        format!("SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(r))::pg_catalog.text FROM {call_text} AS r")
    } else {
        format!("SELECT {call_text}::pg_catalog.text")
    }
}

/// Names and types are this program's own; values go as parameters.
fn expression(call: &Call) -> String {
    let arguments = call.arguments.iter().zip(1..);
    let arguments =
        arguments.map(|(one, n)| format!("\"{}\" => ${n}::pg_catalog.{}", one.name, one.type_name));
    format!("quorum.{}({})", call.function, arguments.collect::<Vec<_>>().join(", "))
}

async fn collect(found: RowStream) -> Result<Rows> {
    let mut found = pin!(found);
    let mut rows = Rows::default();
    loop {
        let row = match found.try_next().await {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(rows),
            Err(error) => {
                let error = FeedError::from_database(&error);
                // What comes before a damaged row is good.
                if error.kind != Kind::RecordBroken || rows.is_empty() {
                    return Err(error);
                }
                rows.broken = Some(error);
                return Ok(rows);
            }
        };
        if !rows.push_pack(column(&row, 0)?) {
            return Err(unreadable("what should be log rows is something else"));
        }
    }
}

/// A column of a row.
pub fn column<'r, T: FromSql<'r>>(row: &'r Row, at: usize) -> Result<T> {
    row.try_get(at).map_err(|error| unreadable(&error.to_string()))
}

/// An epoch or a tick.
fn number(row: &Row, at: usize) -> Result<u64> {
    let value: i64 = column(row, at)?;
    u64::try_from(value).map_err(|_| unreadable(&format!("an epoch or a tick is {value}")))
}

fn unreadable(what: &str) -> FeedError {
    let message = format!(
        "the extension answered with something that this program does not understand ({what}). Are both of the same \
         version? `make install` brings both"
    );
    FeedError::new(Kind::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_says_nothing_is_not_waited_for() {
        let silent = std::future::pending::<Result<()>>();
        let error = within(Duration::from_millis(20), CHANGE_UNKNOWN, silent).await.unwrap_err();
        assert_eq!(error.kind, Kind::TimedOut);
        assert!(error.message.contains("may or may not have been made"), "{error}");
        assert_eq!(within(CHANGE_DEADLINE, CHANGE_UNKNOWN, async { Ok(7) }).await.unwrap(), 7);
    }

    #[test]
    fn a_call_names_what_is_given() {
        let call = Call::new("track").text("table", "regclass", "orders; DROP").with(
            "columns",
            "text[]",
            Given::Texts(vec!["id".to_owned()]),
        );
        let text = "SELECT quorum.track(\"table\" => $1::pg_catalog.regclass, \"columns\" => $2::pg_catalog.text[])::pg_catalog.text";
        assert_eq!(statement(&call), text);
        assert_eq!(statement(&Call::new("f")), "SELECT quorum.f()::pg_catalog.text");
    }
}
