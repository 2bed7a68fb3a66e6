//! What cannot run here says so where it is seen: a test that returns early has passed, as far as anybody is told.

use std::io::Write;
use std::panic::Location;

/// Says on standard error where in the tests something is left out, and why; `make test` gathers these lines. Not by
/// `eprintln!`: what that prints in a test that passes is kept back.
#[track_caller]
pub fn skipped(why: &str) {
    let at = Location::caller();
    let line = format!("SKIPPED {}:{}: {why}\n", at.file(), at.line());
    // Nobody is left to tell when standard error is gone.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::skipped;
    use std::process::Command;

    /// Set where this test runs itself.
    const INSIDE: &str = "PGQUORUM_TEST_SKIPS";

    #[test]
    fn it_is_seen_though_the_test_passes() {
        if std::env::var_os(INSIDE).is_some() {
            return skipped("there is no such machine");
        }
        let own = std::env::current_exe().expect("this program");
        let mut command = Command::new(own);
        command.args(["--exact", "skipped::tests::it_is_seen_though_the_test_passes"]).env(INSIDE, "1");
        let out = command.output().expect("a test that runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{said}");
        assert!(said.starts_with("SKIPPED ") && said.contains("skipped.rs:"), "{said:?}");
        assert!(said.ends_with(": there is no such machine\n"), "{said:?}");
    }
}
