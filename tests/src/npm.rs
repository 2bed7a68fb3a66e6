//! Servers of others, in Node.js, with packages from npm as they are.

use crate::{PATIENCE, await_until, free_ports, request};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A server that registers with a cluster through the package `@mimik/cluster`; `npm/server.js` is its program. Killed at
/// the end.
pub struct NpmServer {
    pub id: String,
    pub port: u16,
    child: Child,
}

/// Where `.ci/clients` puts the packages: beside what cargo builds.
fn packages() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let target = own.ancestors().nth(3).unwrap_or(Path::new("target"));
    target.join("npm/node_modules")
}

impl NpmServer {
    /// A server that registers at this node's API port. Tokens come from `issuer`, for this user and password; `key` is
    /// the key for tokens of the audience `shop`.
    ///
    /// # Panics
    /// Node.js or the packages are missing, or the server does not answer.
    pub fn start(id: &str, registry: u16, issuer: u16, login: (&str, &str), key: &str) -> NpmServer {
        let packages = packages();
        assert!(
            packages.join("@mimik/cluster").is_dir(),
            "{} has no @mimik/cluster; `make test` fetches it",
            packages.display()
        );
        let [port] = free_ports();
        let mut command = Command::new("node");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("npm/server.js"));
        command.args([id, &port.to_string(), &format!("http://127.0.0.1:{registry}")]);
        command.args([&format!("http://127.0.0.1:{issuer}/cluster/token"), login.0, login.1, key]);
        command.env("NODE_PATH", packages).env("LOG_MODE", "none").env("CONSOLE_LEVEL", "error");
        command.env("SERVER_TYPE", "shop").env("SERVER_ID", id).env("NO_PROXY", "127.0.0.1");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("node runs");
        let server = NpmServer { id: id.to_owned(), port, child };
        await_until(PATIENCE, "the server answers", || server.get("/test/status").map(drop));
        server
    }

    /// What one of its own routes answers.
    ///
    /// # Errors
    /// No answer, or not a good one.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        match request(self.port, "GET", path, None).map_err(|e| e.to_string())? {
            (200, answer) => Ok(answer),
            (status, answer) => Err(format!("{status} {answer}")),
        }
    }

    /// Waits until it is registered and knows of so many servers.
    pub fn await_servers(&self, count: usize) {
        let known = Value::String(count.to_string());
        await_until(PATIENCE, &format!("{} knows {count} servers", self.id), || {
            let status = self.get("/test/status")?;
            let there = status["registration"] == "registered" && status["servers"] == known;
            if there { Ok(()) } else { Err(status.to_string()) }
        });
    }
}

impl Drop for NpmServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
