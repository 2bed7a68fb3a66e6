//! Answers that go on, line by line.

use super::{BODY_LIMIT, Base, Client, NoAnswer, refusal};
use crate::cli::failure::Failure;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Response};
use serde_json::Value;
use std::time::Duration;

/// The longest line that is taken: more than the largest row.
const LINE_LIMIT: usize = 2 << 30;

/// How long a sidecar may take to begin: a standby that is behind gives itself 5 s to catch up.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(8);

/// What a sidecar says to a request for a stream.
pub enum Opened {
    Stream(Lines),
    /// It refuses, with this status; the failure has its words.
    Refused(u16, Failure),
    /// It does not answer.
    Silent(String),
}

/// The lines of a stream.
pub struct Lines {
    body: Incoming,
    bytes: Vec<u8>,
    /// Where the next line begins, and up to where its end was looked for.
    begin: usize,
    searched: usize,
}

impl Lines {
    /// The next line without its end, if the bytes for it are here.
    pub fn ready(&mut self) -> Option<&[u8]> {
        match self.bytes[self.searched..].iter().position(|b| *b == b'\n') {
            Some(length) => {
                let end = self.searched + length;
                let line = &self.bytes[self.begin..end];
                (self.begin, self.searched) = (end + 1, end + 1);
                Some(line)
            }
            None => {
                self.bytes.drain(..self.begin);
                (self.begin, self.searched) = (0, self.bytes.len());
                None
            }
        }
    }

    /// Waits for more bytes; false: the stream has ended.
    ///
    /// # Errors
    /// The connection broke, or nothing came for so long.
    pub async fn more(&mut self, patience: Option<Duration>) -> Result<bool, String> {
        let frame = match patience {
            Some(patience) => tokio::time::timeout(patience, self.body.frame())
                .await
                .map_err(|_| format!("nothing came for {patience:?}"))?,
            None => self.body.frame().await,
        };
        let Some(frame) = frame else { return Ok(false) };
        if let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() {
            self.bytes.extend_from_slice(&data);
        }
        if self.bytes.len() > LINE_LIMIT {
            return Err("a line is longer than 2 GB".to_owned());
        }
        Ok(true)
    }
}

impl Client {
    /// The sidecars that were named.
    pub fn bases(&self) -> &[Base] {
        &self.bases
    }

    /// Asks one sidecar for a stream.
    pub async fn open(&self, base: &Base, path: &str, accept: &str) -> Opened {
        let request = match self.request(base, &Method::GET, path, None, accept) {
            Ok(request) => request,
            Err(failure) => return Opened::Refused(400, failure),
        };
        let response = match tokio::time::timeout(
            BEGIN_TIMEOUT.min(self.answer_timeout),
            self.send(base, request),
        )
        .await
        {
            Ok(Ok(response)) => response,
            Ok(Err(NoAnswer::Connect(why) | NoAnswer::Unknown(why))) => return Opened::Silent(why),
            Err(_) => return Opened::Silent("no answer in time".to_owned()),
        };
        let status = response.status().as_u16();
        if status == 200 {
            let body = response.into_body();
            return Opened::Stream(Lines { body, bytes: Vec::new(), begin: 0, searched: 0 });
        }
        Opened::Refused(status, refusal(base, status, &document(response).await))
    }

    /// Follows a stream of events until it ends or `each` returns false.
    ///
    /// # Errors
    /// The first node cannot be reached or refuses.
    pub async fn follow(&self, path: &str, mut each: impl FnMut(Value) -> bool) -> Result<(), Failure> {
        let Some(base) = self.bases.first() else { return Ok(()) };
        let unreachable =
            |why: String| Failure::unreachable("unreachable", format!("{base} does not answer: {why}"));
        let mut lines = match self.open(base, path, "text/event-stream").await {
            Opened::Stream(lines) => lines,
            Opened::Refused(_, failure) => return Err(failure),
            Opened::Silent(why) => return Err(unreachable(why)),
        };
        loop {
            while let Some(line) = lines.ready() {
                let Some(data) = line.strip_prefix(b"data:") else { continue };
                if let Ok(value) = serde_json::from_slice(data.trim_ascii())
                    && !each(value)
                {
                    return Ok(());
                }
            }
            if !lines.more(None).await.map_err(unreachable)? {
                return Ok(());
            }
        }
    }
}

async fn document(response: Response<Incoming>) -> Value {
    let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
    body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok()).unwrap_or(Value::Null)
}
