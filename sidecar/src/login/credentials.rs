//! The header `Authorization`, as it comes and as it is sent.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Some clients leave the padding out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) enum Credentials<'a> {
    Bearer(&'a str),
    Basic { name: String, password: String },
}

impl<'a> Credentials<'a> {
    /// Reads the header's value; `None`: it is of no kind that is known here.
    pub(super) fn parse(value: &'a [u8]) -> Option<Credentials<'a>> {
        let (scheme, given) = std::str::from_utf8(value).ok()?.trim().split_once(' ')?;
        let given = given.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Credentials::Bearer(given));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(LENIENT.decode(given).ok()?).ok()?;
        let (name, password) = text.split_once(':')?;
        Some(Credentials::Basic { name: name.to_owned(), password: password.to_owned() })
    }
}

/// The header's value for a login by name and password.
pub fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}
