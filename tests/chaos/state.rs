//! What is in the database at the end, node by node.

use pgquorum_tests::NetCluster;
use serde::Serialize;
use std::collections::BTreeMap;

/// A transfer's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub from: i32,
    pub to: i32,
    pub amount: i64,
}

/// The tables of the workload on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// In order of their numbers, each as often as it is there.
    pub inserts: Vec<u64>,
    pub transfers: BTreeMap<u64, Moved>,
    pub accounts: BTreeMap<i32, i64>,
    pub lists: BTreeMap<i64, Vec<u64>>,
}

impl State {
    /// Read from one node in one snapshot, past the indexes, so that a row is found that an index has lost.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(cluster: &NetCluster, id: u64) -> Result<State, String> {
        let mut client = cluster.connect(id).map_err(|e| format!("{e:?}"))?;
        let isolate = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL enable_indexscan = off; SET LOCAL \
                       enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off";
        client.batch_execute(isolate).map_err(|e| format!("{e:?}"))?;
        let mut query = |sql: &str| client.query(sql, &[]).map_err(|e| format!("{sql}: {e:?}"));
        let inserts = query("SELECT id FROM chaos_insert ORDER BY id")?;
        let transfers = query("SELECT id, source, target, amount FROM chaos_transfer")?;
        let accounts = query("SELECT id, balance FROM chaos_account")?;
        let lists = query("SELECT key, list FROM chaos_list")?;
        let number = |n: i64| n as u64;
        let moved = |r: &postgres::Row| Moved { from: r.get(1), to: r.get(2), amount: r.get(3) };
        Ok(State {
            inserts: inserts.iter().map(|r| number(r.get(0))).collect(),
            transfers: transfers.iter().map(|r| (number(r.get(0)), moved(r))).collect(),
            accounts: accounts.iter().map(|r| (r.get(0), r.get(1))).collect(),
            lists: lists
                .iter()
                .map(|r| (r.get(0), r.get::<_, Vec<i64>>(1).into_iter().map(number).collect()))
                .collect(),
        })
    }
}
