//! What is asked of a database about its statements. One implementation asks the server beside this node
//! ([`super::Server`]), another one stands in for it in tests.

use crate::feed::Result;
use std::pin::Pin;

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// What is served, and the state of the server that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub state: String,
    /// Sorted, each once.
    pub hashes: Vec<String>,
}

/// A server that learns.
pub trait Source: Send + Sync + 'static {
    /// What is served; nothing if the server's state is still `known`.
    fn served<'a>(&'a self, database: &'a str, known: Option<&'a str>) -> Answer<'a, Option<Served>>;
    /// Everything that is known of this database's statements: the rows of `quorum.readonly_statements` as an array of
    /// JSON objects.
    fn records<'a>(&'a self, database: &'a str) -> Answer<'a, String>;
}
