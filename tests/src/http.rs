//! One HTTP request over one connection, as plain as the tests need it.

use serde_json::Value;
use std::io::{Error, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longer than the sidecar takes at most to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends a request to `http://127.0.0.1:port`; returns status and JSON, or the text as a JSON string.
///
/// # Errors
/// No connection, or no proper answer in time.
pub fn request(port: u16, method: &str, path: &str, body: Option<&str>) -> Result<(u16, Value), Error> {
    request_to(SocketAddr::from(([127, 0, 0, 1], port)), None, method, path, body)
}

/// The same to any address, with the cluster's token if there is one.
///
/// # Errors
/// No connection, or no proper answer in time.
pub fn request_to(
    to: SocketAddr,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<(u16, Value), Error> {
    request_within(ANSWER_TIMEOUT, to, token, method, path, body)
}

/// The same for those who cannot wait that long for the answer.
///
/// # Errors
/// As [`request_to`].
pub fn request_within(
    limit: Duration,
    to: SocketAddr,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<(u16, Value), Error> {
    let body = body.unwrap_or_default();
    let token = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-type: application/json\r\n{token}\
         content-length: {}\r\n\r\n",
        body.len()
    );
    exchange(limit, to, &(head + body))
}

/// Sends this text as it is to `127.0.0.1:port`, and nothing more; returns the status of the answer and its body.
///
/// # Errors
/// No connection, or no proper answer in time.
pub fn request_raw(port: u16, text: &str) -> Result<(u16, Value), Error> {
    exchange(ANSWER_TIMEOUT, SocketAddr::from(([127, 0, 0, 1], port)), text)
}

/// One connection: sends the text, reads until the other side closes.
fn exchange(limit: Duration, to: SocketAddr, text: &str) -> Result<(u16, Value), Error> {
    let mut stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT.min(limit))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    // A server that refuses a large body answers before it has read it all.
    let sent = stream.write_all(text.as_bytes());
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if answer.is_empty() {
        sent?;
        read?;
    }
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| Error::other("not an HTTP answer"))
}

fn parse(answer: &str) -> Option<(u16, Value)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunk(body) } else { body.to_owned() };
    Some((status, serde_json::from_str(&body).unwrap_or(Value::String(body))))
}

fn dechunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Some(size) = usize::from_str_radix(size.trim(), 16).ok().filter(|n| *n > 0) else { break };
        body.push_str(after.get(..size).unwrap_or(after));
        rest = after.get(size..).unwrap_or_default().trim_start_matches("\r\n");
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_and_without_chunks() {
        let plain = "HTTP/1.1 417\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(parse(plain).unwrap(), (417, serde_json::json!({"a": 1})));
        let chunked =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap(), (200, serde_json::json!({"a": 1})));
        assert!(parse("nonsense").is_none());
    }
}
