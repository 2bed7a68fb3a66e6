//! Following: one part reads ahead, one applies, one says how far that is, and one keeps the source's log from going.

use super::frames::{Frame, Frames};
use super::queue::{Batch, Queue};
use super::runner::Runner;
use super::source::{Bytestream, Channel};
use super::subscription::TableName;
use super::target::{Applied, Applier, Report, Standing, Target};
use super::trouble::{Kind, Result, Trouble};
use crate::feed::Position;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often it is said how far the subscription is, if that is news, and else.
const REPORT: Duration = Duration::from_secs(1);
const REPORT_IDLE: Duration = Duration::from_secs(10);
/// How long a batch may take before it is asked whether somebody holds what it needs.
const PATIENT: Duration = Duration::from_secs(3);
/// How often the source hears up to where the log is not needed any more, if that is news, and else.
const MOVE: Duration = Duration::from_secs(1);
const MOVE_IDLE: Duration = Duration::from_secs(60);
/// How often the source is asked whether it has other tables.
const TABLES: Duration = Duration::from_secs(10);
/// How long a node of the source may not know the channel's end, or hear of no leader, before another one is asked.
const UNKNOWING: Duration = Duration::from_secs(4);
/// After a refusal of many transactions in one, so many are applied one by one before it is tried again.
const ONE_BY_ONE: u32 = 1000;
/// How often the source is asked for a version of a table that a change refers to.
const UNKNOWN_MAX: u32 = 3;

pub struct Following<'a> {
    runner: &'a Runner,
    follower: &'a str,
    channel: &'a Channel,
    known: Mutex<Known>,
    /// When the batch that is being applied was begun.
    applying: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Known {
    /// Applied here, durable or not.
    applied: Option<Position>,
    /// Applied, and as durable as the cluster promises.
    durable: Option<Position>,
    /// Where the channel ends.
    end: Option<Position>,
}

/// What following needs, begun while other things are still to be done. Nothing is applied before it is taken up.
pub struct Ahead {
    applier: Begun<(Box<dyn Applier>, Applied)>,
    /// Where the subscription is.
    position: Position,
    stream: Option<Begun<Box<dyn Bytestream>>>,
}

impl Ahead {
    /// Begins a session that applies. `None`: other things are to be done first.
    pub fn of(runner: &Runner, standing: &Standing) -> Option<Ahead> {
        let position = standing.position.filter(|_| standing.follows())?;
        let target = Arc::clone(&runner.target);
        let applier = Begun::new(async move { take_up(&*target).await });
        Some(Ahead { applier, position, stream: None })
    }

    /// Begins to read.
    pub fn read(&mut self, runner: &Runner) {
        let (source, position) = (Arc::clone(&runner.source), self.position);
        self.stream = Some(Begun::new(async move { source.stream(position).await }));
    }
}

/// Something that goes on by itself, until it is done or not wanted any more.
struct Begun<T>(JoinHandle<Result<T>>);

impl<T: Send + 'static> Begun<T> {
    fn new(work: impl Future<Output = Result<T>> + Send + 'static) -> Begun<T> {
        Begun(tokio::spawn(work))
    }

    async fn done(mut self) -> Result<T> {
        let done = (&mut self.0).await;
        done.unwrap_or_else(|error| Err(Trouble::waiting("broken_off", error.to_string())))
    }
}

impl<T> Drop for Begun<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Who applies, and where it begins. Whoever applied before is done when this is answered.
async fn take_up(target: &dyn Target) -> Result<(Box<dyn Applier>, Applied)> {
    let mut applier = target.applier().await?;
    let now = applier.apply(Vec::new(), true, None).await?;
    Ok((applier, now))
}

impl<'a> Following<'a> {
    pub fn new(runner: &'a Runner, follower: &'a str, channel: &'a Channel) -> Following<'a> {
        let known = Known { end: runner.end, ..Known::default() };
        Following { runner, follower, channel, known: Mutex::new(known), applying: Mutex::new(None) }
    }

    fn known(&self) -> Known {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn set_applying(&self, since: Option<Instant>) {
        *self.applying.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Who keeps the present batch waiting, if it has taken long.
    async fn blocked(&self) -> Result<Option<String>> {
        let since = *self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        match since {
            Some(since) if since.elapsed() >= PATIENT => self.runner.target.blocked().await,
            _ => Ok(None),
        }
    }

    /// Follows until something else is to be done.
    pub async fn follow(&mut self, ahead: Option<Ahead>) -> Result<()> {
        let ((mut applier, now), stream) = match ahead {
            Some(ahead) => (ahead.applier.done().await?, ahead.stream.map(|stream| (ahead.position, stream))),
            None => (take_up(&*self.runner.target).await?, None),
        };
        let Some(position) = now.position else { return Ok(()) };
        self.note(|known| known.applied = Some(position));
        let queue = Queue::new(position);
        // Unless somebody else has gone on meanwhile.
        let stream = stream.filter(|(after, _)| *after == position).map(|(_, stream)| stream);
        tokio::select! {
            failed = self.read(position, stream, &queue) => failed,
            failed = self.apply(&mut *applier, &queue, None, now.one_by_one) => failed,
            done = self.report() => done,
            done = self.keep() => done,
        }
    }

    /// Brings one table to where the others are.
    pub async fn catch_up(&mut self, table: &TableName, after: Position, to: Position) -> Result<()> {
        let report = Report { state: "copying", end: self.known().end, ..Report::default() };
        self.runner.target.report(report).await?;
        let mut applier = self.runner.target.applier().await?;
        let name = table.to_string();
        let queue = Queue::new(after);
        let done = tokio::select! {
            failed = self.read(after, None, &queue) => failed,
            done = self.apply(&mut *applier, &queue, Some((&name, to)), false) => done,
        };
        match done {
            Err(trouble) if trouble.kind == Kind::Table => {
                // If it has stopped with the batch before, or somebody has it copied anew, that is no matter of the others.
                if self.is_behind(table).await? { Err(trouble) } else { Ok(()) }
            }
            done => done,
        }
    }

    async fn is_behind(&self, table: &TableName) -> Result<bool> {
        let standing = self.runner.target.standing().await?;
        Ok(standing.to_catch_up.iter().any(|(behind, _)| behind == table))
    }

    /// Reads ahead. Returns only when that fails.
    async fn read(
        &self,
        after: Position,
        begun: Option<Begun<Box<dyn Bytestream>>>,
        queue: &Queue,
    ) -> Result<()> {
        let stream = match begun {
            Some(begun) => begun.done().await,
            None => self.runner.source.stream(after).await,
        };
        let mut stream = stream.map_err(not_the_last_word)?;
        let mut frames = Frames::default();
        let mut knew = Instant::now();
        loop {
            queue.room().await;
            let Some(bytes) = stream.next().await? else {
                return Err(Trouble::waiting(
                    "broken_off",
                    "the source has ended the stream; it is read on elsewhere",
                ));
            };
            frames.push(&bytes);
            while let Some(frame) = frames.next()? {
                match frame {
                    Frame::Failed(trouble) => return Err(not_the_last_word(trouble)),
                    Frame::Heartbeat { end, hears_leader } => {
                        if let Some(end) = end.filter(|_| hears_leader) {
                            knew = Instant::now();
                            self.note(|known| known.end = Some(end));
                        }
                        if knew.elapsed() >= UNKNOWING {
                            let message = "the source's node that is read hears of no leader, or does not know where the \
                                           channel ends; another one is asked";
                            return Err(Trouble::waiting("no_leader", message));
                        }
                    }
                    frame => {
                        knew = Instant::now();
                        if let Frame::Row { last_tick, epoch, .. } = frame {
                            let here = Position { epoch, tick: last_tick };
                            // A heartbeat comes only when there is nothing else.
                            self.note(|known| {
                                if known.end.is_none_or(|end| end.tick < last_tick) {
                                    known.end = Some(here);
                                }
                            });
                        }
                        queue.push(frame);
                    }
                }
            }
        }
    }

    /// Applies what was read; `only`: to this table, up to there.
    async fn apply(
        &self,
        applier: &mut dyn Applier,
        queue: &Queue,
        only: Option<(&str, Position)>,
        one_by_one: bool,
    ) -> Result<()> {
        let mut singly = if one_by_one { ONE_BY_ONE } else { 0 };
        // A transaction here was begun by the last batch.
        let mut inside = false;
        loop {
            let batch = queue.take(singly > 0).await;
            let applied = match self.batch(applier, &batch, only.map(|(name, _)| name), inside).await {
                Ok(applied) => applied,
                Err(trouble) if trouble.kind == Kind::OneByOne && !inside => {
                    singly = ONE_BY_ONE;
                    self.singly(applier, &batch, only.map(|(name, _)| name)).await?
                }
                Err(trouble) => return Err(trouble),
            };
            inside = !batch.ends;
            self.runner.moved.fetch_or(batch.ends, Ordering::Relaxed);
            singly = if applied.one_by_one { ONE_BY_ONE } else { singly.saturating_sub(1) };
            match only {
                None => self.note(|known| known.applied = applied.position.or(known.applied)),
                Some((_, to)) if applied.position.is_some_and(|at| at.tick >= to.tick) && batch.ends => {
                    return Ok(());
                }
                Some(_) => {}
            }
        }
    }

    async fn batch(
        &self,
        applier: &mut dyn Applier,
        batch: &Batch,
        only: Option<&str>,
        inside: bool,
    ) -> Result<Applied> {
        let mut attempt = 0;
        loop {
            self.set_applying(Some(Instant::now()));
            let answer = applier.apply(batch.frames.clone(), batch.ends, only).await;
            self.set_applying(None);
            match answer {
                // In a transaction that was begun nothing can be sent again: all of it is read again.
                Err(Trouble { kind: Kind::UnknownSchema(_), code, message }) => {
                    attempt += 1;
                    self.runner.target.add_schemas(self.runner.source.schemas().await?).await?;
                    if inside || !batch.ends || attempt == UNKNOWN_MAX {
                        return Err(Trouble::new(Kind::Again, &code, message));
                    }
                }
                answer => return answer,
            }
        }
    }

    /// The transactions of a batch, each in one of its own.
    async fn singly(&self, applier: &mut dyn Applier, batch: &Batch, only: Option<&str>) -> Result<Applied> {
        let now = applier.apply(Vec::new(), true, only).await?;
        let (parts, mut frames) = (Queue::new(now.position.unwrap_or_default()), Frames::default());
        frames.push(&batch.frames);
        while let Some(frame) = frames.next()? {
            parts.push(frame);
        }
        let mut applied = now;
        while let Some(part) = parts.take_ready(true) {
            applied = self.batch(applier, &part, only, false).await?;
        }
        Ok(applied)
    }

    /// Says how far it is; what was applied before that is durable then. Returns when something else is to be done.
    async fn report(&self) -> Result<()> {
        let mut said: Option<(Known, Option<String>, Instant)> = None;
        loop {
            let (known, blocked) = (self.known(), self.blocked().await?);
            let news = said.as_ref().is_none_or(|(last, by, at)| {
                (last.applied, last.end, by) != (known.applied, known.end, &blocked)
                    || at.elapsed() >= REPORT_IDLE
            });
            if news {
                self.runner.target.report(report(known.end, blocked.as_deref())).await?;
                self.note(|now| now.durable = known.applied);
                said = Some((known, blocked, Instant::now()));
            }
            let standing: Standing = self.runner.target.standing().await?;
            if !standing.follows() {
                return Ok(());
            }
            tokio::time::sleep(REPORT).await;
        }
    }

    /// Moves the follower at the source, and looks for tables that are new there. Returns when there are any. That the source
    /// does not answer is no reason to stop reading.
    async fn keep(&self) -> Result<()> {
        let tables = |all: &[TableName]| -> BTreeSet<TableName> {
            all.iter().filter(|table| self.runner.subscription.wants(table)).cloned().collect()
        };
        let had = tables(&self.channel.tables);
        let mut moved: Option<(Position, Instant)> = None;
        let mut looked = Instant::now();
        loop {
            tokio::time::sleep(MOVE).await;
            let durable = self.known().durable;
            let due = durable.filter(|at| {
                moved.as_ref().is_none_or(|(last, since)| last != at || since.elapsed() >= MOVE_IDLE)
            });
            if let Some(at) = due {
                let done = match self.runner.source.move_to(self.follower, at).await {
                    Ok(true) => Ok(()),
                    Ok(false) => self.runner.source.register(self.follower, Some(at)).await,
                    Err(trouble) => Err(trouble),
                };
                match done {
                    Ok(()) => moved = Some((at, Instant::now())),
                    Err(trouble) => tracing::debug!(
                        code = trouble.code,
                        "the source does not hear how far it was followed"
                    ),
                }
            }
            if looked.elapsed() >= TABLES {
                looked = Instant::now();
                match self.runner.source.channel().await {
                    Ok(channel) => {
                        self.runner.target.see_change_size(channel.change_bytes).await?;
                        let differs = tables(&channel.tables) != had
                            || channel.origin != self.channel.origin
                            || channel.version != self.channel.version;
                        if differs || self.is_tracked_again(&channel).await? {
                            return Ok(());
                        }
                    }
                    Err(trouble) => {
                        tracing::debug!(code = trouble.code, "the source does not say which tables it has")
                    }
                }
            }
        }
    }

    /// Whether a table stopped because the source did not track it, and it does now.
    async fn is_tracked_again(&self, channel: &Channel) -> Result<bool> {
        let standing = self.runner.target.standing().await?;
        Ok(standing.untracked.iter().any(|table| channel.tables.contains(table)))
    }
}

fn report(end: Option<Position>, blocked: Option<&str>) -> Report {
    let Some(by) = blocked else { return Report { state: "following", end, ..Report::default() } };
    let detail = format!(
        "a change waits for a lock on a row or table here, which is held by {by}. It goes on when that transaction ends"
    );
    Report { state: "waiting", code: Some("blocked".to_owned()), detail: Some(detail), end }
}

/// Whether a position is lost only the source's leader can say, and it is asked when the follower registers. A node that is
/// read may be behind.
fn not_the_last_word(trouble: Trouble) -> Trouble {
    match trouble.kind {
        Kind::Behind => Trouble { kind: Kind::Waiting, ..trouble },
        _ => trouble,
    }
}
