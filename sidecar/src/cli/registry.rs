//! `pgquorum registry`

use super::client::Target;
use super::failure::Failure;
use super::output::{Out, plain, table};
use crate::config::{NodeConfig, Secrets};
use crate::login::cluster_key;
use crate::login::grant::{AUDIENCE, audience_key};
use crate::uri::encoded;
use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};

/// Servers of others that register with this cluster, and renew as long as they run.
#[derive(Debug, clap::Args)]
pub struct RegistryArgs {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: RegistryCommand,
}

#[derive(Debug, Subcommand)]
enum RegistryCommand {
    /// Show all servers, this cluster's own nodes among them.
    List {
        /// Only servers of this type.
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
    },
    /// Take a server out. If it still runs, it is back with its next renewal.
    Remove {
        /// The id of its type's itResource, as `list` shows it.
        resource: String,
        /// The server's id.
        server: String,
    },
    /// Print the key with which servers check each other's tokens for this audience. Needs --config: it follows from the
    /// cluster's secrets. Keep it as you keep a password.
    Key {
        /// The audience that stands in the configuration of those servers; often the name of their type.
        audience: String,
    },
}

pub async fn run(args: RegistryArgs, out: Out) -> Result<(), Failure> {
    match args.command {
        RegistryCommand::List { kind } => {
            let query = kind.map(|kind| format!("?type={}", encoded(&kind))).unwrap_or_default();
            let answer = args.target.client()?.get(&format!("/itResources{query}")).await?;
            out.show(&answer["data"], || list(&answer["data"]));
        }
        RegistryCommand::Remove { resource, server } => {
            let path = format!("/itResources/{}/servers/{}", encoded(&resource), encoded(&server));
            let answer = args.target.client()?.call(Method::DELETE, &path, None).await?;
            out.show(&answer, || format!("Server {server} is not registered any more."));
        }
        RegistryCommand::Key { audience } => {
            if audience == AUDIENCE {
                return Err(Failure::usage(format!(
                    "tokens for {AUDIENCE} are made and checked by this cluster alone; name the audience of your servers"
                )));
            }
            let Some(file) = &args.target.config else {
                return Err(Failure::usage("name a node's node.toml with --config; its secrets are needed"));
            };
            let secrets = Secrets::load(&NodeConfig::load(file)?.secrets_file())?;
            let key = audience_key(&cluster_key(&secrets.cluster_secret), &audience);
            out.show(&json!({"audience": audience, "key": key}), || key.clone());
        }
    }
    Ok(())
}

fn list(resources: &Value) -> String {
    let mut rows = Vec::new();
    for resource in resources.as_array().into_iter().flatten() {
        for server in resource["servers"].as_array().into_iter().flatten() {
            rows.push(vec![
                plain(&resource["type"]),
                plain(&server["serverId"]),
                plain(&server["clusterBaseUrl"]),
                plain(&server["updatedAt"]),
                plain(&resource["id"]),
            ]);
        }
    }
    table(&["TYPE", "SERVER", "ADDRESS", "UPDATED", "RESOURCE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_read_well() {
        let text = list(&json!([
            {"id": "c0ffee", "type": "pgquorum", "servers": [{"serverId": "node-1", "clusterBaseUrl": "http://a:1"}]},
            {"id": "1234", "type": "shop", "servers": [
                {"serverId": "s1", "clusterBaseUrl": "http://b:2", "updatedAt": "2026-01-01T00:00:00.000Z"}]},
        ]));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].trim().starts_with("pgquorum") && lines[1].contains("node-1"), "{text}");
        assert!(lines[2].contains("2026-01-01") && lines[2].ends_with("1234"), "{text}");
    }
}
