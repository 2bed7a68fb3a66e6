//! The header that follows a request from server to server: `<uuid>@<step>/<date>`. Whoever receives it raises the step.

use super::unix_ms;
use super::wire::{time, uuid};

pub const HEADER: &str = "x-correlation-id";

/// Longer ones are not passed on.
const BYTES_MAX: usize = 200;

/// What is passed on for a request that came with this header, or without one.
pub fn received(header: Option<&str>) -> String {
    let usable = |text: &&str| text.len() <= BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
    let fresh = || uuid(rand::random());
    let Some(header) = header.filter(usable) else { return format!("{}@0/{}", fresh(), time(unix_ms())) };
    let (place, date) = header.split_once('/').unwrap_or((header, ""));
    let (id, step) = match place.split_once('@') {
        Some((id, step)) => (id, step.parse::<u32>().map_or(0, |step| step.saturating_add(1))),
        None => (place, 0),
    };
    let id = if id.is_empty() { fresh() } else { id.to_owned() };
    let date = if date.is_empty() { time(unix_ms()) } else { date.to_owned() };
    format!("{id}@{step}/{date}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_counted() {
        let first = received(None);
        let (id, rest) = first.split_once('@').unwrap();
        assert!(id.len() == 36 && rest.starts_with("0/20"), "{first}");
        assert_eq!(received(Some(&first)), first.replace("@0/", "@1/"));
        assert_eq!(received(Some("a@41/then")), "a@42/then");
        assert_eq!(received(Some("a@x/then")), "a@0/then");
        assert!(received(Some("a")).starts_with("a@0/20"));
        assert!(received(Some("@7/")).contains("@8/20"));
        for bad in ["a b", "a\r\nx: y", "ä", &"a".repeat(201)] {
            assert!(received(Some(bad)).contains("@0/20"), "{bad}");
        }
    }
}
