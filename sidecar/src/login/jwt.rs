//! JSON Web Tokens (RFC 7519) of one kind: signed with HMAC-SHA256, and made here. What was not made here is not read, so
//! the head of a token, which says how it is signed, can be one text, and nothing is left to be chosen by whoever shows it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Sha256;

const HEAD: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Longer ones are not looked at.
const BYTES_MAX: usize = 8192;

pub(super) fn signed(claims: &impl Serialize, key: &str) -> String {
    let claims = serde_json::to_vec(claims).expect("claims are plain data");
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEAD), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(mac(&text, key).finalize().into_bytes());
    format!("{text}.{signature}")
}

/// The claims of a token that was signed with this key. Whether they hold is not looked at.
pub(super) fn read<C: DeserializeOwned>(token: &str, key: &str) -> Option<C> {
    let (text, signature) = token.rsplit_once('.').filter(|_| token.len() <= BYTES_MAX)?;
    mac(text, key).verify_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
    let (head, claims) = text.split_once('.')?;
    (head == URL_SAFE_NO_PAD.encode(HEAD)).then_some(())?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

fn mac(text: &str, key: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::new_from_slice(key.as_bytes()).expect("any length will do");
    mac.update(text.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_token_is_what_others_make_of_the_same_claims() {
        // Made by the package jsonwebtoken of npm: jwt.sign({sub: 'a'}, 'key', {noTimestamp: true}).
        let theirs = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhIn0.1YNMaPyC6Rq9KClxRJou-zDNgzLHDpyCYZfpxQLRpsc";
        assert_eq!(signed(&json!({"sub": "a"}), "key"), theirs);
        assert_eq!(read::<Value>(theirs, "key"), Some(json!({"sub": "a"})));
        assert_eq!(read::<Value>(theirs, "kex"), None);
    }

    #[test]
    fn nothing_can_be_changed_or_left_out() {
        let token = signed(&json!({"sub": "a"}), "key");
        for (i, _) in token.char_indices() {
            let other = if &token[i..=i] == "A" { "B" } else { "A" };
            // The last character has bits that mean nothing; they must be zero all the same.
            let changed = format!("{}{other}{}", &token[..i], &token[i + 1..]);
            assert_eq!(read::<Value>(&changed, "key"), None, "{changed}");
            assert_eq!(read::<Value>(&token[..i], "key"), None);
        }
        // Signed with the key, and of another kind.
        for head in [r#"{"alg":"none"}"#, r#"{"typ":"JWT","alg":"HS256"}"#, ""] {
            let claims = URL_SAFE_NO_PAD.encode("{}");
            let text = format!("{}.{claims}", URL_SAFE_NO_PAD.encode(head));
            let signature = URL_SAFE_NO_PAD.encode(mac(&text, "key").finalize().into_bytes());
            assert_eq!(read::<Value>(&format!("{text}.{signature}"), "key"), None, "{head}");
            assert_eq!(read::<Value>(&format!("{text}."), "key"), None, "{head}");
        }
        let long = signed(&json!({"sub": "a".repeat(BYTES_MAX)}), "key");
        assert_eq!(read::<Value>(&long, "key"), None);
        for text in ["", ".", "..", "...", "a.b.c"] {
            assert_eq!(read::<Value>(text, "key"), None, "{text}");
        }
    }
}
