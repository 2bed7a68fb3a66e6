//! WAL positions.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;

/// A position in the WAL: PostgreSQL's `pg_lsn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(u64);

/// A WAL position with the timeline it lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub lsn: Lsn,
    pub timeline: i32,
}

impl Position {
    fn new(lsn: u64, timeline: u32) -> Self {
        // PostgreSQL's own functions show timelines as `integer`; 2^31 promotions are out of reach.
        Self { lsn: Lsn(lsn), timeline: i32::try_from(timeline).unwrap_or(i32::MAX) }
    }

    fn if_valid(lsn: u64, timeline: u32) -> Option<Self> {
        (lsn != u64::from(pg_sys::InvalidXLogRecPtr)).then(|| Self::new(lsn, timeline))
    }
}

/// What a primary has on its disk, and the timeline it writes. Not to be called in recovery.
pub fn flushed() -> Position {
    // SAFETY: the caller has seen the end of recovery, which is final; the out-parameter is valid.
    #[cfg(not(feature = "pg14"))]
    let (lsn, timeline) = unsafe {
        let mut timeline = 0;
        (pg_sys::GetFlushRecPtr(&mut timeline), timeline)
    };
    // SAFETY: as above; in PostgreSQL 14 the timeline is a global, set when the end of recovery is seen.
    #[cfg(feature = "pg14")]
    let (lsn, timeline) = unsafe { (pg_sys::GetFlushRecPtr(), pg_sys::ThisTimeLineID) };
    Position::new(lsn, timeline)
}

/// What a standby has replayed; `None` before the first record.
pub fn replayed() -> Option<Position> {
    let mut timeline = 0;
    // SAFETY: reads shared state; the out-parameter is valid.
    let lsn = unsafe { pg_sys::GetXLogReplayRecPtr(&mut timeline) };
    Position::if_valid(lsn, timeline)
}

/// Where the commit record of this process's last transaction ends that had one.
pub fn last_commit() -> u64 {
    // SAFETY: a global of this process.
    unsafe { pg_sys::XactLastCommitEnd }
}

/// What a standby has received by streaming and flushed; `None` if it received nothing since it started.
pub fn received() -> Option<Position> {
    let mut timeline = 0;
    // SAFETY: reads shared state; the first out-parameter is optional, the second valid.
    let lsn = unsafe { pg_sys::GetWalRcvFlushRecPtr(std::ptr::null_mut(), &mut timeline) };
    Position::if_valid(lsn, timeline)
}

impl IntoDatum for Lsn {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(pg_sys::Datum::from(self.0))
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::PG_LSNOID
    }
}

// SAFETY: `pg_lsn` is 64 bits, passed by value on every platform that pgrx supports.
unsafe impl BoxRet for Lsn {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: as above.
        unsafe { fcinfo.return_raw_datum(pg_sys::Datum::from(self.0)) }
    }
}

// SAFETY: `into_datum` produces a `pg_lsn`.
unsafe impl SqlTranslatable for Lsn {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Lsn);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("pg_lsn"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("pg_lsn")));
}
