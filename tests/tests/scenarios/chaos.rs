//! Three minutes of the chaos runner. `make chaos` runs it for as long as one likes, with 3 or 5 nodes.

use pgquorum_tests::Network;
use std::process::Command;

#[test]
fn three_minutes_of_chaos() {
    if let Some(why) = Network::refused() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    // Another one each time; it stands in the first line and in the last.
    let status = Command::new(env!("CARGO_BIN_EXE_chaos")).args(["--minutes", "3", "--nodes", "3"]).status();
    let status = status.expect("the chaos runner");
    assert!(status.success(), "{status}; the lines that begin with VIOLATION say what was broken");
}
