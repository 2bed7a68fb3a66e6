//! A server that learns, for tests: databases `postgres` and `shop` with the extension, `bare` without it.

use super::source::{Answer, Counts, Served, Source};
use crate::feed::{FeedError, Kind, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

#[derive(Default)]
pub struct Fake {
    known: Mutex<Known>,
    /// What was asked, a line a question.
    pub asked: Mutex<Vec<String>>,
    /// What the next questions fail with, of those whose line begins so.
    pub failure: Mutex<Option<(&'static str, Kind)>>,
    /// How long an answer takes.
    pub slowness: Mutex<Duration>,
}

#[derive(Default)]
struct Known {
    /// Raised with every change.
    state: u64,
    served: BTreeSet<String>,
    unsent: Vec<Value>,
    sent: Vec<Value>,
    /// What the leader was told.
    told: Vec<Value>,
}

impl Fake {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    pub fn serve(&self, hash: &str) {
        let mut known = self.known();
        known.served.insert(hash.to_owned());
        known.state += 1;
    }

    pub fn withdraw(&self, hash: &str) {
        let mut known = self.known();
        known.served.remove(hash);
        known.state += 1;
    }

    /// Something changed that makes no difference for those who ask.
    pub fn stir(&self) {
        self.known().state += 1;
    }

    /// The server learns statements with these numbers.
    pub fn learn(&self, numbers: std::ops::Range<u64>) {
        self.known().unsent.extend(numbers.map(Value::from));
    }

    /// What the leader was told, and forgets.
    pub fn told(&self) -> Vec<u64> {
        std::mem::take(&mut self.known().told).iter().filter_map(Value::as_u64).collect()
    }

    /// The questions since the last time.
    pub fn questions(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    pub fn fail(&self, questions: &'static str, kind: Kind) {
        *self.failure.lock().unwrap() = Some((questions, kind));
    }

    pub fn mend(&self) {
        *self.failure.lock().unwrap() = None;
    }

    async fn admit(&self, question: String, database: &str) -> Result<()> {
        let slowness = *self.slowness.lock().unwrap();
        let failure = self.failure.lock().unwrap().filter(|(questions, _)| question.starts_with(questions));
        self.asked.lock().unwrap().push(question);
        if !slowness.is_zero() {
            tokio::time::sleep(slowness).await;
        }
        if let Some((_, kind)) = failure {
            return Err(FeedError::new(kind, "the database fails as it was told to"));
        }
        match database {
            "postgres" | "shop" => Ok(()),
            "bare" => Err(FeedError::no_extension()),
            _ => Err(FeedError::new(Kind::UnknownDatabase, format!("database {database} does not exist"))),
        }
    }
}

impl Source for Fake {
    fn served<'a>(&'a self, database: &'a str, known: Option<&'a str>) -> Answer<'a, Option<Served>> {
        Box::pin(async move {
            self.admit(format!("served {database}"), database).await?;
            let now = self.known();
            let state = now.state.to_string();
            Ok((known != Some(&state))
                .then(|| Served { state, hashes: now.served.iter().cloned().collect() }))
        })
    }

    fn records<'a>(&'a self, database: &'a str) -> Answer<'a, String> {
        Box::pin(async move {
            self.admit(format!("records {database}"), database).await?;
            let record = |hash: &String| {
                json!({"hash": hash, "database": database, "how": "proven", "served": true,
                "calls": 7, "search_path": "\"$user\", public", "statement": "select $", "query_id": "-42",
                "last_use": "2026-01-02T03:04:05+00:00", "withdrawn": null, "reason": null})
            };
            Ok(Value::from_iter(self.known().served.iter().map(record)).to_string())
        })
    }

    fn databases(&self) -> Answer<'_, Vec<String>> {
        Box::pin(async move {
            self.admit("databases".to_owned(), "postgres").await?;
            Ok(["bare", "postgres", "shop"].map(str::to_owned).to_vec())
        })
    }

    fn counts<'a>(&'a self, database: &'a str, stays: bool) -> Answer<'a, Counts> {
        Box::pin(async move {
            let stays = if stays { ", stays" } else { "" };
            self.admit(format!("counts {database}{stays}"), database).await?;
            Ok(Counts { served: self.known().served.len() as u64, withdrawn: 1 })
        })
    }

    fn take_learned<'a>(&'a self, database: &'a str, max: i32) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(format!("take {database}"), database).await?;
            let mut known = self.known();
            // Only this one learns.
            let many = if database == "shop" { known.unsent.len().min(max as usize) } else { 0 };
            let taken: Vec<Value> = known.unsent.drain(..many).collect();
            known.sent.extend(taken.iter().cloned());
            Ok(taken)
        })
    }

    fn mark_unsent<'a>(&'a self, database: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.admit(format!("unsend {database}"), database).await?;
            let mut known = self.known();
            if database == "shop" {
                let sent = std::mem::take(&mut known.sent);
                known.unsent.extend(sent);
            }
            Ok(())
        })
    }

    fn merge<'a>(&'a self, leader: SocketAddr, database: &'a str, learned: Vec<Value>) -> Answer<'a, u64> {
        Box::pin(async move {
            self.admit(format!("merge {database} at {leader}: {}", learned.len()), database).await?;
            let told = learned.len() as u64;
            self.known().told.extend(learned);
            Ok(told)
        })
    }
}
