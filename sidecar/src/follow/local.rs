//! The server beside this node as a [`Target`]: the extension's functions, each part of the work in a session of its own.
//!
//! All sessions are clients like any other: without the cluster's lease, or on a standby, the server refuses what they write.

use super::board::{Board, Place};
use super::copier::Copying;
use super::source::Answer;
use super::subscription::{Subscription, TableName};
use super::target::{Applied, Applier, Copier, Report, SourceFound, Standing, Target};
use super::trouble::{Kind, Result, Trouble};
use super::versions::SEE_SIZE;
use crate::feed::Position;
use crate::postgres::{ConnectError, Manner, PostgresConfig, Session};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, Statement};

/// Values are read as sources write them.
const SETTINGS: &str = "SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; \
    SET client_encoding = 'UTF8'; SET search_path = pg_catalog, pg_temp; SET default_transaction_isolation = 'read committed'; \
    SET idle_in_transaction_session_timeout = 0; SET client_connection_check_interval = '1s'; ";
/// What is applied and its position are lost together; what is told the source is durable, see [`Local::report`].
const APPLIES: &str = "SET pgquorum.allow_weak_commits = on; SET synchronous_commit = off";
/// Somebody else may have made objects of the extension's names where it is not.
const IS_OURS: &str = "SELECT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid \
    WHERE d.classid = 'pg_class'::regclass AND d.objid = to_regclass('quorum.subscription') \
    AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pgquorum')";
const STANDING: &str = "SELECT p.epoch, p.tick, coalesce((SELECT jsonb_agg(jsonb_build_object('schema', t.schema_name, \
    'table', t.table_name, 'state', t.state, 'code', t.code, 'epoch', t.after_epoch, 'tick', t.after_tick) ORDER BY t.schema_name, t.table_name) \
    FROM quorum.subscription_table t WHERE t.subscription = p.subscription), '[]'), s.enabled, \
    coalesce((SELECT v.config_version = 0 FROM quorum.subscription_version v WHERE v.subscription = p.subscription), false) \
    FROM quorum.subscription_position p JOIN quorum.subscription s ON s.id = p.subscription WHERE p.subscription = $1";
const TABLES_FOUND: &str = "SELECT quorum.subscription_tables_found($1, $2, $3, $4, $5)";
const REPORT: &str = "SELECT quorum.report_subscription($1, $2, $3, $4, $5, $6)::text";
const APPLY: &str = "SELECT epoch, tick, in_transaction, one_by_one FROM quorum.apply($1, $2, $3)";
const BLOCKED: &str = "SELECT string_agg(CASE WHEN b.pid = 0 THEN 'a prepared transaction (pg_prepared_xacts)' \
    ELSE format('session %s of %s (%s; %s, transaction since %s)', b.pid, coalesce(a.usename, '?'), \
    coalesce(nullif(a.application_name, ''), 'no application_name'), coalesce(a.state, '?'), coalesce(a.xact_start::text, '?')) END, \
    ' and ' ORDER BY b.pid) FROM (SELECT DISTINCT unnest(pg_blocking_pids($1)) AS pid) AS b \
    LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid";
const TIME: &str = "SELECT (extract(epoch FROM $1::text::timestamptz) * 1000000)::int8";

/// How long small questions may take.
const ASK_DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// A subscription in a database of this node's server.
pub struct Local {
    config: PostgresConfig,
    database: String,
    pub(super) id: i32,
    /// For everything but applying and copying.
    keeper: Mutex<Option<Session>>,
    /// The process of the newest applier's session; 0: there is none.
    applier: AtomicI32,
    /// What is shown of it to those who watch this node.
    place: Arc<Place>,
}

impl Local {
    pub fn new(config: PostgresConfig, database: &str, subscription: &Subscription, board: &Board) -> Local {
        Local {
            config,
            database: database.to_owned(),
            id: subscription.id,
            keeper: Mutex::new(None),
            applier: AtomicI32::new(0),
            place: Arc::new(board.place(database, &subscription.name)),
        }
    }

    async fn connect(&self, settings: &str) -> Result<Session> {
        let manner = Manner {
            connect: CONNECT_DEADLINE,
            statement: Duration::ZERO,
            waits_for_standbys: true,
            bypasses_fence: false,
        };
        let session = Session::in_database(&self.config, &self.database, manner).await;
        let session = session.map_err(|error| match error {
            ConnectError::TimedOut(after) => Trouble::late(after),
            ConnectError::Unreachable(error) => Trouble::waiting(
                "database_unavailable",
                format!("the database here does not answer: {error}"),
            ),
            ConnectError::Refused(error) => Trouble::from_database(&error),
        })?;
        in_time(session.batch_execute(&format!("{SETTINGS}{settings}"))).await?;
        let row = in_time(session.query_typed_one(IS_OURS, &[])).await?;
        if column::<bool>(&row, 0)? {
            return Ok(session);
        }
        let message = format!("the extension is not in database {} any more", self.database);
        Err(Trouble::new(Kind::Gone, "no_extension", message))
    }

    /// The keeper's session. Taken out: one whose answer was not waited for is not used again.
    async fn taken(&self, keeper: &mut Option<Session>) -> Result<Session> {
        match keeper.take().filter(|session| !session.is_closed()) {
            Some(session) => Ok(session),
            None => self.connect("").await,
        }
    }

    /// Asks in the keeper's session; a commit there returns when it is as durable as the cluster promises.
    pub(super) async fn ask(&self, query: &str, values: &[Parameter<'_>]) -> Result<Vec<Row>> {
        let mut keeper = self.keeper.lock().await;
        let session = self.taken(&mut keeper).await?;
        let rows = session.query_typed(query, values).await.map_err(|error| Trouble::from_database(&error));
        *keeper = Some(session);
        rows
    }

    pub(super) async fn one<T: for<'r> tokio_postgres::types::FromSql<'r>>(
        &self,
        query: &str,
        values: &[Parameter<'_>],
    ) -> Result<T> {
        let rows = self.ask(query, values).await?;
        column(rows.first().ok_or_else(|| unreadable("no row"))?, 0)
    }

    /// Asks all of this in one transaction.
    async fn ask_together(&self, questions: &[(&str, &[Parameter<'_>])]) -> Result<Vec<Vec<Row>>> {
        let mut keeper = self.keeper.lock().await;
        let session = self.taken(&mut keeper).await?;
        let asked = async {
            session.batch_execute("BEGIN").await?;
            let mut answers = Vec::with_capacity(questions.len());
            for (query, values) in questions {
                answers.push(session.query_typed(query, values).await?);
            }
            session.batch_execute("COMMIT").await?;
            Ok::<_, tokio_postgres::Error>(answers)
        };
        // If anything fails the session ends, and with it the transaction.
        let answers = asked.await.map_err(|error| Trouble::from_database(&error))?;
        *keeper = Some(session);
        Ok(answers)
    }

    async fn read_standing(&self) -> Result<Standing> {
        standing(&self.ask(STANDING, &[(&self.id, Type::INT4)]).await?)
    }
}

fn standing(rows: &[Row]) -> Result<Standing> {
    let gone = || Trouble::new(Kind::Gone, "unsubscribed", "the subscription was ended, or rests");
    let row = rows.first().ok_or_else(gone)?;
    if !column::<bool>(row, 3)? {
        return Err(gone());
    }
    let position = position(column(row, 0)?, column(row, 1)?);
    let mut standing = Standing { position, refetch: column(row, 4)?, ..Standing::default() };
    for table in column::<Value>(row, 2)?.as_array().into_iter().flatten() {
        let text = |name: &str| table[name].as_str().unwrap_or_default().to_owned();
        let name = TableName { schema: text("schema"), table: text("table") };
        standing.tables += 1;
        match (text("state").as_str(), table["epoch"].as_u64(), table["tick"].as_u64()) {
            ("copy", _, _) => standing.to_copy.push(name),
            ("catch-up", Some(epoch), Some(tick)) => {
                standing.to_catch_up.push((name, Position { epoch, tick }));
            }
            ("stopped", ..) => {
                standing.stopped += 1;
                standing.untracked.extend((text("code") == "PQ016").then_some(name));
            }
            _ => {}
        }
    }
    Ok(standing)
}

impl Target for Local {
    fn origin(&self) -> Answer<'_, String> {
        Box::pin(self.one("SELECT quorum.origin_name()", &[]))
    }

    fn standing(&self) -> Answer<'_, Standing> {
        Box::pin(self.read_standing())
    }

    fn begin<'a>(
        &'a self,
        found: SourceFound<'a>,
        start: Option<Position>,
        report: Report,
    ) -> Answer<'a, Standing> {
        Box::pin(async move {
            self.place.report(&report);
            let tables = found.tables.iter().map(|one| json!({"schema": one.schema, "table": one.table}));
            let (tables, (epoch, tick)) = (Value::Array(tables.collect()), numbers(start));
            let tables: [Parameter; 5] = [
                (&self.id, Type::INT4),
                (&found.origin, Type::TEXT),
                (&tables, Type::JSONB),
                (&epoch, Type::INT8),
                (&tick, Type::INT8),
            ];
            let bytes = found.change_bytes.map(number);
            let size: [Parameter; 2] = [(&self.id, Type::INT4), (&bytes, Type::INT8)];
            let (epoch, tick) = numbers(report.end);
            let report: [Parameter; 6] = [
                (&self.id, Type::INT4),
                (&report.state, Type::TEXT),
                (&report.code, Type::TEXT),
                (&report.detail, Type::TEXT),
                (&epoch, Type::INT8),
                (&tick, Type::INT8),
            ];
            let id: [Parameter; 1] = [(&self.id, Type::INT4)];
            // The first holds the position until the end: nobody applies anything between the last and the commit.
            let questions = [
                (TABLES_FOUND, &tables[..]),
                (SEE_SIZE, &size[..]),
                (REPORT, &report[..]),
                (STANDING, &id[..]),
            ];
            let mut answers = self.ask_together(&questions).await?;
            standing(&answers.pop().unwrap_or_default())
        })
    }

    fn add_schemas(&self, schemas: Value) -> Answer<'_, ()> {
        Box::pin(async move {
            let values: [Parameter; 2] = [(&self.id, Type::INT4), (&schemas, Type::JSONB)];
            self.ask("SELECT quorum.add_schemas($1, $2)", &values).await.map(drop)
        })
    }

    fn report(&self, report: Report) -> Answer<'_, ()> {
        Box::pin(async move {
            // Before the database hears of it: that may be the trouble.
            self.place.report(&report);
            let (epoch, tick) = numbers(report.end);
            let values: [Parameter; 6] = [
                (&self.id, Type::INT4),
                (&report.state, Type::TEXT),
                (&report.code, Type::TEXT),
                (&report.detail, Type::TEXT),
                (&epoch, Type::INT8),
                (&tick, Type::INT8),
            ];
            self.ask(REPORT, &values).await.map(drop)
        })
    }

    fn report_rows<'a>(&'a self, table: &'a TableName, rows: u64, bytes: u64) -> Answer<'a, ()> {
        Box::pin(async move {
            let (rows, bytes) = (number(rows), number(bytes));
            let values: [Parameter; 5] = [
                (&self.id, Type::INT4),
                (&table.schema, Type::TEXT),
                (&table.table, Type::TEXT),
                (&rows, Type::INT8),
                (&bytes, Type::INT8),
            ];
            self.ask("SELECT quorum.report_table($1, $2, $3, $4, $5)::text", &values).await.map(drop)
        })
    }

    fn report_stopped<'a>(&'a self, table: &'a TableName, code: &'a str, message: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let values: [Parameter; 5] = [
                (&self.id, Type::INT4),
                (&table.schema, Type::TEXT),
                (&table.table, Type::TEXT),
                (&code, Type::TEXT),
                (&message, Type::TEXT),
            ];
            let query =
                "SELECT quorum.report_table($1, $2, $3, state => 'stopped', code => $4, message => $5)::text";
            self.ask(query, &values).await.map(drop)
        })
    }

    fn reload(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            self.ask("SELECT quorum.reload_subscription($1)::text", &[(&self.id, Type::INT4)]).await.map(drop)
        })
    }

    fn applier(&self) -> Answer<'_, Box<dyn Applier>> {
        Box::pin(async {
            let session = self.connect(APPLIES).await?;
            let row = in_time(session.query_typed_one("SELECT pg_backend_pid()", &[])).await?;
            self.applier.store(column(&row, 0)?, Ordering::Relaxed);
            let statement =
                in_time(session.prepare_typed(APPLY, &[Type::INT4, Type::BYTEA, Type::TEXT])).await?;
            let place = Arc::clone(&self.place);
            let applier = Applying { session, statement, id: self.id, open: false, place };
            Ok(Box::new(applier) as Box<dyn Applier>)
        })
    }

    fn blocked(&self) -> Answer<'_, Option<String>> {
        Box::pin(async {
            let process = self.applier.load(Ordering::Relaxed);
            self.one(BLOCKED, &[(&process, Type::INT4)]).await
        })
    }

    fn copier(&self) -> Answer<'_, Box<dyn Copier>> {
        Box::pin(async {
            let session = self.connect("").await?;
            Ok(Box::new(Copying::new(session, self.id)) as Box<dyn Copier>)
        })
    }

    fn time<'a>(&'a self, text: &'a str) -> Answer<'a, i64> {
        Box::pin(async move { self.one(TIME, &[(&text, Type::TEXT)]).await })
    }
}

struct Applying {
    session: Session,
    statement: Statement,
    id: i32,
    /// A transaction was begun.
    open: bool,
    place: Arc<Place>,
}

impl Applying {
    async fn call(&mut self, batch: Vec<u8>, ends: bool, only: Option<&str>) -> Result<Applied> {
        if !self.open && !ends {
            self.run("BEGIN").await?;
            self.open = true;
        }
        let values: [&(dyn ToSql + Sync); 3] = [&self.id, &batch, &only];
        // Not in a transaction: the statement is one, and when it has answered it is committed.
        let row = self.session.query_one(&self.statement, &values).await;
        let row = row.map_err(|error| Trouble::from_database(&error))?;
        let applied = Applied {
            position: position(column(&row, 0)?, column(&row, 1)?),
            in_transaction: column(&row, 2)?,
            one_by_one: column(&row, 3)?,
        };
        if self.open && ends {
            self.run("COMMIT").await?;
            self.open = false;
        }
        // Catching up, the position is that of one table.
        if ends && only.is_none() {
            self.place.applied(applied.position);
        }
        Ok(applied)
    }

    async fn run(&self, statement: &str) -> Result<()> {
        self.session.batch_execute(statement).await.map_err(|error| Trouble::from_database(&error))
    }
}

impl Applier for Applying {
    fn apply<'a>(&'a mut self, batch: Vec<u8>, ends: bool, only: Option<&'a str>) -> Answer<'a, Applied> {
        Box::pin(self.call(batch, ends, only))
    }
}

async fn in_time<T>(asked: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>) -> Result<T> {
    let answer = tokio::time::timeout(ASK_DEADLINE, asked).await.map_err(|_| Trouble::late(ASK_DEADLINE))?;
    answer.map_err(|error| Trouble::from_database(&error))
}

pub(super) fn column<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, at: usize) -> Result<T> {
    row.try_get(at).map_err(|error| unreadable(&error.to_string()))
}

fn unreadable(what: &str) -> Trouble {
    let message = format!(
        "the extension answers with something that this program does not understand ({what}). Are both of the same version?"
    );
    Trouble::stopped("version", message)
}

fn position(epoch: Option<i64>, tick: Option<i64>) -> Option<Position> {
    Some(Position { epoch: u64::try_from(epoch?).ok()?, tick: u64::try_from(tick?).ok()? })
}

pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn numbers(position: Option<Position>) -> (Option<i64>, Option<i64>) {
    (position.map(|at| number(at.epoch)), position.map(|at| number(at.tick)))
}
