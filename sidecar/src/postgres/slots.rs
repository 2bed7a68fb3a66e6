//! Physical slots as marks of how far each peer has come, so that the WAL it still needs is kept.
//!
//! Standbys do not stream through them: a walsender refuses a slot that is missing or lost, and streaming must never
//! fail for such a reason. Instead the sidecar moves the slots forward itself: on the primary to what each standby has
//! flushed, on a standby along with its own replay. So a peer that is away keeps its WAL, up to `max_slot_wal_keep_size`.
//!
//! Who leads makes them. A standby that led before has them still, perhaps also one of a peer that was removed since: it
//! holds nothing there, and goes when that node leads again. A node that leads for the first time has `wal_keep_size` of
//! what was written before.

use super::config::standby_name;
use super::error::{Result, sql};
use super::session::{Manner, Session};
use super::state::Inner;
use pgquorum_agent::postgres::PgOutcome;
use pgquorum_agent::types::NodeId;
use std::collections::BTreeSet;
use std::sync::Arc;

pub async fn set_slots(inner: &Arc<Inner>, nodes: BTreeSet<NodeId>) -> Result<PgOutcome> {
    let session = Session::local(&inner.config, Manner::default()).await?;
    let what = "keeping the peers' replication slots";
    let own = inner.config.node;
    let mut missing: BTreeSet<String> =
        nodes.iter().filter(|n| **n != own).map(|n| standby_name(*n)).collect();
    let present = "SELECT slot_name::text, COALESCE(wal_status, '') = 'lost' OR slot_type <> 'physical', active \
                   FROM pg_replication_slots WHERE slot_name LIKE 'pgquorum\\_%'";
    for row in session.query(present, &[]).await.map_err(sql(what))? {
        let (name, unusable, active): (String, bool, bool) = (row.get(0), row.get(1), row.get(2));
        if missing.contains(&name) && !unusable {
            missing.remove(&name);
        } else if active {
            tracing::warn!(slot = %name, "this slot is not wanted but in use, so it stays");
            missing.remove(&name);
        } else {
            tracing::info!(slot = %name, lost = unusable, "dropping the slot");
            session
                .execute("SELECT pg_drop_replication_slot($1::text::name)", &[&name])
                .await
                .map_err(sql(what))?;
        }
    }
    for name in missing {
        let create = "SELECT pg_create_physical_replication_slot($1::text::name, true)";
        session.execute(create, &[&name]).await.map_err(sql(what))?;
    }
    Ok(PgOutcome::Done)
}

/// Moves the slots forward. Slots never move back. One that was lost, because its peer was away for too long, holds
/// nothing until the peer streams again, by a copy; then there is a new one in its place. A peer that streams under the
/// name which acknowledges nothing has what it has, and need not get it again.
pub async fn advance(session: &Session, in_recovery: bool) -> Result<()> {
    let statement = if in_recovery {
        "SELECT pg_replication_slot_advance(slot_name, pg_last_wal_replay_lsn()) FROM pg_replication_slots \
         WHERE slot_name LIKE 'pgquorum\\_%' AND slot_type = 'physical' AND NOT active \
         AND wal_status <> 'lost' AND restart_lsn < pg_last_wal_replay_lsn()"
    } else {
        "SELECT pg_replication_slot_advance(s.slot_name, r.flush_lsn) FROM pg_replication_slots s \
         JOIN (SELECT replace(application_name, '_rejoining', '') AS name, min(flush_lsn) AS flush_lsn \
         FROM pg_stat_replication GROUP BY 1) r ON r.name = s.slot_name \
         WHERE s.slot_name LIKE 'pgquorum\\_%' AND s.slot_type = 'physical' AND NOT s.active AND s.wal_status <> 'lost' \
         AND s.restart_lsn < LEAST(r.flush_lsn, pg_current_wal_flush_lsn())"
    };
    session.query(statement, &[]).await.map_err(sql("moving the peers' replication slots forward"))?;
    if in_recovery { Ok(()) } else { replace_lost(session).await }
}

/// One statement, so that nothing comes between the end of the old slot and the new one: for each row the subquery, which
/// is not flattened, drops, and then what is around it creates.
async fn replace_lost(session: &Session) -> Result<()> {
    let statement = "SELECT (pg_create_physical_replication_slot(lost.slot_name, true)).slot_name::text \
                     FROM (SELECT s.slot_name, pg_drop_replication_slot(s.slot_name) FROM pg_replication_slots s \
                     WHERE s.slot_name LIKE 'pgquorum\\_%' AND s.slot_type = 'physical' AND NOT s.active \
                     AND s.wal_status = 'lost' AND EXISTS (SELECT FROM pg_stat_replication r \
                     WHERE replace(r.application_name, '_rejoining', '') = s.slot_name AND r.state = 'streaming') \
                     OFFSET 0) lost";
    let what = "replacing the lost slot of a peer that is back";
    for row in session.query(statement, &[]).await.map_err(sql(what))? {
        let name: String = row.get(0);
        tracing::info!(slot = %name, "its peer is back: there is a new slot in the place of the lost one");
    }
    Ok(())
}
