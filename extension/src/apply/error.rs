//! What `quorum.apply` refuses, in words and codes.

use pgquorum_change::{Misfit, Position};

use crate::error::Refusal;
use crate::pg::apply_session::Unfit;
use crate::pg::raise;
use crate::pg::worker::Failure;

/// Why nothing is applied.
#[derive(Debug)]
pub enum ApplyError {
    Standby,
    /// Called inside a savepoint or a block that catches errors.
    Nested,
    /// Called at an isolation level above READ COMMITTED.
    Isolation,
    /// The transaction applies something else already.
    Another,
    NoSubscription(i32),
    Disabled(String),
    NoPosition(String),
    /// The frames do not follow what was applied, or are damaged.
    Misfit(Misfit, Position),
    /// A schema version that was not added yet.
    Schema(u64),
    /// The transaction has captured changes of another transaction of the source.
    OneByOne,
    /// Pre-commit: a transaction of the source is not complete.
    Incomplete,
    NoRejected(i64),
    /// There is no table with this number.
    NoTable(u32),
    /// The change would win over everything that is written here until its time has come.
    Ahead {
        table: String,
        origin: String,
        ahead_us: i64,
    },
    /// Somebody has written the row while the change was weighed.
    Overtaken(String),
    /// PostgreSQL's own error, which says nothing about the change.
    Failed(Failure),
}

impl ApplyError {
    /// Raises it as an ERROR.
    pub fn raise(self) -> ! {
        let (code, message, detail, hint): (&[u8; 5], String, String, &str) = match self {
            Self::Failed(failure) => Refusal::new(failure.code, failure.message).raise(),
            Self::Standby => (
                b"25006",
                "changes cannot be applied on a standby".into(),
                String::new(),
                "Connect to the primary.",
            ),
            Self::Nested => (
                b"25001",
                "quorum.apply cannot be called inside a savepoint".into(),
                "A savepoint that is rolled back would take changes away that are known as applied.".into(),
                "Call it in the transaction itself, and not in a block with EXCEPTION.",
            ),
            Self::Isolation => (
                b"25001",
                "changes can be applied at isolation level READ COMMITTED only".into(),
                String::new(),
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED.",
            ),
            Self::Another => (
                b"25001",
                "this transaction applies another subscription or table already".into(),
                String::new(),
                "Commit it first.",
            ),
            Self::NoSubscription(id) => (
                b"42704",
                format!("there is no subscription with the id {id}"),
                String::new(),
                "It may have been ended meanwhile: SELECT * FROM quorum.subscription_state.",
            ),
            Self::Disabled(name) => (
                b"55000",
                format!("subscription {name} is not enabled"),
                String::new(),
                "quorum.enable_subscription(…, true) lets it go on.",
            ),
            Self::NoPosition(name) => (
                b"55000",
                format!("subscription {name} has no position yet"),
                "No table of it was copied yet, and where to begin was not said.".into(),
                "Copy a table (quorum.copy_plan, quorum.table_copied), or say where to begin (quorum.subscription_tables_found).",
            ),
            Self::Misfit(misfit, at) => return_misfit(&misfit, at),
            Self::Schema(id) => (
                b"PQ010",
                format!("schema version {id} of the source is not known here"),
                id.to_string(),
                "Give it to quorum.add_schemas (the source has it at /channels/{c}/schemas?id=…), roll back, and send what follows the position again.",
            ),
            Self::OneByOne => (
                b"PQ012",
                "the transactions of the source must be applied one by one".into(),
                "A table here is tracked itself, and the change log holds one origin and one time for each transaction.".into(),
                "Roll back, send what follows the position again, and commit after each transaction of the source.",
            ),
            Self::Incomplete => (
                b"25000",
                "cannot commit: a transaction of the source is not complete".into(),
                "Its changes came in part; the rest would be missing here.".into(),
                "Send the rest with quorum.apply, or roll back: nothing is lost, it is sent again.",
            ),
            Self::Ahead { table, origin, ahead_us } => (
                b"PQ021",
                format!(
                    "a change of {table} that was made at {origin} has a time that is {} ahead of this server's clock",
                    roughly(ahead_us)
                ),
                "That is more than pgquorum.clock_skew_max. By last_write_wins it would win over everything that is written here until \
                 then, so this subscription waits until the clock here gets there."
                    .into(),
                "Compare the clocks of both clusters' servers with a good one (date -u; chronyc tracking) and set the wrong one right. \
                 If the clock there was wrong for a moment only, let the change pass: pgquorum.clock_skew_max, or for this table \
                 quorum.set_table_policy(…, 'apply_remote') until it is applied.",
            ),
            Self::Overtaken(table) => (
                b"40001",
                format!("a row of {table} was written here while a change of it was weighed"),
                String::new(),
                "Roll back, and send what follows the position again.",
            ),
            Self::NoTable(oid) => (
                b"42P01",
                format!("there is no table with the number {oid}"),
                String::new(),
                "It may have been dropped a moment ago.",
            ),
            Self::NoRejected(id) => (
                b"42704",
                format!("there is no rejected change {id}"),
                String::new(),
                "SELECT * FROM quorum.rejected_changes lists them.",
            ),
        };
        raise::error(*code, message, detail, hint.into())
    }
}

/// As people say it, rounded down.
fn roughly(us: i64) -> String {
    let seconds = us / 1_000_000;
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn return_misfit(misfit: &Misfit, at: Position) -> (&'static [u8; 5], String, String, &'static str) {
    let message = format!("what was sent cannot be applied after position {at}: {misfit}");
    match misfit {
        Misfit::Frame(_) => (
            b"22023",
            message,
            String::new(),
            "A batch is made of whole frames P and R of the binary stream.",
        ),
        Misfit::Record(_) | Misfit::Miscounted { .. } => (
            b"XX001",
            message,
            "The bytes are not what the source has written.".into(),
            "Read them again, at another node of the source. If that does not help, its log is damaged there: copy the tables again.",
        ),
        _ => (
            b"PQ013",
            message,
            String::new(),
            "Read the source's stream from this position on, and send everything that comes, in order.",
        ),
    }
}

impl From<Unfit> for ApplyError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Nested => Self::Nested,
            Unfit::Isolation => Self::Isolation,
        }
    }
}

impl From<Failure> for ApplyError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

#[cfg(test)]
mod unit {
    use super::roughly;

    #[test]
    fn times_are_said_roughly() {
        for (seconds, said) in
            [(11, "11 s"), (119, "119 s"), (200, "3 min"), (7_200, "2 hours"), (200_000, "2 days")]
        {
            assert_eq!(roughly(seconds * 1_000_000), said);
        }
    }
}
