//! `pgquorum doctor`: looks at everything a node needs, one question a check, and says what to do. Changes nothing.

mod cluster;
mod look;
mod machine;
mod server;

use super::client::Target;
use super::failure::Failure;
use super::output::{Out, table};
use crate::config::{NodeConfig, Secrets};
use look::{LIMIT, Look, hung};
use serde::Serialize;
use std::path::PathBuf;

/// Run it on the node, as the user that the sidecar runs as. Exit code 1 when a check fails.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// This node's configuration.
    #[arg(long, value_name = "FILE", default_value = "node.toml")]
    config: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Check {
    check: &'static str,
    verdict: Verdict,
    /// What was found, and what to do about it.
    message: String,
}

impl Check {
    fn ok(check: &'static str, message: impl Into<String>) -> Check {
        Check { check, verdict: Verdict::Ok, message: message.into() }
    }

    fn warn(check: &'static str, message: impl Into<String>) -> Check {
        Check { check, verdict: Verdict::Warn, message: message.into() }
    }

    fn fail(check: &'static str, message: impl Into<String>) -> Check {
        Check { check, verdict: Verdict::Fail, message: message.into() }
    }
}

pub async fn run(args: DoctorArgs, out: Out) -> Result<(), Failure> {
    let checks = examine(&args).await;
    let failed = checks.iter().filter(|c| c.verdict == Verdict::Fail).count();
    out.show(&checks, || text(&checks));
    match failed {
        0 => Ok(()),
        1 => Err(Failure::failed("check_failed", "1 check failed")),
        n => Err(Failure::failed("check_failed", format!("{n} checks failed"))),
    }
}

async fn examine(args: &DoctorArgs) -> Vec<Check> {
    let file = args.config.clone();
    let read = Look::begin(LIMIT, move || NodeConfig::load(&file).map_err(|e| e.to_string()));
    let config = match read.end().unwrap_or_else(|| Err(hung(LIMIT))) {
        Ok(config) => config,
        Err(why) => return vec![Check::fail("configuration", why)],
    };
    let mut checks =
        vec![Check::ok("configuration", format!("{} is valid, node {}", args.config.display(), config.node))];
    checks.push(machine::user());
    checks.extend(machine::checks(&config, LIMIT));

    let sidecar = cluster::ask(&config, &args.config).await;
    checks.push(sidecar.port(&config));
    let own = config.clone();
    checks.extend(Look::begin(LIMIT, move || vec![server::port(&own)]).checks("database port"));
    let file = config.secrets_file();
    if let Some(secrets) = Look::begin(LIMIT, move || Secrets::load(&file).ok()).end().flatten() {
        checks.extend(server::inside(&config, &secrets).await);
    }
    checks.extend(sidecar.checks(&config));
    checks
}

fn text(checks: &[Check]) -> String {
    let word = |verdict| match verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    };
    let rows = checks
        .iter()
        .map(|c| vec![word(c.verdict).to_owned(), c.check.to_owned(), c.message.clone()])
        .collect();
    table(&["", "CHECK", "FINDING"], rows)
}

/// The client's target that a configuration file stands for.
fn target(config_file: &std::path::Path) -> Target {
    Target { config: Some(config_file.to_owned()), ..Target::default() }
}
