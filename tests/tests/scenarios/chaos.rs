//! Three minutes of the chaos runner. `make chaos` runs it for as long as one likes, with 3 or 5 nodes.

use pgquorum_tests::{Network, skipped};
use std::process::Command;

#[test]
fn three_minutes_of_chaos() {
    if let Some(why) = Network::refused() {
        skipped(&why);
        return;
    }
    // The same plan each time, so that a failure can be told from another plan's; `make chaos` draws a new one.
    let plan = ["--minutes", "3", "--nodes", "3", "--seed", "454970799"];
    // Other scenarios run at the same time: how soon it goes on is measured where nothing else does.
    let patience = ["--within", "45"];
    let status = Command::new(env!("CARGO_BIN_EXE_chaos")).args(plan).args(patience).status();
    let status = status.expect("the chaos runner");
    assert!(status.success(), "{status}; the lines that begin with VIOLATION say what was broken");
}
