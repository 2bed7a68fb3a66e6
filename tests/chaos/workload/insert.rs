//! Rows with numbers of their own, by a single statement or in a block.

use super::{Failure, at_commit, before};
use crate::history::Seen;
use tokio_postgres::Client;

const INSERT: &str = "INSERT INTO chaos_insert (id) VALUES ($1)";

pub async fn run(client: &Client, id: u64, way: u64) -> Result<Seen, Failure> {
    let id = id as i64;
    if way.is_multiple_of(3) {
        client.batch_execute("BEGIN").await.map_err(before)?;
        client.execute(INSERT, &[&id]).await.map_err(before)?;
        client.batch_execute("COMMIT").await.map_err(at_commit)?;
    } else {
        client.execute(INSERT, &[&id]).await.map_err(at_commit)?;
    }
    Ok(Seen::Nothing)
}
