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
const LIFETIME: Duration = Duration::from_secs(3600);
/// Clients look for it.
const ISSUER: &str = "arangodb";
const PURPOSE: &[u8] = b"pgquorum: web tokens";

pub(super) struct Sessions {
    key: [u8; 32],
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

    /// Whose token it is, and the hash of the password that it was got for; none: it is no token, or no good one.
    pub(super) fn holder(&self, users: &Users, token: &str, now: SystemTime) -> Option<(String, Secret)> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (_, claims) = signed.split_once('.')?;
        let claims: Value = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
        let name = claims["preferred_username"].as_str()?;
        let hash = users.get(name)?.password.clone()?;
        let good = same(&self.sign(signed, &hash), signature) && claims["exp"].as_u64()? > seconds(now);
        good.then(|| (name.to_owned(), hash))
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
        let holder = |sessions: &Sessions, hash: &str, token: &str, later: Duration| {
            sessions.holder(&users(hash), token, now + later).map(|(name, _)| name)
        };
        let (none, end) = (Duration::ZERO, LIFETIME);
        assert_eq!(holder(&sessions, "hash", &token, none).as_deref(), Some("bob"));
        // Another node has the same key.
        assert_eq!(holder(&Sessions::new(Some("key")), "hash", &token, none).as_deref(), Some("bob"));
        assert_eq!(holder(&Sessions::new(None), "hash", &token, none), None);
        assert_eq!(holder(&sessions, "another", &token, none), None);
        assert_eq!(holder(&sessions, "hash", &token, end), None);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let forged = BASE64.encode(json!({"preferred_username": "bob", "exp": u64::MAX}).to_string());
        for wrong in
            ["", ".", "..", "a.b.c", signed, &format!("x.{forged}.{signature}"), &format!("{token}x")]
        {
            assert_eq!(holder(&sessions, "hash", wrong, none), None, "{wrong}");
        }
        assert_eq!(sessions.holder(&Users::default(), &token, now), None);
    }
}
