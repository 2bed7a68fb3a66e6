//! The replication interface, `/_api/replication/…` and `/_api/wal/…`: other programs copy a database's tables and follow its
//! changes as those of ArangoDB's collections. `docs/replication-interface.md` says what is what.
//!
//! - [`tick`], [`names`] and [`error`] are the interface's words for positions, tables, rows and failures.
//! - [`log`] says what there is, [`collections`] of which tables; [`lines`] writes changes and rows.
//! - [`follow`] reads the log, [`batches`] hold snapshots and dump tables in them, [`unbatched`] for those who begin none;
//!   [`clients`] remembers who reads.
//! - [`applier`] is the other side: it copies and follows a server that speaks this interface.
//! - [`restore`] reads what an inventory and a dump say, to make tables and rows of it.
//!
//! Routes are in `rest/routes/replication`. Nothing here knows of HTTP.

pub mod applier;
pub mod batches;
pub mod clients;
mod collections;
mod error;
mod follow;
mod lines;
mod log;
mod names;
pub mod restore;
pub mod tick;
pub mod unbatched;

pub use collections::Listed;
pub use error::{
    BATCH_NOT_FOUND, DATABASE_NOT_FOUND, DUPLICATE_NAME, FORBIDDEN, Failure, INVALID_JSON, Result,
    SUPERFLUOUS_SUFFIX,
};
pub use follow::{Followed, Wanted, follow};
pub use lines::Dialect;
pub use log::{Log, now};

use crate::feed::Source;
use batches::Batches;
use clients::Clients;
use std::sync::Arc;
use tokio::sync::Semaphore;
use unbatched::Unbatched;

/// The channel that is a database's log here.
pub const CHANNEL: &str = "_logger";

/// The database that is meant where none is named.
pub const SYSTEM: &str = "_system";

/// The version of the interface that is spoken here, which clients ask for.
pub const VERSION: &str = "3.11.0";

/// So many bodies of rows are in memory at a time.
const RESTORING_MAX: usize = 2;

/// What a node remembers between requests.
pub struct Replication {
    pub batches: Arc<Batches>,
    pub unbatched: Unbatched,
    pub clients: Clients,
    /// Places for those who send rows.
    pub restoring: Semaphore,
}

impl Replication {
    pub fn new(source: Arc<dyn Source>) -> Replication {
        let (clients, restoring) = (Clients::default(), Semaphore::new(RESTORING_MAX));
        let batches = Batches::new(source);
        Replication { unbatched: Unbatched::new(Arc::clone(&batches)), batches, clients, restoring }
    }
}
