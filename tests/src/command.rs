//! Runs the program under test.

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program: `PGQUORUM_BIN`, or the release build beside this test.
pub fn pgquorum_program() -> PathBuf {
    if let Some(given) = std::env::var_os("PGQUORUM_BIN") {
        return PathBuf::from(given);
    }
    // target/release/deps/test-… or target/release/demo
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.ancestors().skip(1).take(3).map(|dir| dir.join("pgquorum")).find(|file| file.is_file());
    beside.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/release/pgquorum"))
}

/// What a command brought: its exit code, its JSON, and what it said to people.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub json: Value,
    pub said: String,
}

impl Outcome {
    /// # Panics
    /// The command failed.
    pub fn expect(self, doing: &str) -> Value {
        assert_eq!(self.code, 0, "{doing}: exit code {}: {}", self.code, self.said);
        self.json
    }
}

/// Runs `pgquorum --json …` to its end.
///
/// # Panics
/// The program cannot be started.
pub fn pgquorum<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Outcome {
    outcome(Command::new(pgquorum_program()), args)
}

/// The same with a copy of the program that has another name.
///
/// # Panics
/// It cannot be started.
pub fn run_program<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(program: &Path, args: I) -> Outcome {
    outcome(Command::new(program), args)
}

/// The same with something to read on standard input.
///
/// # Panics
/// The program cannot be started.
pub fn pgquorum_reading<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(input: &str, args: I) -> Outcome {
    use std::io::Write;
    let mut command = Command::new(pgquorum_program());
    command.arg("--json").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run the program: {e}"));
    // A program that ends without reading is no fault of this one.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    finished(&child.wait_with_output().expect("its output"))
}

/// The same as the user that the servers run as, for commands that refuse root.
///
/// # Panics
/// The program cannot be started.
pub fn pgquorum_as_server<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Outcome {
    outcome(crate::server_command(&pgquorum_program()), args)
}

fn outcome<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut command: Command, args: I) -> Outcome {
    command.arg("--json").args(args).stdin(Stdio::null());
    let out = command.output().unwrap_or_else(|e| {
        panic!("cannot run {}: {e}; `make build` makes it", pgquorum_program().display())
    });
    finished(&out)
}

fn finished(out: &std::process::Output) -> Outcome {
    Outcome {
        code: out.status.code().unwrap_or(-1),
        json: serde_json::from_slice(&out.stdout).unwrap_or(Value::Null),
        said: String::from_utf8_lossy(&out.stderr).trim().to_owned(),
    }
}

/// Runs `pgquorum …` with its output on this terminal; true if it succeeded.
///
/// # Panics
/// The program cannot be started.
pub fn pgquorum_shown<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> bool {
    let status = Command::new(pgquorum_program()).args(args).stdin(Stdio::null()).status();
    status
        .unwrap_or_else(|e| panic!("cannot run {}: {e}; `make build` makes it", pgquorum_program().display()))
        .success()
}
