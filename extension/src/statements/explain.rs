//! Why a statement is, or is not, proven read-only: the answer for people.

use std::ffi::CString;

use pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
use pgrx::prelude::*;

use crate::error::Refusal;
use crate::pg::utility::{self, NotOne};

/// Examines a statement under the caller's search_path without running it.
#[pg_extern]
fn explain_readonly(
    statement: &str,
) -> TableIterator<'static, (name!(verdict, String), name!(reason, Option<String>))> {
    // PostgreSQL's texts have no zero in them.
    let text = CString::new(statement).unwrap_or_default();
    let examined = utility::examine_text(&text).unwrap_or_else(|complaint| not_one(&complaint));
    let verdict = examined.verdict;
    TableIterator::once((verdict.word().to_owned(), verdict.reason().map(|reason| reason.text())))
}

fn not_one(complaint: &NotOne) -> ! {
    let message = match complaint {
        NotOne::Empty => "there is no statement in the text",
        NotOne::Several => "there are several statements in the text",
    };
    Refusal::new(ERRCODE_INVALID_PARAMETER_VALUE, message)
        .hint("Give one statement: SELECT * FROM quorum.explain_readonly('SELECT 1').")
        .raise()
}
