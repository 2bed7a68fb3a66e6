//! Following another cluster: on the leader, for each subscription of each database, one task that copies tables of a channel
//! of another cluster and applies its changes.
//!
//! - [`oversee`] finds the subscriptions and begins and ends the work; a [`Runner`](runner::Runner) does it. It finds the
//!   appliers of the replication interface, too.
//! - [`Source`](source::Source) is what is asked of the other cluster, `remote` asks over HTTP with the connections of `wire`;
//!   [`Target`](target::Target) is what is asked of the database here, `local` asks the server beside this node.
//! - `copying` copies tables; `copy_end` tells a whole copy from one that was broken off.
//! - `following` applies changes: `frames` reads the binary stream, `queue` makes batches of it.
//! - The other direction: `publications` finds what other clusters are to follow of this one, `publishing` sees to it there,
//!   `publication` is what is wanted.
//! - `board` is what `/metrics` shows of it; there lies, too, what the overseer finds that SQL asks the delta interface for.
//! - `moment` finds the position that a time means.
//! - `versions` is what is said of the version that is copied and followed; `director` what the delta interface asks the source.
//! - `trouble` is what keeps a subscription from going on, and what its state says then.
//!
//! What is durable where: changes and the position up to which they are applied are written together, and may be lost
//! together. The source is told only what a later commit, that waited as the cluster promises, has made durable.
//!
//! Bounds: read ahead 8 MB a subscription; tables copied at a time as the subscription says, with a session each; else two
//! sessions a subscription.

mod board;
mod copier;
mod copy_end;
mod copying;
mod director;
#[cfg(test)]
mod fake;
mod following;
mod frames;
mod local;
mod moment;
mod overseer;
mod publication;
mod publications;
mod publishing;
mod queue;
mod remote;
mod runner;
mod source;
mod subscription;
mod target;
#[cfg(test)]
mod tests;
mod trouble;
mod versions;
mod wire;

pub use director::tick;
pub use overseer::oversee;
pub use publishing::addresses;
pub use {
    board::{Board, SyncRequest},
    publications::Face,
    remote::Remote,
    source::Source,
    subscription::{Subscription, TableName},
    trouble::{Kind, Trouble},
    wire::{Base, Wire},
};
#[cfg(test)]
pub use {
    publication::{Own, Publication},
    publishing::{Outcome, Step, step},
};
