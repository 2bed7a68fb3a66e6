//! Statements in a session, for scenarios in which none may fail, or just one with a certain error.

use crate::await_until;
use postgres::Client;
use std::time::Duration;

/// Runs statements.
///
/// # Panics
/// One fails.
pub fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// The one value that a query gives, as text; NULL is the empty one.
///
/// # Panics
/// The query fails, or gives no row or several.
pub fn text(client: &mut Client, sql: &str) -> String {
    let row = client.query_one(sql, &[]).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

/// The statement fails with this SQLSTATE, and its message has this word in it.
///
/// # Panics
/// It does not.
pub fn refused(client: &mut Client, sql: &str, code: &str, word: &str) {
    let Err(error) = client.batch_execute(sql) else { panic!("{sql}: accepted") };
    let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: no answer of the server: {error:?}"));
    assert_eq!(error.code().code(), code, "{sql}: {error:?}");
    assert!(error.message().contains(word), "{sql}: {error:?}");
}

/// Waits until a query has this answer.
///
/// # Panics
/// The time is over.
pub fn await_answer(client: &mut Client, within: Duration, sql: &str, expected: &str) {
    await_until(within, sql, || match text(client, sql) {
        answer if answer == expected => Ok(()),
        other => Err(other),
    });
}
