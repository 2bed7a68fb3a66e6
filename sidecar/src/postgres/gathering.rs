//! A connection that makes few messages of many: PostgreSQL sends each row of a COPY in a message of its own, and what a
//! client's library does for each message costs several times what the row itself does. Here the rows that came together
//! are one message. Nothing else is changed, nor is any row kept back.
//!
//! Messages of the server are a byte that says the kind, four bytes with the length (which counts itself), and the
//! content: "Message Formats" in PostgreSQL's documentation.

use bytes::{Buf, BufMut, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const COPY_DATA: u8 = b'd';
const HEADER: usize = 5;
/// Read at once. A message that is longer goes on as it comes.
const ROOM: usize = 64 * 1024;

/// See the module.
pub struct Gathering<S> {
    stream: S,
    room: Box<[u8]>,
    messages: Messages,
    ended: bool,
}

impl<S> Gathering<S> {
    pub fn new(stream: S) -> Gathering<S> {
        let room = vec![0; ROOM].into();
        Gathering { stream, room, messages: Messages::default(), ended: false }
    }
}

/// The bytes of a server on their way.
#[derive(Default)]
struct Messages {
    came: BytesMut,
    goes: BytesMut,
    /// So much of the message that is going on now has not come yet.
    rest: usize,
}

impl Messages {
    /// Moves what can go on to `goes`.
    fn gather(&mut self) {
        let mut group = None;
        loop {
            if self.rest > 0 {
                let here = self.rest.min(self.came.len());
                self.goes.extend_from_slice(&self.came[..here]);
                self.came.advance(here);
                self.rest -= here;
                if self.rest > 0 {
                    return;
                }
            }
            let Some(header) = self.came.first_chunk::<HEADER>() else { break };
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
            let content = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(HEADER - 1);
            if header[0] != COPY_DATA || content > ROOM {
                self.close(group.take());
                self.rest = content.saturating_add(HEADER);
                continue;
            }
            if self.came.len() < HEADER + content {
                break;
            }
            if group.is_none() {
                group = Some(self.goes.len());
                self.goes.put_bytes(0, HEADER);
            }
            self.goes.extend_from_slice(&self.came[HEADER..HEADER + content]);
            self.came.advance(HEADER + content);
        }
        self.close(group);
    }

    /// Writes the header of the message that begins here and has all that follows.
    fn close(&mut self, group: Option<usize>) {
        let Some(begin) = group else { return };
        let length = u32::try_from(self.goes.len() - begin - 1).unwrap_or(u32::MAX);
        self.goes[begin] = COPY_DATA;
        self.goes[begin + 1..begin + HEADER].copy_from_slice(&length.to_be_bytes());
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Gathering { stream, room, messages, ended } = self.get_mut();
        while messages.goes.is_empty() && !*ended {
            let mut more = ReadBuf::new(room);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut more))?;
            *ended = more.filled().is_empty();
            messages.came.extend_from_slice(more.filled());
            messages.gather();
            if *ended {
                // A message that is not whole: whoever reads finds out.
                let left = messages.came.split();
                messages.goes.unsplit(left);
            }
        }
        let count = messages.goes.len().min(buffer.remaining());
        buffer.put_slice(&messages.goes[..count]);
        messages.goes.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn message(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &length, content].concat()
    }

    /// Messages, with those of rows that follow each other made one.
    fn messages(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut all: Vec<(u8, Vec<u8>)> = Vec::new();
        while !bytes.is_empty() {
            let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            let (kind, content) = (bytes[0], &bytes[5..=length]);
            match all.last_mut() {
                Some((COPY_DATA, rows)) if kind == COPY_DATA => rows.extend_from_slice(content),
                _ => all.push((kind, content.to_vec())),
            }
            bytes = &bytes[length + 1..];
        }
        all
    }

    async fn through(bytes: &[u8], step: usize, room: usize) -> Vec<u8> {
        let (mut server, client) = tokio::io::duplex(256 * 1024);
        let sent = bytes.to_vec();
        let server = tokio::spawn(async move {
            for part in sent.chunks(step) {
                server.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let (mut stream, mut all, mut part) = (Gathering::new(client), Vec::new(), vec![0; room]);
        loop {
            match stream.read(&mut part).await.unwrap() {
                0 => break,
                count => all.extend_from_slice(&part[..count]),
            }
        }
        server.await.unwrap();
        all
    }

    #[tokio::test]
    async fn rows_are_gathered_and_nothing_else_is_changed() {
        let long = vec![b'x'; 3 * ROOM];
        let mut bytes = message(b'R', &[0; 4]);
        bytes.extend(message(b'H', &[0, 0, 1, 0, 0]));
        for number in 0..1000 {
            bytes.extend(message(COPY_DATA, format!("{number}\trow\n").as_bytes()));
        }
        bytes.extend(message(COPY_DATA, b""));
        bytes.extend(message(COPY_DATA, &long));
        bytes.extend(message(COPY_DATA, b"last\n"));
        bytes.extend(message(b'c', b""));
        bytes.extend(message(b'D', &long));
        bytes.extend(message(b'Z', b"I"));
        for (step, room) in [(1, 1), (3, 7), (4096, 100), (1 << 20, 1 << 20)] {
            let passed = through(&bytes, step, room).await;
            assert_eq!(messages(&passed), messages(&bytes), "{step} by {room}");
        }
        let gathered = through(&bytes, 1 << 20, 1 << 20).await;
        assert!(gathered.len() < bytes.len() - 4000, "{} of {}", gathered.len(), bytes.len());
    }

    #[tokio::test]
    async fn what_is_cut_off_is_passed_on_as_it_is() {
        for cut in [message(COPY_DATA, b"a row\n"), message(b'D', b"abc")] {
            for length in 0..=cut.len() {
                let bytes = [&message(COPY_DATA, b"x\n"), &cut[..length]].concat();
                let passed = through(&bytes, bytes.len(), 100).await;
                let whole = if length == cut.len() { messages(&bytes) } else { Vec::new() };
                match length == cut.len() {
                    true => assert_eq!(messages(&passed), whole),
                    false => assert_eq!(passed, bytes),
                }
            }
        }
    }

    #[tokio::test]
    async fn a_row_does_not_wait_for_the_next() {
        let (mut server, client) = tokio::io::duplex(1024);
        let mut stream = Gathering::new(client);
        let row = message(COPY_DATA, b"first\n");
        server.write_all(&[&row[..], &row[..3]].concat()).await.unwrap();
        let mut part = vec![0; row.len()];
        stream.read_exact(&mut part).await.unwrap();
        assert_eq!(part, row);
    }
}
