//! `If-None-Match`: what a client has already, and the answer that it is still good.

use super::refusal::with_body;
use bytes::Bytes;
use warp::http::{HeaderMap, HeaderValue, header};
use warp::reply::Response;

/// The tags that a client names.
pub(super) struct Known(Vec<String>);

impl Known {
    pub(super) fn of(headers: &HeaderMap) -> Known {
        let lines = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        Known(lines.flat_map(|line| line.split(',')).map(|tag| opaque(tag.trim()).to_owned()).collect())
    }

    /// Whether the client has what this tag names, or says that anything will do (`*`).
    pub(super) fn has(&self, tag: &str) -> bool {
        self.0.iter().any(|known| known == "*" || known == opaque(tag))
    }
}

/// Without the sign that a tag is weak: it makes no difference here.
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// The client has it already (304).
pub(super) fn not_modified(tag: &str) -> Response {
    let mut response = tagged(304, Bytes::new(), tag);
    response.headers_mut().remove(header::CONTENT_TYPE);
    response
}

/// JSON that the client may keep, as long as it asks each time whether it is still good.
pub(super) fn tagged(status: u16, body: Bytes, tag: &str) -> Response {
    let mut response = with_body(status, "application/json", body);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_without_their_weakness() {
        let known = |lines: &[&str]| {
            let values =
                lines.iter().map(|line| (header::IF_NONE_MATCH, HeaderValue::from_str(line).unwrap()));
            Known::of(&values.collect())
        };
        assert!(known(&["\"a\""]).has("\"a\""));
        assert!(known(&["\"x\", W/\"a\""]).has("\"a\""));
        assert!(known(&["\"x\"", "\"a\""]).has("W/\"a\""));
        assert!(known(&["*"]).has("\"a\""));
        for others in [&[][..], &["\"ab\""], &["a"], &[""], &["W/"]] {
            assert!(!known(others).has("\"a\""), "{others:?}");
        }
    }
}
