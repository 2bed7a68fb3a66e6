//! A session that copies one table into the database beside this node.

use super::local::{Parameter, column, number};
use super::subscription::TableName;
use super::target::{Answer, Copier};
use super::trouble::{Result, Trouble};
use crate::feed::Position;
use crate::postgres::Session;
use bytes::Bytes;
use futures_util::SinkExt;
use std::pin::Pin;
use tokio_postgres::CopyInSink;
use tokio_postgres::types::Type;

const PLAN: &str = "SELECT before, copy, after, copied_columns FROM quorum.copy_plan($1, $2, $3, $4)";
const ORIGIN: &str = "SELECT set_config('pgquorum.origin', $1, true), \
    set_config('pgquorum.origin_commit_time', transaction_timestamp()::text, true)";

pub(super) struct Copying {
    session: Session,
    id: i32,
    sink: Option<Pin<Box<CopyInSink<Bytes>>>>,
    after: Option<String>,
}

impl Copying {
    pub(super) fn new(session: Session, id: i32) -> Copying {
        Copying { session, id, sink: None, after: None }
    }

    async fn prepare(&mut self, table: &TableName, columns: &[String], origin: &str) -> Result<Vec<String>> {
        let failed = |error: tokio_postgres::Error| Trouble::from_copy(&error);
        // Rows come as they are, from a database where they passed their checks: no triggers, no foreign keys.
        self.session
            .batch_execute("BEGIN; SET LOCAL session_replication_role = replica")
            .await
            .map_err(failed)?;
        self.session.query_typed(ORIGIN, &[(&origin, Type::TEXT)]).await.map_err(failed)?;
        let values: [Parameter; 4] = [
            (&self.id, Type::INT4),
            (&table.schema, Type::TEXT),
            (&table.table, Type::TEXT),
            (&columns, Type::TEXT_ARRAY),
        ];
        let plan = self.session.query_typed_one(PLAN, &values).await.map_err(failed)?;
        if let Some(before) = column::<Option<String>>(&plan, 0)? {
            self.session.batch_execute(&before).await.map_err(failed)?;
        }
        let sink = self.session.copy_in(&column::<String>(&plan, 1)?).await.map_err(failed)?;
        self.sink = Some(Box::pin(sink));
        self.after = column(&plan, 2)?;
        column(&plan, 3)
    }

    async fn end(&mut self, table: &TableName, at: Position, rows: u64, bytes: u64) -> Result<()> {
        let failed = |error: tokio_postgres::Error| Trouble::from_copy(&error);
        if let Some(mut sink) = self.sink.take() {
            sink.as_mut().finish().await.map_err(failed)?;
        }
        if let Some(after) = &self.after {
            self.session.batch_execute(after).await.map_err(failed)?;
        }
        let (epoch, tick, rows, bytes) = (number(at.epoch), number(at.tick), number(rows), number(bytes));
        let values: [Parameter; 7] = [
            (&self.id, Type::INT4),
            (&table.schema, Type::TEXT),
            (&table.table, Type::TEXT),
            (&epoch, Type::INT8),
            (&tick, Type::INT8),
            (&rows, Type::INT8),
            (&bytes, Type::INT8),
        ];
        let copied = "SELECT quorum.table_copied($1, $2, $3, $4, $5, $6, $7)";
        self.session.query_typed_one(copied, &values).await.map_err(failed)?;
        self.session.batch_execute("COMMIT").await.map_err(failed)
    }
}

impl Copier for Copying {
    fn begin<'a>(
        &'a mut self,
        table: &'a TableName,
        columns: &'a [String],
        origin: &'a str,
    ) -> Answer<'a, Vec<String>> {
        Box::pin(self.prepare(table, columns, origin))
    }

    fn write(&mut self, lines: Bytes) -> Answer<'_, ()> {
        Box::pin(async move {
            let Some(sink) = &mut self.sink else { return Ok(()) };
            match sink.send(lines).await {
                Ok(()) => Ok(()),
                // The server has ended the COPY; what it said comes with its end.
                Err(error) => {
                    match self.sink.take().map(|mut sink| async move { sink.as_mut().finish().await }) {
                        Some(end) => Err(end.await.err().map_or_else(
                            || Trouble::from_database(&error),
                            |said| Trouble::from_copy(&said),
                        )),
                        None => Err(Trouble::from_database(&error)),
                    }
                }
            }
        })
    }

    fn finish<'a>(&'a mut self, table: &'a TableName, at: Position, rows: u64, bytes: u64) -> Answer<'a, ()> {
        Box::pin(self.end(table, at, rows, bytes))
    }
}
