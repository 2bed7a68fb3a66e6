//! The database beside this node, as the applier uses it: the extension's functions, and one session for what is written.
//!
//! All sessions are clients like any other: without the cluster's lease, or on a standby, the server refuses what they write.

use super::fault::{Fault, Kind, Result};
use super::tables::Table;
use crate::postgres::{ConnectError, Manner, PostgresConfig, Session};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql, Type};

/// Values are read as they are written in the log of one of ours. Passwords and documents come as parameters, and must not be
/// logged, whatever the server logs.
const SETTINGS: &str = "SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; \
    SET client_encoding = 'UTF8'; SET search_path = pg_catalog, pg_temp; SET default_transaction_isolation = 'read committed'; \
    SET idle_in_transaction_session_timeout = 0; SET client_connection_check_interval = '1s'; \
    SET log_parameter_max_length = 0; SET log_parameter_max_length_on_error = 0; ";
/// What is applied and its tick are lost together, and are then asked for again.
const APPLIES: &str = "SET pgquorum.allow_weak_commits = on; SET synchronous_commit = off";
/// Somebody else may have made objects of the extension's names where it is not.
const IS_OURS: &str = "SELECT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid \
    WHERE d.classid = 'pg_class'::regclass AND d.objid = to_regclass('quorum.applier') \
    AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pgquorum')";
/// Rows come as they are, from a database where they passed their checks: no triggers, no foreign keys.
const BEGIN: &str = "BEGIN; SET LOCAL session_replication_role = replica";
const ORIGIN: &str = "SELECT set_config('pgquorum.origin', $1, true), \
    set_config('pgquorum.origin_commit_time', transaction_timestamp()::text, true)";
const WRITE: &str = "SELECT quorum.applier_write($1, $2, $3)";
const TABLE: &str = "SELECT quorum.applier_table($1, $2)";
const POSITION: &str =
    "SELECT coalesce(applied, 0)::text, coalesce(resume, 0)::text FROM quorum.applier_position";
const ADVANCE: &str = "SELECT quorum.applier_advance($1, $2::numeric, $3::numeric, $4::numeric, $5::numeric, $6, $7, $8, $9, $10)";
const ME: &str = "SELECT system_identifier FROM pg_control_system()";

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const ASK_DEADLINE: Duration = Duration::from_secs(30);

pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// A database of this node's server.
pub struct Here {
    config: PostgresConfig,
    pub database: String,
    /// For everything but writing rows.
    keeper: Mutex<Option<Session>>,
}

/// Where the applier is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub applied: u64,
    pub processed: u64,
    pub resume: u64,
}

/// What was done since the last position.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Done {
    pub events: u64,
    pub documents: u64,
    pub removals: u64,
    pub excluded: u64,
    pub seconds: f64,
}

impl Here {
    pub fn new(config: PostgresConfig, database: &str) -> Here {
        Here { config, database: database.to_owned(), keeper: Mutex::new(None) }
    }

    /// Whether this is the database in which `_system` is.
    pub fn is_system(&self) -> bool {
        self.database == self.config.admin_database
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
            ConnectError::TimedOut(after) => {
                late(&format!("the database here did not answer within {after:?}"))
            }
            ConnectError::Unreachable(error) => late(&format!("the database here does not answer: {error}")),
            ConnectError::Refused(error) => Fault::from_database(&error),
        })?;
        in_time(session.batch_execute(&format!("{SETTINGS}{settings}"))).await?;
        let row = in_time(session.query_typed_one(IS_OURS, &[])).await?;
        if column::<bool>(&row, 0)? {
            return Ok(session);
        }
        Err(Fault::new(
            Kind::Gone,
            500,
            format!("the extension is not in database {} any more", self.database),
        ))
    }

    /// Asks in a session that is kept; a commit there returns when it is as durable as the cluster promises.
    pub async fn ask(&self, query: &str, values: &[Parameter<'_>]) -> Result<Vec<Row>> {
        let mut keeper = self.keeper.lock().await;
        // Taken out: one whose answer was not waited for is not used again.
        let session = match keeper.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => self.connect("").await?,
        };
        let rows = in_time(session.query_typed(query, values)).await?;
        *keeper = Some(session);
        Ok(rows)
    }

    async fn one<T: for<'r> FromSql<'r>>(&self, query: &str, values: &[Parameter<'_>]) -> Result<T> {
        let rows = self.ask(query, values).await?;
        column(rows.first().ok_or_else(|| unreadable("no row"))?, 0)
    }

    pub async fn position(&self) -> Result<Position> {
        let rows = self.ask(POSITION, &[]).await?;
        let row = rows.first().ok_or_else(|| unreadable("no position"))?;
        let tick = |at| column::<String>(row, at)?.parse::<u64>().map_err(|_| unreadable("a tick"));
        let (applied, resume) = (tick(0)?, tick(1)?);
        Ok(Position { applied, processed: resume, resume })
    }

    /// The number of this server, as remotes know it.
    pub async fn me(&self) -> Result<u64> {
        Ok(self.one::<i64>(ME, &[]).await?.cast_unsigned())
    }

    /// Says how the work goes on.
    ///
    /// # Errors
    /// The applier was stopped, or the database does not answer.
    pub async fn report(&self, generation: i64, report: &Value) -> Result<()> {
        let values: [Parameter; 2] = [(&generation, Type::INT8), (report, Type::JSONB)];
        match self.one::<bool>("SELECT quorum.applier_report($1, $2)", &values).await? {
            true => Ok(()),
            false => Err(Fault::new(Kind::Gone, 500, "the applier was stopped")),
        }
    }

    /// The applier cannot go on.
    pub async fn failed(&self, generation: i64, fault: &Fault) -> Result<()> {
        let number = i32::from(fault.number);
        let values: [Parameter; 3] =
            [(&generation, Type::INT8), (&number, Type::INT4), (&fault.message, Type::TEXT)];
        self.ask("SELECT quorum.applier_failed($1, $2, $3)::text", &values).await.map(drop)
    }

    /// A table, if there is one of this name.
    pub async fn table(&self, schema: &str, name: &str, ours: bool) -> Result<Option<Table>> {
        let values: [Parameter; 2] = [(&schema, Type::TEXT), (&name, Type::TEXT)];
        let described: Option<Value> = self.one(TABLE, &values).await?;
        described.map(|described| Table::read(schema, name, &described, ours)).transpose()
    }

    /// Makes a table for documents, of which no columns are known.
    pub async fn make_table(&self, name: &str) -> Result<()> {
        let made = self.ask("SELECT quorum.applier_make_table($1)::text", &[(&name, Type::TEXT)]).await;
        made.map(drop).map_err(|fault| fault.at(format!("table public.{name} could not be made")))
    }

    /// Makes a table with these columns and this key.
    pub async fn make_described(&self, schema: &str, name: &str, description: &Value) -> Result<()> {
        let values: [Parameter; 3] = [(&schema, Type::TEXT), (&name, Type::TEXT), (description, Type::JSONB)];
        let made = self.ask("SELECT quorum.create_described_table($1, $2, $3)::text", &values).await;
        made.map(drop).map_err(|fault| fault.at(format!("table {schema}.{name} could not be made")))
    }

    /// A session that writes. `weakly`: its commits return before they are durable.
    pub async fn writer(&self, weakly: bool) -> Result<Writer> {
        Ok(Writer { session: self.connect(if weakly { APPLIES } else { "" }).await? })
    }
}

/// A session that writes rows.
pub struct Writer {
    session: Session,
}

impl Writer {
    /// Begins a transaction for what comes from this origin.
    pub async fn begin(&self, origin: &str) -> Result<()> {
        self.run(BEGIN).await?;
        self.session
            .query_typed(ORIGIN, &[(&origin, Type::TEXT)])
            .await
            .map_err(|e| Fault::from_database(&e))?;
        Ok(())
    }

    /// Statements without parameters.
    pub async fn run(&self, statements: &str) -> Result<()> {
        self.session.batch_execute(statements).await.map_err(|error| Fault::from_database(&error))
    }

    pub async fn ask(&self, query: &str, values: &[Parameter<'_>]) -> Result<Vec<Row>> {
        self.session.query_typed(query, values).await.map_err(|error| Fault::from_database(&error))
    }

    /// Runs a statement that writes into a table, with the rights of the table's owner. Gives the number of rows.
    pub async fn write(&self, table: &Table, statement: &str, lines: &[&str]) -> Result<u64> {
        let values: [Parameter; 3] =
            [(&table.relation, Type::OID), (&statement, Type::TEXT), (&lines, Type::TEXT_ARRAY)];
        let rows = self.ask(WRITE, &values).await?;
        let count: i64 = column(rows.first().ok_or_else(|| unreadable("no count"))?, 0)?;
        Ok(count.unsigned_abs())
    }

    /// In the transaction that has applied it: up to where that was.
    pub async fn advance(&self, generation: i64, before: u64, to: Position, done: Done) -> Result<()> {
        let [before, applied, processed, resume] =
            [before, to.applied, to.processed, to.resume].map(|tick| tick.to_string());
        let [events, documents, removals, excluded] =
            [done.events, done.documents, done.removals, done.excluded].map(u64::cast_signed);
        let values: [Parameter; 10] = [
            (&generation, Type::INT8),
            (&before, Type::TEXT),
            (&applied, Type::TEXT),
            (&processed, Type::TEXT),
            (&resume, Type::TEXT),
            (&events, Type::INT8),
            (&documents, Type::INT8),
            (&removals, Type::INT8),
            (&excluded, Type::INT8),
            (&done.seconds, Type::FLOAT8),
        ];
        self.ask(ADVANCE, &values).await.map(drop)
    }
}

async fn in_time<T>(asked: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>) -> Result<T> {
    let answer = tokio::time::timeout(ASK_DEADLINE, asked).await;
    let answer =
        answer.map_err(|_| late(&format!("the database here did not answer within {ASK_DEADLINE:?}")))?;
    answer.map_err(|error| Fault::from_database(&error))
}

fn late(message: &str) -> Fault {
    Fault::new(Kind::Here, 500, message)
}

fn column<'r, T: FromSql<'r>>(row: &'r Row, at: usize) -> Result<T> {
    row.try_get(at).map_err(|error| unreadable(&error.to_string()))
}

fn unreadable(what: &str) -> Fault {
    let message = format!(
        "the extension answers with something that this program does not understand ({what}). Are both of the same version?"
    );
    Fault::stopped(500, message)
}
