//! PostgreSQL's condition variable in shared memory: sleepers are woken when there is news.

use std::cell::UnsafeCell;

use pgrx::{PGRXSharedMemory, pg_sys};

/// Lies in shared memory for the server's life.
#[repr(transparent)]
pub struct Condition(UnsafeCell<pg_sys::ConditionVariable>);

// SAFETY: PostgreSQL guards it with the spinlock that it begins with.
unsafe impl Sync for Condition {}
// SAFETY: it holds numbers of processes, no pointers.
unsafe impl PGRXSharedMemory for Condition {}

impl Default for Condition {
    fn default() -> Self {
        let mut variable = pg_sys::ConditionVariable::default();
        // SAFETY: initialises plain memory. It may be moved until its first use.
        unsafe { pg_sys::ConditionVariableInit(&mut variable) };
        Self(UnsafeCell::new(variable))
    }
}

impl Condition {
    /// Sleeps until woken or for this long at most. The caller looks at what it waits for before the first sleep and
    /// after each one, and calls [`Condition::leave`] at the end. Raises if the statement is cancelled.
    pub fn sleep(&self, milliseconds: i64) {
        // SAFETY: the variable lies in shared memory.
        unsafe {
            pg_sys::ConditionVariableTimedSleep(self.0.get(), milliseconds.max(1), pg_sys::PG_WAIT_EXTENSION);
        }
    }

    /// Begins to listen, so that what happens between the next look and the sleep is not missed.
    pub fn enter(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::ConditionVariablePrepareToSleep(self.0.get()) }
    }

    pub fn leave() {
        // SAFETY: changes what this process waits for.
        unsafe { pg_sys::ConditionVariableCancelSleep() };
    }

    pub fn wake_all(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::ConditionVariableBroadcast(self.0.get()) }
    }
}
