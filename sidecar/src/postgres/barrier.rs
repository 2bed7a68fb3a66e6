//! The restart barrier: when clients may log in again on a server that was a primary.
//!
//! Such a server may hold commits that nobody else has. As a primary it is opened by its next lease. As a standby it is
//! by what it has replayed; [`Replayed`] judges that.

use super::config_files::Desired;
use super::error::{Result, sql};
use super::session::Session;
use super::state::Inner;
use pgquorum_agent::barrier::Replayed;
use std::sync::Arc;

const REPLAYED: &str = "SELECT (SELECT min(l.epoch) FROM quorum.leadership AS l WHERE l.timeline > $1::int4)::int8, \
    (SELECT c.term FROM quorum.cluster_log AS c ORDER BY c.index DESC LIMIT 1)::int8";
const ADMIT: &str = "SELECT quorum.admit_clients()";

/// Lets clients in on a standby, if it was a primary and it is settled what became of its last commits; then later
/// starts are those of an ordinary standby.
pub async fn admit_if_settled(inner: &Arc<Inner>, session: &Session) -> Result<()> {
    let Some(timeline) = inner.primary_on().await else { return Ok(()) };
    let what = "admitting clients";
    let row = session.query_one(REPLAYED, &[&timeline.cast_signed()]).await.map_err(sql(what))?;
    let number = |i: usize| row.get::<_, Option<i64>>(i).map(i64::cast_unsigned);
    let replayed = Replayed { later_epoch: number(0), recorded_term: number(1) };
    if !replayed.is_settled() {
        return Ok(());
    }
    session.execute(ADMIT, &[]).await.map_err(sql(what))?;
    tracing::info!(timeline, "a later epoch is open and replayed here: clients may log in");
    // A promotion may have begun meanwhile; its mark stays.
    let settled = move |desired: &mut Desired| {
        desired.primary_on = desired.primary_on.filter(|marked| *marked != timeline);
    };
    inner.change_settings(settled).await.map(drop)
}
