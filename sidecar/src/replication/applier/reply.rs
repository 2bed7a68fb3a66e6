//! What the other server answers.

use super::fault::{Fault, Result};
use bytes::Bytes;
use hyper::HeaderMap;

/// An answer that is not a refusal.
#[derive(Debug)]
pub struct Reply {
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The log of the node that answered ends before what was asked for, and this is why another node, which may have it, could
    /// not be asked.
    pub unasked: Option<Fault>,
}

impl Reply {
    /// A field that says where the lines are.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(format!("x-arango-replication-{name}"))?.to_str().ok()
    }

    pub fn tick(&self, name: &str) -> Option<u64> {
        self.field(name)?.trim().parse().ok()
    }

    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.field(name)? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// The log of the node that answered ends before this tick.
    pub fn is_behind(&self, from: u64) -> bool {
        self.flag("frompresent") == Some(false) && self.tick("lasttick").is_some_and(|last| last < from)
    }

    /// The lines, each whole.
    ///
    /// # Errors
    /// The last one has no end: the answer was cut off.
    pub fn lines(&self) -> Result<impl Iterator<Item = &str>> {
        let text = std::str::from_utf8(&self.body).map_err(|_| Fault::invalid("lines that are no UTF-8"))?;
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(Fault::invalid("the last line has no end, so the answer was cut off"));
        }
        Ok(text.lines().filter(|line| !line.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_where_its_lines_are() {
        let mut headers = HeaderMap::new();
        headers.insert("x-arango-replication-lastincluded", "18446744073709551615".parse().unwrap());
        headers.insert("x-arango-replication-checkmore", "true".parse().unwrap());
        let reply = Reply { headers, body: Bytes::from_static(b"{}\n{}\n"), unasked: None };
        assert_eq!((reply.tick("lastincluded"), reply.flag("checkmore")), (Some(u64::MAX), Some(true)));
        assert_eq!((reply.tick("lasttick"), reply.flag("frompresent")), (None, None));
        assert_eq!(reply.lines().unwrap().count(), 2);
        let cut = Reply { headers: HeaderMap::new(), body: Bytes::from_static(b"{}\n{"), unasked: None };
        assert_eq!(cut.lines().err().unwrap().number, 1401);
    }
}
