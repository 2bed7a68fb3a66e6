//! `pgquorum config`: the cluster's settings.

use super::client::Target;
use super::failure::Failure;
use super::output::{Out, assignment, pairs};
use clap::Subcommand;
use hyper::Method;
use pgquorum_agent::settings::SettingsPatch;
use serde_json::{Map, Value};

/// The settings hold for all nodes and live in the cluster's log.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show all settings, or one.
    Get { name: Option<String> },
    /// Change settings; every node follows at once.
    Set {
        /// For example node-timeout=2s heartbeat-interval=200ms quorum-replication=true.
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = assignment)]
        settings: Vec<(String, String)>,
    },
}

pub async fn run(args: ConfigArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    let answer = match args.command {
        ConfigCommand::Get { name: None } => client.get("/config").await?,
        ConfigCommand::Get { name: Some(name) } => {
            return show_one(&client.get("/config").await?, &name, out);
        }
        ConfigCommand::Set { settings } => {
            // Read as the server will read it, so that a typing error is found before anything is sent.
            settings_patch(&settings)?;
            client.call(Method::POST, "/config", Some(&Value::Object(document(&settings)))).await?
        }
    };
    out.show(&answer, || pairs(["SETTING", "VALUE"], &answer));
    Ok(())
}

/// Shows one member of a document.
pub fn show_one(all: &Value, name: &str, out: Out) -> Result<(), Failure> {
    let Some(value) = all.get(name) else {
        let names: Vec<&str> = all.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
        return Err(Failure::not_found(
            "unknown_name",
            format!("there is no {name}; there are: {}", names.join(", ")),
        ));
    };
    out.show(value, || super::output::plain(value));
    Ok(())
}

/// Settings as they are typed, as a change that can be checked and applied.
pub fn settings_patch(settings: &[(String, String)]) -> Result<SettingsPatch, Failure> {
    serde_json::from_value(Value::Object(document(settings))).map_err(|e| {
        Failure::failed("invalid_value", format!("{e}. See `pgquorum config get` for names and values"))
    })
}

fn document(settings: &[(String, String)]) -> Map<String, Value> {
    let value = |text: &str| match text {
        "true" | "on" => Value::Bool(true),
        "false" | "off" => Value::Bool(false),
        _ => text.parse::<u32>().map_or_else(|_| Value::from(text), Value::from),
    };
    settings.iter().map(|(k, v)| (k.replace('_', "-"), value(v))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pairs: &[(&str, &str)]) -> Result<SettingsPatch, Failure> {
        let owned: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        settings_patch(&owned)
    }

    #[test]
    fn settings_are_read_as_typed() {
        let patch =
            typed(&[("node-timeout", "2s"), ("replication_factor", "2"), ("quorum-replication", "off")])
                .unwrap();
        assert_eq!(patch.node_timeout.unwrap().ms(), 2000);
        assert_eq!(patch.replication_factor, Some(2));
        assert_eq!(patch.quorum_replication, Some(false));
    }

    #[test]
    fn a_wrong_name_or_value_is_named() {
        assert!(typed(&[("node-timeot", "2s")]).unwrap_err().message.contains("node-timeot"));
        assert!(typed(&[("node-timeout", "soon")]).unwrap_err().message.contains("soon"));
        assert!(typed(&[("node-timeout", "5")]).is_err());
    }
}
