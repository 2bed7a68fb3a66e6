//! How many passwords are worked on at a time. Each takes a processor and some memory for tens of milliseconds, on a thread
//! of its own, so that nothing else stands still behind it.

use super::Denied;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// At a time.
const RUNS_MAX: usize = 2;

/// Those that wait for their turn; further ones are turned away.
const WAITING_MAX: usize = 32;

pub(super) struct Runs {
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Default for Runs {
    fn default() -> Self {
        Runs {
            turns: Arc::new(Semaphore::new(RUNS_MAX)),
            places: Arc::new(Semaphore::new(RUNS_MAX + WAITING_MAX)),
        }
    }
}

/// The right to work on one password.
pub(super) struct Turn {
    _turn: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Runs {
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Denied> {
        self.turn().await?.run(work).await
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// Too many wait already.
    pub(super) async fn turn(&self) -> Result<Turn, Denied> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Denied::Busy)?;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Denied::Busy)?;
        Ok(Turn { _turn: turn, _place: place })
    }
}

impl Turn {
    /// Works on a thread of its own. A client that goes away meanwhile does not make room for the next one: the work goes
    /// on.
    pub(super) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Denied> {
        let worked = tokio::task::spawn_blocking(move || {
            let _turn = self;
            work()
        });
        worked.await.map_err(|_| Denied::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn few_run_at_a_time_and_few_wait() {
        let runs = Arc::new(Runs::default());
        let mut turns = Vec::new();
        for _ in 0..RUNS_MAX {
            turns.push(runs.turn().await.unwrap());
        }
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let runs = Arc::clone(&runs);
                tokio::spawn(async move { runs.run(|| 1).await })
            })
            .collect();
        while runs.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(runs.turn().await, Err(Denied::Busy)));
        drop(turns);
        for worker in waiting {
            assert_eq!(worker.await.unwrap(), Ok(1));
        }
        assert_eq!(runs.run(|| 2).await, Ok(2));
    }
}
