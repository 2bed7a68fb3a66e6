//! Who is asking. Users and their hashes are part of the cluster's state ([`pgquorum_agent::users`]); here is how somebody
//! proves to be one of them: by name and password, or by a token. Beside users there are keys that may do everything: the
//! token of `node.toml`, and a key that follows from the cluster's secret, with which nodes talk to each other and
//! whoever can read a node's `secrets.toml` is let in.
//!
//! Passwords cost tens of milliseconds each ([`password`]), so what was verified is remembered for a minute ([`cache`]),
//! few are tried at a time ([`runs`]), and whoever is wrong often must wait ([`failures`]).

mod cache;
mod credentials;
mod failures;
pub mod grant;
mod jwt;
pub mod password;
mod runs;
mod session;
#[cfg(test)]
mod tests;
pub mod token;

pub use credentials::basic;
pub use session::LIFETIME as SESSION_LIFETIME;

use cache::Cache;
use credentials::Credentials;
use failures::Failures;
use grant::{Bad, Granted, Grants};
use hmac::{Hmac, Mac};
use pgquorum_agent::users::{Secret, User, Users};
use runs::Runs;
use session::{Sessions, Shown};
use sha2::Sha256;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};
use subtle::ConstantTimeEq;
use warp::http::{HeaderMap, header};

/// What the key of a cluster is made for; another purpose would get another key from the same secret.
const KEY_PURPOSE: &[u8] = b"pgquorum: REST for whoever has the cluster's secrets";

/// The key that follows from a cluster's secret. As mighty as an admin, so it is sent where nothing else is at hand only:
/// to a cluster without a token, which listens on loopback.
pub fn cluster_key(cluster_secret: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(cluster_secret.as_bytes()).expect("any length will do");
    mac.update(KEY_PURPOSE);
    hex(&mac.finalize().into_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Who was let in, and by what.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Nobody has to log in here.
    Anybody,
    /// Has a key, and may do everything.
    Key,
    User {
        name: String,
        proof: Proof,
        /// It came with a token for a while, which is for the registry alone.
        granted: Option<Granted>,
    },
}

#[derive(Clone, Debug)]
pub enum Proof {
    /// This hash fitted.
    Password(Secret),
    /// The id of the token.
    Token(String),
}

impl Caller {
    /// The user as it is now; `None`: it is gone, or what it logged in with does not count any more.
    pub fn user<'a>(&self, users: &'a Users) -> Option<&'a User> {
        let Caller::User { name, proof, .. } = self else { return None };
        users.get(name).filter(|user| match proof {
            Proof::Password(hash) => user.password.as_ref() == Some(hash),
            Proof::Token(id) => user.tokens.contains_key(id),
        })
    }
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nothing was shown.
    Missing,
    /// What was shown is wrong.
    Wrong,
    /// A token for a while was shown that was good once.
    Outdated,
    /// It was wrong too often; nothing is looked at for so many seconds.
    TooOften { seconds: u64 },
    /// Too many passwords are being verified.
    Busy,
}

/// What logins need beside the users.
pub struct Logins {
    /// What may do everything: the token of the configuration, the key of the cluster.
    keys: Vec<Arc<str>>,
    /// Also while there are no users.
    required: bool,
    /// Tokens for a while. Without the cluster's secret there are none.
    grants: Option<Grants>,
    sessions: Sessions,
    cache: Cache,
    runs: Runs,
    failures: Mutex<Failures>,
}

impl Logins {
    pub fn new(keys: Vec<Arc<str>>, required: bool) -> Logins {
        let sessions = Sessions::new(None);
        let (cache, runs, failures) = (Cache::default(), Runs::default(), Mutex::default());
        Logins { keys, required, grants: None, sessions, cache, runs, failures }
    }

    /// The same, with tokens for a while under the key of a cluster.
    pub fn with_grants(self, cluster_key: Option<&str>) -> Logins {
        Logins { grants: cluster_key.map(Grants::new), sessions: Sessions::new(cluster_key), ..self }
    }

    pub fn grants(&self) -> Option<&Grants> {
        self.grants.as_ref()
    }

    /// Whether everybody must log in.
    pub fn required(&self, users: &Users) -> bool {
        self.required || !users.is_empty()
    }

    /// Lets the sender of a request in, or says why not.
    ///
    /// # Errors
    /// Nothing or something wrong was shown, or too often; too many passwords are being verified.
    pub async fn admit(&self, users: &Users, headers: &HeaderMap, from: IpAddr) -> Result<Caller, Denied> {
        if !self.required(users) {
            return Ok(Caller::Anybody);
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Err(Denied::Missing) };
        match Credentials::parse(value.as_bytes()) {
            Some(Credentials::Bearer(given)) => self.bearer(users, given, from),
            Some(Credentials::Basic { name, password }) => self.basic(users, name, password, from).await,
            None => Err(self.failed(from, None, "it is neither Basic nor Bearer")),
        }
    }

    /// A token with an end for whoever knows a user's password; for anybody where nobody has to log in.
    ///
    /// # Errors
    /// As [`Logins::admit`].
    pub async fn open_session(
        &self,
        users: &Users,
        name: String,
        password: String,
        from: IpAddr,
    ) -> Result<String, Denied> {
        if !self.required(users) {
            return Ok(self.sessions.issue(&name, &Secret::default(), SystemTime::now()));
        }
        match self.basic(users, name.clone(), password, from).await? {
            Caller::User { proof: Proof::Password(hash), .. } => {
                Ok(self.sessions.issue(&name, &hash, SystemTime::now()))
            }
            _ => Err(Denied::Wrong),
        }
    }

    /// A new hash of a password.
    ///
    /// # Errors
    /// Too many passwords are being worked on.
    pub async fn hash(&self, password: String) -> Result<Secret, Denied> {
        self.runs.run(move || Secret::new(password::hash(&password))).await
    }

    /// Who logs in by name and by a secret that is the user's password, or a token of the user's.
    ///
    /// # Errors
    /// As for [`Logins::admit`].
    pub async fn client(
        &self,
        users: &Users,
        name: &str,
        secret: &str,
        from: IpAddr,
    ) -> Result<Caller, Denied> {
        match token::holder(users, secret) {
            Some((holder, id)) if holder == name => Ok(by_token(holder, id)),
            Some(_) => Err(self.failed(from, None, "the token is another user's")),
            None => self.basic(users, name.to_owned(), secret.to_owned(), from).await,
        }
    }

    fn bearer(&self, users: &Users, given: &str, from: IpAddr) -> Result<Caller, Denied> {
        // All are looked at, so that the time tells nothing.
        let known = self.keys.iter().fold(false, |known, key| known | same(key, given));
        if known {
            return Ok(Caller::Key);
        }
        match self.sessions.read(users, given, SystemTime::now()) {
            Shown::Good(name, hash) => {
                return Ok(Caller::User { name, proof: Proof::Password(hash), granted: None });
            }
            Shown::Outdated => return Err(Denied::Outdated),
            Shown::Other => {}
        }
        if let Some(grants) = self.grants.as_ref().filter(|_| Grants::looks_like(given)) {
            return match grants.verify(given, users) {
                Ok((name, proof, granted)) => Ok(Caller::User { name, proof, granted: Some(granted) }),
                Err(Bad::Outdated) => Err(Denied::Outdated),
                Err(Bad::Wrong) => Err(self.failed(from, None, "the token was not made here")),
            };
        }
        match token::holder(users, given) {
            Some((name, id)) => Ok(by_token(name, id)),
            None => Err(self.failed(from, None, "no user has this token")),
        }
    }

    async fn basic(
        &self,
        users: &Users,
        name: String,
        password: String,
        from: IpAddr,
    ) -> Result<Caller, Denied> {
        let stored = users.get(&name).and_then(|user| user.password.clone());
        let known = stored.is_some();
        // Whoever does not exist costs as much time as whoever does.
        let hash = stored.unwrap_or_else(password::nobodys);
        let key = self.cache.key(&name, &password, hash.reveal());
        let proof = Proof::Password(hash.clone());
        let caller = Caller::User { name: name.clone(), proof, granted: None };
        if known && self.cache.has(&key) {
            return Ok(caller);
        }
        if let Some(seconds) = self.failures().wait(from, Some(&name), Instant::now()) {
            return Err(Denied::TooOften { seconds });
        }
        let permit = self.runs.turn().await?;
        // Many requests with the same new login come at once; one of them may have been here meanwhile.
        if known && self.cache.has(&key) {
            return Ok(caller);
        }
        if let Some(seconds) = self.failures().wait(from, Some(&name), Instant::now()) {
            return Err(Denied::TooOften { seconds });
        }
        let fits = permit.run(move || password::verify(&password, hash.reveal())).await?;
        if fits && known {
            self.cache.insert(key);
            self.failures().forget(from, &name);
            return Ok(caller);
        }
        let why =
            if known { "the password is wrong" } else { "there is no user of this name with a password" };
        Err(self.failed(from, Some(&name), why))
    }

    /// Remembers a failure and tells the administrator of it, once. While further ones are not looked at there is nothing
    /// to tell, so that nobody can fill the log.
    fn failed(&self, from: IpAddr, name: Option<&str>, why: &str) -> Denied {
        let mut failures = self.failures();
        if let Some(seconds) = failures.wait(from, name, Instant::now()) {
            return Denied::TooOften { seconds };
        }
        failures.note(from, name, Instant::now());
        drop(failures);
        match name {
            Some(name) => tracing::warn!(address = %from, user = ?shown(name), "a login failed: {why}"),
            None => tracing::warn!(address = %from, "a login failed: {why}"),
        }
        Denied::Wrong
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn by_token(name: &str, id: &str) -> Caller {
    Caller::User { name: name.to_owned(), proof: Proof::Token(id.to_owned()), granted: None }
}

/// As much of a name as a line of the log has room for.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

fn same(known: &str, given: &str) -> bool {
    known.as_bytes().ct_eq(given.as_bytes()).into()
}

/// The roles that there are, for messages.
pub fn list<'a>(roles: impl IntoIterator<Item = &'a pgquorum_agent::users::UserRole>) -> String {
    let names: BTreeSet<&str> = roles.into_iter().map(|role| role.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}
