//! A server that answers as a test tells it: a provider of ArangoDB's replication interface that can lie.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub status: u16,
    /// Without the `x-arango-replication-` in front of their names.
    pub fields: Vec<(&'static str, String)>,
    pub body: String,
}

impl Said {
    pub fn json(body: impl ToString) -> Said {
        Said { status: 200, fields: Vec::new(), body: body.to_string() }
    }
}

type Answers = dyn FnMut(&str) -> Said + Send;

/// The server; it ends when this is dropped.
pub struct FakeRemote {
    address: SocketAddr,
    answers: Arc<Mutex<Box<Answers>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeRemote {
    /// Answers each request by its line, `GET /path?query`.
    ///
    /// # Panics
    /// No port is to be had.
    pub fn start(answers: impl FnMut(&str) -> Said + Send + 'static) -> FakeRemote {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let answers: Arc<Mutex<Box<Answers>>> = Arc::new(Mutex::new(Box::new(answers)));
        let over = Arc::new(AtomicBool::new(false));
        let (asked, ended) = (Arc::clone(&answers), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                // One that is broken off is nobody's business here.
                let _ = stream.and_then(|stream| serve(stream, &asked));
            }
        });
        FakeRemote { address, answers, over, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// From now on it answers like this.
    pub fn answer(&self, answers: impl FnMut(&str) -> Said + Send + 'static) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(answers);
    }
}

impl Drop for FakeRemote {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the one who waits for connections.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, answers: &Mutex<Box<Answers>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let head = loop {
        if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&buffer[..n]),
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).into_owned();
    let length = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, value)| value.trim().parse::<usize>().ok()).unwrap_or(0);
    while request.len() < head + length {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    let line = text.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1");
    let said = {
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers(line)
    };
    let fields: String =
        said.fields.iter().map(|(name, value)| format!("x-arango-replication-{name}: {value}\r\n")).collect();
    let answer = format!(
        "HTTP/1.1 {} said\r\ncontent-length: {}\r\nconnection: close\r\n{fields}\r\n{}",
        said.status,
        said.body.len(),
        said.body
    );
    stream.write_all(answer.as_bytes())
}
