//! What can be wrong with reading a channel, in words and codes.

use pgrx::PgSqlErrorCode::{
    ERRCODE_ACTIVE_SQL_TRANSACTION, ERRCODE_DATA_CORRUPTED, ERRCODE_INVALID_PARAMETER_VALUE,
    ERRCODE_INVALID_TRANSACTION_STATE, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
    ERRCODE_READ_ONLY_SQL_TRANSACTION, ERRCODE_UNDEFINED_OBJECT,
};

use super::entries::Place;
use super::position::{Position, Unusable};
use crate::error::Refusal;
use crate::pg::raise;

/// Why a channel cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedError {
    NoChannel(String),
    NotAPosition(String),
    Unusable {
        channel: String,
        asked: String,
        start: Position,
        end: Position,
        why: Unusable,
    },
    /// The log that was being read has gone meanwhile.
    PurgedMeanwhile {
        channel: String,
    },
    /// A log row cannot be read.
    DamagedRow {
        channel: String,
        heap: String,
        place: Place,
        what: String,
    },
    /// A batch row cannot be read.
    DamagedBatch {
        channel: String,
        table: String,
        last_tick: u64,
    },
    /// The schema version that a change names is missing.
    NoSchema {
        channel: i32,
        id: u64,
    },
    /// The channel never had this table.
    NoTable(String),
    /// Another snapshot was newer: [`DUMP_TOO_OLD`].
    SnapshotTooOld {
        channel: String,
    },
    Standby(&'static str),
    /// The transaction must keep one snapshot.
    NotRepeatable,
    /// The transaction must not have written.
    HasWritten,
    NoAnswer {
        channel: String,
    },
    Busy,
}

const RELOAD: &str = "Copy the tables again (quorum.dump_start tells the position to follow from), then follow from there. A registered follower holds the log until it has read it: quorum.register_follower.";

impl FeedError {
    /// Raises it as an ERROR. To be called last: see [`raise::error`].
    pub fn raise(self) -> ! {
        match self {
            Self::Unusable { channel, asked, start, end, why } => unusable(&channel, &asked, start, end, why),
            Self::PurgedMeanwhile { channel } => raise::error(
                *b"PQ001",
                format!("the log of channel \"{channel}\" was purged while it was being read"),
                "The changes that come next are gone.".to_owned(),
                RELOAD.to_owned(),
            ),
            Self::SnapshotTooOld { channel } => raise::error(
                *b"PQ004",
                format!("channel \"{channel}\" has a batch that this transaction does not see"),
                "A copy that is made now would lack changes that come before the position to follow from."
                    .to_owned(),
                "Roll back, begin again (REPEATABLE READ), and let quorum.dump_start be the first statement."
                    .to_owned(),
            ),
            other => other.refusal().raise(),
        }
    }

    fn refusal(self) -> Refusal {
        match self {
            Self::NoChannel(name) => Refusal::new(ERRCODE_UNDEFINED_OBJECT, format!("there is no channel \"{name}\""))
                .hint("SELECT * FROM quorum.channel_state lists the channels of this database."),
            Self::NotAPosition(text) => {
                Refusal::new(ERRCODE_INVALID_PARAMETER_VALUE, format!("\"{text}\" is not a position in a channel"))
                    .hint("A position is EPOCH:TICK as quorum.changes shows it (like 5:1234), a tick of the present history (1234), start, or now.")
            }
            Self::DamagedRow { channel, heap, place, what } => Refusal::new(
                ERRCODE_DATA_CORRUPTED,
                format!(
                    "the log of channel \"{channel}\" is damaged in segment {}: row ({},{}) of {heap}",
                    place.segment, place.block, place.offset
                ),
            )
            .detail(what)
            .hint("Nothing from this transaction on was returned. Read from another node of the cluster, whose disk may be sound; else copy the tables again and follow from behind the damage."),
            Self::DamagedBatch { channel, table, last_tick } => Refusal::new(
                ERRCODE_DATA_CORRUPTED,
                format!("the list of batches of channel \"{channel}\" is damaged: {table}, the row with last_tick {last_tick}"),
            )
            .hint("Read from another node of the cluster, whose disk may be sound; else copy the tables again and follow from behind the damage."),
            Self::NoSchema { channel, id } => Refusal::new(
                ERRCODE_DATA_CORRUPTED,
                format!("a change in channel {channel} (quorum.channel.id) names the schema version {id}, which is not recorded"),
            )
            .hint("Rows of quorum.schema_version must not be deleted. Read from another node, or copy the tables again and follow from there."),
            Self::NoTable(name) => super::changes::no_table(&name),
            Self::Standby(what) => Refusal::new(
                ERRCODE_READ_ONLY_SQL_TRANSACTION,
                format!("{what} is done on the primary only: this server is in recovery"),
            )
            .hint("Connect to the primary; SELECT * FROM quorum.leader() says where it is."),
            Self::NotRepeatable => Refusal::new(
                ERRCODE_INVALID_TRANSACTION_STATE,
                "quorum.dump_start needs a transaction that keeps its snapshot",
            )
            .hint("BEGIN ISOLATION LEVEL REPEATABLE READ; then quorum.dump_start as the first statement, then copy the tables in the same transaction."),
            Self::HasWritten => Refusal::new(
                ERRCODE_ACTIVE_SQL_TRANSACTION,
                "quorum.dump_start must come before anything that its transaction writes",
            )
            .detail("The copy would hold what this transaction has written, and whoever follows from the position would get it once more.")
            .hint("Commit or roll back; then BEGIN ISOLATION LEVEL REPEATABLE READ, and quorum.dump_start as the first statement."),
            Self::NoAnswer { channel } => Refusal::new(
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("no batch of channel \"{channel}\" could be cut"),
            )
            .detail("The worker \"pgquorum feed\" of this database did not do it in time.")
            .hint("The server's log says why. It needs a free place in max_worker_processes, room on the disk, the cluster's lease if there is a cluster, and standbys that acknowledge if synchronous_standby_names asks for them."),
            Self::Busy => Refusal::new(
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "too many sessions wait for a batch to be cut",
            )
            .hint("Try again in a moment."),
            Self::Unusable { .. } | Self::PurgedMeanwhile { .. } | Self::SnapshotTooOld { .. } => {
                unreachable!("raised with a code of its own")
            }
        }
    }
}

fn unusable(channel: &str, asked: &str, start: Position, end: Position, why: Unusable) -> ! {
    let (code, message, detail, hint) = match why {
        Unusable::Purged { first_tick } => (
            *b"PQ001",
            format!("position {asked} of channel \"{channel}\" has been purged"),
            format!("The oldest change that is kept has tick {first_tick}; reading can begin at {start}."),
            RELOAD,
        ),
        Unusable::OtherHistory { shared } => (
            *b"PQ002",
            format!("position {asked} of channel \"{channel}\" belongs to another history"),
            match shared {
                Some(tick) => format!(
                    "That epoch ended with tick {tick} in the history of this database; what had later ticks was lost in a failover or restore."
                ),
                None => "No change of that epoch is part of the history of this database.".to_owned(),
            },
            "The reader has seen changes that do not exist here. Copy the tables again (quorum.dump_start), then follow from there.",
        ),
        Unusable::Future { last_tick } => (
            *b"PQ003",
            format!("position {asked} of channel \"{channel}\" lies in the future"),
            format!("This server knows the channel up to tick {last_tick} ({end})."),
            "On a standby: it is behind, so try again soon, or read from another node. On the primary: the position was not given by this channel.",
        ),
    };
    raise::error(code, message, detail, hint.to_owned())
}
