//! What PostgreSQL calls, and how mistakes in it are kept there.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pgrx::pg_sys::panic::{CaughtError, ErrorReport, ErrorReportWithLevel};
use pgrx::prelude::*;

use super::single::Single;
use crate::statements;

/// An error of PostgreSQL on its way through Rust.
static ON_ITS_WAY: Single<RefCell<Option<Box<dyn Any + Send>>>> = Single::new(None);

/// Runs a part of the learner that PostgreSQL has called. A mistake in it ends learning in this session, and not the
/// client's statement. What PostgreSQL raises (the statement was cancelled, a catalogue is broken) passes: the statement
/// would meet it as well.
///
/// The caller is called by PostgreSQL itself or by frames that hold nothing with a destructor.
#[inline]
pub fn guarded<R: Copy>(otherwise: R, run: impl FnOnce() -> R) -> R {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result,
        Err(payload) => {
            raise_or_give_up(payload);
            otherwise
        }
    }
}

#[cold]
fn raise_or_give_up(payload: Box<dyn Any + Send>) {
    if is_postgres_error(&*payload) {
        ON_ITS_WAY.with(move |error| *error = Some(payload));
        raise();
    } else {
        statements::give_up(&*payload);
    }
}

/// pgrx turns a panic that leaves such a function into the error that it was.
#[pg_guard]
extern "C-unwind" fn raise() {
    if let Some(error) = ON_ITS_WAY.with(Option::take) {
        resume_unwind(error);
    }
}

fn is_postgres_error(payload: &(dyn Any + Send)) -> bool {
    let caught = payload.downcast_ref::<CaughtError>();
    caught.is_some_and(|caught| !matches!(caught, CaughtError::RustPanic { .. }))
        || payload.is::<ErrorReportWithLevel>()
        || payload.is::<ErrorReport>()
}
