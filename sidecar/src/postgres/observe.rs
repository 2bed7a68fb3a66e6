//! Watching the server: one kept session, a round trip every 50 ms (less often where nothing happens), and at once after
//! operations.

mod calm;
mod files;

use super::PgEvent;
use super::config::standby_node;
use super::error::{Result, sql, timed_out};
use super::process::{self, Postmaster, Status};
use super::rewind_mark::RewindMark;
use super::session::{Manner, POSITION_FUNCTION, Session, WalPosition, position_query};
use super::state::Inner;
use super::{barrier, config_files, ops, slots, sync, timeline, weak_commits};
use calm::Calm;
use futures_util::future::{OptionFuture, try_join};
use pgquorum_agent::postgres::{PgObservation, PgProcess, StandbyState};
use pgquorum_agent::types::{Lsn, Timeline};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::{Row, Statement};

const REPORT_AT_LEAST: Duration = Duration::from_millis(500);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long what was read of a stopped server is good: reading it starts two programs.
const STOPPED_KEPT: Duration = Duration::from_secs(1);
const UPKEEP: Duration = Duration::from_secs(1);
/// What costs more than all looks of a second, and is wanted soon only after an operation.
const SELDOM: Duration = Duration::from_secs(5);
/// An operation shows its effects within this time: what was reloaded, say.
const EFFECTS: Duration = Duration::from_secs(3);
/// How long a standby with an upstream may stand still with a timeline that is not the upstream's before it is restarted.
const STUCK: Duration = Duration::from_millis(500);
const RESTART_AGAIN: Duration = Duration::from_secs(20);

/// Looking up where a starting server is means a look at all processes.
const REPLAYING_PAUSE: Duration = Duration::from_secs(1);

/// What of `pg_stat_replication` is needed, without its joins.
const STANDBYS: &str = "SELECT a.application_name, w.state = 'streaming', w.flush_lsn::text, w.replay_lsn::text, \
    w.sync_state IN ('quorum', 'sync') FROM pg_stat_get_wal_senders() w CROSS JOIN LATERAL pg_stat_get_activity(w.pid) a \
    WHERE a.application_name LIKE 'pgquorum\\_%'";
const HELD: &str = "clients are refused: this server was the primary when it stopped, and it is not settled what becomes \
    of its last transactions; that needs a leader";
/// What `quorum.applied_index()` says, without the call of it: that costs more than the look into the table.
const RECORDED: &str = "SELECT max(l.index)::int8 FROM quorum.cluster_log l";

/// A session with its statements prepared.
struct Eye {
    session: Session,
    state: Statement,
    standbys: Statement,
    recorded: Option<Statement>,
    system_identifier: u64,
    /// The extension is in the database; until then it is looked for.
    complete: bool,
}

impl Eye {
    async fn open(inner: &Inner) -> Result<Eye> {
        let manner = Manner { connect: Duration::from_secs(1), statement: ANSWER_LIMIT, ..Manner::default() };
        let session = Session::local(&inner.config, manner).await?;
        let extension = session.has_function(POSITION_FUNCTION).await?;
        let recorded = session.has_function("quorum.applied_index()").await?;
        let barrier = session.has_function("quorum.admits_clients()").await?;
        let what = "preparing to observe the server";
        let state = session.prepare(&state_query(extension, barrier)).await.map_err(sql(what))?;
        let standbys = session.prepare(STANDBYS).await.map_err(sql(what))?;
        let recorded = match recorded {
            true => Some(session.prepare(RECORDED).await.map_err(sql(what))?),
            false => None,
        };
        let identifier = session.query_one("SELECT system_identifier FROM pg_control_system()", &[]).await;
        let system_identifier = identifier.map_err(sql(what))?.get::<_, i64>(0).cast_unsigned();
        let complete = extension && barrier && recorded.is_some();
        Ok(Eye { session, state, standbys, recorded, system_identifier, complete })
    }

    /// The state, and of a primary its standbys and how far it has recorded the cluster's log. `primary`: it was one at
    /// the last look, so that all can be asked in one round trip.
    async fn look(&self, primary: bool) -> Result<(Row, Vec<Row>, Option<Row>)> {
        let look = async {
            if primary {
                let (row, (standbys, recorded)) =
                    try_join(self.look_at_state(), self.look_as_primary()).await?;
                return Ok((row, standbys, recorded));
            }
            let row = self.look_at_state().await?;
            let (standbys, recorded) =
                if row.get::<_, bool>(0) { (Vec::new(), None) } else { self.look_as_primary().await? };
            Ok((row, standbys, recorded))
        };
        match tokio::time::timeout(ANSWER_LIMIT, look).await {
            Ok(result) => result.map_err(sql("observing the server")),
            Err(_) => Err(timed_out(format!("the server did not answer within {ANSWER_LIMIT:?}"))),
        }
    }

    async fn look_at_state(&self) -> std::result::Result<Row, tokio_postgres::Error> {
        self.session.query_one(&self.state, &[]).await
    }

    async fn look_as_primary(&self) -> std::result::Result<(Vec<Row>, Option<Row>), tokio_postgres::Error> {
        let recorded = OptionFuture::from(self.recorded.as_ref().map(|s| self.session.query_one(s, &[])));
        try_join(self.session.query(&self.standbys, &[]), async { recorded.await.transpose() }).await
    }
}

/// The position, then, of a standby that does not stream, the receiver's process and whether the startup process waits;
/// what the receiver says; last whether the restart barrier refuses clients.
fn state_query(extension: bool, barrier: bool) -> String {
    let held = if barrier { "NOT quorum.admits_clients()" } else { "false" };
    format!(
        "SELECT p.*, a.*, w.status, w.sender_port::int8, {held} FROM ({}) p(c1, c2, c3, c4, c5, c6, c7) CROSS JOIN ( \
         SELECT count(*) FILTER (WHERE backend_type = 'walreceiver') > 0, \
         COALESCE(bool_or(wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')) \
         FILTER (WHERE backend_type = 'startup'), false) FROM pg_stat_get_activity(NULL) \
         WHERE (SELECT pg_is_in_recovery() AND NOT EXISTS (SELECT FROM pg_stat_get_wal_receiver() s \
         WHERE s.status = 'streaming'))) a \
         LEFT JOIN pg_stat_get_wal_receiver() w ON true",
        position_query(extension)
    )
}

/// What is carried from one look to the next.
struct Observer {
    inner: Arc<Inner>,
    eye: Option<(Postmaster, Eye)>,
    /// It was a primary at the last look.
    primary: bool,
    history: Option<(Timeline, Vec<(Timeline, Lsn)>)>,
    pending_restart: Vec<String>,
    upkeep: Instant,
    /// When the rarer part of it was done, and when an operation ended last.
    seldom: Instant,
    operated: Instant,
    /// The last sample in which a standby stood still.
    still: Option<Lsn>,
    stuck_since: Option<(Lsn, Instant)>,
    /// The timelines that it was restarted to forget, and when.
    restarted: Option<(Vec<Timeline>, Instant)>,
    /// Where a server that starts is in its WAL, and when that was looked up.
    replaying: Option<(Option<u64>, Instant)>,
    stopped: Option<(PgObservation, Instant)>,
    /// Which server does not answer, and since when.
    silent: Option<(Postmaster, Instant)>,
    /// Whether it is a primary, and when that was looked up.
    in_production: Option<(Postmaster, bool, Instant)>,
}

/// Observes until the supervisor ends.
pub async fn run(inner: Arc<Inner>) {
    let mut observer = Observer {
        inner: inner.clone(),
        eye: None,
        primary: false,
        history: None,
        pending_restart: Vec::new(),
        upkeep: Instant::now(),
        seldom: Instant::now(),
        operated: Instant::now(),
        still: None,
        stuck_since: None,
        restarted: None,
        replaying: None,
        stopped: None,
        silent: None,
        in_production: None,
    };
    let mut last: Option<(PgObservation, Instant)> = None;
    let mut calm = Calm::default();
    loop {
        let observation = Box::pin(observer.observe()).await;
        let pause = calm.pause(&observation, inner.desired().await.rejoining);
        let due = last.as_ref().is_none_or(|(o, at)| *o != observation || at.elapsed() >= REPORT_AT_LEAST);
        if due {
            inner.emit_observation(PgEvent::Observed(Box::new(observation.clone())));
            last = Some((observation, Instant::now()));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.kick.notified() => {
                observer.stopped = None;
                observer.operated = Instant::now();
                calm = Calm::default();
            }
        }
    }
}

impl Observer {
    async fn observe(&mut self) -> PgObservation {
        let notes = self.inner.notes();
        let mut observation = match self.inner.postmaster() {
            Some(postmaster) => {
                self.stopped = None;
                self.alive(postmaster).await
            }
            None => {
                (self.eye, self.still, self.stuck_since, self.history) = (None, None, None, None);
                self.inner.weak_commits.send_replace(Vec::new());
                self.gone().await
            }
        };
        observation.copy_progress = notes.copy_progress;
        if let RewindMark::Replaying(timeline, lsn) = notes.rewind
            && matches!(observation.process, PgProcess::Starting | PgProcess::Stopped)
        {
            observation.rewound = true;
            observation.settled = false;
            (observation.timeline, observation.flush_lsn) = (timeline, lsn);
        }
        observation.trouble = observation.trouble.or(notes.trouble);
        observation
    }

    async fn alive(&mut self, postmaster: Postmaster) -> PgObservation {
        let mut observation =
            PgObservation { process: PgProcess::Starting, pid: postmaster.pid, ..PgObservation::default() };
        if process::status_of(postmaster, &self.inner.config.data_dir) != Some(Status::Ready) {
            self.eye = None;
            observation.replaying = self.replaying(postmaster);
            return observation;
        }
        self.replaying = None;
        let result = self.look(postmaster, &mut observation).await;
        if let Err(error) = result {
            self.eye = None;
            if self.inner.postmaster() == Some(postmaster) {
                observation.trouble = Some(format!("the server does not answer: {error}"));
                observation.in_production = self.is_silent_in_production(postmaster).await;
            }
            observation.process = PgProcess::Starting;
        }
        observation
    }

    fn replaying(&mut self, postmaster: Postmaster) -> Option<u64> {
        match self.replaying {
            Some((segment, at)) if at.elapsed() < REPLAYING_PAUSE => segment,
            _ => {
                let segment = postmaster.replaying();
                self.replaying = Some((segment, Instant::now()));
                segment
            }
        }
    }

    async fn look(&mut self, postmaster: Postmaster, observation: &mut PgObservation) -> Result<()> {
        let kept = self.eye.take().filter(|(of, eye)| *of == postmaster && !eye.session.is_closed());
        let upkeep = self.upkeep.elapsed() >= UPKEEP;
        let eye = match kept {
            Some((_, eye)) if eye.complete || !upkeep => eye,
            _ => Eye::open(&self.inner).await?,
        };
        let (row, standbys, recorded) = eye.look(self.primary).await?;
        let position = WalPosition::from_row(&row)?;
        self.primary = !position.in_recovery;
        let (receiver, idle): (bool, bool) = (row.get(7), row.get(8));
        let status: Option<&str> = row.get(9);
        observation.process = PgProcess::Running;
        observation.system_identifier = eye.system_identifier;
        observation.in_recovery = position.in_recovery;
        (observation.timeline, observation.flush_lsn) = position.end();
        observation.replay_lsn = if position.in_recovery { position.replayed } else { position.flush };
        if position.in_recovery {
            observation.streaming = status == Some("streaming");
            observation.receiver = receiver || observation.streaming;
            let port = row.get::<_, Option<i64>>(10).and_then(|p| u16::try_from(p).ok());
            observation.upstream_port = port.filter(|_| observation.streaming).unwrap_or(0);
            let still = (idle && !observation.receiver).then_some(position.replayed);
            observation.settled = still.is_some() && still == self.still;
            self.still = still;
        } else {
            observation.standbys = read_standbys(&standbys);
        }
        let held: bool = row.get(11);
        observation.closed = held || self.inner.door.waits() >= self.inner.patience();
        if held {
            observation.trouble = Some(HELD.to_owned());
        }
        observation.recorded_index =
            recorded.and_then(|r| r.get::<_, Option<i64>>(0)).unwrap_or(0).cast_unsigned();
        observation.history = self.history(observation.timeline);
        if upkeep {
            self.upkeep = Instant::now();
            // The failover path finds an open session, and the next start is a standby's whatever happened to the file.
            self.inner.session().await?;
            config_files::ensure_standby_signal(&self.inner.config)?;
        }
        let pause = if self.operated.elapsed() < EFFECTS { UPKEEP } else { SELDOM };
        if self.seldom.elapsed() >= pause {
            self.seldom = Instant::now();
            self.pending_restart = sync::pending_restart(&eye.session).await?;
            self.inner.weak_commits.send_replace(weak_commits::read(&eye.session).await?);
            // Slots are files: on a disk that hangs the server does not come back from this.
            let advance = slots::advance(&eye.session, position.in_recovery);
            match tokio::time::timeout(ANSWER_LIMIT, advance).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the slots stay where they are"),
                Err(_) => return Err(timed_out(format!("no slot was moved within {ANSWER_LIMIT:?}"))),
            }
        }
        observation.pending_restart.clone_from(&self.pending_restart);
        if position.in_recovery
            && let Err(error) = barrier::admit_if_settled(&self.inner, &eye.session).await
        {
            tracing::debug!(%error, "clients stay outside");
        }
        if position.in_recovery
            && let Err(error) = barrier::acknowledge_if_past(&self.inner, &eye.session).await
        {
            tracing::debug!(%error, "it goes on under the name that acknowledges nothing");
        }
        self.eye = Some((postmaster, eye));
        self.silent = None;
        self.inner.note(|n| n.answered = true);
        self.inner.is_consistent().await?;
        self.free_if_stuck(observation).await;
        Ok(())
    }

    fn history(&mut self, present: Timeline) -> Vec<(Timeline, Lsn)> {
        match &self.history {
            Some((of, history)) if *of == present => history.clone(),
            _ => match timeline::read_history(&self.inner.config.wal_dir(), present) {
                Ok(history) => {
                    self.history = Some((present, history.clone()));
                    history
                }
                // The receiver writes it in a moment, or the position came from a stale control file.
                Err(error) => {
                    tracing::debug!(%error, "no history yet");
                    Vec::new()
                }
            },
        }
    }

    /// A standby that took a timeline as its target which its upstream's history does not have goes over to the
    /// upstream's only when it is restarted: see `timeline.rs`.
    async fn free_if_stuck(&mut self, observation: &PgObservation) {
        let upstream = self.inner.desired().await.upstream.filter(|u| u.timeline > 0);
        let stands = observation.in_recovery && !observation.streaming;
        if observation.streaming {
            self.restarted = None;
        }
        let Some(upstream) = upstream.filter(|_| stands) else {
            self.stuck_since = None;
            return;
        };
        let end = observation.flush_lsn;
        let since = match self.stuck_since {
            Some((at, since)) if at == end => since,
            _ => {
                self.stuck_since = Some((end, Instant::now()));
                return;
            }
        };
        if since.elapsed() < STUCK {
            return;
        }
        let wal_dir = self.inner.config.wal_dir();
        let beside = timeline::beside(&wal_dir, observation.timeline, end, upstream.timeline);
        let recently =
            self.restarted.as_ref().is_some_and(|(of, at)| *of == beside && at.elapsed() < RESTART_AGAIN);
        if !beside.is_empty() && !recently && ops::restart_if_free(&self.inner) {
            let (present, wanted) = (observation.timeline, upstream.timeline);
            tracing::warn!(present, %end, wanted, ?beside, "timelines beside the upstream's are known here: restarting");
            self.restarted = Some((beside, Instant::now()));
        }
    }
}

/// One entry a node: of several connections of one standby the one that streams, and of those the farthest.
fn read_standbys(rows: &[Row]) -> Vec<StandbyState> {
    let mut standbys: Vec<StandbyState> = Vec::new();
    for row in rows {
        let lsn = |i: usize| row.get::<_, Option<&str>>(i).and_then(|t| t.parse().ok()).unwrap_or_default();
        let Some(node) = standby_node(row.get(0)) else { continue };
        standbys.push(StandbyState {
            node,
            streaming: row.get::<_, Option<bool>>(1).unwrap_or(false),
            flush_lsn: lsn(2),
            replay_lsn: lsn(3),
            acknowledges: row.get::<_, Option<bool>>(4).unwrap_or(false),
        });
    }
    standbys.sort_by_key(|s| (s.node, std::cmp::Reverse((s.streaming, s.flush_lsn))));
    standbys.dedup_by_key(|s| s.node);
    standbys
}
