//! What can go wrong with a channel, and how the database says it.

use tokio_postgres::error::SqlState;

/// Why a request on a channel was not carried out. REST gives each kind its status and its stable word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    UnknownDatabase,
    /// The database is there, `CREATE EXTENSION pgquorum` was not run in it.
    NoExtension,
    UnknownChannel,
    UnknownTable,
    UnknownColumn,
    UnknownFollower,
    UnknownSubscription,
    /// A copy that was begun is over: its time was up, or the node that held it leads no more.
    CopyGone,
    AlreadyExists,
    /// What comes next was purged already.
    PositionPurged,
    /// The position belongs to a history that the cluster does not have.
    PositionUnknownEpoch,
    /// The position is beyond the end.
    PositionInFuture,
    /// A record in the log does not read as it was written.
    RecordBroken,
    /// Another cut overtook the snapshot of a dump.
    SnapshotTooOld,
    /// A value or a state that the database does not take, in its own words.
    Refused,
    /// The server takes no writes (any more).
    ReadOnly,
    /// Somebody else holds a lock for long.
    Locked,
    TimedOut,
    /// The server does not answer, or admits nobody now.
    Unavailable,
    /// Too many readers or dumps at a time.
    Busy,
    /// The cluster goes on without this node.
    Removed,
    OutOfResources,
    Internal,
}

impl Kind {
    /// The stable word for programs.
    pub fn code(self) -> &'static str {
        match self {
            Kind::UnknownDatabase => "unknown_database",
            Kind::NoExtension => "no_extension",
            Kind::UnknownChannel => "unknown_channel",
            Kind::UnknownTable => "unknown_table",
            Kind::UnknownColumn => "unknown_column",
            Kind::UnknownFollower => "unknown_follower",
            Kind::UnknownSubscription => "unknown_subscription",
            Kind::CopyGone => "copy_gone",
            Kind::AlreadyExists => "already_exists",
            Kind::PositionPurged => "position_purged",
            Kind::PositionUnknownEpoch => "position_unknown_epoch",
            Kind::PositionInFuture => "position_in_future",
            Kind::RecordBroken => "record_broken",
            Kind::SnapshotTooOld => "snapshot_too_old",
            Kind::Refused => "refused_by_database",
            Kind::ReadOnly => "read_only",
            Kind::Locked => "locked",
            Kind::TimedOut => "timed_out",
            Kind::Unavailable => "database_unavailable",
            Kind::Busy => "busy",
            Kind::Removed => "removed",
            Kind::OutOfResources => "out_of_resources",
            Kind::Internal => "database_error",
        }
    }
}

/// A failure with what happened and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct FeedError {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, FeedError>;

const NO_EXTENSION: &str = "the extension is not in this database, or is older than this program. Run CREATE EXTENSION \
                            pgquorum there, or ALTER EXTENSION pgquorum UPDATE";

impl FeedError {
    pub fn new(kind: Kind, message: impl Into<String>) -> FeedError {
        FeedError { kind, message: message.into() }
    }

    /// The extension's objects are not there, or somebody else made objects of these names.
    pub fn no_extension() -> FeedError {
        FeedError::new(Kind::NoExtension, NO_EXTENSION)
    }

    /// What the database said, or that it said nothing.
    pub fn from_database(error: &tokio_postgres::Error) -> FeedError {
        let Some(db) = error.as_db_error() else {
            let message = format!(
                "the database beside this node does not answer: {error}. Try again, or ask another node"
            );
            return FeedError::new(Kind::Unavailable, message);
        };
        let kind = kind_of(db.code(), db.message());
        let mut message = db.message().to_owned();
        if kind == Kind::NoExtension {
            message.push_str(": ");
            message.push_str(NO_EXTENSION);
        }
        for more in [db.detail(), db.hint()].into_iter().flatten() {
            message.push_str(". ");
            message.push_str(more.trim_end_matches('.'));
        }
        match kind {
            Kind::Refused => message = format!("the database does not take this: {message}"),
            Kind::Internal => message = format!("{message} [{}]", db.code().code()),
            _ => {}
        }
        FeedError::new(kind, message)
    }

    /// Whether the same request may succeed a moment later, on this node or another.
    pub fn is_passing(&self) -> bool {
        matches!(self.kind, Kind::ReadOnly | Kind::Locked | Kind::TimedOut | Kind::Unavailable | Kind::Busy)
    }
}

/// `message` tells the extension's own objects from those that a user names.
fn kind_of(state: &SqlState, message: &str) -> Kind {
    let ours = message.contains("\"quorum") || message.contains("quorum.");
    match state.code() {
        "PQ001" => Kind::PositionPurged,
        "PQ002" => Kind::PositionUnknownEpoch,
        "PQ003" => Kind::PositionInFuture,
        "PQ004" => Kind::SnapshotTooOld,
        "42704" if message.starts_with("there is no subscription") => Kind::UnknownSubscription,
        "42704" if message.contains("channel") => Kind::UnknownChannel,
        // No schema `quorum`, or one without these functions.
        "3F000" | "42883" | "42P01" if ours => Kind::NoExtension,
        "3F000" | "42P01" => Kind::UnknownTable,
        "42703" => Kind::UnknownColumn,
        "42710" | "42P04" => Kind::AlreadyExists,
        "3D000" => Kind::UnknownDatabase,
        "XX001" | "XX002" => Kind::RecordBroken,
        "25006" => Kind::ReadOnly,
        // 40001: replay on a standby took away what a query was reading.
        "55P03" | "40P01" | "40001" => Kind::Locked,
        "57014" => Kind::TimedOut,
        "57P01" | "57P02" | "57P03" | "57P05" => Kind::Unavailable,
        code => match code.get(..2) {
            Some("08") => Kind::Unavailable,
            Some("53") => Kind::OutOfResources,
            // Values, constraints and limits; what triggers of users raise; what two rows of one request say of the same.
            Some(
                "0A" | "21" | "22" | "23" | "27" | "2B" | "38" | "39" | "42" | "44" | "54" | "55" | "P0",
            ) => Kind::Refused,
            _ => Kind::Internal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_databases_codes_have_their_kinds() {
        for (code, message, kind) in [
            ("PQ001", "", Kind::PositionPurged),
            ("PQ002", "", Kind::PositionUnknownEpoch),
            ("PQ003", "", Kind::PositionInFuture),
            ("42704", "there is no channel shop", Kind::UnknownChannel),
            ("42704", "there is no subscription channel", Kind::UnknownSubscription),
            ("42704", "type \"x\" does not exist", Kind::Refused),
            ("42P01", "relation \"orders\" does not exist", Kind::UnknownTable),
            ("42P01", "relation \"quorum.channel_state\" does not exist", Kind::NoExtension),
            ("3F000", "schema \"quorum\" does not exist", Kind::NoExtension),
            ("3F000", "schema \"sales\" does not exist", Kind::UnknownTable),
            ("42883", "function quorum.wait(text) does not exist", Kind::NoExtension),
            ("42883", "function f(integer) does not exist", Kind::Refused),
            ("42601", "", Kind::Refused),
            ("22023", "", Kind::Refused),
            ("0A000", "", Kind::Refused),
            ("54000", "index row size 9000 exceeds btree maximum 2704", Kind::Refused),
            ("P0001", "not on Sundays", Kind::Refused),
            ("XX001", "", Kind::RecordBroken),
            ("53300", "", Kind::OutOfResources),
            ("57P03", "", Kind::Unavailable),
            ("XX000", "", Kind::Internal),
        ] {
            assert_eq!(kind_of(&SqlState::from_code(code), message), kind, "{code} {message}");
        }
    }

    #[test]
    fn only_what_passes_is_worth_another_try() {
        assert!(FeedError::new(Kind::Unavailable, "x").is_passing());
        assert!(!FeedError::new(Kind::PositionPurged, "x").is_passing());
    }
}
