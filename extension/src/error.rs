//! How this extension refuses: one place that turns a reason into a PostgreSQL error.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

/// A refusal with everything a person needs to act on it.
pub struct Refusal {
    pub code: PgSqlErrorCode,
    pub message: String,
    /// What was found; empty: none.
    pub detail: String,
    /// What to do; empty: none.
    pub hint: String,
}

impl Refusal {
    pub fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: String::new(), hint: String::new() }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    fn report_at(self, level: PgLogLevel) {
        let mut report = ErrorReport::new(self.code, self.message, "pgquorum");
        if !self.detail.is_empty() {
            report = report.set_detail(self.detail);
        }
        if !self.hint.is_empty() {
            report = report.set_hint(self.hint);
        }
        report.report(level);
    }

    /// Raises the refusal as an ERROR: the current transaction ends.
    pub fn raise(self) -> ! {
        self.report_at(PgLogLevel::ERROR);
        unreachable!("an ERROR report does not return")
    }

    /// Ends a session that has not begun yet.
    pub fn refuse_login(self) -> ! {
        self.report_at(PgLogLevel::FATAL);
        unreachable!("a FATAL report does not return")
    }

    /// Tells the client and the server's log, and goes on.
    pub fn warn(self) {
        self.report_at(PgLogLevel::WARNING);
    }

    /// Writes it to the server's log and goes on.
    pub fn log(self) {
        self.report_at(PgLogLevel::LOG);
    }
}
