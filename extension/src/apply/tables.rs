//! What the extension's tables say of a subscription, and what is written there while changes are applied.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use pgquorum_change::{Position, Schema};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiHeapTupleData};

use super::error::ApplyError;
use crate::pg::process;

/// What becomes of a change that meets something else here than at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The table stops.
    Error,
    /// The change is left out and kept.
    Skip,
    /// What is here gives way.
    ApplyRemote,
    /// The change is left out.
    KeepLocal,
    /// Whoever wrote the row later.
    LastWriteWins,
}

impl Policy {
    fn of(name: &str) -> Self {
        match name {
            "skip" => Self::Skip,
            "apply_remote" => Self::ApplyRemote,
            "keep_local" => Self::KeepLocal,
            "last_write_wins" => Self::LastWriteWins,
            _ => Self::Error,
        }
    }
}

/// What becomes of an entry about the table itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDdl {
    Ignore,
    Stop,
    Apply,
}

/// A subscription, as it was when its position was locked.
#[derive(Debug)]
pub struct Subscription {
    pub id: i32,
    pub name: String,
    pub enabled: bool,
    pub policy: Policy,
    pub ddl: OnDdl,
    /// Changes that the source has from elsewhere are applied, too.
    pub forward: bool,
    /// Nothing is copied: a table that appears at the source is followed from its beginning.
    pub copies_nothing: bool,
    /// Only these tables, as `schema.table`.
    pub tables: Option<Vec<String>>,
    /// The source's origin name.
    pub remote_origin: Option<String>,
    /// This database's.
    pub origin: String,
    /// A table that is followed is tracked here, too.
    pub captured: bool,
    /// Some table is tracked here.
    pub captures: bool,
    /// Of the subscription, or of the one table that is caught up.
    pub position: Option<Position>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Copy,
    CatchUp,
    Following,
    Stopped,
}

/// A table of a subscription.
#[derive(Clone, Debug)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub state: State,
    /// Only changes above it count.
    pub after: u64,
    pub policy: Option<Policy>,
    /// The condition of the rows that are wanted; `None`: all are.
    pub filter: Option<String>,
}

/// A tracked table, and the number under which versions of its rows are kept.
type Keeping = (u32, i32);

thread_local! {
    /// Statements that are run once a call.
    static PREPARED: RefCell<HashMap<&'static str, OwnedPreparedStatement>> = RefCell::default();
    /// Schema versions never change.
    static SCHEMAS: RefCell<HashMap<(i32, u64), Rc<Schema>>> = RefCell::default();
    /// Names of keys' columns. Where the key changes, versions are kept under another number.
    static KEYS: RefCell<HashMap<Keeping, Rc<[String]>>> = RefCell::default();
}

/// Runs a statement that is prepared the first time. Each sees what is committed when it begins.
pub(super) fn run<T>(
    sql: &'static str,
    types: &[PgOid],
    arguments: &[DatumWithOid],
    mut take: impl FnMut(&SpiHeapTupleData) -> Result<T, spi::Error>,
) -> Vec<T> {
    let result = Spi::connect_mut(|client| {
        if !PREPARED.with_borrow(|known| known.contains_key(sql)) {
            let prepared = client.prepare_mut(sql, types)?.keep();
            PREPARED.with_borrow_mut(|known| known.insert(sql, prepared));
        }
        PREPARED.with_borrow(|known| {
            let rows = client.update(&known[sql], None, arguments)?;
            rows.map(|row| take(&row)).collect::<Result<Vec<T>, spi::Error>>()
        })
    });
    result.unwrap_or_else(|error| panic!("a query of pgquorum's own tables failed: {error}"))
}

pub(super) fn oids<const N: usize>(types: [pg_sys::BuiltinOid; N]) -> [PgOid; N] {
    types.map(PgOid::BuiltIn)
}

use pg_sys::BuiltinOid::{INT4OID as INT4, INT8OID as INT8, TEXTOID as TEXT, TIMESTAMPTZOID as TIMESTAMPTZ};

fn position(epoch: Option<i64>, tick: Option<i64>) -> Option<Position> {
    Some(Position { epoch: epoch?.unsigned_abs(), tick: tick?.unsigned_abs() })
}

/// Locks the position of a subscription and reads everything about it.
pub fn find(id: i32, only: Option<&str>) -> Result<Subscription, ApplyError> {
    let sql = "SELECT s.enabled, s.policy, s.ddl, s.forward, s.copy = 'none', s.tables, s.remote_origin, s.origin, s.captured,
                      s.captures, s.epoch, s.tick, s.name
               FROM quorum.find_subscription($1, $2) AS s";
    let found = run(sql, &oids([INT4, TEXT]), &[id.into(), only.into()], |row| {
        // A row of NULLs: there is no such subscription.
        let Some(enabled) = row.get::<bool>(1)? else { return Ok(None) };
        Ok(Some(Subscription {
            id,
            enabled,
            policy: Policy::of(&row.get::<String>(2)?.unwrap_or_default()),
            ddl: match row.get::<String>(3)?.unwrap_or_default().as_str() {
                "stop" => OnDdl::Stop,
                "apply" => OnDdl::Apply,
                _ => OnDdl::Ignore,
            },
            forward: row.get(4)?.unwrap_or(false),
            copies_nothing: row.get(5)?.unwrap_or(false),
            tables: row.get(6)?,
            remote_origin: row.get(7)?,
            origin: row.get(8)?.unwrap_or_else(process::default_origin),
            captured: row.get(9)?.unwrap_or(false),
            captures: row.get(10)?.unwrap_or(false),
            position: position(row.get(11)?, row.get(12)?),
            name: row.get(13)?.unwrap_or_default(),
        }))
    });
    found.into_iter().next().flatten().ok_or(ApplyError::NoSubscription(id))
}

pub fn tables(subscription: i32) -> Vec<Table> {
    let sql = "SELECT t.schema_name, t.table_name, t.state, t.after_tick, t.policy,
                      quorum.filter_of(s.filter, t.schema_name, t.table_name)
               FROM quorum.subscription_table AS t JOIN quorum.subscription AS s ON s.id = t.subscription
               WHERE t.subscription = $1";
    run(sql, &oids([INT4]), &[subscription.into()], |row| {
        Ok(Table {
            schema: row.get(1)?.unwrap_or_default(),
            name: row.get(2)?.unwrap_or_default(),
            state: match row.get::<String>(3)?.unwrap_or_default().as_str() {
                "copy" => State::Copy,
                "catch-up" => State::CatchUp,
                "following" => State::Following,
                _ => State::Stopped,
            },
            after: row.get::<i64>(4)?.unwrap_or(0).unsigned_abs(),
            policy: row.get::<String>(5)?.map(|name| Policy::of(&name)),
            filter: row.get(6)?,
        })
    })
}

/// A schema version of the source; `None`: it was not added yet.
pub fn schema(subscription: i32, id: u64) -> Option<Rc<Schema>> {
    if let Some(known) = SCHEMAS.with_borrow(|all| all.get(&(subscription, id)).cloned()) {
        return Some(known);
    }
    let sql = "SELECT v.schema_name, v.table_name, v.columns::text
               FROM quorum.subscription_schema AS v WHERE v.subscription = $1 AND v.id = $2";
    let number = i64::try_from(id).ok()?;
    let found = run(sql, &oids([INT4, INT8]), &[subscription.into(), number.into()], |row| {
        let text = |column| Ok::<_, spi::Error>(row.get::<String>(column)?.unwrap_or_default());
        Ok(Schema::new(id, &text(1)?, &text(2)?, &text(3)?))
    });
    let schema = match found.into_iter().next()? {
        Ok(schema) => Rc::new(schema),
        Err(error) => panic!("schema version {id} of subscription {subscription} cannot be read: {error}"),
    };
    SCHEMAS.with_borrow_mut(|all| all.insert((subscription, id), Rc::clone(&schema)));
    Some(schema)
}

/// The columns of a tracked table's key, in the order of their names' bytes. `keeping`: under which number versions of its
/// rows are kept now.
pub fn key_names(root: u32, keeping: i32) -> Rc<[String]> {
    if let Some(known) = KEYS.with_borrow(|all| all.get(&(root, keeping)).cloned()) {
        return known;
    }
    let sql = "SELECT k.name FROM quorum.tracked_table AS t, pg_catalog.jsonb_object_keys(quorum.key_columns(t.schema_version)) AS k(name)
               WHERE t.relid = $1";
    let types = oids([pg_sys::BuiltinOid::OIDOID]);
    let found = run(sql, &types, &[pg_sys::Oid::from(root).into()], |row| row.get::<String>(1));
    let mut names: Vec<String> = found.into_iter().flatten().collect();
    names.sort_unstable();
    let names: Rc<[String]> = names.into();
    if names.is_empty() {
        return names;
    }
    KEYS.with_borrow_mut(|all| all.insert((root, keeping), Rc::clone(&names)));
    names
}

/// Sees to it that versions of a table's rows are kept, if they can be.
fn keep_versions(schema: &Schema) {
    let sql = "SELECT quorum.versions_lacking($1, $2)";
    let arguments = [schema.schema.as_str().into(), schema.table.as_str().into()];
    run(sql, &oids([TEXT, TEXT]), &arguments, |_| Ok(()));
}

/// Notes a table that has appeared at the source.
pub fn add_table(subscription: &Subscription, schema: &Schema) -> Table {
    let state = if subscription.copies_nothing { "following" } else { "copy" };
    let sql = "INSERT INTO quorum.subscription_table (subscription, schema_name, table_name, state, after_epoch, after_tick)
               VALUES ($1, $2, $3, $4, CASE WHEN $4 = 'following' THEN 0 END, CASE WHEN $4 = 'following' THEN 0 END)
               RETURNING (SELECT quorum.filter_of(s.filter, $2, $3) FROM quorum.subscription AS s WHERE s.id = $1)";
    let arguments =
        [subscription.id.into(), schema.schema.as_str().into(), schema.table.as_str().into(), state.into()];
    let filter = run(sql, &oids([INT4, TEXT, TEXT, TEXT]), &arguments, |row| row.get::<String>(1));
    if subscription.policy == Policy::LastWriteWins {
        // Where they cannot be, the table stops at its first change.
        keep_versions(schema);
    }
    Table {
        schema: schema.schema.clone(),
        name: schema.table.clone(),
        state: if subscription.copies_nothing { State::Following } else { State::Copy },
        after: 0,
        policy: None,
        filter: filter.into_iter().next().flatten(),
    }
}

/// Up to where transactions are complete, and when the last one was committed at the source.
pub fn save_position(subscription: i32, only: Option<&str>, at: Position, commit_us: i64) {
    let (epoch, tick) = (at.epoch.cast_signed(), at.tick.cast_signed());
    let time = process::time_of_us(u64::try_from(commit_us).unwrap_or(0));
    let arguments = [subscription.into(), only.into(), epoch.into(), tick.into(), time.into()];
    let sql = "SELECT quorum.save_position($1, $2, $3, $4, $5)";
    run(sql, &oids([INT4, TEXT, INT8, INT8, TIMESTAMPTZ]), &arguments, |_| Ok(()));
}

/// Stops a table: changes above the position are not applied.
pub fn stop(subscription: i32, table: &Table, after: Position, code: &str, message: &str) {
    let sql = "UPDATE quorum.subscription_table AS t
               SET state = 'stopped', after_epoch = $4, after_tick = $5, code = $6, message = $7,
                   since = pg_catalog.clock_timestamp()
               WHERE t.subscription = $1 AND t.schema_name = $2 AND t.table_name = $3";
    let arguments = [
        subscription.into(),
        table.schema.as_str().into(),
        table.name.as_str().into(),
        after.epoch.cast_signed().into(),
        after.tick.cast_signed().into(),
        code.into(),
        message.into(),
    ];
    run(sql, &oids([INT4, TEXT, TEXT, INT8, INT8, TEXT, TEXT]), &arguments, |_| Ok(()));
}

/// Adds to the counts of conflicts.
pub fn count(subscription: i32, table: &Table, conflict: &str, resolution: &str, count: i64) {
    let sql = "INSERT INTO quorum.conflict_count AS c (subscription, schema_name, table_name, conflict, resolution, count, last_at)
               VALUES ($1, $2, $3, $4, $5, $6, pg_catalog.clock_timestamp())
               ON CONFLICT (subscription, schema_name, table_name, conflict, resolution)
               DO UPDATE SET count = c.count + excluded.count, last_at = excluded.last_at";
    let arguments = [
        subscription.into(),
        table.schema.as_str().into(),
        table.name.as_str().into(),
        conflict.into(),
        resolution.into(),
        count.into(),
    ];
    run(sql, &oids([INT4, TEXT, TEXT, TEXT, TEXT, INT8]), &arguments, |_| Ok(()));
}

/// A transaction of the source has flushed caches.
pub fn caches_flushed(subscription: i32, xid: u64) {
    let sql = "SELECT quorum.caches_flushed($1, $2)";
    run(sql, &oids([INT4, INT8]), &[subscription.into(), xid.cast_signed().into()], |_| Ok(()));
}

/// Empties tables by deleting their rows one by one, where other tables refer to them.
pub fn referenced_from_elsewhere(tables: &[u32]) -> bool {
    let list: Vec<pg_sys::Oid> = tables.iter().map(|oid| pg_sys::Oid::from(*oid)).collect();
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint AS c
                              WHERE c.contype = 'f' AND c.confrelid = ANY ($1) AND c.conrelid <> ALL ($1))";
    let types = [PgOid::BuiltIn(pg_sys::BuiltinOid::OIDARRAYOID)];
    let found = run(sql, &types, &[list.into()], |row| row.get::<bool>(1));
    found.into_iter().next().flatten().unwrap_or(false)
}
