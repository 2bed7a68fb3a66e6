//! The feed: from what transactions have written to a channel's log to what readers see, in order and numbered.
//!
//! `capture` writes each transaction's changes as log rows into the channel's current *segment*, a heap without an index.
//! On the primary one worker per database, the *cutter*, makes batches of them: a batch is what a snapshot B sees and the
//! last batch's snapshot A does not. So nothing is skipped and nothing waited for: a transaction that is under way (or
//! prepared, or stuck) is in no batch until a later snapshot sees it. The cutter orders the transactions of a batch, gives
//! each change its number (tick), and writes a *batch row* that lists where the log rows are. Nothing is copied. Readers
//! on any node go from a batch row to the log rows.
//!
//! What is shown is durable. On the primary a batch row becomes visible when the cutter's synchronous commit has
//! returned; all transactions of the batch have their commit records before it in the WAL. Standbys may replay that commit
//! before it is safe, so there only batches are shown that the cutter has then confirmed.
//!
//! * `snapshot`, `plan`, `entries`, `varint`, `steps`, `position` – pure: what a snapshot sees, the order of a batch, its
//!   encoding, which log rows a reader needs, and whether a position is one of this history;
//! * `shared`, `databases` – what sessions, the launcher and the cutters tell each other in shared memory;
//! * `launcher` – starts the cutters; `cutter` – a cutter's loop; `work` – a channel in its hands, and what goes wrong with
//!   it; `channel` – what it knows of a channel; `cut` – one batch; `upkeep` – rotation of segments, retention, expiry of
//!   followers; `audit` – whether what is tracked is captured;
//! * `view` – what a reader sees of a channel; `read`, `packed`, `changes`, `wait`, `followers` – the SQL functions;
//!   `error` – their errors.

pub mod audit;
pub mod changes;
pub mod channel;
pub mod cut;
pub mod cutter;
pub mod databases;
pub mod entries;
pub mod error;
pub mod followers;
pub mod launcher;
pub mod packed;
pub mod plan;
pub mod position;
pub mod read;
pub mod shared;
pub mod snapshot;
pub mod steps;
pub mod upkeep;
pub mod varint;
pub mod view;
pub mod wait;
pub mod work;

/// Asks for shared memory and registers the launcher; from `_PG_init`.
pub fn init() {
    shared::init();
    databases::init();
    launcher::init();
}
