//! `pgquorum db-config`: PostgreSQL's parameters on all nodes.

use super::client::Target;
use super::config::show_one;
use super::failure::Failure;
use super::output::{Out, assignment, plain, table};
use clap::Subcommand;
use hyper::Method;
use serde_json::Value;

/// The parameters go through the cluster's log to every node and are reloaded there.
#[derive(Debug, clap::Args)]
pub struct DbConfigArgs {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: DbConfigCommand,
}

#[derive(Debug, Subcommand)]
enum DbConfigCommand {
    /// Show all parameters that were set, or one.
    Get { name: Option<String> },
    /// Set parameters; `name=` takes one out again.
    Set {
        /// For example work_mem=64MB max_connections=200.
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = assignment)]
        parameters: Vec<(String, String)>,
    },
}

pub async fn run(args: DbConfigArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    let answer = match args.command {
        DbConfigCommand::Get { name: None } => client.get("/db-config").await?,
        DbConfigCommand::Get { name: Some(name) } => {
            return show_one(&client.get("/db-config").await?["parameters"], &name, out);
        }
        DbConfigCommand::Set { parameters } => {
            client.call(Method::PATCH, "/db-config", Some(&document(&parameters))).await?
        }
    };
    out.show(&answer, || text(&answer));
    Ok(())
}

fn document(parameters: &[(String, String)]) -> Value {
    let value = |v: &String| if v.is_empty() { Value::Null } else { Value::from(v.as_str()) };
    Value::Object(parameters.iter().map(|(k, v)| (k.clone(), value(v))).collect())
}

fn text(answer: &Value) -> String {
    // {"2": ["max_connections"]}: the nodes that must be restarted, and for what.
    let restarts = answer["restart-required"].as_object();
    let waits = |name: &str| {
        let nodes = restarts.into_iter().flatten().filter(|(_, names)| lists(names, name));
        nodes.map(|(node, _)| node.as_str()).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = answer["parameters"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| vec![k.clone(), plain(v), in_force(&waits(k))])
        .collect();
    if rows.is_empty() {
        return "No parameter is set beside PostgreSQL's defaults and those that the cluster needs."
            .to_owned();
    }
    table(&["PARAMETER", "VALUE", "IN FORCE"], rows)
}

fn in_force(waiting: &[&str]) -> String {
    match waiting {
        [] => "yes".to_owned(),
        nodes => format!("after a restart of node {}", nodes.join(", ")),
    }
}

fn lists(value: &Value, name: &str) -> bool {
    value.as_array().is_some_and(|names| names.iter().any(|n| n == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_empty_value_takes_the_parameter_out() {
        let typed = [("work_mem".to_owned(), "64MB".to_owned()), ("port".to_owned(), String::new())];
        assert_eq!(document(&typed), json!({"work_mem": "64MB", "port": null}));
    }

    #[test]
    fn what_needs_a_restart_is_marked_with_the_nodes() {
        let answer = json!({
            "parameters": {"max_connections": "200", "work_mem": "1MB"},
            "restart-required": {"2": ["max_connections"], "3": ["max_connections", "port"]},
        });
        let shown = text(&answer);
        assert_eq!(shown.matches("after a restart of node 2, 3").count(), 1, "{shown}");
        assert_eq!(shown.matches("yes").count(), 1, "{shown}");
    }
}
