//! Follows the remote's log: asks for what comes next, writes whole transactions with the tick up to which they are applied.

use super::config::is_system;
use super::events::{self, Change, Collection, Event, Fate};
use super::fault::{Fault, Kind, NOT_PRESENT, Result};
use super::here::{Done, Here, Position, Writer};
use super::numbers::Numbers;
use super::remote::{Identity, Remote, origin};
use super::reply::Reply;
use super::runner::Runner;
use super::transactions::{Step, Transactions, Unit};
use super::writing::{Tables, place};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a remote may not know a tick that it gave: the node that is asked may be behind the one that was.
const CATCH_UP: Duration = Duration::from_secs(20);
/// How often it is said how the work goes on while nothing happens, and while something does.
const SAY_IDLE: Duration = Duration::from_secs(5);
const SAY_BUSY: Duration = Duration::from_secs(1);
/// Between two questions to a remote that has nothing new, where these are not adapted.
const POLL_ACTIVE: Duration = Duration::from_millis(500);
const POLL_INACTIVE: Duration = Duration::from_secs(5);
/// The shortest pause between two questions that brought nothing.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// One attempt to follow.
pub struct Following<'a> {
    runner: &'a mut Runner,
    remote: &'a Remote,
    identity: &'a Identity,
    here: Arc<Here>,
    writer: Writer,
    origin: String,
    me: u64,
    tables: Tables,
    numbers: Numbers,
    transactions: Transactions,
    at: Position,
    /// Whole transactions that are not written yet.
    units: Vec<Unit>,
    /// The tick of the last line that was looked at.
    processed: u64,
    /// What was done and stands in no position yet.
    done: Done,
    /// A large transaction is being written.
    flows: bool,
    said: Option<Instant>,
}

impl<'a> Following<'a> {
    pub async fn begin(
        runner: &'a mut Runner,
        remote: &'a Remote,
        identity: &'a Identity,
    ) -> Result<Following<'a>> {
        let here = Arc::clone(&runner.here);
        let at = here.position().await?;
        let (me, writer) = (here.me().await?, here.writer(true).await?);
        let origin = origin(&identity.server_id, &remote.database);
        let transactions = Transactions::new(at.applied, runner.known.clone());
        let tables = Tables::new(Arc::clone(&here), identity.ours);
        Ok(Following {
            runner,
            remote,
            identity,
            here,
            writer,
            origin,
            me,
            tables,
            numbers: Numbers::default(),
            transactions,
            at,
            units: Vec::new(),
            processed: at.resume,
            done: Done::default(),
            flows: false,
            said: None,
        })
    }

    pub async fn follow(&mut self) -> Result<Infallible> {
        let mut pause = Duration::ZERO;
        let config = self.runner.config.clone();
        let (shortest, longest) =
            (config.idle_min_wait_time.duration(), config.idle_max_wait_time.duration());
        loop {
            let from = self.processed;
            let begun = Instant::now();
            self.runner.tally.requests += 1;
            let reply = self.remote.follow(from, self.me).await?;
            self.runner.tally.fetches += 1;
            self.runner.tally.fetch_seconds += begun.elapsed().as_secs_f64();
            let last = reply.tick("lasttick");
            self.check_present(&reply, from)?;
            let lines = events::events(&reply, from)?;
            self.runner.heard().await?;
            let any = !lines.is_empty();
            let available = last.into_iter().chain(lines.last().map(|(tick, _)| *tick)).max();
            self.take(lines).await?;
            self.report(any, available).await?;
            if any {
                pause = Duration::ZERO;
                continue;
            }
            pause = match (config.adaptive_polling, reply.flag("active")) {
                (true, _) if pause.is_zero() => shortest,
                (true, _) => (pause * 2).min(longest).max(shortest),
                (false, Some(false)) => POLL_INACTIVE,
                (false, _) => POLL_ACTIVE,
            }
            .max(PAUSE_MIN);
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks whether the log has everything behind the tick that it was asked for.
    fn check_present(&mut self, reply: &Reply, from: u64) -> Result<()> {
        if reply.flag("frompresent") != Some(false) || !self.runner.config.require_from_present {
            return Ok(());
        }
        let waited = reply.is_behind(from).then(|| self.runner.behind_for());
        Err(not_present(from, waited, reply.unasked.as_ref()))
    }

    async fn report(&mut self, any: bool, available: Option<u64>) -> Result<()> {
        let often = if any { SAY_BUSY } else { SAY_IDLE };
        // That the end is reached is said at once.
        let reached = any && available.is_some_and(|end| self.processed >= end);
        if !reached && self.said.is_some_and(|said| said.elapsed() < often) {
            return Ok(());
        }
        let message = format!("fetching the remote's log from tick {}", self.processed);
        let available = available.unwrap_or(self.processed).to_string();
        self.runner.say("running", &message, json!({ "available": available })).await?;
        self.said = Some(Instant::now());
        Ok(())
    }

    async fn take(&mut self, lines: Vec<(u64, Event)>) -> Result<()> {
        for (tick, event) in lines {
            self.done.events += 1;
            if let Some(event) = self.wanted(event).await? {
                match self.transactions.take(tick, event)? {
                    Step::Nothing | Step::Other(Event::Other) => {}
                    Step::Whole(unit) if self.flows => self.piece(&unit.changes).await?,
                    Step::Whole(unit) => self.units.push(unit),
                    Step::Piece(changes) => {
                        self.flush().await?;
                        if !self.flows {
                            self.writer.begin(&self.origin).await?;
                            self.flows = true;
                        }
                        self.piece(&changes).await?;
                    }
                    Step::Last(unit) => {
                        self.piece(&unit.changes).await?;
                        self.processed = tick;
                        self.advance(self.position(unit.tick)).await?;
                        self.flows = false;
                    }
                    Step::Undo => {
                        if self.flows {
                            self.writer.run("ROLLBACK").await?;
                        }
                        self.runner.known = self.transactions.known();
                        return Err(Fault::new(
                            Kind::Here,
                            0,
                            "a large transaction of the remote was given up there, or is to be read again",
                        ));
                    }
                    Step::Other(Event::Fate(fate, collection)) => {
                        self.flush().await?;
                        self.fate(tick, fate, &collection).await?;
                    }
                    Step::Other(_) => {}
                }
            }
            self.processed = tick;
        }
        self.flush().await?;
        // Lines that change nothing move the position, too.
        if !self.flows && self.processed > self.at.processed {
            self.writer.begin(&self.origin).await?;
            let to = self.position(self.at.applied);
            self.advance(to).await?;
        }
        Ok(())
    }

    /// The event with the name of its collection. `None`: it is of one that is not wanted.
    async fn wanted(&mut self, event: Event) -> Result<Option<Event>> {
        let named = self.numbers.name(self.remote, &event).await?;
        let Some(name) = named else { return Ok(Some(event)) };
        let mut wanted = self.runner.config.wants(&name, self.identity.ours);
        if wanted && !self.identity.ours && is_system(&name) {
            // What belongs to ArangoDB itself is taken where somebody has made a place for it.
            wanted = self.tables.find(&name).await?.is_some();
        }
        if !wanted {
            self.done.excluded += 1;
            return Ok(None);
        }
        let collection = Collection::Name(name);
        Ok(Some(match event {
            Event::Change(tid, change) => Event::Change(tid, Change { collection, ..change }),
            Event::Fate(fate, _) => Event::Fate(fate, collection),
            other => other,
        }))
    }

    /// Where the applier is when everything that is whole is written; `applied`: the end of the last whole transaction.
    fn position(&self, applied: u64) -> Position {
        let resume = self.transactions.resume(self.processed);
        let incomplete = self.transactions.is_incomplete();
        let applied = if incomplete { applied.max(self.at.applied) } else { self.processed };
        Position { applied, processed: self.processed, resume }
    }

    /// Saves the position with what was written, and commits.
    async fn advance(&mut self, to: Position) -> Result<()> {
        self.writer.advance(self.runner.generation, self.at.applied, to, self.done).await?;
        self.writer.run("COMMIT").await?;
        (self.at, self.done) = (to, Done::default());
        Ok(())
    }

    /// Writes a piece of a large transaction, in the transaction that was begun for it.
    async fn piece(&mut self, changes: &[Change]) -> Result<()> {
        let begun = Instant::now();
        let written = if self.runner.left > 0 {
            self.tables.write_what_fits(&self.writer, changes, &mut self.runner.left).await
        } else {
            self.tables.write(&self.writer, changes, false).await
        };
        let written = written.map_err(|fault| match (fault.kind, changes.first()) {
            (Kind::Event, Some(first)) => fault.at(format!("at or after {}", place(first))),
            _ => fault,
        })?;
        self.add(written, begun);
        Ok(())
    }

    fn add(&mut self, written: Done, begun: Instant) {
        self.done.documents += written.documents;
        self.done.removals += written.removals;
        self.done.excluded += written.excluded;
        self.done.seconds += begun.elapsed().as_secs_f64();
    }

    /// Writes the transactions that are whole: together, or, if one of them does not fit, one by one.
    async fn flush(&mut self) -> Result<()> {
        let units = std::mem::take(&mut self.units);
        let Some(last) = units.last() else { return Ok(()) };
        let begun = Instant::now();
        let changes: Vec<Change> = units.iter().flat_map(|unit| unit.changes.iter().cloned()).collect();
        self.writer.begin(&self.origin).await?;
        match self.tables.write(&self.writer, &changes, false).await {
            Ok(written) => {
                self.add(written, begun);
                let to = self.position(last.tick);
                self.advance(to).await
            }
            Err(fault) if fault.kind == Kind::Event => {
                self.writer.run("ROLLBACK").await?;
                self.tables.forget();
                self.one_by_one(&units).await
            }
            Err(fault) => Err(fault),
        }
    }

    async fn one_by_one(&mut self, units: &[Unit]) -> Result<()> {
        for unit in units {
            let begun = Instant::now();
            let mut left = self.runner.left;
            self.writer.begin(&self.origin).await?;
            let written = self.tables.write_what_fits(&self.writer, &unit.changes, &mut left).await?;
            self.add(written, begun);
            self.advance(Position { applied: unit.tick, processed: unit.tick, resume: unit.resume }).await?;
            self.runner.left = left;
        }
        Ok(())
    }

    /// Something happens to a collection as a whole.
    async fn fate(&mut self, tick: u64, fate: Fate, collection: &Collection) -> Result<()> {
        let Collection::Name(name) = collection else { return Ok(()) };
        match self.meet(tick, fate, name).await {
            Err(fault) if fault.kind == Kind::Event && self.runner.left > 0 && !self.flows => {
                if fate == Fate::Truncated {
                    self.writer.run("ROLLBACK").await?;
                }
                self.runner.left -= 1;
                self.done.excluded += 1;
                Ok(())
            }
            met => met.map_err(|fault| fault.at(format!("tick {tick}, collection {name}"))),
        }
    }

    async fn meet(&mut self, tick: u64, fate: Fate, name: &str) -> Result<()> {
        self.tables.forget();
        let skips = self.runner.config.skip_create_drop;
        let here = self.tables.find(name).await;
        match fate {
            Fate::Truncated => {
                if self.flows {
                    self.tables.empty(&self.writer, name).await?;
                    return Ok(());
                }
                self.writer.begin(&self.origin).await?;
                self.done.removals += self.tables.empty(&self.writer, name).await?;
                self.processed = tick;
                let to = self.position(tick);
                self.advance(to).await
            }
            Fate::Changed => Ok(()),
            Fate::Created if skips => Ok(()),
            Fate::Created if self.identity.ours => {
                let kind = if self.runner.config.auto_resync { Kind::Lost } else { Kind::Event };
                let message = format!(
                    "the table was put into the remote's log here, and rows that it had before are not in the log. Have all \
                     tables copied (PUT /_api/replication/make-follower); or bring its rows here yourself and go on behind this \
                     (PUT /_api/replication/applier-start?from={tick}). skipCreateDrop passes over such events"
                );
                Err(Fault::new(kind, 1203, message))
            }
            Fate::Created => match here? {
                Some(_) => Ok(()),
                None => self.here.make_table(name).await,
            },
            Fate::Dropped if skips => Ok(()),
            Fate::Dropped => match here {
                Ok(None) => Ok(()),
                Err(fault) if fault.kind != Kind::Event => Err(fault),
                _ => Err(Fault::event(
                    1203,
                    "the table was dropped at the remote, or taken out of its log. Nothing is dropped here by itself: drop the \
                     table here, too, or leave the collection out (restrictType, restrictCollections), or set skipCreateDrop; \
                     then start the applier again",
                )),
            },
            Fate::Renamed => match here? {
                Some(_) => Ok(()),
                None => Err(Fault::event(
                    1203,
                    "the table has this name at the remote now. Rename it here, too (ALTER TABLE … RENAME TO …), then start the \
                     applier again",
                )),
            },
        }
    }
}

/// What comes after a tick is not in the log of the remote. `waited`: its log ends before the tick, since so long; `unasked`: and
/// there is a node that could not be asked.
fn not_present(from: u64, waited: Option<Duration>, unasked: Option<&Fault>) -> Fault {
    let not_yet = format!("the remote's log does not reach tick {from} yet");
    match (waited, unasked) {
        (Some(waited), _) if waited < CATCH_UP => Fault::new(Kind::Here, 0, not_yet),
        (Some(_), Some(fault)) => Fault { kind: Kind::Remote, ..fault.clone() }.at(not_yet),
        _ => {
            let message = format!(
                "the remote's log does not have what comes after tick {from} any more (or never had it, in the history that it \
                 has now). Have all tables copied: PUT /_api/replication/make-follower, or set autoResync"
            );
            Fault::new(Kind::Lost, NOT_PRESENT, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_lost_only_where_no_node_may_have_it() {
        let down = Fault::new(Kind::Remote, 1400, "a node is down");
        let (soon, late) = (Some(Duration::from_secs(1)), Some(CATCH_UP));
        for (waited, unasked, expected) in [
            (soon, None, (Kind::Here, 0)),
            (soon, Some(&down), (Kind::Here, 0)),
            (late, Some(&down), (Kind::Remote, 1400)),
            (late, None, (Kind::Lost, NOT_PRESENT)),
            (None, None, (Kind::Lost, NOT_PRESENT)),
        ] {
            let fault = not_present(7, waited, unasked);
            assert_eq!((fault.kind, fault.number), expected, "{fault}");
        }
    }
}
