//! What is asked of the source beside what a subscription asks anyway: its sequences, where it ends at this moment, and what the
//! changes are that are missing here.

use super::remote::{Remote, channel_of, unreadable};
use super::source::Channel;
use super::trouble::Result;
use crate::feed::Position;
use crate::uri::encoded;
use hyper::Method;
use serde_json::Value;

/// How many changes are asked for at a time.
const PAGE: usize = 1000;

impl Remote {
    /// The source's sequences: rows of its `quorum.channel_sequences`.
    ///
    /// # Errors
    /// The source does not answer, or refuses.
    pub async fn sequences(&self) -> Result<Value> {
        self.json(Method::GET, &self.path("/sequences", ""), None).await
    }

    /// The channel with an end behind everything that was committed there before this was asked. The source's leader answers.
    ///
    /// # Errors
    /// The source does not answer, or refuses.
    pub async fn channel_now(&self) -> Result<Channel> {
        channel_of(self.json(Method::POST, &self.path("/cut", ""), None).await?)
    }

    /// Changes after a position, at most so many and none behind `end`.
    ///
    /// # Errors
    /// As [`Remote::channel_now`]; among them that they are not kept any more.
    pub async fn changes(&self, after: Position, end: Position, most: usize) -> Result<Vec<Value>> {
        let (mut at, mut all) = (after.to_string(), Vec::new());
        while all.len() < most {
            let limit = PAGE.min(most - all.len());
            let path = self.path("/changes", &format!("after={}&limit={limit}", encoded(&at)));
            let mut found = self.json(Method::GET, &path, None).await?;
            let more = found["more"].as_bool().unwrap_or(false);
            at = found["position"].as_str().ok_or_else(|| unreadable("changes"))?.to_owned();
            let Value::Array(page) = found["changes"].take() else { return Err(unreadable("changes")) };
            let before = all.len();
            all.extend(page.into_iter().filter(|change| tick(change).is_some_and(|tick| tick <= end.tick)));
            if !more || all.len() == before {
                break;
            }
        }
        Ok(all)
    }
}

/// The tick of a change as `/changes` has it.
pub fn tick(change: &Value) -> Option<u64> {
    change["position"].as_str()?.parse::<Position>().ok().map(|at| at.tick)
}
