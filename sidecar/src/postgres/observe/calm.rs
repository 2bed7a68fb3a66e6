//! How often the server is looked at.

use pgquorum_agent::postgres::PgObservation;
use std::time::Duration;
use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_millis(50);
/// Where all is as it was for [`CALM_AFTER`], only positions move, and what clients do needs the processor more. That a
/// primary ends is seen at once by its process; that its WAL no longer comes, a little later by its standbys, and soon if
/// the connection to its sidecar is lost, which ends the calm.
const CALM_PAUSE: Duration = Duration::from_millis(400);
const CALM_AFTER: Duration = Duration::from_secs(2);
/// Where a standby acknowledges as soon as it is seen to be far enough: commits may be waiting for that.
const REJOINING: Duration = Duration::from_millis(20);

/// Since when the server is as it is, but for its positions in WAL.
pub struct Calm {
    shape: PgObservation,
    since: Instant,
}

impl Default for Calm {
    /// It has just begun to be so.
    fn default() -> Calm {
        Calm { shape: PgObservation::default(), since: Instant::now() }
    }
}

impl Calm {
    /// How long the next look can wait.
    pub fn pause(&mut self, observation: &PgObservation, rejoining: bool) -> Duration {
        if rejoining && observation.streaming {
            return REJOINING;
        }
        let mut shape = observation.clone();
        (shape.flush_lsn, shape.replay_lsn) = Default::default();
        for standby in &mut shape.standbys {
            (standby.flush_lsn, standby.replay_lsn) = Default::default();
        }
        if shape != self.shape {
            *self = Calm { shape, since: Instant::now() };
        }
        let calm = !observation.closed && observation.trouble.is_none() && self.since.elapsed() >= CALM_AFTER;
        if calm && (observation.is_primary() || observation.streaming) { CALM_PAUSE } else { INTERVAL }
    }
}
