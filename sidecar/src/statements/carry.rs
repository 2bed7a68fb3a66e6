//! How what a standby learned gets to the leader, whose database is the one that all nodes serve from.
//!
//! What is taken from the server counts as sent there. If it does not arrive, or nobody can say so, everything is marked
//! as unsent before the next attempt; also for a new leader, who may lack what the old one was told last, and after a
//! start of this process. Whoever is told something twice keeps it once.

use super::source::Source;
use crate::feed::{FeedError, Result};
use pgquorum_agent::types::{Epoch, NodeId};
use std::net::SocketAddr;

/// How many statements are told at a time, and how often in one visit.
const BATCH: i32 = 500;
const BATCHES_MAX: usize = 4;

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    pub id: NodeId,
    pub epoch: Epoch,
    /// Its PostgreSQL.
    pub server: SocketAddr,
}

/// How far a database is.
#[derive(Debug, Default)]
pub struct Carried {
    /// The leader who has been told everything that counts as sent.
    told: Option<Leader>,
}

impl Carried {
    /// Brings the leader what was learned since the last time; returns how many statements were told.
    ///
    /// # Errors
    /// One of the two servers does not answer or refuses. Nothing is lost by that.
    pub async fn carry(&mut self, source: &dyn Source, database: &str, leader: Leader) -> Result<u64> {
        // Until it is known to have arrived.
        if self.told.take() != Some(leader) {
            source.mark_unsent(database).await?;
        }
        let mut carried = 0;
        for _ in 0..BATCHES_MAX {
            let learned = source.take_learned(database, BATCH).await?;
            if learned.is_empty() {
                break;
            }
            let told = learned.len();
            let used = source.merge(leader.server, database, learned).await.map_err(|error| {
                let message =
                    format!("node {} cannot be told what was learned here: {}", leader.id, error.message);
                FeedError::new(error.kind, message)
            })?;
            tracing::debug!(
                database,
                leader = leader.id,
                told,
                used,
                "the leader was told what was learned here"
            );
            carried += told as u64;
            if told < BATCH.unsigned_abs() as usize {
                break;
            }
        }
        self.told = Some(leader);
        Ok(carried)
    }
}
