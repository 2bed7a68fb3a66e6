//! A bank: money moves between accounts and never appears or disappears. Each transfer leaves a row, in the same
//! transaction, so that it can be looked for.

use super::{Failure, at_commit, before};
use crate::history::{Op, Recorder, Seen};
use crate::random::Random;
use tokio_postgres::Client;

pub const ACCOUNTS: i64 = 20;
pub const START_BALANCE: i64 = 1000;

pub struct Transfer {
    pub id: u64,
    pub from: i32,
    pub to: i32,
    pub amount: i64,
}

const NOTE: &str = "INSERT INTO chaos_transfer VALUES ($1, $2, $3, $4)";
const MOVE: &str = "UPDATE chaos_account SET balance = balance + $2 WHERE id = $1";
const LOCK: &str = "SELECT id, balance FROM chaos_account WHERE id IN ($1, $2) ORDER BY id FOR UPDATE";
const LOOK: &str = "SELECT id, balance FROM chaos_account WHERE id IN ($1, $2) ORDER BY id";
const SET: &str = "UPDATE chaos_account SET balance = $2 WHERE id = $1";
/// The rows are locked in order of their numbers before one is changed, so that two transfers do not block each other.
const AT_ONCE: &str = "WITH locked AS MATERIALIZED (SELECT id FROM chaos_account WHERE id IN ($2, $3) ORDER BY id FOR \
                       UPDATE), note AS (INSERT INTO chaos_transfer VALUES ($1, $2, $3, $4)) UPDATE chaos_account a SET \
                       balance = balance + CASE WHEN a.id = $3 THEN $4 ELSE -$4 END FROM locked l WHERE a.id = l.id";

pub fn draw(random: &mut Random, recorder: &Recorder) -> Op {
    if random.percent(15) {
        return Op::Balances { anywhere: random.percent(30) };
    }
    let from = random.below(ACCOUNTS as u64) as i32 + 1;
    let to = (from + random.below(ACCOUNTS as u64 - 1) as i32) % ACCOUNTS as i32 + 1;
    Op::Transfer { id: recorder.id(), from, to, amount: random.between(1, 50) as i64 }
}

pub async fn run(client: &Client, transfer: &Transfer, way: u64) -> Result<Seen, Failure> {
    match way % 3 {
        0 => at_once(client, transfer).await?,
        1 => locked(client, transfer).await?,
        _ => serialisable(client, transfer).await?,
    }
    Ok(Seen::Nothing)
}

/// One statement.
async fn at_once(client: &Client, t: &Transfer) -> Result<(), Failure> {
    client.execute(AT_ONCE, &[&(t.id as i64), &t.from, &t.to, &t.amount]).await.map_err(at_commit)?;
    Ok(())
}

/// READ COMMITTED with locks.
async fn locked(client: &Client, t: &Transfer) -> Result<(), Failure> {
    client.batch_execute("BEGIN").await.map_err(before)?;
    client.query(LOCK, &[&t.from, &t.to]).await.map_err(before)?;
    client.execute(MOVE, &[&t.from, &-t.amount]).await.map_err(before)?;
    client.execute(MOVE, &[&t.to, &t.amount]).await.map_err(before)?;
    client.execute(NOTE, &[&(t.id as i64), &t.from, &t.to, &t.amount]).await.map_err(before)?;
    client.batch_execute("COMMIT").await.map_err(at_commit)
}

/// Reads, calculates here and writes back: right only if the server keeps its word about SERIALIZABLE.
async fn serialisable(client: &Client, t: &Transfer) -> Result<(), Failure> {
    client.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE").await.map_err(before)?;
    let rows = client.query(LOOK, &[&t.from, &t.to]).await.map_err(before)?;
    for row in &rows {
        let (id, balance): (i32, i64) = (row.get(0), row.get(1));
        let change = if id == t.from { -t.amount } else { t.amount };
        client.execute(SET, &[&id, &(balance + change)]).await.map_err(before)?;
    }
    client.execute(NOTE, &[&(t.id as i64), &t.from, &t.to, &t.amount]).await.map_err(before)?;
    client.batch_execute("COMMIT").await.map_err(at_commit)
}

pub async fn balances(client: &Client) -> Result<Seen, Failure> {
    let sql = "SELECT count(*), coalesce(sum(balance), 0)::bigint FROM chaos_account";
    let row = client.query_one(sql, &[]).await.map_err(before)?;
    Ok(Seen::Balances(row.get(0), row.get(1)))
}
