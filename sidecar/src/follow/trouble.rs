//! What keeps a subscription from going on, and who can mend it.

use std::time::Duration;

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The source does not answer now: it is asked again.
    Waiting,
    /// A person is needed, at the source or here. It is looked at again now and then, should it have been mended there.
    Stopped,
    /// What would come next is not kept at the source any more, or never was in the history that it has now.
    Lost,
    /// The node of the source that was asked does not know the position; it may be behind.
    Behind,
    /// The database here takes no changes now.
    Here,
    /// What was read does not fit what was applied: it is read again from there.
    Again,
    /// A change refers to this version of a table, which is not known here.
    UnknownSchema(u64),
    /// Transactions must be applied one by one.
    OneByOne,
    /// One table does not take what it is given; others may go on.
    Table,
    /// The subscription is no more, or rests.
    Gone,
}

/// A reason with a stable word and a sentence. Neither ever holds a secret; the sentence may hold what the database said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Trouble {
    pub kind: Kind,
    pub code: String,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Trouble>;

impl Trouble {
    pub fn new(kind: Kind, code: &str, message: impl Into<String>) -> Trouble {
        Trouble { kind, code: code.to_owned(), message: message.into() }
    }

    pub fn waiting(code: &str, message: impl Into<String>) -> Trouble {
        Trouble::new(Kind::Waiting, code, message)
    }

    pub fn stopped(code: &str, message: impl Into<String>) -> Trouble {
        Trouble::new(Kind::Stopped, code, message)
    }

    /// The database here did not answer in time.
    pub fn late(after: Duration) -> Trouble {
        Trouble::new(Kind::Here, "timed_out", format!("the database here did not answer within {after:?}"))
    }

    /// What a source answers to a request that it refuses.
    pub fn from_source(status: u16, code: &str, message: &str) -> Trouble {
        let kind = match (status, code) {
            (_, "position_purged") => Kind::Lost,
            (_, "position_unknown_epoch" | "position_in_future") => Kind::Behind,
            // It may be read at another node.
            (_, "record_broken" | "not_leader" | "copy_gone" | "unknown_follower") => Kind::Waiting,
            (401 | 403, _) => Kind::Stopped,
            (400..=409 | 411 | 413..=416, _) => Kind::Stopped,
            _ => Kind::Waiting,
        };
        let message = match status {
            401 | 403 => format!(
                "the source does not let this subscription in: {message}. Give it the token of the source's nodes (secret)"
            ),
            _ => format!("the source says: {message}"),
        };
        Trouble::new(kind, if status == 401 { "login" } else { code }, message)
    }

    /// What the database here says, or that it says nothing.
    pub fn from_database(error: &tokio_postgres::Error) -> Trouble {
        let Some(db) = error.as_db_error() else {
            let message = format!("the database here does not answer: {error}");
            return Trouble::new(Kind::Here, "database_unavailable", message);
        };
        let code = db.code().code();
        let kind = match code {
            "PQ010" => {
                let version = db.detail().and_then(|detail| detail.trim().parse().ok());
                version.map_or(Kind::Again, Kind::UnknownSchema)
            }
            "PQ012" => Kind::OneByOne,
            "PQ013" => Kind::Again,
            "PQ014" | "PQ015" => Kind::Stopped,
            // The clock here gets there, or somebody sets one right.
            "PQ021" => Kind::Here,
            "XX001" => Kind::Again,
            "42704" if db.message().starts_with("there is no subscription ") => Kind::Gone,
            "55000" if is_of_subscription(db.message(), " is not enabled") => Kind::Gone,
            // All is to be copied anew.
            "55000" if is_of_subscription(db.message(), " has no position yet") => Kind::Again,
            "25006" | "55P03" | "40P01" | "40001" | "57014" => Kind::Here,
            _ if matches!(code.get(..2), Some("08" | "53" | "57" | "58" | "XX" | "25")) => Kind::Here,
            _ => Kind::Table,
        };
        let mut message = db.message().to_owned();
        for more in [db.detail(), db.hint()].into_iter().flatten() {
            message.push_str(". ");
            message.push_str(more.trim_end_matches('.'));
        }
        Trouble::new(kind, code, message)
    }

    /// The same of a request with a filter: where the source does not take that, its table alone stops.
    pub fn of_filter(self) -> Trouble {
        match self.code.as_str() {
            "unknown_column" | "refused_by_database" => Trouble {
                kind: Kind::Table,
                code: "PQ022".to_owned(),
                message: format!(
                    "the filter of this table cannot be used: {}. Correct it (quorum.alter_subscription(…, filter => …)), then let \
                     the table go on with copy => true",
                    self.message
                ),
            },
            _ => self,
        }
    }

    /// The same while a table is copied: with where in it that was, which names the column.
    pub fn from_copy(error: &tokio_postgres::Error) -> Trouble {
        let mut trouble = Trouble::from_database(error);
        let place = error.as_db_error().and_then(|db| db.where_()?.lines().next());
        let place = place.filter(|place| place.starts_with("COPY "));
        if let (Kind::Table, Some(place)) = (trouble.kind, place) {
            trouble.message.push_str(&format!(" ({place})"));
        }
        trouble
    }

    /// The state of the subscription that this means.
    pub fn state(&self) -> &'static str {
        match self.kind {
            Kind::Stopped | Kind::Lost | Kind::Table => "stopped",
            _ => "waiting",
        }
    }
}

/// Whether the extension says this of a subscription, and not a trigger or constraint something like it.
fn is_of_subscription(message: &str, what: &str) -> bool {
    message.starts_with("subscription ") && message.ends_with(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_must_mend_stops_and_the_rest_is_tried_again() {
        for (status, code, kind) in [
            (401, "token_required", Kind::Stopped),
            (404, "unknown_channel", Kind::Stopped),
            (404, "unknown_database", Kind::Stopped),
            (404, "unknown_follower", Kind::Waiting),
            (410, "position_purged", Kind::Lost),
            (410, "copy_gone", Kind::Waiting),
            (409, "position_in_future", Kind::Behind),
            (412, "holds_no_data", Kind::Waiting),
            (417, "not_leader", Kind::Waiting),
            (500, "record_broken", Kind::Waiting),
            (503, "busy", Kind::Waiting),
            (530, "no_leader", Kind::Waiting),
            (531, "database_unavailable", Kind::Waiting),
        ] {
            assert_eq!(Trouble::from_source(status, code, "x").kind, kind, "{status} {code}");
        }
    }

    #[test]
    fn what_is_said_of_a_subscription_is_told_from_what_a_trigger_says() {
        assert!(is_of_subscription("subscription mirror is not enabled", " is not enabled"));
        assert!(!is_of_subscription("customer 7 is not enabled", " is not enabled"));
        assert!(!is_of_subscription("subscription 7 of Smith is not enabled for that", " is not enabled"));
    }
}
