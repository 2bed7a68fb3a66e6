//! Messages to this session's client, written past PostgreSQL's error reports.
//!
//! A session that waits for its standbys can raise nothing: its transaction is committed already. What it has to say
//! goes straight into the connection, never blocks, and is plain ASCII, so that no conversion can fail.

use std::ffi::{c_char, c_int};

use pgrx::pg_sys;

/// A message of the protocol's `ErrorResponse` or `NoticeResponse`.
pub struct Message {
    pub severity: &'static str,
    pub code: &'static str,
    pub message: &'static str,
    pub detail: &'static str,
    pub hint: &'static str,
}

/// libpq/libpq.h; the same in PostgreSQL 14 to 18, missing from pgrx's bindings.
#[repr(C)]
struct CommMethods {
    comm_reset: unsafe extern "C-unwind" fn(),
    flush: unsafe extern "C-unwind" fn() -> c_int,
    flush_if_writable: unsafe extern "C-unwind" fn() -> c_int,
    is_send_pending: unsafe extern "C-unwind" fn() -> bool,
    putmessage: unsafe extern "C-unwind" fn(c_char, *const c_char, usize) -> c_int,
    putmessage_noblock: unsafe extern "C-unwind" fn(c_char, *const c_char, usize),
}

unsafe extern "C-unwind" {
    static PqCommMethods: *const CommMethods;
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        let fields = [
            (b'S', self.severity),
            (b'V', self.severity),
            (b'C', self.code),
            (b'M', self.message),
            (b'D', self.detail),
            (b'H', self.hint),
        ];
        let mut bytes = Vec::new();
        for (kind, text) in fields {
            bytes.push(kind);
            bytes.extend(text.bytes().filter(|byte| byte.is_ascii() && *byte != 0));
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }
}

/// Is there a client that hears this session?
fn listens() -> bool {
    // SAFETY: plain globals of this process.
    unsafe { pg_sys::whereToSendOutput == pg_sys::CommandDest::DestRemote && !pg_sys::MyProcPort.is_null() }
}

/// Sends a notice, as far as the connection takes it now.
pub fn notify(message: &Message) {
    if listens() {
        send(b'N', message);
    }
}

/// Sends an error as the last word: what comes later, whatever it is, does not reach the client.
pub fn end_with(message: &Message) {
    if listens() {
        send(b'E', message);
        // SAFETY: a global of this process.
        unsafe { pg_sys::whereToSendOutput = pg_sys::CommandDest::DestNone }
    }
}

/// Closes our direction of the connection, so that a client that waits for more sees its end. Some clients forget an
/// error that arrives together with the end, so there should be a moment between them.
pub fn hang_up() {
    // SAFETY: the socket is the first member of the port in PostgreSQL 14 to 18. What the client has sent may stay
    // unread, but must not reset the connection before the client has read ours; so only one direction is closed.
    unsafe {
        if !pg_sys::MyProcPort.is_null() {
            libc::shutdown(*pg_sys::MyProcPort.cast::<c_int>(), libc::SHUT_WR);
        }
    }
}

fn send(kind: u8, message: &Message) {
    let bytes = message.bytes();
    // SAFETY: the methods are set before a client is served; the buffer outlives the calls. Neither call waits.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            ((*PqCommMethods).putmessage_noblock)(kind as c_char, bytes.as_ptr().cast(), bytes.len());
            ((*PqCommMethods).flush_if_writable)();
        });
    }
}
