//! What is asked of a database about its statements. One implementation asks the server beside this node
//! ([`super::Server`]), another one stands in for it in tests.

use crate::feed::Result;
use serde_json::Value;
use std::net::SocketAddr;
use std::pin::Pin;

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// What is served, and the state of the server that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub state: String,
    /// Sorted, each once.
    pub hashes: Vec<String>,
}

/// How many statements of a database there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// That are served.
    pub served: u64,
    /// That were served, or could have been, and are no longer.
    pub withdrawn: u64,
}

/// A server that learns.
pub trait Source: Send + Sync + 'static {
    /// What is served; nothing if the server's state is still `known`.
    fn served<'a>(&'a self, database: &'a str, known: Option<&'a str>) -> Answer<'a, Option<Served>>;
    /// Everything that is known of this database's statements: the rows of `quorum.readonly_statements` as an array of
    /// JSON objects.
    fn records<'a>(&'a self, database: &'a str) -> Answer<'a, String>;
    /// The databases that clients can connect to.
    fn databases(&self) -> Answer<'_, Vec<String>>;
    /// `stays`: the session may be kept for the next question. On a primary it would hold up `DROP DATABASE`.
    fn counts<'a>(&'a self, database: &'a str, stays: bool) -> Answer<'a, Counts>;
    /// At most so many of the things that this server learned and has not been asked for yet.
    fn take_learned<'a>(&'a self, database: &'a str, max: i32) -> Answer<'a, Vec<Value>>;
    /// From now on nothing counts as asked for.
    fn mark_unsent<'a>(&'a self, database: &'a str) -> Answer<'a, ()>;
    /// Gives it to the server of the leader; returns how many it could use.
    fn merge<'a>(&'a self, leader: SocketAddr, database: &'a str, learned: Vec<Value>) -> Answer<'a, u64>;
}
