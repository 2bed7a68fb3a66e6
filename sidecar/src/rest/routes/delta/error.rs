//! How the delta interface refuses: ApiError.

use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, json};
use serde::Serialize;
use warp::http::Method;
use warp::reply::Response;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiError {
    /// A stable word.
    error: String,
    error_description: String,
    /// What was asked and what refused it, if the client wants to see that.
    #[serde(skip_serializing_if = "Option::is_none")]
    stacktrace: Option<Vec<String>>,
}

/// The refusal in this interface's words.
pub(in crate::rest) fn refuse(refusal: Refusal, method: &Method, path: &str, query: &str) -> Response {
    let verbose =
        Query::lenient(query).is_ok_and(|query| query.flag("verbose").is_ok_and(|flag| flag == Some(true)));
    refusal.in_words(|status, code, message| {
        let stacktrace =
            verbose.then(|| vec![format!("{code} ({status}): {message}"), format!("{method} {path}")]);
        json(
            known(status, code),
            &ApiError { error: name(code), error_description: message.to_owned(), stacktrace },
        )
    })
}

/// This interface documents 400, 401, 403, 409 and 500. What HTTP itself says stays.
fn known(status: u16, code: &str) -> u16 {
    match (status, code) {
        (404, "no_such_route") => 404,
        // A channel or a database that there is not.
        (404, _) => 400,
        (400 | 401 | 403 | 405 | 408 | 409 | 413 | 429, _) => status,
        _ => 500,
    }
}

/// `unknown_channel` is `UnknownChannel` here.
fn name(code: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    code.split('_').map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_documented_statuses_are_used() {
        for (status, code, expected) in [
            (400, "bad_parameter", 400),
            (404, "unknown_channel", 400),
            (404, "no_such_route", 404),
            (405, "method_not_allowed", 405),
            (409, "database_version_differs", 409),
            (412, "not_a_member", 500),
            (417, "not_leader", 500),
            (503, "busy", 500),
            (530, "no_leader", 500),
            (531, "timed_out", 500),
        ] {
            assert_eq!(known(status, code), expected, "{status} {code}");
        }
        assert_eq!(name("database_version_differs"), "DatabaseVersionDiffers");
    }
}
