//! Logins that a client gets for its name and password: a JSON web token with an end, as clients of the replication
//! interface expect. Nothing is kept of it: all nodes that have the cluster's secret accept it.
//!
//! The signature goes over the password's hash, too, so a token ends with its user and with its password.

use super::same;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use pgquorum_agent::users::{Secret, Users};
use serde_json::{Value, json};
use sha2::Sha256;
use std::time::{Duration, SystemTime};

/// For how long it is good.
pub const LIFETIME: Duration = Duration::from_secs(3600);
/// Clients look for it.
const ISSUER: &str = "arangodb";
const PURPOSE: &[u8] = b"pgquorum: web tokens";

pub(super) struct Sessions {
    key: [u8; 32],
}

/// What a text is that somebody shows as a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The token of this user, got for the password with this hash.
    Good(String, Secret),
    /// It was good once: nobody guessed it.
    Outdated,
    /// No token of this kind, a forged one, or its password is another one now.
    Other,
}

impl Sessions {
    /// With a key that follows from what the nodes have in common; where they have nothing, of this process alone.
    pub(super) fn new(common: Option<&str>) -> Sessions {
        let Some(common) = common else { return Sessions { key: rand::random() } };
        let mut mac = Hmac::<Sha256>::new_from_slice(common.as_bytes()).expect("any length will do");
        mac.update(PURPOSE);
        Sessions { key: mac.finalize().into_bytes().into() }
    }

    /// A token for a user, or for anybody where nobody has to log in.
    pub(super) fn issue(&self, name: &str, hash: &Secret, now: SystemTime) -> String {
        let issued = seconds(now);
        let head = json!({"alg": "HS256", "typ": "JWT"}).to_string();
        let claims = json!({"iss": ISSUER, "preferred_username": name, "iat": issued,
            "exp": issued + LIFETIME.as_secs()});
        let signed = format!("{}.{}", BASE64.encode(head), BASE64.encode(claims.to_string()));
        let signature = self.sign(&signed, hash);
        format!("{signed}.{signature}")
    }

    /// Whose token it is.
    pub(super) fn read(&self, users: &Users, token: &str, now: SystemTime) -> Shown {
        match self.signed(users, token) {
            Some((name, hash, end)) if end > seconds(now) => Shown::Good(name, hash),
            Some(_) => Shown::Outdated,
            None => Shown::Other,
        }
    }

    /// What a token says that was made here: user, hash of the password, end.
    fn signed(&self, users: &Users, token: &str) -> Option<(String, Secret, u64)> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (_, claims) = signed.split_once('.')?;
        let claims: Value = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
        let name = claims["preferred_username"].as_str()?;
        let hash = users.get(name)?.password.clone()?;
        let end = claims["exp"].as_u64()?;
        same(&self.sign(signed, &hash), signature).then(|| (name.to_owned(), hash, end))
    }

    fn sign(&self, signed: &str, hash: &Secret) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("any length will do");
        mac.update(signed.as_bytes());
        mac.update(&[0]);
        mac.update(hash.reveal().as_bytes());
        BASE64.encode(mac.finalize().into_bytes())
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgquorum_agent::users::{UserChange, UserRole};

    fn users(hash: &str) -> Users {
        let mut users = Users::default();
        let (user, password) = ("bob".to_owned(), Some(Secret::new(hash)));
        users.apply(1, &UserChange::Add { user, roles: [UserRole::Admin].into(), password }).unwrap();
        users
    }

    #[test]
    fn a_token_is_good_for_its_user_and_password_until_its_end() {
        let (sessions, now) = (Sessions::new(Some("key")), SystemTime::now());
        let token = sessions.issue("bob", &Secret::new("hash"), now);
        let read = |sessions: &Sessions, hash: &str, token: &str, later: Duration| {
            sessions.read(&users(hash), token, now + later)
        };
        let (none, end, bob) = (Duration::ZERO, LIFETIME, Shown::Good("bob".to_owned(), Secret::new("hash")));
        assert_eq!(read(&sessions, "hash", &token, none), bob);
        // Another node has the same key.
        assert_eq!(read(&Sessions::new(Some("key")), "hash", &token, none), bob);
        assert_eq!(read(&Sessions::new(None), "hash", &token, none), Shown::Other);
        assert_eq!(read(&sessions, "another", &token, none), Shown::Other);
        assert_eq!(read(&sessions, "hash", &token, end), Shown::Outdated);
        assert_eq!(read(&Sessions::new(None), "hash", &token, end), Shown::Other);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let forged = BASE64.encode(json!({"preferred_username": "bob", "exp": u64::MAX}).to_string());
        for wrong in
            ["", ".", "..", "a.b.c", signed, &format!("x.{forged}.{signature}"), &format!("{token}x")]
        {
            assert_eq!(read(&sessions, "hash", wrong, none), Shown::Other, "{wrong}");
        }
        assert_eq!(sessions.read(&Users::default(), &token, now), Shown::Other);
    }
}
