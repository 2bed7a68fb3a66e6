//! The work for one subscription: find out what there is, copy what is to be copied, follow; and when something keeps it
//! from that, say so and try again.

use super::copying::Copying;
use super::following::{Ahead, Following};
use super::source::Source;
use super::subscription::{Subscription, TableName};
use super::target::{Report, SourceFound, Standing, Target};
use super::trouble::{Kind, Result, Trouble};
use crate::feed::Position;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two attempts: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long the database here may take to write down what the trouble is; it may be the trouble itself.
const TELL_DEADLINE: Duration = Duration::from_secs(5);
/// Between two questions whether a position is known by now.
const BEHIND_PAUSE: Duration = Duration::from_secs(1);
/// An attempt that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(10);
/// How long the source's leader may not know a position before that is taken for lost: a new one may not show yet what it has.
const CATCH_UP: Duration = Duration::from_secs(20);
/// How often a source without tables is looked at again.
const EMPTY: Duration = Duration::from_secs(5);

/// What a subscription is worked with.
pub struct Runner {
    pub subscription: Subscription,
    pub source: Arc<dyn Source>,
    pub target: Arc<dyn Target>,
    /// Where the channel ended when that was heard last.
    pub end: Option<Position>,
    /// Something was applied in this attempt.
    pub moved: AtomicBool,
}

impl Runner {
    pub fn new(subscription: Subscription, source: Arc<dyn Source>, target: Arc<dyn Target>) -> Runner {
        Runner { subscription, source, target, end: None, moved: AtomicBool::new(false) }
    }

    /// Works until the subscription is no more, or rests.
    pub async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut behind: Option<Instant> = None;
        let mut said: Option<(Kind, String)> = None;
        loop {
            let begun = Instant::now();
            let Err(mut trouble) = self.attempt().await else { continue };
            if begun.elapsed() >= GOOD {
                (pause, behind, said) = (PAUSE_MIN, None, None);
            }
            // Where others write the same rows, what fails now and then is no reason to go on ever more slowly.
            if self.moved.swap(false, Ordering::Relaxed) {
                pause = PAUSE_MIN;
            }
            if trouble.kind == Kind::Behind {
                let since = *behind.get_or_insert(begun);
                if since.elapsed() >= CATCH_UP {
                    trouble.kind = Kind::Lost;
                }
            } else {
                behind = None;
            }
            // A sentence may hold what a row holds; the log has the word alone.
            if said.as_ref().is_none_or(|(kind, code)| (*kind, code) != (trouble.kind, &trouble.code)) {
                let name = self.subscription.name.as_str();
                tracing::warn!(
                    subscription = name,
                    code = trouble.code,
                    state = trouble.state(),
                    "a subscription does not go on"
                );
                said = Some((trouble.kind, trouble.code.clone()));
            }
            match trouble.kind {
                Kind::Gone => return,
                Kind::Lost if self.subscription.on_purged == "reload" => match self.target.reload().await {
                    Ok(()) => continue,
                    Err(error) => tracing::warn!(code = error.code, "a subscription cannot be copied anew"),
                },
                _ => {}
            }
            // It is told again next time.
            let _ = tokio::time::timeout(TELL_DEADLINE, self.target.report(self.report(&trouble))).await;
            self.source.leave();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            if trouble.kind == Kind::Behind {
                pause = pause.min(BEHIND_PAUSE);
            }
        }
    }

    fn report(&self, trouble: &Trouble) -> Report {
        let mut detail = trouble.message.clone();
        if trouble.kind == Kind::Lost {
            detail.push_str(
                ". The tables must be copied anew: quorum.alter_subscription(…, on_purged => 'reload') has that done by itself, \
                 now and in future",
            );
        }
        Report {
            state: trouble.state(),
            code: Some(trouble.code.clone()),
            detail: Some(detail),
            // Nothing new was heard of it.
            end: None,
        }
    }

    /// One attempt; it returns only with what keeps the subscription from going on.
    async fn attempt(&mut self) -> Result<()> {
        // What does not depend on each other is asked on both sides at once: connecting alone takes most of the time.
        let here = async { Ok::<_, Trouble>((self.target.standing().await?, self.target.origin().await?)) };
        let (channel, (standing, origin)) = tokio::try_join!(self.source.channel(), here)?;
        self.end = Some(channel.end);
        let start = self.start(&standing).await?;
        let wanted: Vec<TableName> =
            channel.tables.iter().filter(|table| self.subscription.wants(table)).cloned().collect();
        let found =
            SourceFound { origin: &channel.origin, tables: &wanted, change_bytes: channel.change_bytes };
        // What was applied before is durable with this, and so is the position that the source is told.
        let report = Report { state: "starting", end: self.end, ..Report::default() };
        let (standing, schemas) =
            tokio::try_join!(self.target.begin(found, start, report), self.source.schemas())?;
        let follower = follower_name(&origin, self.subscription.id);
        let mut ahead = Ahead::of(self, &standing);
        let noted = async {
            self.target.add_schemas(schemas).await?;
            self.target.see_source(channel.version).await
        };
        let registered = async {
            self.register(&follower, &standing).await?;
            // Not before: by now it is known which node leads there, and that one is read first.
            if let Some(ahead) = &mut ahead {
                ahead.read(self);
            }
            Ok::<_, Trouble>(())
        };
        let ((), outdated) = tokio::try_join!(registered, noted)?;
        if outdated && self.subscription.on_purged == "reload" {
            self.target.reload().await?;
        }
        loop {
            let standing = self.target.standing().await?;
            // What is to be done before may move the position.
            let begun = ahead.take().filter(|_| standing.follows());
            if !standing.to_copy.is_empty() {
                let (there, gone): (Vec<_>, Vec<_>) =
                    standing.to_copy.into_iter().partition(|table| channel.tables.contains(table));
                for table in gone {
                    let message = "the source does not track this table in its channel any more";
                    self.target.report_stopped(&table, "PQ016", message).await?;
                }
                if !there.is_empty() {
                    Copying { runner: self, origin: &channel.origin }.run(&there).await?;
                }
                continue;
            }
            let Some(position) = standing.position else { return self.nothing_to_follow(&standing).await };
            let mut following = Following::new(self, &follower, &channel);
            if let Some((table, after)) = standing.to_catch_up.first() {
                match following.catch_up(table, *after, position).await {
                    // The others go on.
                    Err(trouble) if trouble.kind == Kind::Lost => {
                        let message = format!(
                            "{}. Copy it again: quorum.resume_table(…, copy => true)",
                            trouble.message
                        );
                        self.target.report_stopped(table, &trouble.code, &message).await?;
                    }
                    done => done?,
                }
            } else {
                following.follow(begun).await?;
                // Other tables, or what was to be copied: all is looked at anew.
                return Ok(());
            }
        }
    }

    /// Before anything is copied: what comes after the copy's position must be kept until it is read.
    async fn register(&self, follower: &str, standing: &Standing) -> Result<()> {
        let behind = standing.to_catch_up.iter().map(|(_, at)| *at);
        let first = standing.position.into_iter().chain(behind).min_by_key(|at| at.tick);
        match self.source.register(follower, first).await {
            // What one table lacks is no matter of the others.
            Err(trouble) if trouble.kind == Kind::Lost && first != standing.position => {
                self.source.register(follower, standing.position).await
            }
            done => done,
        }
    }

    /// Where to begin, if nothing is copied and it was not begun yet.
    async fn start(&self, standing: &Standing) -> Result<Option<Position>> {
        if standing.position.is_some() || self.subscription.copy != "none" {
            return Ok(None);
        }
        match self.subscription.start.as_deref() {
            None | Some("now") => self.source.end().await.map(Some),
            Some(text) => match text.parse::<Position>() {
                Ok(position) => Ok(Some(position)),
                Err(_) => self.source.position_at(self.target.time(text).await?).await.map(Some),
            },
        }
    }

    async fn nothing_to_follow(&self, standing: &Standing) -> Result<()> {
        let (state, code, detail) = if standing.tables == 0 {
            (
                "following",
                "no_tables",
                "the channel has no table yet that is wanted here; it is looked at again",
            )
        } else {
            (
                "stopped",
                "no_table_copied",
                "no table could be copied; quorum.subscription_tables says why, each for itself",
            )
        };
        let (code, detail) = (Some(code.to_owned()), Some(detail.to_owned()));
        self.target.report(Report { state, code, detail, end: self.end }).await?;
        tokio::time::sleep(EMPTY).await;
        Ok(())
    }
}

/// Under which name the source keeps the log for this subscription. It takes no more than 63 bytes.
pub fn follower_name(origin: &str, subscription: i32) -> String {
    let fits =
        origin.len() <= 44 && origin.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.:-".contains(&b));
    if fits {
        return format!("sub-{origin}-{subscription}");
    }
    let digest: String = Sha256::digest(origin)[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sub-{digest}-{subscription}")
}
