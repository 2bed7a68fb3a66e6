//! `pgquorum init`

use super::config::settings_patch;
use super::engine;
use super::failure::Failure;
use super::output::{Out, assignment};
use super::place::{Place, PlaceArgs, random_text};
use crate::config::Secrets;
use pgquorum_agent::settings::Settings;
use serde_json::json;

/// Makes the database (checksums on, passwords by scram), new secrets and the cluster's log. Start the node with
/// `pgquorum run` afterwards, and add the other machines with `pgquorum join`.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// A setting of the new cluster, for example --set node-timeout=2s; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
    settings: Vec<(String, String)>,
}

pub async fn run(args: InitArgs, out: Out) -> Result<(), Failure> {
    let settings = settings_patch(&args.settings)?.applied_to(&Settings::default());
    settings.check().map_err(|e| Failure::failed("invalid_value", e))?;
    let mut place = Place::prepare(&args.place, 1, "init")?;
    let secrets = match place.config.secrets_file() {
        file if file.exists() => Secrets::load(&file)?,
        _ => Secrets::generate(),
    };
    place.write_secrets(&secrets, Some(&random_text()))?;
    let system_identifier = tokio::select! {
        made = engine::initialise(&place.config, &secrets) => made?,
        () = stopped() => return Err(Failure::failed("interrupted", "interrupted; what was made is removed")),
    };
    let cluster_id = engine::create_first(&place.config, system_identifier, settings)?;
    let (config, file) = place.finish()?;

    let token =
        config.token_file.as_ref().map(|f| format!(" --token-file {}", f.display())).unwrap_or_default();
    let document = json!({
        "node": config.node,
        "cluster-id": cluster_id,
        "system-identifier": system_identifier,
        "config": file,
        "secrets": config.secrets_file(),
    });
    out.show(&document, || {
        format!(
            "Node {} of the new cluster {cluster_id} is ready.\n\n\
             Start it:\n  pgquorum run --config {}\n\n\
             Add another machine: copy {secrets} there (and the token, if there is one), then on that machine\n  \
             pgquorum join --leader http://{}:{} --secrets {} --dir DIR --ip ITS-ADDRESS{token}\n\n\
             The password of the role postgres is in {secrets}.",
            config.node,
            file.display(),
            config.ip,
            config.api_port,
            config.secrets_file().file_name().unwrap_or_default().display(),
            secrets = config.secrets_file().display(),
        )
    });
    Ok(())
}

/// Returns when the process is asked to end.
pub async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(stream) => stream,
        Err(_) => return std::future::pending().await,
    };
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => {
            if interrupted.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
