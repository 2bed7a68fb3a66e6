//! A list for each key, to which numbers are appended: it shows in which order transactions took effect. Keys change with
//! time, so that no list becomes long.

use super::{Failure, at_commit, before};
use crate::history::{Op, Recorder, Seen};
use crate::random::Random;
use tokio_postgres::Client;

/// Written to at the same time.
const KEYS: u64 = 6;
/// How long one set of keys is used, in microseconds.
const LIFE: u64 = 20_000_000;

const APPEND: &str = "INSERT INTO chaos_list AS l VALUES ($1, ARRAY[$2::bigint]) ON CONFLICT (key) DO UPDATE SET list = \
                      l.list || excluded.list RETURNING list";

pub fn draw(random: &mut Random, recorder: &Recorder) -> Op {
    let key = (recorder.now() / LIFE * KEYS + random.below(KEYS)) as i64;
    if random.percent(40) { Op::Read { key } } else { Op::Append { id: recorder.id(), key } }
}

pub async fn run(client: &Client, key: i64, id: u64) -> Result<Seen, Failure> {
    let row = client.query_one(APPEND, &[&key, &(id as i64)]).await.map_err(at_commit)?;
    Ok(Seen::List(numbers(row.get(0))))
}

pub async fn read(client: &Client, key: i64) -> Result<Seen, Failure> {
    let row =
        client.query_opt("SELECT list FROM chaos_list WHERE key = $1", &[&key]).await.map_err(before)?;
    Ok(Seen::List(row.map(|r| numbers(r.get(0))).unwrap_or_default()))
}

fn numbers(list: Vec<i64>) -> Vec<u64> {
    list.into_iter().map(|n| n as u64).collect()
}
