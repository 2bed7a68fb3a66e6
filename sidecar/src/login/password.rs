//! Passwords: argon2id with a salt of their own, kept as PHC strings.

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use pgquorum_agent::users::Secret;
use std::sync::OnceLock;

/// Memory and rounds of a hash: what OWASP asks for at least. Tens of milliseconds, and as much memory for each that is
/// verified at the same time.
const MEMORY_KIB: u32 = 19 * 1024;
const ROUNDS: u32 = 2;

const CHARACTERS_MIN: usize = 8;
const BYTES_MAX: usize = 256;

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, ROUNDS, 1, None).expect("these are within argon2's limits");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Whether a password will do.
///
/// # Errors
/// In words, without the password: it is too short, too long, or has characters that nobody types.
pub fn check(password: &str) -> Result<(), String> {
    if password.chars().count() < CHARACTERS_MIN {
        return Err(format!("the password is shorter than {CHARACTERS_MIN} characters; take a longer one"));
    }
    if password.len() > BYTES_MAX {
        return Err(format!("the password is longer than {BYTES_MAX} bytes; take a shorter one"));
    }
    if password.chars().any(char::is_control) {
        return Err("the password has a line break or another control character in it".to_owned());
    }
    Ok(())
}

/// The hash to keep. Costs tens of milliseconds of a processor.
pub fn hash(password: &str) -> String {
    let salt: [u8; 16] = rand::random();
    let salt = SaltString::encode_b64(&salt).expect("16 bytes are a salt");
    let hash = argon2().hash_password(password.as_bytes(), &salt);
    hash.expect("argon2 takes any password of this length").to_string()
}

/// Whether a password fits. Costs as much as the hash did; what is no hash fits nothing.
pub fn verify(password: &str, hash: &str) -> bool {
    // Nobody set a longer one.
    let possible = password.len() <= BYTES_MAX;
    let parsed = PasswordHash::new(hash);
    possible && parsed.is_ok_and(|hash| argon2().verify_password(password.as_bytes(), &hash).is_ok())
}

/// The hash of a password that nobody has.
pub(super) fn nobodys() -> Secret {
    static HASH: OnceLock<Secret> = OnceLock::new();
    HASH.get_or_init(|| Secret::new(hash(&super::hex(&rand::random::<[u8; 32]>())))).clone()
}
