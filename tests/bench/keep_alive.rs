//! HTTP/1.1 over connections that stay open, as small as a measurement wants it: one request after the other on each.

use std::io::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Connections that were opened before the clock runs.
pub struct Pool {
    connections: Vec<TcpStream>,
    to: SocketAddr,
}

/// Latencies of all requests of one slice, in seconds.
pub struct Slice {
    pub latencies: Vec<f64>,
    pub took: Duration,
}

/// What is asked, and with which status it is answered.
#[derive(Clone)]
pub struct Question {
    pub path: String,
    /// Further lines of the head, each with its end.
    pub fields: String,
    pub status: u16,
}

impl Question {
    /// The path as it is; the answer is 200.
    pub fn of(path: &str) -> Question {
        Question { path: path.to_owned(), fields: String::new(), status: 200 }
    }
}

impl Pool {
    pub async fn open(to: SocketAddr, size: usize) -> Result<Pool, Error> {
        let mut connections = Vec::new();
        for _ in 0..size {
            let connection = TcpStream::connect(to).await?;
            connection.set_nodelay(true)?;
            connections.push(connection);
        }
        Ok(Pool { connections, to })
    }

    /// Asks for the same path on all connections until the time is over.
    ///
    /// # Errors
    /// A connection breaks, or an answer is not 200.
    pub async fn ask(&mut self, path: &str, how_long: Duration) -> Result<Slice, Error> {
        self.ask_question(&Question::of(path), how_long).await
    }

    /// The same with fields, and any status.
    ///
    /// # Errors
    /// As [`Pool::ask`].
    pub async fn ask_question(&mut self, question: &Question, how_long: Duration) -> Result<Slice, Error> {
        let Question { path, fields, status } = question;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{fields}\r\n", self.to);
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for connection in self.connections.drain(..) {
            tasks.spawn(ask_until(connection, request.clone(), *status, start + how_long));
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            let (connection, seen) = done.map_err(Error::other)??;
            latencies.extend(seen);
            self.connections.push(connection);
        }
        Ok(Slice { latencies, took: start.elapsed() })
    }
}

async fn ask_until(
    mut connection: TcpStream,
    request: String,
    status: u16,
    end: Instant,
) -> Result<(TcpStream, Vec<f64>), Error> {
    let mut latencies = Vec::new();
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut now = Instant::now();
    while now < end {
        connection.write_all(request.as_bytes()).await?;
        answer(&mut connection, &mut buffer, status).await?;
        let then = Instant::now();
        latencies.push((then - now).as_secs_f64());
        now = then;
    }
    Ok((connection, latencies))
}

/// Reads one whole answer.
async fn answer(connection: &mut TcpStream, buffer: &mut Vec<u8>, status: u16) -> Result<(), Error> {
    buffer.clear();
    loop {
        if connection.read_buf(buffer).await? == 0 {
            return Err(Error::other("the server closed the connection"));
        }
        if let Some(whole) = length(buffer, status)?
            && buffer.len() >= whole
        {
            return Ok(());
        }
    }
}

/// How long the whole answer is, as soon as its head is there.
fn length(answer: &[u8], status: u16) -> Result<Option<usize>, Error> {
    let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&answer[..head]).map_err(Error::other)?;
    if !text.starts_with(&format!("HTTP/1.1 {status}")) {
        return Err(Error::other(format!("not {status}: {}", text.lines().next().unwrap_or_default())));
    }
    // It has no body, whatever it says of the length that another answer would have.
    if status == 304 {
        return Ok(Some(head + 4));
    }
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    };
    let body =
        text.lines().find_map(value).ok_or_else(|| Error::other("an answer without content-length"))?;
    Ok(Some(head + 4 + body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is_there() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(length(answer, 200).unwrap(), Some(answer.len()));
        assert_eq!(length(&answer[..20], 200).unwrap(), None);
        assert!(length(b"HTTP/1.1 417 X\r\ncontent-length: 0\r\n\r\n", 200).is_err());
        let same = b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n";
        assert_eq!(length(same, 304).unwrap(), Some(same.len()));
    }
}
