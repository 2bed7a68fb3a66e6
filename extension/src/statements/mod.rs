//! Statements that write nothing: learned where they run, so that others can be sent to standbys.
//!
//! A statement is known by the hash of its normalised text, the database and the schemas in which its names are looked up.
//! Its plan proves that it cannot write, or what it did is observed. All nodes serve what one table says, which the primary
//! writes: so a withdrawal reaches them with the WAL of the commit that causes it.
//!
//! * `proof` – what is known of a statement from its analysed and rewritten tree, before it runs: `examine`; `functions` –
//!   data: the built-in functions that must not be judged by their volatility, with a reason each; `explain` – the same
//!   answer for people, in SQL. What is met in a tree is found by `pg::query_walk` and `pg::catalog`;
//! * `identity` – text to hash; `local`, `recognise` – what a session remembers; `entry`, `table`, `buckets`, `shared` – what the server remembers;
//! * `learn` – what is learned while statements are planned and run; `watch` – what the one that runs now does;
//! * `changed`, `withdraw` – what a transaction changes of functions, tables and so on, and what that withdraws; `ring` –
//!   what was changed lately, so that no verdict about yesterday is stored today;
//! * `records` – what is learned, on its way into the table; `save` – the worker that writes it; `savers` – its starter;
//!   `databases` – what these tell each other;
//! * `rows`, `sql` – what is served; `settings` – the settings.
//!
//! Invariant: nothing that was seen writing is served. Invariant: the learner raises no error into a client's statement;
//! what goes wrong in it ends learning in that session, and is in the server's log.

pub mod buckets;
pub mod changed;
pub mod databases;
pub mod entry;
pub mod explain;
pub mod functions;
pub mod identity;
pub mod learn;
pub mod local;
pub mod proof;
pub mod recognise;
pub mod records;
pub mod ring;
pub mod rows;
pub mod save;
pub mod savers;
pub mod settings;
pub mod shared;
pub mod sql;
pub mod table;
pub mod watch;
pub mod withdraw;

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pgrx::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;

use crate::error::Refusal;

/// The learner has failed in this session. One process: no ordering is needed.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Asks for shared memory; from `_PG_init`.
pub fn init() {
    shared::init();
    table::init();
    buckets::init();
    ring::init();
    databases::init();
}

/// Has the learner failed in this session?
#[inline]
pub fn is_broken() -> bool {
    BROKEN.load(Relaxed)
}

/// A mistake was met: nothing more is learned in this session, and the server's log says so, once.
#[cold]
pub fn give_up(payload: &(dyn Any + Send)) {
    if BROKEN.swap(true, Relaxed) {
        return;
    }
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("");
    Refusal::new(
        ERRCODE_SUCCESSFUL_COMPLETION,
        format!("pgquorum: learning statements has failed in this session and ends in it: {text}"),
    )
    .detail("The session itself goes on, and what is served stays as it is. This is a mistake in pgquorum: please report it with this line.")
    .log();
}
