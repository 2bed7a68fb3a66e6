//! Asking the server's first process for a new session, now and then. The sidecar's own sessions are open, and their
//! processes answer while the postmaster stands still; only who knocks learns that nobody opens.
//!
//! What is asked is whether TLS is spoken here. A new process of the server answers that before it looks at anything
//! else: so neither a full `max_connections`, nor a server in recovery, nor a slow authentication is taken for one that
//! stands still. No session comes of it, and no line in the server's log.
//!
//! The server starts a process for each that knocks, which costs as much as all else that a quiet node does in a second. So
//! it is knocked at once where the kernel says that the postmaster is anything but asleep (stopped, waiting for a disk, or
//! at work), and else, now and then, because one that sleeps may never wake.

use super::process::{self, Postmaster, Status};
use super::state::Inner;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_secs(1);
/// As long a postmaster that sleeps, as it should, is not asked.
const ASLEEP: Duration = Duration::from_secs(5);
/// The kernel's queue of those who wait for the postmaster is full: a moment later it may not be.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(50);
/// Length and number of PostgreSQL's request for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Which server has been asked for a session since when, without an answer.
#[derive(Debug, Default)]
pub struct Door(Mutex<Option<(Postmaster, Instant)>>);

impl Door {
    fn asked(&self, of: Postmaster) {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A later attempt at the same door does not begin the wait anew.
        if asked.is_none_or(|(before, _)| before != of) {
            *asked = Some((of, Instant::now()));
        }
    }

    fn settled(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// For how long there has been no answer.
    pub fn waits(&self) -> Duration {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.map_or(Duration::ZERO, |(_, at)| at.elapsed())
    }
}

/// Knocks until the supervisor ends.
pub async fn run(inner: Arc<Inner>) {
    let socket = inner.config.socket_dir.join(format!(".s.PGSQL.{}", inner.config.port));
    let mut answered: Option<(Postmaster, Instant)> = None;
    loop {
        // A server that starts or stops takes no sessions, and says so where it can.
        let data_dir = &inner.config.data_dir;
        let ready = |of: &Postmaster| process::status_of(*of, data_dir) == Some(Status::Ready);
        let Some(postmaster) = inner.postmaster().filter(ready) else {
            inner.door.settled();
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let lately = answered.is_some_and(|(by, at)| by == postmaster && at.elapsed() < ASLEEP);
        if lately && postmaster.sleeps() {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        inner.door.asked(postmaster);
        // One that hangs proves nothing, its process may have been hit by something; so another one is tried.
        match tokio::time::timeout(inner.patience(), knock(&socket)).await {
            Ok(answer) => {
                inner.door.settled();
                match answer {
                    Ok(()) => answered = Some((postmaster, Instant::now())),
                    Err(error) => tracing::debug!(%error, "knocking at the server"),
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(_) => tracing::debug!(pid = postmaster.pid, "the server lets nobody in"),
        }
    }
}

/// Returns when the server has answered, whatever it said. A connection that is closed is an answer: who stands still
/// closes none.
///
/// # Errors
/// There is nobody to ask.
async fn knock(socket: &Path) -> io::Result<()> {
    let mut stream = loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(QUEUE_FULL_PAUSE).await;
            }
            connected => break connected?,
        }
    };
    stream.write_all(&SSL_REQUEST).await?;
    stream.read(&mut [0]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const SOON: Duration = Duration::from_secs(5);

    async fn answers(socket: &Path, within: Duration) -> Option<io::Result<()>> {
        tokio::time::timeout(within, knock(socket)).await.ok()
    }

    #[tokio::test]
    async fn any_answer_opens_and_silence_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        assert!(answers(&socket, SOON).await.unwrap().is_err(), "there is nobody");

        let listener = UnixListener::bind(&socket).unwrap();
        assert!(answers(&socket, Duration::from_millis(100)).await.is_none(), "nobody has accepted it");
        drop(listener.accept().await.unwrap());

        let server = tokio::spawn(async move {
            let (mut polite, _) = listener.accept().await.unwrap();
            let mut asked = [0; 8];
            polite.read_exact(&mut asked).await.unwrap();
            polite.write_all(b"N").await.unwrap();
            // The next one is accepted and closed without a word.
            drop(listener.accept().await.unwrap());
            asked
        });
        assert!(answers(&socket, SOON).await.unwrap().is_ok());
        assert!(answers(&socket, SOON).await.is_some());
        assert_eq!(server.await.unwrap(), SSL_REQUEST);
    }

    #[tokio::test]
    async fn a_queue_that_is_full_is_silence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let _nobody = socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = UnixStream::connect(&path).await {
            waiting.push(stream);
        }
        assert!(answers(&path, Duration::from_millis(200)).await.is_none());
    }

    #[test]
    fn the_wait_counts_from_the_first_attempt_at_this_server() {
        let own = Postmaster::of(std::process::id()).unwrap();
        let door = Door::default();
        door.asked(own);
        *door.0.lock().unwrap() = Instant::now().checked_sub(SOON).map(|at| (own, at));
        door.asked(own);
        assert!(door.waits() >= SOON);
        let init = Postmaster::of(1).unwrap();
        door.asked(init);
        assert!(door.waits() < SOON, "another server has not been asked before");
        door.settled();
        assert_eq!(door.waits(), Duration::ZERO);
    }
}
