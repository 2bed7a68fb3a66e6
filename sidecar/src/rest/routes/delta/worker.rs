//! Bringing a worker to where its director is at this moment. The work itself is done by the task that works for the
//! subscription; here it is begun, waited for and, where the subscription rests, let rest again.

use super::results::{self, LISTED};
use super::state::{self, State};
use crate::feed::{Call, Given, Position};
use crate::follow::{Kind, Remote, Subscription, Trouble};
use crate::rest::api::Api;
use crate::rest::refusal::Refusal;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// How often it is looked how far the worker is.
const LOOK: Duration = Duration::from_millis(100);
/// How often a full synchronisation begins anew because the director was pruned meanwhile.
const RELOADS_MAX: usize = 3;
/// With these a subscription stops when its source does not have what comes next.
const LOST: [&str; 3] = ["position_purged", "position_unknown_epoch", "position_in_future"];

/// How far a worker got.
enum Reached {
    There,
    /// What it has is of an older version, or what comes next is not there any more: it must copy all anew.
    Outdated,
}

struct Worker {
    api: Api,
    database: String,
    /// Of the subscription.
    name: String,
    director: Remote,
    deadline: Instant,
}

/// Applies what is missing, up to where the director was when this was asked, and says what became of each change.
pub(super) async fn sync(
    api: Api,
    database: String,
    channel: String,
    verbose: bool,
    deadline: Instant,
) -> Result<Value, Refusal> {
    let _turn = turn(&api, deadline).await?;
    let before = state::of(&api, &database, &channel, None).await?;
    // A director has everything.
    let Some(name) = before.subscription.clone() else { return Ok(json!([])) };
    let worker = Worker::new(api, database, name, deadline).await?;
    let there = worker.director.channel_now().await.map_err(refused)?;
    let version = there.version.number;
    let Some(position) = before.position().filter(|_| !before.loading && before.database_version == version)
    else {
        return Err(outdated(before.database_version, version));
    };
    if position.tick >= there.end.tick {
        if !before.is("disabled") {
            worker.confirm().await?;
        }
        return Ok(json!([]));
    }
    let missing = worker.director.changes(position, there.end, LISTED).await.map_err(refused)?;
    match worker.awake(&before, worker.reach(version, there.end)).await? {
        Reached::There => {}
        Reached::Outdated => return Err(outdated(before.database_version, version)),
    }
    let outcome = worker.outcome(position.tick, there.end.tick).await?;
    Ok(results::of(&missing, there.end.tick - position.tick, &outcome, verbose))
}

/// The same for all subscriptions of a database, without saying what was applied; one whose version is another one copies
/// all anew.
pub(super) async fn full(api: Api, database: String, deadline: Instant) -> Result<(), Refusal> {
    let _turn = turn(&api, deadline).await?;
    for subscription in api.feed().source().subscriptions(&database, None).await? {
        let name = subscription["name"].as_str().unwrap_or_default().to_owned();
        let worker = Worker::new(api.clone(), database.clone(), name, deadline).await?;
        worker.full().await?;
    }
    Ok(())
}

/// Whoever lets a subscription rest again must know that nobody else needs it awake.
async fn turn(api: &Api, deadline: Instant) -> Result<OwnedMutexGuard<()>, Refusal> {
    tokio::time::timeout_at(deadline, Arc::clone(api.syncing()).lock_owned()).await.map_err(|_| {
        let message = "another synchronisation is under way on this node; try again when it is done";
        Refusal::new(503, "busy", message)
    })
}

impl Worker {
    async fn new(api: Api, database: String, name: String, deadline: Instant) -> Result<Worker, Refusal> {
        let row = api.feed().source().subscription(&database, &name).await?.ok_or_else(|| {
            Refusal::new(404, "unknown_subscription", format!("subscription {name} was ended meanwhile"))
        })?;
        let director =
            Subscription::read(row).and_then(|subscription| Remote::new(&subscription)).map_err(refused)?;
        Ok(Worker { api, database, name, director, deadline })
    }

    async fn state(&self) -> Result<State, Refusal> {
        state::of(&self.api, &self.database, "", Some(&self.name)).await
    }

    async fn full(&self) -> Result<(), Refusal> {
        let before = self.state().await?;
        let there = self.director.channel_now().await.map_err(refused)?;
        if !before.loading && before.database_version != there.version.number {
            self.reload().await?;
        } else if !before.loading && before.tick.is_some_and(|tick| tick >= there.end.tick) {
            return Ok(());
        }
        let work = async {
            for _ in 0..RELOADS_MAX {
                match self.reach(there.version.number, there.end).await? {
                    Reached::There => return Ok(()),
                    Reached::Outdated => self.reload().await?,
                }
            }
            Err(self.late(&self.state().await?))
        };
        self.awake(&before, work).await
    }

    /// Waits until this version is here, and everything up to there is applied.
    async fn reach(&self, version: u64, end: Position) -> Result<Reached, Refusal> {
        loop {
            let now = self.state().await?;
            let code = now.code.as_deref().unwrap_or_default();
            if now.is("stopped") && LOST.contains(&code) {
                return Ok(Reached::Outdated);
            }
            if now.is("stopped") {
                let detail = now.detail.as_deref().unwrap_or("its state does not say why");
                let message = format!("subscription {} has stopped ({code}): {detail}", self.name);
                return Err(Refusal::new(531, "subscription_stopped", message));
            }
            // A channel without tables has nothing to copy.
            if now.is("following") && code == "no_tables" {
                return Ok(Reached::There);
            }
            if !now.loading && now.database_version < version {
                return Ok(Reached::Outdated);
            }
            if !now.loading && now.tick.is_some_and(|tick| tick >= end.tick) {
                return Ok(Reached::There);
            }
            if Instant::now() >= self.deadline {
                return Err(self.late(&now));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn late(&self, now: &State) -> Refusal {
        let position = now.position().map_or_else(|| "nowhere yet".to_owned(), |at| format!("at {at}"));
        let detail = now.detail.as_deref().unwrap_or("no trouble was reported");
        let message = format!(
            "subscription {} is not where its director was when this was asked: its state is {}, it is {position}; {detail}. \
             It goes on by itself if it does not rest. Ask again, or with ?wait= for longer",
            self.name,
            now.state.as_deref().unwrap_or("unknown"),
        );
        Refusal::new(531, "timed_out", message)
    }

    /// Does the work with the subscription enabled. One that rests, rests afterwards, whatever came of it, unless somebody has
    /// enabled it meanwhile.
    async fn awake<T>(
        &self,
        before: &State,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let rests = before.is("disabled");
        // Should this node not come to the end of it, whoever leads lets rest what nobody sees to.
        let _awake = rests.then(|| self.api.handle().subscriptions.awake(&self.database, &self.name));
        if rests {
            self.call(Call::new("wake_subscription").text("subscription_name", "text", &self.name)).await?;
        } else if before.is("stopped") {
            // What it has said before counts no longer.
            let call = Call::new("enable_subscription").text("name", "text", &self.name);
            self.call(call.with("enabled", "bool", Given::Text(true.to_string()))).await?;
        }
        let done = match work.await {
            Ok(done) => self.confirm().await.map(|()| done),
            failed => failed,
        };
        if rests {
            self.call(Call::new("rest_subscription").text("subscription_name", "text", &self.name)).await?;
        }
        done
    }

    async fn reload(&self) -> Result<(), Refusal> {
        self.call(Call::new("reload").text("subscription_name", "text", &self.name)).await
    }

    /// What was applied is as durable as the cluster promises when this returns.
    async fn confirm(&self) -> Result<(), Refusal> {
        self.call(Call::new("confirm_applied").text("subscription_name", "text", &self.name)).await
    }

    async fn call(&self, call: Call) -> Result<(), Refusal> {
        self.api.feed().source().call(&self.database, call).await?;
        // Whoever works for subscriptions looks at once.
        self.api.handle().subscriptions_changed.notify_one();
        Ok(())
    }

    async fn outcome(&self, after: u64, last: u64) -> Result<results::Outcome, Refusal> {
        let number = |n: u64| Given::Number(i64::try_from(n).unwrap_or(i64::MAX));
        let call = Call::new("delta_outcome")
            .text("subscription_name", "text", &self.name)
            .with("after_tick", "int8", number(after))
            .with("last_tick", "int8", number(last))
            .with("most", "int4", Given::Text(LISTED.to_string()));
        let found = self.api.feed().source().ask(&self.database, call).await?;
        serde_json::from_value(found).map_err(|_| Refusal::unexpected_reply())
    }
}

fn outdated(here: u64, there: u64) -> Refusal {
    let message = format!(
        "worldmatch database is outdated and an import (LOAD_ONLY) is necessary: databaseVersion is {here} here and {there} at \
         the director, or changes in between are not kept there any more. POST /rest/v5/cluster/database/sync/full reloads it"
    );
    Refusal::new(409, "database_version_differs", message)
}

/// What the director says, or that it says nothing.
fn refused(trouble: Trouble) -> Refusal {
    if matches!(trouble.kind, Kind::Lost | Kind::Behind) {
        let message = format!(
            "worldmatch database is outdated and an import (LOAD_ONLY) is necessary: {}. POST \
             /rest/v5/cluster/database/sync/full reloads it",
            trouble.message
        );
        return Refusal::new(409, "database_version_differs", message);
    }
    let message = format!("the director did not answer as it should ({}): {}", trouble.code, trouble.message);
    Refusal::new(531, "director_failed", message)
}
