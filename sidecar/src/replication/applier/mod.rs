//! The applier: the side of the replication interface that follows another server that speaks it, another cluster of ours or
//! any that keeps to ArangoDB's protocol.
//!
//! - [`config`] are its settings and [`state`] what is shown of it; both are kept by the extension (`sql/applier.sql`).
//! - [`remote`] asks the other server, `reply` is what it answers; [`events`] reads the lines that it sends, [`keys`] the
//!   names and keys in them; `numbers` knows the names of collections where lines have none.
//! - `transactions` puts lines together again to transactions; `tables` says how documents become rows, `writing` writes them.
//! - [`here`] is the database beside this node. `copy` copies all tables, `runner` has it followed by `following`, `works` has one run for each
//!   database where there is one to run, on the leader.
//! - [`fault`] is what keeps it from going on.
//!
//! What is durable where: rows and the tick up to which they are applied are written by one transaction, and may be lost
//! together; then they are asked for again. A copy is one transaction.
//!
//! Bounds: an answer of the remote is as large as `maxPacketSize`; transactions that are incomplete are held in memory up to
//! a few megabytes and then written, without a commit, as they come.

mod config;
mod copy;
mod events;
mod fault;
mod following;
mod here;
mod keys;
mod numbers;
#[cfg(test)]
mod played;
mod remote;
mod reply;
mod runner;
pub mod state;
mod tables;
mod transactions;
mod works;
mod writing;

pub use config::Config;
pub use copy::sync;
pub use fault::Fault;
pub use here::Here;
pub use remote::Remote;
pub use works::Appliers;
