//! What the log of a database consists of, and how the interface describes it.

use super::error::{Failure, Result};
use super::tick::{Step, Tick};
use crate::feed::{ChannelId, Position, Source};
use serde_json::{Value, json};
use std::time::SystemTime;

/// The log as one question found it.
#[derive(Clone, Debug)]
pub struct Log {
    /// The oid of the database.
    pub database: u64,
    /// What the nodes of a cluster have in common, and no other cluster has: PostgreSQL's system identifier.
    pub server: u64,
    /// `None`: there is no channel `_logger`.
    ends: Option<Ends>,
    /// Epochs with their first changes, ascending.
    epochs: Vec<Position>,
    /// The numbers of segments with their first changes, ascending.
    segments: Vec<(u64, u64)>,
    /// The row of `quorum.channel_state`.
    state: Value,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    /// The oldest change that is kept; one above `last` if none is.
    first: u64,
    last: u64,
}

impl Log {
    /// # Errors
    /// No such database, the extension is not in it, or the server does not answer.
    pub async fn read(source: &dyn Source, id: &ChannelId) -> Result<Log> {
        Log::parse(source.log(id).await?)
    }

    /// # Errors
    /// It is not what a [`Source`] says of a log.
    pub fn parse(mut row: Value) -> Result<Log> {
        let state = row["state"].take();
        let number = |value: &Value| value.as_u64();
        let pairs = |value: &Value| -> Option<Vec<(u64, u64)>> {
            let pair = |pair: &Value| Some((number(&pair[0])?, number(&pair[1])?));
            value.as_array()?.iter().map(pair).collect()
        };
        let parsed = || {
            let ends = match &state {
                Value::Null => None,
                state => {
                    Some(Ends { first: number(&state["first_tick"])?, last: number(&state["last_tick"])? })
                }
            };
            let epochs =
                pairs(&row["epochs"])?.into_iter().map(|(epoch, tick)| Position { epoch, tick }).collect();
            // PostgreSQL shows all 64 bits as a signed number.
            let server = row["server"].as_i64()?.cast_unsigned();
            Some((number(&row["database"])?, server, ends, epochs, pairs(&row["segments"])?))
        };
        let Some((database, server, ends, epochs, segments)) = parsed() else {
            return Err(Failure::internal(format!(
                "the extension says of the log what this program does not understand: {row}. Are both of the same \
                 version? `make install` brings both"
            )));
        };
        Ok(Log { database, server, ends, epochs, segments, state })
    }

    /// There is a log that can be read.
    pub fn exists(&self) -> bool {
        self.ends.is_some()
    }

    /// Changes are recorded.
    pub fn is_running(&self) -> bool {
        self.exists() && self.state.get("stopped_at").is_none_or(Value::is_null)
    }

    /// The position of a change.
    pub fn at(&self, tick: u64) -> Position {
        let known = self.epochs.iter().rev().find(|epoch| epoch.tick <= tick).or(self.epochs.first());
        Position { epoch: known.map_or(0, |epoch| epoch.epoch), tick }
    }

    /// The newest change; 0 if there is no log.
    ///
    /// # Errors
    /// As [`Tick::new`].
    pub fn last(&self) -> Result<Tick> {
        self.ends.map_or(Ok(Tick(0)), |ends| Tick::end(self.at(ends.last)))
    }

    pub fn last_change(&self) -> u64 {
        self.ends.map_or(0, |ends| ends.last)
    }

    /// The oldest change that is kept.
    pub fn first_change(&self) -> u64 {
        self.ends.map_or(0, |ends| ends.first)
    }

    /// From where all that is kept is read.
    pub fn start(&self) -> Position {
        self.at(self.first_change().saturating_sub(1))
    }

    /// The oldest tick that is kept; `None`: there is no log.
    ///
    /// # Errors
    /// As [`Tick::new`].
    pub fn first(&self) -> Result<Option<Tick>> {
        self.ends.map(|ends| Tick::new(self.at(ends.first), Step::Begin)).transpose()
    }

    /// Before the first change that an epoch after this one brought.
    pub fn after_epoch(&self, epoch: u64) -> Option<Position> {
        let next = self.epochs.iter().find(|known| known.epoch > epoch)?;
        Some(Position { epoch: next.epoch, tick: next.tick.saturating_sub(1) })
    }

    /// The `state` of the logger.
    ///
    /// # Errors
    /// As [`Tick::new`].
    pub fn state(&self) -> Result<Value> {
        let last = self.last()?.to_string();
        Ok(json!({"running": self.is_running(), "lastLogTick": last, "lastUncommittedLogTick": last,
            "totalEvents": self.last_change(), "time": now()}))
    }

    /// The settings of the logger: how much it keeps. 0 is without a limit.
    pub fn config(&self) -> Value {
        let kept = |name| self.state.get(name).and_then(Value::as_u64).unwrap_or(0);
        json!({"autoStart": true, "logRemoteChanges": true, "maxEvents": kept("retain_rows"),
            "maxEventsSize": kept("retain_bytes")})
    }

    /// The segments with the ticks that can be read in them.
    ///
    /// # Errors
    /// As [`Tick::new`].
    pub fn ranges(&self) -> Result<Value> {
        let mut ranges = Vec::new();
        let Some(ends) = self.ends else { return Ok(Value::Array(ranges)) };
        for (at, (number, first)) in self.segments.iter().enumerate() {
            let next = self.segments.get(at + 1).map(|(_, first)| *first);
            let (first, last) =
                ((*first).max(ends.first), next.map_or(ends.last, |next| next.saturating_sub(1)));
            // All of it was purged, or it is a new one.
            if last < first {
                continue;
            }
            let status = if next.is_some() { "sealed" } else { "open" };
            let (min, max) = (Tick::new(self.at(first), Step::Begin)?, Tick::end(self.at(last))?);
            ranges.push(json!({"datafile": format!("segment-{number}"), "status": status,
                "tickMin": min.to_string(), "tickMax": max.to_string()}));
        }
        Ok(Value::Array(ranges))
    }

    /// Transactions that are writing to the log now.
    pub fn transactions(&self) -> Value {
        let running = self.state.get("pending_transactions").and_then(Value::as_u64).unwrap_or(0);
        json!({"runningTransactions": running, "minLastCollected": null, "minLastSealed": null})
    }

    /// How the log is stored.
    pub fn properties(&self) -> Value {
        let segments = self.segments.len() as u64;
        let bytes = self.state.get("bytes").and_then(Value::as_u64).unwrap_or(0);
        json!({"allowOversizeEntries": true, "logfileSize": bytes / segments.max(1), "historicLogfiles": segments,
            "reserveLogfiles": 0, "syncInterval": 0, "throttleWait": 0, "throttleWhenPending": 0})
    }
}

/// The time, as this interface writes it.
pub fn now() -> String {
    time(SystemTime::now())
}

pub fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Log {
        Log::parse(json!({"database": 5, "server": -1, "epochs": [[5, 1], [6, 101]],
            "segments": [[1, 1], [2, 50], [3, 90], [4, 121]],
            "state": {"first_tick": 60, "last_tick": 120, "retain_rows": null, "retain_bytes": 1000, "bytes": 4000,
                "pending_transactions": 2}}))
        .unwrap()
    }

    fn tick(epoch: u64, tick: u64, step: Step) -> String {
        Tick::new(Position { epoch, tick }, step).unwrap().to_string()
    }

    #[test]
    fn a_log_says_where_it_begins_and_ends() {
        let log = log();
        assert_eq!(log.server, u64::MAX);
        assert_eq!(log.at(100).to_string(), "5:100");
        assert_eq!(log.at(101).to_string(), "6:101");
        assert_eq!(log.start().to_string(), "5:59");
        assert_eq!(log.after_epoch(5).map(|at| at.to_string()).as_deref(), Some("6:100"));
        assert_eq!(log.after_epoch(6), None);
        let state = log.state().unwrap();
        assert_eq!(state["lastLogTick"], tick(6, 120, Step::End));
        assert_eq!((&state["running"], &state["totalEvents"]), (&json!(true), &json!(120)));
        let time = state["time"].as_str().unwrap();
        assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
        assert_eq!(
            log.ranges().unwrap(),
            json!([{"datafile": "segment-2", "status": "sealed", "tickMin": tick(5, 60, Step::Begin),
                    "tickMax": tick(5, 89, Step::End)},
                {"datafile": "segment-3", "status": "sealed", "tickMin": tick(5, 90, Step::Begin),
                    "tickMax": tick(6, 120, Step::End)}])
        );
        assert_eq!(
            log.config(),
            json!({"autoStart": true, "logRemoteChanges": true, "maxEvents": 0, "maxEventsSize": 1000})
        );
        assert_eq!(log.transactions()["runningTransactions"], 2);
        assert_eq!(log.properties()["historicLogfiles"], 4);
    }

    #[test]
    fn a_stopped_log_is_there_and_does_not_run() {
        let mut row = json!({"database": 5, "server": 7, "epochs": [[5, 1]], "segments": [[1, 1]],
            "state": {"first_tick": 1, "last_tick": 3, "stopped_at": null}});
        assert!(Log::parse(row.clone()).unwrap().is_running());
        row["state"]["stopped_at"] = "2026-01-02 03:04:05+00".into();
        let log = Log::parse(row).unwrap();
        assert!(log.exists() && !log.is_running() && log.state().unwrap()["running"] == false);
    }

    #[test]
    fn where_there_is_no_log_nothing_runs() {
        let log =
            Log::parse(json!({"database": 5, "server": 7, "epochs": [], "segments": [], "state": null}))
                .unwrap();
        assert!(!log.is_running() && !log.exists());
        assert_eq!(log.state().unwrap()["lastLogTick"], "0");
        assert_eq!(log.first().unwrap(), None);
        assert_eq!(log.ranges().unwrap(), json!([]));
        assert!(Log::parse(json!({"database": 5})).is_err());
    }
}
