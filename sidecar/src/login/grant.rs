//! Tokens for a while: JSON Web Tokens that a server of the registry gets for its user's password or token. They are signed
//! with HMAC-SHA256 under keys that follow from the cluster's secret, so every node can make and check them, and nothing of
//! them is kept anywhere.
//!
//! Each audience has a key of its own. Tokens for [`AUDIENCE`] are for the registry here, and for nothing else here. Those
//! for other audiences mean nothing here: they are for servers that check each other's, with that audience's key
//! ([`audience_key`]), which an administrator gives them.

use super::jwt::{read, signed};
use super::{Proof, hex, same};
use hmac::{Hmac, Mac};
use pgquorum_agent::users::Users;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::time::SystemTime;

/// Who tokens for the registry here are for.
pub const AUDIENCE: &str = "pgquorum";

/// What a token with this type may be shown to: other servers of the same type.
pub const CLUSTER: &str = "cluster";

const PURPOSE: &str = "pgquorum: tokens of registered servers";
const SCOPE: &str = "create:itResource read:itResource delete:itResource";

/// How long tokens are good for, in seconds. Clients ask for new ones 900 s before.
const ACCESS_S: u64 = 3600;
const REFRESH_S: u64 = 24 * 3600;

/// What somebody who came with such a token may be asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// It is a token for calls among servers of one type.
    pub cluster: bool,
    /// The type of its server.
    pub sub_type: String,
}

/// Why a token is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It was good once: it has run out, or its user has another password, or is gone.
    Outdated,
    /// It was not made here, or for something else.
    Wrong,
}

/// What a token is made for.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    pub user: &'a str,
    /// What the user has shown; the tokens count as long as it does.
    pub proof: &'a Proof,
    /// The address at which it was asked for.
    pub issuer: &'a str,
    pub audience: &'a str,
    /// For calls among servers of one type.
    pub cluster: bool,
}

/// What is given for a wish.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    pub access_token: String,
    /// Gets the next pair.
    pub refresh_token: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Use {
    Access,
    Refresh,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    #[serde(rename = "subType")]
    sub_type: String,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    scope: String,
    iat: u64,
    exp: u64,
    #[serde(rename = "use")]
    purpose: Use,
    /// The user's proof: the id of a token, or a keyed hash of the password's hash.
    by: String,
    /// In a token that gets others: their audience.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    audience: Option<String>,
}

/// The type of the servers that log in as this user: its name, up to an `@`.
pub fn type_of(user: &str) -> &str {
    user.split('@').next().unwrap_or(user)
}

/// The key for tokens of an audience: text, as it stands in the configuration of those who check them.
pub fn audience_key(cluster_key: &str, audience: &str) -> String {
    mac(cluster_key, &["audience", audience])
}

fn mac(key: &str, parts: &[&str]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any length will do");
    for part in [PURPOSE].iter().chain(parts) {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part.as_bytes());
    }
    hex(&mac.finalize().into_bytes())
}

/// Makes tokens and checks them.
pub struct Grants {
    /// The key that follows from the cluster's secret.
    cluster_key: String,
    /// The key for tokens that are good here.
    own: String,
}

impl Grants {
    pub fn new(cluster_key: &str) -> Grants {
        Grants { cluster_key: cluster_key.to_owned(), own: audience_key(cluster_key, AUDIENCE) }
    }

    /// Whether a text looks like one of these tokens at all.
    pub fn looks_like(given: &str) -> bool {
        given.bytes().filter(|b| *b == b'.').count() == 2
    }

    pub fn issue(&self, wish: &Wish<'_>) -> Pair {
        self.issue_at(wish, now())
    }

    fn issue_at(&self, wish: &Wish<'_>, now: u64) -> Pair {
        let claims = |purpose, aud: &str, seconds| Claims {
            iss: wish.issuer.to_owned(),
            aud: aud.to_owned(),
            sub: wish.user.to_owned(),
            sub_type: type_of(wish.user).to_owned(),
            kind: wish.cluster.then(|| CLUSTER.to_owned()),
            scope: SCOPE.to_owned(),
            iat: now,
            exp: now + seconds,
            purpose,
            by: self.shown(wish.proof),
            audience: (purpose == Use::Refresh).then(|| wish.audience.to_owned()),
        };
        let key = audience_key(&self.cluster_key, wish.audience);
        Pair {
            access_token: signed(&claims(Use::Access, wish.audience, ACCESS_S), &key),
            // Good here alone, whomever the others are for.
            refresh_token: signed(&claims(Use::Refresh, AUDIENCE, REFRESH_S), &self.own),
        }
    }

    /// Who shows this token, and what the user once showed for it.
    ///
    /// # Errors
    /// It is not good, or not any more.
    pub fn verify(&self, token: &str, users: &Users) -> Result<(String, Proof, Granted), Bad> {
        let claims = self.claims(token, Use::Access)?;
        let proof = self.proof(&claims, users)?;
        let granted = Granted { cluster: claims.kind.as_deref() == Some(CLUSTER), sub_type: claims.sub_type };
        Ok((claims.sub, proof, granted))
    }

    /// The next pair for a token that gets others.
    ///
    /// # Errors
    /// It is not good, or not any more.
    pub fn refresh(&self, token: &str, users: &Users, issuer: &str) -> Result<(String, Pair), Bad> {
        let claims = self.claims(token, Use::Refresh)?;
        let proof = self.proof(&claims, users)?;
        let audience = claims.audience.as_deref().ok_or(Bad::Wrong)?;
        let cluster = claims.kind.as_deref() == Some(CLUSTER);
        let pair = self.issue(&Wish { user: &claims.sub, proof: &proof, issuer, audience, cluster });
        Ok((claims.sub, pair))
    }

    fn claims(&self, token: &str, purpose: Use) -> Result<Claims, Bad> {
        let claims: Claims = read(token, &self.own).ok_or(Bad::Wrong)?;
        match claims.purpose == purpose && claims.aud == AUDIENCE {
            false => Err(Bad::Wrong),
            true if claims.exp <= now() => Err(Bad::Outdated),
            true => Ok(claims),
        }
    }

    /// What the user of a token has shown for it, if it still counts.
    fn proof(&self, claims: &Claims, users: &Users) -> Result<Proof, Bad> {
        let user = users.get(&claims.sub).ok_or(Bad::Outdated)?;
        let password = user.password.clone().map(Proof::Password);
        let tokens = user.tokens.keys().cloned().map(Proof::Token);
        let mut proofs = password.into_iter().chain(tokens);
        proofs.find(|proof| same(&self.shown(proof), &claims.by)).ok_or(Bad::Outdated)
    }

    /// How a proof stands in a token: nothing that helps anybody.
    fn shown(&self, proof: &Proof) -> String {
        match proof {
            Proof::Token(id) => format!("token {id}"),
            Proof::Password(hash) => mac(&self.cluster_key, &["password", hash.reveal()]),
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgquorum_agent::users::{Secret, Token, UserChange, UserRole};

    fn users(password: &str) -> Users {
        let mut users = Users::default();
        let secret = || Some(Secret::new(password));
        let roles = |role| [role].into();
        let token = Token { hash: Secret::new("hash of a token"), created: 0 };
        for (index, change) in [
            UserChange::Add { user: "root".to_owned(), roles: roles(UserRole::Admin), password: secret() },
            UserChange::Add {
                user: "shop@eu1".to_owned(),
                roles: roles(UserRole::Cluster),
                password: secret(),
            },
            UserChange::AddToken { user: "shop@eu1".to_owned(), id: "0a".to_owned(), token },
        ]
        .iter()
        .enumerate()
        {
            users.apply(index as u64 + 1, change).unwrap();
        }
        users
    }

    fn wish<'a>(proof: &'a Proof, audience: &'a str, cluster: bool) -> Wish<'a> {
        Wish { user: "shop@eu1", proof, issuer: "http://10.0.0.1:8008/cluster/token", audience, cluster }
    }

    #[test]
    fn a_token_says_who_shows_it_until_it_runs_out_or_the_user_changes() {
        let (grants, users_now) = (Grants::new("key"), users("hash"));
        let password = Proof::Password(Secret::new("hash"));
        let pair = grants.issue(&wish(&password, AUDIENCE, true));
        let (name, proof, granted) = grants.verify(&pair.access_token, &users_now).unwrap();
        assert_eq!((name.as_str(), granted.cluster, granted.sub_type.as_str()), ("shop@eu1", true, "shop"));
        assert!(matches!(proof, Proof::Password(hash) if hash.reveal() == "hash"));
        assert_eq!(grants.verify(&pair.access_token, &users("other")).unwrap_err(), Bad::Outdated);
        assert_eq!(grants.verify(&pair.access_token, &Users::default()).unwrap_err(), Bad::Outdated);
        assert_eq!(
            Grants::new("other").verify(&pair.access_token, &users_now).unwrap_err(),
            Bad::Wrong,
            "another cluster's"
        );
        let old = grants.issue_at(&wish(&password, AUDIENCE, false), now() - ACCESS_S - 1);
        assert_eq!(grants.verify(&old.access_token, &users_now).unwrap_err(), Bad::Outdated);
        assert!(grants.refresh(&old.refresh_token, &users_now, "http://x").is_ok());
        let by_token = Proof::Token("0a".to_owned());
        let pair = grants.issue(&wish(&by_token, AUDIENCE, false));
        assert!(grants.verify(&pair.access_token, &users("other")).is_ok(), "the token is still there");
        assert!(!pair.access_token.contains("hash"));
    }

    #[test]
    fn tokens_are_good_for_what_they_were_made_for_and_nothing_else() {
        let (grants, users) = (Grants::new("key"), users("hash"));
        let password = Proof::Password(Secret::new("hash"));
        let pair = grants.issue(&wish(&password, AUDIENCE, false));
        assert_eq!(grants.verify(&pair.refresh_token, &users).unwrap_err(), Bad::Wrong);
        assert_eq!(grants.refresh(&pair.access_token, &users, "x").unwrap_err(), Bad::Wrong);
        // For others: with the key that those have, and not good here.
        let others = grants.issue(&wish(&password, "shop", true));
        assert_eq!(grants.verify(&others.access_token, &users).unwrap_err(), Bad::Wrong);
        let key = audience_key("key", "shop");
        let claims: Claims = read(&others.access_token, &key).unwrap();
        assert_eq!(claims.aud, "shop");
        assert_eq!((claims.kind.as_deref(), claims.sub_type.as_str()), (Some("cluster"), "shop"));
        let (_, next) = grants.refresh(&others.refresh_token, &users, "http://y").unwrap();
        assert_eq!(read::<Claims>(&next.access_token, &key).unwrap().iss, "http://y");
        // Whoever has that key cannot make tokens that are good here.
        let forged = Claims { aud: AUDIENCE.to_owned(), ..claims };
        assert_eq!(grants.verify(&signed(&forged, &key), &users).unwrap_err(), Bad::Wrong);
        for text in ["", "a.b", "a.b.c", "..", "pgq_00_00"] {
            assert_eq!(grants.verify(text, &users).unwrap_err(), Bad::Wrong, "{text}");
        }
        assert!(Grants::looks_like(&pair.access_token) && !Grants::looks_like("pgq_0a_00"));
    }
}
