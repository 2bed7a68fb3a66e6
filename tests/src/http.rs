//! One HTTP request over one connection, as plain as the tests need it.

use crate::Authority;
use serde_json::Value;
use std::io::{Error, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longer than the sidecar takes at most to answer, also where it is told to wait for a minute.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

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
    let text = with_token(to, token, method, path, body);
    exchange(limit, to, &text).map(|answer| (answer.status, answer.body))
}

/// The same over TLS, to one who shows a certificate of this authority.
///
/// # Errors
/// As [`request_to`]; or its certificate is not good.
pub fn request_over_tls(
    authority: &Authority,
    to: SocketAddr,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<(u16, Value), Error> {
    let text = with_token(to, token, method, path, body);
    let stream = authority.encrypt(connect(ANSWER_TIMEOUT, to)?)?;
    exchange_over(stream, &text).map(|answer| (answer.status, answer.body))
}

fn with_token(to: SocketAddr, token: Option<&str>, method: &str, path: &str, body: Option<&str>) -> String {
    let body = body.unwrap_or_default();
    let token = token.map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-type: application/json\r\n{token}\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// What a user shows to be let in: the header `Authorization`.
#[derive(Clone, Debug)]
pub struct Login(String);

impl Login {
    pub fn basic(name: &str, password: &str) -> Login {
        Login(format!("Basic {}", base64(format!("{name}:{password}").as_bytes())))
    }

    pub fn bearer(token: &str) -> Login {
        Login(format!("Bearer {token}"))
    }
}

/// The request of a user, to `127.0.0.1:port`.
///
/// # Errors
/// No connection, or no proper answer in time.
pub fn request_as(
    login: &Login,
    port: u16,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Result<(u16, Value), Error> {
    let (to, body) = (SocketAddr::from(([127, 0, 0, 1], port)), body.unwrap_or_default());
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         authorization: {}\r\ncontent-length: {}\r\n\r\n",
        login.0,
        body.len()
    );
    exchange(ANSWER_TIMEOUT, to, &(head + body)).map(|answer| (answer.status, answer.body))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = |three: &[u8]| {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
        (0..4)
            .map(move |i| match i <= three.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]),
                false => '=',
            })
            .collect::<String>()
    };
    bytes.chunks(3).map(digits).collect()
}

/// GET from `127.0.0.1:port` with further header fields, for those who need the answer's own fields.
///
/// # Errors
/// No connection, or no proper answer in time.
pub fn get_with(limit: Duration, port: u16, path: &str, fields: &[(&str, &str)]) -> Result<Answer, Error> {
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    exchange(limit, to, &format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n{fields}\r\n"))
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// JSON, or the text as a JSON string.
    pub body: Value,
    head: String,
}

impl Answer {
    /// A header field, as it was sent.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Sends this text as it is to `127.0.0.1:port`, and nothing more; returns the status of the answer and its body.
///
/// # Errors
/// No connection, or no proper answer in time.
pub fn request_raw(port: u16, text: &str) -> Result<(u16, Value), Error> {
    let answer = exchange(ANSWER_TIMEOUT, SocketAddr::from(([127, 0, 0, 1], port)), text)?;
    Ok((answer.status, answer.body))
}

/// One connection: sends the text, reads until the other side closes.
fn exchange(limit: Duration, to: SocketAddr, text: &str) -> Result<Answer, Error> {
    exchange_over(connect(limit, to)?, text)
}

fn connect(limit: Duration, to: SocketAddr) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT.min(limit))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

fn exchange_over(mut stream: impl Read + Write, text: &str) -> Result<Answer, Error> {
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

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunk(body) } else { body.to_owned() };
    let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
    Some(Answer { status, body, head: head.to_owned() })
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
    fn logins_are_written_as_in_rfc_7617() {
        assert_eq!(Login::basic("Aladdin", "open sesame").0, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
        assert_eq!(base64(b"fooba"), "Zm9vYmE=");
    }

    #[test]
    fn answers_are_read_with_and_without_chunks() {
        let read = |text| parse(text).map(|answer| (answer.status, answer.body)).unwrap();
        let plain = "HTTP/1.1 417\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(read(plain), (417, serde_json::json!({"a": 1})));
        assert_eq!(parse(plain).unwrap().field("Content-Length"), Some("7"));
        let chunked =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n";
        assert_eq!(read(chunked), (200, serde_json::json!({"a": 1})));
        assert!(parse("nonsense").is_none());
    }
}
