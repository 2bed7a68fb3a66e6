//! The restart barrier: when clients may log in again on a server that was a primary.
//!
//! Such a server may hold commits that nobody else has. As a primary it is opened by its next lease. As a standby it is
//! when it has replayed the first row of a later epoch, and with it the decision on everything before; and when that
//! epoch was opened, so k standbys have that row too. The leader records entries of the cluster's log in the database
//! once its epoch is open, so an entry of such a term proves it.

use super::config_files::Desired;
use super::error::{Result, sql};
use super::session::Session;
use super::state::Inner;
use std::sync::Arc;

const ADMIT: &str = "SELECT quorum.admit_clients() WHERE EXISTS ( \
    SELECT FROM quorum.leadership AS l WHERE l.timeline > $1::int4 \
    AND l.epoch <= (SELECT c.term FROM quorum.cluster_log AS c ORDER BY c.index DESC LIMIT 1))";

/// Lets clients in on a standby, if it was a primary and it is settled what became of its last commits; then later
/// starts are those of an ordinary standby.
pub async fn admit_if_settled(inner: &Arc<Inner>, session: &Session) -> Result<()> {
    let Some(timeline) = inner.primary_on().await else { return Ok(()) };
    let admitted = session.query_opt(ADMIT, &[&timeline.cast_signed()]).await;
    if admitted.map_err(sql("admitting clients"))?.is_none() {
        return Ok(());
    }
    tracing::info!(timeline, "a later epoch is open and replayed here: clients may log in");
    // A promotion may have begun meanwhile; its mark stays.
    let settled = move |desired: &mut Desired| {
        desired.primary_on = desired.primary_on.filter(|marked| *marked != timeline);
    };
    inner.change_settings(settled).await.map(drop)
}
