//! PostgreSQL's own load generator.

use pgquorum_tests::postgres_program;
use std::process::{Command, Stdio};

/// pgbench with these arguments; the password goes through the environment.
pub fn command(dsn: &str, args: &[&str]) -> Command {
    let config: postgres::Config = dsn.parse().expect("a connection string");
    let password = String::from_utf8_lossy(config.get_password().unwrap_or_default()).into_owned();
    let mut command = Command::new(postgres_program("pgbench"));
    command.args(args).arg(dsn.replacen(&format!(":{password}@"), "@", 1)).env("PGPASSWORD", password);
    command
}

/// Runs pgbench.
///
/// # Panics
/// It fails.
pub fn pgbench(dsn: &str, args: &[&str]) -> String {
    let out = command(dsn, args).stdin(Stdio::null()).output().expect("pgbench");
    assert!(out.status.success(), "pgbench {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The rate in what pgbench printed.
///
/// # Panics
/// There is none.
pub fn tps(said: &str) -> f64 {
    let tps = said.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or_else(|| panic!("pgbench gave no rate: {said}"))
}
