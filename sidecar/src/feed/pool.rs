//! Sessions in the server beside this node: few, shared, and none kept in a database that nobody asks for.

use super::error::{FeedError, Kind, Result};
use super::server::{ONLY_READ, said, within};
use crate::postgres::{ConnectError, Manner, PostgresConfig, Session};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{Row, Statement};

/// Readers that ask the database at the same time; the others wait their turn.
const READING_MAX: usize = 6;
/// Channels that readers wait for at the same time: each holds one session.
const WAITING_MAX: usize = 16;
/// Requests that change something.
const CHANGING_MAX: usize = 4;
/// Copies of whole channels: each holds a snapshot, and with it rows that vacuum would like to remove.
const DUMPING_MAX: usize = 2;
/// Snapshots that are held for copies in parallel, and the sessions that read in them.
const HOLDING_MAX: usize = 4;
const COPYING_MAX: usize = 8;
/// Those who ask which statements are served.
const STATEMENTS_MAX: usize = 4;
/// Those who ask for subscriptions.
const FOLLOWING_MAX: usize = 4;
/// Idle sessions over all databases.
const IDLE_MAX: usize = 8;
/// An idle session keeps its database from being dropped, so it does not stay for long.
const IDLE_AGE_MAX: Duration = Duration::from_secs(10);
/// How long a request waits for its turn.
const TURN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a new session may take to set its parameters.
const SETTINGS_DEADLINE: Duration = Duration::from_secs(5);
/// How long the server works at a statement of a request, unless it copies.
const STATEMENT: Duration = Duration::from_secs(20);

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Read,
    Wait,
    Change,
    Dump,
    /// Holds a snapshot for others.
    Hold,
    /// Copies a table in a snapshot that another session holds.
    Copy,
    /// What the server has learned of its statements, for those who ask.
    Statements,
    /// The same for the sidecar itself, which goes from database to database.
    Visit,
    /// Which subscriptions there are, and what people do with them.
    Follow,
}

impl Purpose {
    /// What must be the extension's before anything is asked.
    fn is_ours(self) -> &'static str {
        match self {
            Purpose::Read
            | Purpose::Wait
            | Purpose::Change
            | Purpose::Dump
            | Purpose::Hold
            | Purpose::Copy => CHANNELS_ARE_OURS,
            Purpose::Statements | Purpose::Visit => STATEMENTS_ARE_OURS,
            Purpose::Follow => SUBSCRIPTIONS_ARE_OURS,
        }
    }
}

pub struct Pool {
    config: PostgresConfig,
    idle: Mutex<Vec<Idle>>,
    reading: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    changing: Arc<Semaphore>,
    dumping: Arc<Semaphore>,
    holding: Arc<Semaphore>,
    copying: Arc<Semaphore>,
    statements: Arc<Semaphore>,
    visiting: Arc<Semaphore>,
    following: Arc<Semaphore>,
    telling: Arc<Semaphore>,
}

struct Idle {
    database: String,
    kept: Kept,
    since: Instant,
}

/// A session, and what it has prepared: planning takes longer than running for what is asked again and again.
struct Kept {
    session: Session,
    prepared: Vec<(&'static str, Statement)>,
}

impl Kept {
    fn new(session: Session) -> Kept {
        Kept { session, prepared: Vec::new() }
    }

    async fn row(&mut self, query: &'static str) -> Result<Row> {
        let known = self.prepared.iter().position(|(text, _)| *text == query);
        let at = match known {
            Some(at) => at,
            None => {
                let statement = said(self.session.prepare_typed(query, &[])).await?;
                self.prepared.push((query, statement));
                self.prepared.len() - 1
            }
        };
        said(self.session.query_one(&self.prepared[at].1, &[])).await
    }
}

/// A session for one request. Whoever is done gives it back; one that is dropped ends when the server notices.
pub struct Taken {
    kept: Kept,
    database: String,
    shared: bool,
    _turn: OwnedSemaphorePermit,
}

impl Deref for Taken {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.kept.session
    }
}

impl Taken {
    /// The one row of a query without parameters that is asked often. A session that is kept has it prepared.
    pub async fn row(&mut self, query: &'static str) -> Result<Row> {
        self.kept.row(query).await
    }
}

impl Pool {
    pub fn new(config: PostgresConfig) -> Arc<Pool> {
        let turns = |n| Arc::new(Semaphore::new(n));
        let pool = Arc::new(Pool {
            config,
            idle: Mutex::default(),
            reading: turns(READING_MAX),
            waiting: turns(WAITING_MAX),
            changing: turns(CHANGING_MAX),
            dumping: turns(DUMPING_MAX),
            holding: turns(HOLDING_MAX),
            copying: turns(COPYING_MAX),
            statements: turns(STATEMENTS_MAX),
            visiting: turns(1),
            following: turns(FOLLOWING_MAX),
            telling: turns(1),
        });
        let weak = Arc::downgrade(&pool);
        tokio::spawn(async move {
            let mut clock = tokio::time::interval(IDLE_AGE_MAX / 2);
            loop {
                clock.tick().await;
                let Some(pool) = weak.upgrade() else { return };
                pool.lock().retain(|idle| idle.since.elapsed() < IDLE_AGE_MAX);
            }
        });
        pool
    }

    pub fn default_database(&self) -> &str {
        &self.config.admin_database
    }

    /// A session in this database.
    ///
    /// # Errors
    /// There is no such database, the server does not answer, or too many others ask at the same time.
    pub async fn take(&self, database: &str, purpose: Purpose) -> Result<Taken> {
        let turns = match purpose {
            Purpose::Read => &self.reading,
            Purpose::Wait => &self.waiting,
            Purpose::Change => &self.changing,
            Purpose::Dump => &self.dumping,
            Purpose::Hold => &self.holding,
            Purpose::Copy => &self.copying,
            Purpose::Statements => &self.statements,
            Purpose::Visit => &self.visiting,
            Purpose::Follow => &self.following,
        };
        let turn = match purpose {
            // Whoever holds one has it for minutes.
            Purpose::Hold => Arc::clone(turns).try_acquire_owned().ok(),
            _ => turn(turns).await,
        };
        let turn = turn.ok_or_else(|| busy(purpose))?;
        let shared = !matches!(purpose, Purpose::Change | Purpose::Dump | Purpose::Hold | Purpose::Copy);
        let found = if shared { self.take_idle(database) } else { None };
        let (mut kept, new) = match found {
            Some(kept) => (kept, false),
            None => (Kept::new(self.connect(database, purpose).await?), true),
        };
        within(SETTINGS_DEADLINE, ONLY_READ, prepare(&mut kept, new, purpose)).await?;
        Ok(Taken { kept, database: database.to_owned(), shared, _turn: turn })
    }

    /// A session in a database where the extension need not be, to put it there. It is not kept.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub async fn take_bare(&self, database: &str) -> Result<Taken> {
        let turn = turn(&self.changing).await.ok_or_else(|| busy(Purpose::Change))?;
        let session = self.connect(database, Purpose::Change).await?;
        let settings = format!("{SETTINGS}{SEARCH_PATH}");
        within(SETTINGS_DEADLINE, ONLY_READ, said(session.batch_execute(&settings))).await?;
        Ok(Taken { kept: Kept::new(session), database: database.to_owned(), shared: false, _turn: turn })
    }

    /// Takes the session back after a request, whatever came of it.
    ///
    /// A backend that is not done when the time is up may stay so (a commit waits for standbys whether its client is there
    /// or not): it keeps its turn until it is done, or there would be more and more of them, until nobody can connect.
    pub fn done<T>(&self, taken: Taken, result: Result<T>) -> Result<T> {
        match &result {
            Ok(_) => self.give_back(taken),
            Err(error) if error.kind == Kind::TimedOut => {
                tokio::spawn(async move {
                    // Comes after what is under way. Without a connection there is nothing to wait for.
                    let _ = taken.batch_execute("").await;
                });
            }
            Err(_) => {}
        }
        result
    }

    /// Keeps the session for the next one.
    fn give_back(&self, taken: Taken) {
        let Taken { kept, database, shared, .. } = taken;
        if !shared || kept.session.is_closed() {
            return;
        }
        let mut idle = self.lock();
        if idle.len() == IDLE_MAX {
            idle.remove(0);
        }
        idle.push(Idle { database, kept, since: Instant::now() });
    }

    fn take_idle(&self, database: &str) -> Option<Kept> {
        let mut idle = self.lock();
        idle.retain(|one| !one.kept.session.is_closed());
        let found = idle.iter().rposition(|one| one.database == database)?;
        Some(idle.remove(found).kept)
    }

    async fn connect(&self, database: &str, purpose: Purpose) -> Result<Session> {
        let copies = matches!(purpose, Purpose::Dump | Purpose::Hold | Purpose::Copy);
        let statement = if copies { Duration::ZERO } else { STATEMENT };
        let session = if copies {
            Session::copying(&self.config, database, manner(statement)).await
        } else {
            Session::in_database(&self.config, database, manner(statement)).await
        };
        let instead = "Ask another node, or look at GET /map";
        session.map_err(|error| refused(error, "the server beside this node", instead))
    }

    /// A session in this database of another node's server, the leader's, for what its own node has to tell it. One at a
    /// time; it is not kept.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub async fn elsewhere(&self, server: SocketAddr, database: &str) -> Result<Taken> {
        let turn = turn(&self.telling).await.ok_or_else(|| busy(Purpose::Visit))?;
        let session = Session::remote_database(&self.config, server, database, manner(STATEMENT)).await;
        let session = session
            .map_err(|error| refused(error, &format!("the server at {server}"), "It is tried again"))?;
        let mut kept = Kept::new(session);
        within(SETTINGS_DEADLINE, ONLY_READ, prepare(&mut kept, true, Purpose::Visit)).await?;
        Ok(Taken { kept, database: database.to_owned(), shared: false, _turn: turn })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Values are written as in the log; a backend whose reader went away ends within a second. Passwords come as parameters,
/// and must not be logged, whatever the server logs.
const SETTINGS: &str = "SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; \
                        SET extra_float_digits = 1; SET bytea_output = 'hex'; SET client_encoding = 'UTF8'; \
                        SET client_connection_check_interval = '1s'; SET log_parameter_max_length = 0; \
                        SET log_parameter_max_length_on_error = 0; ";
/// No name that is looked up with a superuser's rights may be one that somebody else made.
const SEARCH_PATH: &str = "SET search_path = pg_catalog, pg_temp";
/// Also where the extension is not, there may be objects of its names, made by anybody.
const CHANNELS_ARE_OURS: &str = "SELECT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid \
    WHERE d.classid = 'pg_class'::regclass AND d.objid = to_regclass('quorum.channel') \
    AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pgquorum')";
/// The same of everything that is called for statements: an older version of the extension knows nothing of them. Asked
/// before each answer: each name is looked up once, and OFFSET 0 keeps PostgreSQL from joining them with all that the
/// extension has.
const STATEMENTS_ARE_OURS: &str = "SELECT count(*) = 6 FROM (VALUES \
    ('pg_class'::regclass::oid, to_regclass('quorum.readonly_statements')::oid), \
    ('pg_proc'::regclass, to_regprocedure('quorum.statements_state()')), \
    ('pg_proc'::regclass, to_regprocedure('quorum.served_statements()')), \
    ('pg_proc'::regclass, to_regprocedure('quorum.take_learned(integer)')), \
    ('pg_proc'::regclass, to_regprocedure('quorum.mark_unsent()')), \
    ('pg_proc'::regclass, to_regprocedure('quorum.merge_statements(jsonb)'))) AS o(class, id) \
    WHERE EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid \
    WHERE d.classid = o.class AND d.objid = o.id AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' \
    AND e.extname = 'pgquorum' OFFSET 0)";

const SUBSCRIPTIONS_ARE_OURS: &str = "SELECT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid \
    WHERE d.classid = 'pg_class'::regclass AND d.objid = to_regclass('quorum.subscription') \
    AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pgquorum')";

/// Sets a session up for a request, and sees that what it will call is the extension's: it may have been dropped meanwhile.
async fn prepare(kept: &mut Kept, new: bool, purpose: Purpose) -> Result<()> {
    if new {
        said(kept.session.batch_execute(&format!("{SETTINGS}{SEARCH_PATH}"))).await?;
    }
    if !kept.row(purpose.is_ours()).await?.get::<_, bool>(0) {
        return Err(FeedError::no_extension());
    }
    if purpose == Purpose::Change {
        // It names tables as its user's own session would; all else in its statements has its schema with it.
        said(kept.session.batch_execute("RESET search_path")).await?;
    }
    Ok(())
}

async fn turn(turns: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    tokio::time::timeout(TURN_DEADLINE, Arc::clone(turns).acquire_owned()).await.ok()?.ok()
}

/// `who` was to be connected to, and what to do `instead`.
fn refused(error: ConnectError, who: &str, instead: &str) -> FeedError {
    match error {
        ConnectError::TimedOut(after) => {
            let message = format!("{who} did not answer within {after:?}. {instead}");
            FeedError::new(Kind::Unavailable, message)
        }
        ConnectError::Unreachable(error) => {
            let message = format!("{who} does not answer: {error}. {instead}");
            FeedError::new(Kind::Unavailable, message)
        }
        ConnectError::Refused(error) => FeedError::from_database(&error),
    }
}

/// Like any client: no access without a lease or before the server admits clients, and what is changed is durable where
/// the cluster promises it.
fn manner(statement: Duration) -> Manner {
    Manner { statement, waits_for_standbys: true, bypasses_fence: false, ..Manner::default() }
}

fn busy(purpose: Purpose) -> FeedError {
    let what = match purpose {
        Purpose::Read => "readers ask the database at the same time",
        Purpose::Wait => "channels are waited for",
        Purpose::Change => "changes of channels are under way",
        Purpose::Dump => "copies of channels are under way",
        Purpose::Hold => "snapshots are held for copies",
        Purpose::Copy => "tables are being copied",
        Purpose::Follow => "ask for subscriptions",
        Purpose::Statements | Purpose::Visit => "ask which statements are served",
    };
    FeedError::new(Kind::Busy, format!("too many {what} on this node; try again, or ask another node"))
}
