//! PostgreSQL's own client, as people use it.

use crate::postgres_program;
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs a script through psql, byte for byte: the client's encoding is none. Returns what it prints.
///
/// # Panics
/// A statement fails.
pub fn psql(dsn: &str, script: &[u8]) -> String {
    psql_with(dsn, &[], script)
}

/// The same with further arguments, such as `-c` and a statement.
///
/// # Panics
/// As [`psql`].
pub fn psql_with(dsn: &str, args: &[&str], script: &[u8]) -> String {
    let mut command = Command::new(postgres_program("psql"));
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", dsn]).args(args);
    command.env("PGCLIENTENCODING", "SQL_ASCII").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("psql");
    // It may have ended by itself, if it has its statements from its arguments.
    let _ = child.stdin.take().expect("its input").write_all(script);
    let out = child.wait_with_output().expect("psql ends");
    assert!(out.status.success(), "psql: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}
