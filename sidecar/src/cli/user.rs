//! `pgquorum user`

use super::client::Target;
use super::failure::Failure;
use super::output::{Out, plain, table};
use super::secret_input;
use crate::uri::encoded;
use clap::Subcommand;
use hyper::Method;
use pgquorum_agent::users::UserRole;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Users of the REST interface. As soon as there is one, everybody must log in; the first one must be an admin. With
/// --config of a node whose secrets.toml you can read you are let in as an admin.
#[derive(Debug, clap::Args)]
pub struct UserArgs {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Add a user. The password is asked for; without a terminal it is the first line of standard input.
    Add {
        name: String,
        /// What the user may do: admin, reader, follower, super_user, ApiImport, ApiConfig, replication_sync, cluster;
        /// several with commas.
        #[arg(long = "role", value_delimiter = ',', required = true, value_parser = UserRole::parse)]
        roles: Vec<UserRole>,
        /// File with the password in its first line; - is standard input.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Without a password: the user logs in by token alone.
        #[arg(long, conflicts_with = "password_file")]
        no_password: bool,
    },
    /// Give a user other roles, another password, or both.
    Set {
        name: String,
        /// All roles that the user shall have; several with commas.
        #[arg(long = "role", value_delimiter = ',', value_parser = UserRole::parse)]
        roles: Vec<UserRole>,
        /// Ask for a new password; without a terminal it is the first line of standard input.
        #[arg(long)]
        password: bool,
        /// File with the new password in its first line; - is standard input.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Remove a user with all its tokens. It is out at once, on every node.
    Remove {
        name: String,
        /// Also if nobody is left then who may do everything.
        #[arg(long)]
        last: bool,
    },
    /// Show all users.
    List,
    /// Make a token for a user, and print it: it cannot be shown again.
    Token {
        name: String,
        /// Make the token with this id invalid instead.
        #[arg(long, value_name = "ID")]
        revoke: Option<String>,
    },
}

pub async fn run(args: UserArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    match args.command {
        UserCommand::Add { name, roles, password_file, no_password } => {
            let prompt = format!("Password for {name}: ");
            let password = match no_password {
                true => None,
                false => Some(secret_input::read_new(password_file.as_deref(), &prompt)?),
            };
            let body = json!({"name": name, "roles": roles, "password": password});
            let answer = client.call(Method::POST, "/users", Some(&body)).await?;
            out.show(&answer, || {
                let more = if no_password {
                    format!(" It logs in by token: pgquorum user token {name}")
                } else {
                    String::new()
                };
                format!("User {name} may log in at every node.{more}")
            });
        }
        UserCommand::Set { name, roles, password, password_file } => {
            let mut body = json!({});
            if !roles.is_empty() {
                body["roles"] = json!(roles);
            }
            if password || password_file.is_some() {
                let prompt = format!("New password for {name}: ");
                body["password"] = json!(secret_input::read_new(password_file.as_deref(), &prompt)?);
            }
            if body == json!({}) {
                return Err(Failure::usage("say what to change: --role, --password or --password-file"));
            }
            let answer = client.call(Method::PATCH, &path(&name), Some(&body)).await?;
            out.show(&answer, || format!("User {name} is changed, on every node."));
        }
        UserCommand::Remove { name, last } => {
            let last = if last { "?last=true" } else { "" };
            let answer = client.call(Method::DELETE, &format!("{}{last}", path(&name)), None).await?;
            out.show(&answer, || format!("User {name} is removed, with all tokens."));
        }
        UserCommand::List => {
            let answer = client.get("/users").await?;
            out.show(&answer, || list(&answer));
        }
        UserCommand::Token { name, revoke: None } => {
            let answer = client.call(Method::POST, &format!("{}/tokens", path(&name)), None).await?;
            if !out.json {
                out.note("The token is shown this once. Programs send it as `Authorization: Bearer …`:");
            }
            out.show(&answer, || plain(&answer["token"]));
        }
        UserCommand::Token { name, revoke: Some(id) } => {
            let path = format!("{}/tokens/{}", path(&name), encoded(&id));
            let answer = client.call(Method::DELETE, &path, None).await?;
            out.show(&answer, || format!("Token {id} of {name} is no longer valid."));
        }
    }
    Ok(())
}

fn path(user: &str) -> String {
    format!("/users/{}", encoded(user))
}

fn list(users: &Value) -> String {
    let users = users.as_array().map(Vec::as_slice).unwrap_or_default();
    if users.is_empty() {
        return "There are no users. The first one must be an admin: pgquorum user add NAME --role admin"
            .to_owned();
    }
    let joined = |items: &Value, text: &dyn Fn(&Value) -> String| {
        items.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ")
    };
    let row = |user: &Value| {
        let token = |token: &Value| format!("{} ({})", plain(&token["id"]), plain(&token["created"]));
        vec![
            plain(&user["name"]),
            joined(&user["roles"], &plain),
            if user["password"] == true { "yes" } else { "no" }.to_owned(),
            joined(&user["tokens"], &token),
        ]
    };
    table(&["USER", "ROLES", "PASSWORD", "TOKENS"], users.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_read_well() {
        let text = list(&json!([
            {"name": "root", "roles": ["admin"], "password": true, "tokens": []},
            {"name": "cache", "roles": ["follower", "reader"], "password": false,
             "tokens": [{"id": "0a1b", "created": "2026-01-01T00:00:00Z"}]},
        ]));
        assert!(text.contains("follower, reader") && text.contains("0a1b (2026-01-01T00:00:00Z)"), "{text}");
        assert!(list(&json!([])).contains("--role admin"));
        assert_eq!(path("bob@example.org"), "/users/bob%40example.org");
    }
}
