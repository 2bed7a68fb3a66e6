//! Tokens of users: `pgq_` with an id and 256 random bits. These cannot be guessed, so one round of SHA-256 is enough of a
//! hash, and a login by token costs next to nothing.

use super::{hex, same};
use pgquorum_agent::users::{Secret, Token, Users};
use sha2::{Digest, Sha256};
use std::time::SystemTime;

const PREFIX: &str = "pgq_";

/// A token that was just made. Only its hash is kept.
pub struct New {
    pub id: String,
    /// What its holder sends; shown once.
    pub text: String,
    pub token: Token,
}

pub fn new() -> New {
    let id = hex(&rand::random::<[u8; 6]>());
    let text = format!("{PREFIX}{id}_{}", hex(&rand::random::<[u8; 32]>()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let created = now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let token = Token { hash: Secret::new(digest(&text)), created };
    New { id, text, token }
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Whose token it is, and its id.
pub(super) fn holder<'a>(users: &'a Users, given: &'a str) -> Option<(&'a str, &'a str)> {
    let (id, _) = given.strip_prefix(PREFIX)?.split_once('_')?;
    let hash = digest(given);
    users.iter().find_map(|(name, user)| {
        let token = user.tokens.get(id)?;
        same(token.hash.reveal(), &hash).then_some((name, id))
    })
}
