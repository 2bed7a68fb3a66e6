//! Who may log in at the REST interface: names, roles, and what proves that somebody is who he says. It is part of the
//! replicated state, so every node knows all users and a user who is removed is out everywhere.
//!
//! Hashes are [`Secret`]s: nothing prints them, and [`UserChange::without_secrets`] is what the cluster's log shows to
//! people and to the database.

use crate::types::Millis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How many users there may be, and how many tokens each may have. The state travels as a whole.
pub const USERS_MAX: usize = 1000;
pub const TOKENS_MAX: usize = 16;

/// How long a user's name may be.
const NAME_BYTES_MAX: usize = 63;

/// Text that would help somebody to pass for a user. Printed by nothing.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, to compare something with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// What a user may do. Which request needs which role stands in the sidecar's table of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum UserRole {
    /// Everything.
    #[serde(rename = "admin")]
    Admin,
    /// Look at the cluster and read channels.
    #[serde(rename = "reader")]
    Reader,
    /// What a reader may, register as a follower of channels, and copy tables.
    #[serde(rename = "follower")]
    Follower,
    /// Everything; the name that the operations interface has for it.
    #[serde(rename = "super_user")]
    SuperUser,
    /// Imports and synchronisation over the delta interface.
    #[serde(rename = "ApiImport")]
    ApiImport,
    /// Counters of the delta interface.
    #[serde(rename = "ApiConfig")]
    ApiConfig,
    /// The replication interface.
    #[serde(rename = "replication_sync")]
    ReplicationSync,
    /// The registry and its calls to all servers.
    #[serde(rename = "cluster")]
    Cluster,
}

impl UserRole {
    pub const ALL: [UserRole; 8] = [
        UserRole::Admin,
        UserRole::Reader,
        UserRole::Follower,
        UserRole::SuperUser,
        UserRole::ApiImport,
        UserRole::ApiConfig,
        UserRole::ReplicationSync,
        UserRole::Cluster,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            UserRole::Admin => "admin",
            UserRole::Reader => "reader",
            UserRole::Follower => "follower",
            UserRole::SuperUser => "super_user",
            UserRole::ApiImport => "ApiImport",
            UserRole::ApiConfig => "ApiConfig",
            UserRole::ReplicationSync => "replication_sync",
            UserRole::Cluster => "cluster",
        }
    }

    /// The role of this name.
    ///
    /// # Errors
    /// In words: there is none; the error lists all.
    pub fn parse(text: &str) -> Result<UserRole, String> {
        UserRole::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            let names: Vec<&str> = UserRole::ALL.into_iter().map(UserRole::as_str).collect();
            format!("there is no role {text:?}; the roles are {}", names.join(", "))
        })
    }

    /// Whether everything is allowed to whoever has it.
    pub fn is_mighty(self) -> bool {
        matches!(self, UserRole::Admin | UserRole::SuperUser)
    }
}

impl fmt::Display for UserRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A token, as the cluster remembers it: the token itself was shown once, to whoever asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Token {
    /// SHA-256 of the token, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Secret::is_empty")]
    pub hash: Secret,
    /// When it was made, in Unix milliseconds by the clock of the node that made it.
    pub created: Millis,
}

/// A user, without the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct User {
    pub roles: BTreeSet<UserRole>,
    /// The password as argon2 hashed it (a PHC string). Without one there is no login by password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// By their ids, which are no secrets.
    #[serde(default)]
    pub tokens: BTreeMap<String, Token>,
}

impl User {
    /// May do everything, and has something to log in with.
    fn is_able_admin(&self) -> bool {
        let able = self.password.is_some() || !self.tokens.is_empty();
        able && self.roles.iter().any(|role| role.is_mighty())
    }
}

/// One change of the users. A change that no longer makes sense when it is committed changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum UserChange {
    Add {
        user: String,
        roles: BTreeSet<UserRole>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password: Option<Secret>,
    },
    /// What is `None` stays as it is.
    Set {
        user: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        roles: Option<BTreeSet<UserRole>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password: Option<Secret>,
    },
    Remove {
        user: String,
        /// Also if nobody is left then who may do everything.
        last: bool,
    },
    AddToken {
        user: String,
        id: String,
        token: Token,
    },
    RemoveToken {
        user: String,
        id: String,
    },
}

impl UserChange {
    pub fn user(&self) -> &str {
        match self {
            UserChange::Add { user, .. }
            | UserChange::Set { user, .. }
            | UserChange::Remove { user, .. }
            | UserChange::AddToken { user, .. }
            | UserChange::RemoveToken { user, .. } => user,
        }
    }

    /// The same change, with nothing in it that must not be seen.
    pub fn without_secrets(&self) -> UserChange {
        let mut shown = self.clone();
        match &mut shown {
            UserChange::Add { password, .. } | UserChange::Set { password, .. } => *password = None,
            UserChange::AddToken { token, .. } => token.hash = Secret::default(),
            UserChange::Remove { .. } | UserChange::RemoveToken { .. } => {}
        }
        shown
    }

    /// The kind of event that it is, and a sentence for people.
    pub fn describe(&self) -> (&'static str, String) {
        let list = |roles: &BTreeSet<UserRole>| {
            roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
        };
        match self {
            UserChange::Add { user, roles, .. } => {
                ("user-added", format!("user {user} was added with {}", list(roles)))
            }
            UserChange::Set { user, roles: Some(roles), .. } => {
                ("user-changed", format!("user {user} has now {}", list(roles)))
            }
            UserChange::Set { user, roles: None, .. } => {
                ("user-changed", format!("user {user} has another password"))
            }
            UserChange::Remove { user, .. } => ("user-removed", format!("user {user} was removed")),
            UserChange::AddToken { user, id, .. } => {
                ("token-added", format!("user {user} has the new token {id}"))
            }
            UserChange::RemoveToken { user, id } => {
                ("token-removed", format!("token {id} of user {user} is no longer valid"))
            }
        }
    }
}

/// Why users cannot be changed so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error(
        "{0:?} cannot be a user's name: it has 1 to 63 letters, digits and . _ - @, and begins with a letter or digit"
    )]
    BadName(String),
    #[error("user {0} needs at least one role")]
    NoRole(String),
    #[error("there is a user {0} already; change it, or remove it first")]
    Exists(String),
    #[error("there is no user {0}")]
    Unknown(String),
    #[error("user {user} has no token {id}")]
    UnknownToken { user: String, id: String },
    #[error("there are {USERS_MAX} users already; remove some")]
    TooManyUsers,
    #[error("user {0} has {TOKENS_MAX} tokens already; remove some")]
    TooManyTokens(String),
    #[error(
        "the first user must be an admin with a password: as soon as there is a user, everybody must log in, and nobody \
         could administer the cluster"
    )]
    FirstIsNoAdmin,
    #[error(
        "{0} is the last user who may do everything and can log in; add another admin first. To remove it all the same: \
         pgquorum user remove --last"
    )]
    LastAdmin(String),
}

/// All users.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Users {
    by_name: BTreeMap<String, User>,
    /// The entry of the cluster's log that changed them last.
    changed_at: u64,
}

impl Users {
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<&User> {
        self.by_name.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &User)> {
        self.by_name.iter().map(|(name, user)| (name.as_str(), user))
    }

    /// Grows with every change.
    pub fn changed_at(&self) -> u64 {
        self.changed_at
    }

    /// Makes the change that the entry `index` of the cluster's log holds.
    ///
    /// # Errors
    /// It makes no sense; then nothing is changed.
    pub fn apply(&mut self, index: u64, change: &UserChange) -> Result<(), UserError> {
        let mut changed = self.clone();
        changed.make(change)?;
        let had_admin = self.is_empty() || self.has_admin();
        let accepted = matches!(change, UserChange::Remove { last: true, .. });
        if had_admin && !changed.has_admin() && !accepted {
            return Err(match self.is_empty() {
                true => UserError::FirstIsNoAdmin,
                false => UserError::LastAdmin(change.user().to_owned()),
            });
        }
        changed.changed_at = index;
        *self = changed;
        Ok(())
    }

    fn has_admin(&self) -> bool {
        self.by_name.values().any(User::is_able_admin)
    }

    fn make(&mut self, change: &UserChange) -> Result<(), UserError> {
        match change {
            UserChange::Add { user, roles, password } => {
                if !is_name(user) {
                    return Err(UserError::BadName(user.clone()));
                }
                if self.by_name.contains_key(user) {
                    return Err(UserError::Exists(user.clone()));
                }
                if self.by_name.len() >= USERS_MAX {
                    return Err(UserError::TooManyUsers);
                }
                let (roles, password) = (some_of(user, roles)?, password.clone());
                self.by_name.insert(user.clone(), User { roles, password, tokens: BTreeMap::new() });
            }
            UserChange::Set { user: name, roles, password } => {
                let user = self.known(name)?;
                if let Some(roles) = roles {
                    user.roles = some_of(name, roles)?;
                }
                if password.is_some() {
                    user.password.clone_from(password);
                }
            }
            UserChange::Remove { user, .. } => {
                self.by_name.remove(user).ok_or_else(|| UserError::Unknown(user.clone()))?;
            }
            UserChange::AddToken { user: name, id, token } => {
                let user = self.known(name)?;
                if user.tokens.len() >= TOKENS_MAX {
                    return Err(UserError::TooManyTokens(name.clone()));
                }
                user.tokens.insert(id.clone(), token.clone());
            }
            UserChange::RemoveToken { user, id } => {
                let unknown = UserError::UnknownToken { user: user.clone(), id: id.clone() };
                self.known(user)?.tokens.remove(id).ok_or(unknown)?;
            }
        }
        Ok(())
    }

    fn known(&mut self, name: &str) -> Result<&mut User, UserError> {
        self.by_name.get_mut(name).ok_or_else(|| UserError::Unknown(name.to_owned()))
    }
}

fn some_of(user: &str, roles: &BTreeSet<UserRole>) -> Result<BTreeSet<UserRole>, UserError> {
    if roles.is_empty() { Err(UserError::NoRole(user.to_owned())) } else { Ok(roles.clone()) }
}

/// Names stand in paths, in the log and in HTTP Basic, where a colon ends them.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-@".contains(&b);
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && text.len() <= NAME_BYTES_MAX && text.bytes().all(plain)
}

#[cfg(test)]
mod tests;
