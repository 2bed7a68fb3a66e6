//! The target.

use super::orders;
use crate::feed::Position;
use crate::follow::frames::{Frame, Frames};
use crate::follow::subscription::TableName;
use crate::follow::target::{Answer, Applied, Applier, Copier, Report, SourceFound, Standing, Target};
use crate::follow::trouble::{Kind, Trouble};
use crate::follow::versions::{Version, Versions};
use bytes::Bytes;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

/// What the target has, and what was said in it.
#[derive(Default)]
pub struct FakeTarget {
    pub inner: Mutex<TargetState>,
}

#[derive(Default)]
pub struct TargetState {
    pub standing: Standing,
    pub copied: Vec<String>,
    pub reports: Vec<Report>,
    pub stopped: Vec<(TableName, String)>,
    /// Transactions that were applied together, by their last ticks.
    pub applied: Vec<Vec<u64>>,
    /// A copy of a table is refused with this.
    pub refuses_copies: bool,
    /// A table that is brought to the others stops at its first change.
    pub stops_behind: bool,
    /// Each transaction needs one of its own.
    pub one_by_one: bool,
    /// So often a change refers to an unknown version.
    pub unknown: u32,
    /// What the next batches fail with.
    pub failures: VecDeque<Trouble>,
    /// Every other batch fails with this.
    pub hindrance: Option<Trouble>,
    pub hindered: bool,
    pub reloads: usize,
    /// What was copied, and what the copy under way is of.
    pub version: Option<Version>,
    pub load: Option<Version>,
    pub loads: usize,
    pub fetched: usize,
    pub change_bytes: Option<u64>,
    /// How far somebody else gets who is still at it when work begins here.
    pub late: Option<Position>,
}

impl FakeTarget {
    pub fn lock(&self) -> MutexGuard<'_, TargetState> {
        self.inner.lock().unwrap()
    }

    pub fn last_state(&self) -> Option<(String, Option<String>)> {
        self.lock().reports.last().map(|report| (report.state.to_owned(), report.code.clone()))
    }
}

#[derive(Clone)]
pub struct Here(pub Arc<FakeTarget>);

impl Versions for Here {
    fn see_source(&self, version: Version) -> Answer<'_, bool> {
        Box::pin(async move {
            let mut state = self.0.lock();
            state.fetched += 1;
            state.standing.refetch = false;
            let loads = !state.standing.to_copy.is_empty();
            if state.version.is_none() && !loads {
                state.version = Some(version);
            }
            Ok(!loads && state.version.is_some_and(|here| here.number < version.number))
        })
    }

    fn begin_load(&self, version: Version) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0.lock().load.get_or_insert(version);
            Ok(())
        })
    }

    fn end_load(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let mut state = self.0.lock();
            if state.standing.to_copy.is_empty() && state.standing.position.is_some() {
                state.version = state.load.take();
                state.loads += 1;
            }
            Ok(())
        })
    }

    fn see_change_size(&self, bytes: Option<u64>) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0.lock().change_bytes = bytes;
            Ok(())
        })
    }
}

impl Target for Here {
    fn origin(&self) -> Answer<'_, String> {
        Box::pin(async { Ok("paris".to_owned()) })
    }

    fn standing(&self) -> Answer<'_, Standing> {
        Box::pin(async { Ok(self.0.lock().standing.clone()) })
    }

    fn begin<'a>(
        &'a self,
        found: SourceFound<'a>,
        start: Option<Position>,
        report: Report,
    ) -> Answer<'a, Standing> {
        Box::pin(async move {
            let state = &mut *self.0.lock();
            let standing = &mut state.standing;
            if standing.tables == 0 {
                standing.tables = found.tables.len();
                match start {
                    Some(start) => standing.position = Some(start),
                    None => standing.to_copy = found.tables.to_vec(),
                }
            }
            state.change_bytes = found.change_bytes;
            state.reports.push(report);
            Ok(state.standing.clone())
        })
    }

    fn add_schemas(&self, _schemas: Value) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn report(&self, report: Report) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0.lock().reports.push(report);
            Ok(())
        })
    }

    fn report_rows<'a>(&'a self, _table: &'a TableName, _rows: u64, _bytes: u64) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn report_stopped<'a>(
        &'a self,
        table: &'a TableName,
        code: &'a str,
        _message: &'a str,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut state = self.0.lock();
            state.stopped.push((table.clone(), code.to_owned()));
            state.standing.to_copy.retain(|one| one != table);
            state.standing.stopped += 1;
            Ok(())
        })
    }

    fn reload(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let mut state = self.0.lock();
            state.reloads += 1;
            state.standing.position = None;
            state.standing.to_copy = vec![orders()];
            Ok(())
        })
    }

    fn applier(&self) -> Answer<'_, Box<dyn Applier>> {
        Box::pin(async { Ok(Box::new(Applies { target: Arc::clone(&self.0) }) as Box<dyn Applier>) })
    }

    fn blocked(&self) -> Answer<'_, Option<String>> {
        Box::pin(async { Ok(None) })
    }

    fn copier(&self) -> Answer<'_, Box<dyn Copier>> {
        Box::pin(async {
            Ok(Box::new(Copies { target: Arc::clone(&self.0), lines: Vec::new() }) as Box<dyn Copier>)
        })
    }

    fn time<'a>(&'a self, text: &'a str) -> Answer<'a, i64> {
        Box::pin(async move { Ok(text.len().try_into().unwrap()) })
    }
}

struct Applies {
    target: Arc<FakeTarget>,
}

impl Applier for Applies {
    fn apply<'a>(&'a mut self, batch: Vec<u8>, ends: bool, only: Option<&'a str>) -> Answer<'a, Applied> {
        Box::pin(async move {
            let mut state = self.target.lock();
            if let Some(late) = state.late.take() {
                state.standing.position = Some(late);
            }
            if !batch.is_empty() {
                state.failures.pop_front().map_or(Ok(()), Err)?;
                state.hindered = !state.hindered;
                state.hindrance.clone().filter(|_| state.hindered).map_or(Ok(()), Err)?;
                if state.unknown > 0 {
                    state.unknown -= 1;
                    return Err(Trouble::new(Kind::UnknownSchema(7), "PQ010", "version 7"));
                }
            }
            let before = match only {
                Some(name) => match state.standing.to_catch_up.first() {
                    Some((_, at)) => *at,
                    None => {
                        let message = format!("table {name} of subscription s is not to be caught up");
                        return Err(Trouble::new(Kind::Table, "55000", message));
                    }
                },
                None => state.standing.position.unwrap_or_default(),
            };
            let (mut frames, mut here, mut transactions) = (Frames::default(), before, Vec::new());
            frames.push(&batch);
            let mut begun = false;
            while let Some(frame) = frames.next().unwrap() {
                match frame {
                    Frame::Piece { .. } => begun = true,
                    Frame::Row { last_tick, epoch, .. } => {
                        assert!(begun, "a row without a piece before it");
                        if last_tick > here.tick {
                            transactions.push(last_tick);
                            here = Position { epoch, tick: last_tick };
                        }
                    }
                    other => panic!("{other:?} is nothing to apply"),
                }
            }
            if state.one_by_one && transactions.len() > 1 {
                return Err(Trouble::new(Kind::OneByOne, "PQ012", "one by one"));
            }
            assert!(ends);
            let stops = state.stops_behind && !transactions.is_empty();
            if !transactions.is_empty() {
                state.applied.push(transactions);
            }
            match only {
                Some(_) if stops => {
                    state.standing.to_catch_up.clear();
                    state.standing.stopped += 1;
                }
                Some(_) if here.tick >= state.standing.position.unwrap_or_default().tick => {
                    state.standing.to_catch_up.clear();
                }
                Some(_) => state.standing.to_catch_up[0].1 = here,
                None if state.standing.position.is_some() => state.standing.position = Some(here),
                None => {}
            }
            let position = if only.is_some() { Some(here) } else { state.standing.position };
            Ok(Applied { position, in_transaction: false, one_by_one: state.one_by_one })
        })
    }
}

struct Copies {
    target: Arc<FakeTarget>,
    lines: Vec<u8>,
}

impl Copier for Copies {
    fn begin<'a>(
        &'a mut self,
        _table: &'a TableName,
        columns: &'a [String],
        origin: &'a str,
    ) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            assert_eq!(origin, "berlin");
            match self.target.lock().refuses_copies {
                true => Err(Trouble::new(Kind::Table, "55000", "the table holds rows")),
                false => Ok(columns[1..].to_vec()),
            }
        })
    }

    fn write(&mut self, lines: Bytes) -> Answer<'_, ()> {
        Box::pin(async move {
            self.lines.extend_from_slice(&lines);
            Ok(())
        })
    }

    fn finish<'a>(&'a mut self, table: &'a TableName, at: Position, rows: u64, bytes: u64) -> Answer<'a, ()> {
        Box::pin(async move {
            assert_eq!(bytes, self.lines.len() as u64);
            assert_eq!(rows, self.lines.iter().filter(|byte| **byte == b'\n').count() as u64);
            let mut state = self.target.lock();
            state.copied.push(String::from_utf8(std::mem::take(&mut self.lines)).unwrap());
            state.standing.to_copy.retain(|one| one != table);
            state.standing.position.get_or_insert(at);
            Ok(())
        })
    }
}
