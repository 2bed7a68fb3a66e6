//! Where followers stand: what the functions in `sql/feed.sql` ask of this side.

use pgrx::prelude::*;

use super::view::ChannelView;
use crate::pg::table::View;

/// Internal. As `quorum.find_position`, and whatever the caller's snapshot sees: the log that an old snapshot
/// (REPEATABLE READ) still shows may have been dropped. Errors: as `quorum.read_log`.
#[pg_extern]
fn find_position_now(
    channel: &str,
    position: &str,
) -> TableIterator<'static, (name!(epoch, i64), name!(tick, i64))> {
    let view = match ChannelView::load(channel, View::Now) {
        Ok(view) => view,
        Err(error) => error.raise(),
    };
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    match view.find(position) {
        Ok(tick) => TableIterator::once((signed(view.position(tick).epoch), signed(tick))),
        Err(error) => {
            drop(view);
            error.raise()
        }
    }
}
