//! Which subscriptions and publications are worked for: those of all databases, on the leader, as long as it leads. The
//! appliers of the replication interface are found by the same look.
//!
//! Few sessions, one at a time. One that stays would hold up `DROP DATABASE`: so those that have something to be worked for
//! are looked at each second, the admin database at least every two, the others now and then, and all at once when REST
//! has changed something.

use super::board::{Board, SyncRequest};
use super::local::Local;
use super::publication::Publication;
use super::publications::{Face, Means, Publications};
use super::remote::Remote;
use super::runner::{Runner, follower_name};
use super::source::Source;
use super::subscription::Subscription;
use super::target::{Report, Target};
use super::trouble::Trouble;
use crate::clock;
use crate::feed::{FeedError, Kind, ONLY_READ, Pool, Purpose, Result, column, said, within};
use crate::postgres::PostgresConfig;
use crate::replication::applier::Appliers;
use crate::rest::leads;
use pgquorum_agent::view::View;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};

const ROUND: Duration = Duration::from_secs(1);
/// How often the admin database is looked into as long as there is nothing to work for.
const IDLE: Duration = Duration::from_secs(2);
/// How often the server is asked which databases there are.
const LIST: Duration = Duration::from_secs(5);
/// How often a database with the extension and without subscriptions is looked into, and one without the extension; with
/// many of them, two a second.
const EMPTY: Duration = Duration::from_secs(5);
const BARE: Duration = Duration::from_secs(30);
const EACH: Duration = Duration::from_millis(500);
/// How long what was ended may still have to say to its source.
const FAREWELL: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(22);

const DATABASES: &str =
    "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1";
/// Publications with the revision that the other cluster was told; synchronisations that somebody waits for.
const ALL: &str = "SELECT to_jsonb(s), NULL::jsonb, NULL::int4, NULL::jsonb FROM quorum.subscription s UNION ALL \
    SELECT NULL, to_jsonb(p), x.done_revision, NULL FROM quorum.publication p JOIN quorum.publication_status x ON x.publication = p.id \
    UNION ALL SELECT NULL, NULL, NULL, jsonb_build_object('id', r.id, 'channel', r.channel, 'records', r.records, \
    'left_ms', (extract(epoch FROM r.expires_at - clock_timestamp()) * 1000)::int8) \
    FROM quorum.sync_request r WHERE r.done_at IS NULL AND r.expires_at > clock_timestamp() + interval '1 ms'";
const REST: &str = "SELECT quorum.rest_subscription($1)";

/// What the overseer is made of.
pub struct Overseer {
    config: PostgresConfig,
    pool: Arc<Pool>,
    board: Board,
    /// What runs in these databases beside subscriptions.
    appliers: Appliers,
    means: Means,
    databases: BTreeMap<String, Database>,
    listed: Option<Instant>,
}

#[derive(Default)]
struct Database {
    due: Option<Instant>,
    /// It was looked into since this node leads.
    seen: bool,
    running: BTreeMap<i32, Running>,
    publications: Publications,
    failure: Option<String>,
}

struct Running {
    subscription: Subscription,
    /// None: it rests.
    task: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Works until the driver ends. `nudge`: something was changed, look at once. `board`: what is done, for others to see. `face`: how
/// this cluster looks to others.
pub async fn oversee(
    config: PostgresConfig,
    pool: Arc<Pool>,
    mut view: watch::Receiver<Arc<View>>,
    nudge: Arc<Notify>,
    board: Board,
    face: Face,
) {
    let appliers = Appliers::new(config.clone());
    let means = Means { pool: Arc::clone(&pool), view: view.clone(), face: Arc::new(face) };
    let mut overseer =
        Overseer { config, pool, board, appliers, means, databases: BTreeMap::new(), listed: None };
    loop {
        // The sender is gone: the driver has ended.
        if view.has_changed().is_err() {
            return;
        }
        let leads = leads_now(&view.borrow_and_update());
        if leads {
            let round = overseer.round();
            // A server that hangs must not keep the work for another leader from being ended here.
            let lost = view.wait_for(|view| !leads_now(view));
            tokio::select! { () = round => {}, _ = lost => {} }
        } else if overseer.listed.is_some() {
            // Another node works for them.
            overseer.databases.clear();
            overseer.appliers.clear();
            overseer.listed = None;
        }
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = nudge.notified() => overseer.databases.values_mut().for_each(|database| database.due = None),
            _ = view.wait_for(|view| !leads_now(view)), if leads => {}
        }
    }
}

fn leads_now(view: &View) -> bool {
    leads(view, clock::now())
}

impl Overseer {
    async fn round(&mut self) {
        let now = Instant::now();
        if self.listed.is_none_or(|at| now - at >= LIST) {
            match self.list().await {
                Ok(()) => self.listed = Some(now),
                Err(error) => tracing::debug!(%error, "which databases there are cannot be asked now"),
            }
        }
        let due = self.databases.iter().filter(|(_, database)| database.due.is_none_or(|due| due <= now));
        let mut due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        // What was changed is most likely in one of these, and to the others connecting alone takes time.
        due.sort_by_key(|name| !self.stays(name));
        for name in due {
            self.visit(&name).await;
        }
    }

    async fn list(&mut self) -> Result<()> {
        let session = self.pool.take(self.pool.default_database(), Purpose::Read).await?;
        let rows = within(DEADLINE, ONLY_READ, said(session.query_typed(DATABASES, &[]))).await;
        let rows = self.pool.done(session, rows)?;
        let names = rows.iter().map(|row| column(row, 0)).collect::<Result<Vec<String>>>()?;
        let gone = self.databases.keys().filter(|name| !names.contains(name));
        gone.for_each(|name| self.appliers.forget(name));
        self.databases.retain(|name, _| names.contains(name));
        for name in names {
            self.databases.entry(name).or_default();
        }
        Ok(())
    }

    /// Is a session kept in this database from look to look?
    fn stays(&self, name: &str) -> bool {
        name == self.pool.default_database()
            || self.appliers.works_in(name)
            || self.databases.get(name).is_some_and(Database::is_worked_for)
    }

    async fn visit(&mut self, name: &str) {
        let stays = self.stays(name);
        let first = self.databases.get(name).is_some_and(|database| !database.seen);
        let mut found = self.read(name, stays, first).await;
        for subscription in found.iter_mut().flat_map(|found| &mut found.subscriptions) {
            self.let_rest(name, subscription).await;
        }
        let applies = self.appliers.works_in(name);
        let many = EACH.saturating_mul(u32::try_from(self.databases.len()).unwrap_or(u32::MAX));
        let (config, board, means, now) = (&self.config, &self.board, &self.means, Instant::now());
        let Some(database) = self.databases.get_mut(name) else { return };
        let pause = match found {
            Ok(found) => {
                (database.failure, database.seen) = (None, true);
                database.work_for((config, board), name, found.subscriptions);
                database.publications.work_for(means, name, found.publications);
                board.ask(name, found.syncs);
                match applies || database.is_worked_for() {
                    true => ROUND,
                    false if stays => IDLE,
                    false => EMPTY.max(many),
                }
            }
            Err(error) if matches!(error.kind, Kind::NoExtension | Kind::UnknownDatabase) => {
                database.running.clear();
                database.publications.clear();
                self.appliers.forget(name);
                BARE.max(many)
            }
            Err(error) => {
                if database.failure.as_ref() != Some(&error.message) {
                    tracing::warn!(database = name, %error, "which subscriptions there are cannot be seen now");
                }
                database.failure = Some(error.message);
                ROUND
            }
        };
        // Not a whole round later, or it would be the one after.
        database.due = Some(now + pause - Duration::from_millis(100));
    }

    /// Who has woken a subscription that rests may have died with its node, or lost its place as leader.
    async fn let_rest(&self, database: &str, subscription: &mut Subscription) {
        if !subscription.woken || self.board.is_awake(database, &subscription.name) {
            return;
        }
        let rested = async {
            let session = self.pool.take(database, Purpose::Change).await?;
            let name: [(&(dyn ToSql + Sync), Type); 1] = [(&subscription.name, Type::TEXT)];
            let rows = within(DEADLINE, ONLY_READ, said(session.query_typed(REST, &name))).await;
            self.pool.done(session, rows)
        };
        match rested.await {
            Ok(_) => {
                (subscription.enabled, subscription.woken) = (false, false);
                tracing::info!(database, subscription = subscription.name, "a subscription rests again");
            }
            Err(error) => tracing::debug!(%error, "a subscription cannot be let rest now"),
        }
    }

    async fn read(&mut self, name: &str, stays: bool, first: bool) -> Result<Found> {
        let session = self.pool.take(name, Purpose::Follow).await?;
        let rows = within(DEADLINE, ONLY_READ, said(session.query_typed(ALL, &[]))).await;
        let rows = match rows {
            Ok(rows) => match self.appliers.look(name, &session, first).await {
                Err(error) if error.is_passing() => Err(error),
                // Subscriptions are worked for whatever is wrong with the applier.
                Err(error) => {
                    tracing::warn!(database = name, %error, "whether there is an applier to run cannot be seen now");
                    Ok(rows)
                }
                Ok(()) => Ok(rows),
            },
            rows => rows,
        };
        let rows = if stays || rows.is_err() { self.pool.done(session, rows)? } else { rows? };
        let strange = |trouble: Trouble| FeedError::new(Kind::Internal, trouble.message);
        let mut found = Found::default();
        for row in &rows {
            if let Some(subscription) = column::<Option<Value>>(row, 0)? {
                found.subscriptions.push(Subscription::read(subscription).map_err(strange)?);
            }
            if let Some(publication) = column::<Option<Value>>(row, 1)? {
                let publication = Publication::read(publication).map_err(strange)?;
                found.publications.push((publication, column(row, 2)?));
            }
            // One that is not understood is of another version, and waits in vain.
            let sync = column::<Option<Value>>(row, 3)?;
            found.syncs.extend(sync.and_then(|sync| serde_json::from_value::<SyncRequest>(sync).ok()));
        }
        Ok(found)
    }
}

/// What a database has to be worked for.
#[derive(Default)]
struct Found {
    subscriptions: Vec<Subscription>,
    /// With the revision that the other cluster was told last.
    publications: Vec<(Publication, Option<i32>)>,
    syncs: Vec<SyncRequest>,
}

impl Database {
    fn is_worked_for(&self) -> bool {
        !self.running.is_empty() || !self.publications.is_empty()
    }

    /// Begins and ends what is to be begun and ended.
    fn work_for(
        &mut self,
        (config, board): (&PostgresConfig, &Board),
        name: &str,
        subscriptions: Vec<Subscription>,
    ) {
        let ended: Vec<i32> = self
            .running
            .keys()
            .filter(|id| !subscriptions.iter().any(|one| one.id == **id))
            .copied()
            .collect();
        for id in ended {
            if let Some(running) = self.running.remove(&id) {
                tracing::info!(
                    database = name,
                    subscription = running.subscription.name,
                    "a subscription was ended"
                );
                tokio::spawn(farewell(config.clone(), name.to_owned(), running.subscription.clone()));
            }
        }
        for subscription in subscriptions {
            let known = self.running.get(&subscription.id);
            let alive = |known: &Running| known.task.as_ref().is_none_or(|task| !task.is_finished());
            if known.is_some_and(|known| known.subscription == subscription && alive(known)) {
                continue;
            }
            // What was begun by other settings ends first.
            self.running.remove(&subscription.id);
            let task = subscription.enabled.then(|| {
                tracing::info!(
                    database = name,
                    subscription = subscription.name,
                    "a subscription is worked for"
                );
                let target = Local::new(config.clone(), name, &subscription, board);
                tokio::spawn(work(Arc::new(target), subscription.clone()))
            });
            self.running.insert(subscription.id, Running { subscription, task });
        }
    }
}

async fn work(target: Arc<Local>, subscription: Subscription) {
    match Remote::new(&subscription) {
        Ok(remote) => Runner::new(subscription, Arc::new(remote), target).run().await,
        Err(trouble) => {
            // Nothing changes before the settings do.
            while say(&target, &trouble).await.is_err() {
                tokio::time::sleep(ROUND).await;
            }
            std::future::pending::<()>().await;
        }
    }
}

async fn say(target: &Local, trouble: &Trouble) -> super::trouble::Result<()> {
    let (code, detail) = (Some(trouble.code.clone()), Some(trouble.message.clone()));
    target.report(Report { state: trouble.state(), code, detail, end: None }).await
}

/// Tells the source that its log need not be kept for this subscription any more. If that fails, the source forgets it by
/// itself, after days.
async fn farewell(config: PostgresConfig, database: String, subscription: Subscription) {
    let told = async {
        let origin = Local::new(config, &database, &subscription, &Board::default()).origin().await?;
        Remote::new(&subscription)?.forget(&follower_name(&origin, subscription.id)).await
    };
    match tokio::time::timeout(FAREWELL, told).await {
        Ok(Ok(())) => {}
        Ok(Err(trouble)) => {
            tracing::info!(code = trouble.code, "the source of an ended subscription was not told")
        }
        Err(_) => tracing::info!("the source of an ended subscription was not told in time"),
    }
}
