//! What is known of a session while it logs in.

use std::ffi::{CStr, c_char, c_int};

use pgrx::pg_sys;

/// Is it a standby or a copy, i.e. physical replication?
pub fn is_replication() -> bool {
    // SAFETY: plain globals of this process.
    unsafe { pg_sys::am_walsender && !pg_sys::am_db_walsender }
}

/// Does the session seem to ask to bypass the fence? Only when PostgreSQL has taken the options it is known for sure.
pub fn asks_to_bypass_fence() -> bool {
    const BYPASS: &[u8] = b"pgquorum.bypass_fence=on";

    /// The beginning of `Port` (libpq/libpq-be.h), which pgrx's bindings leave out.
    #[repr(C)]
    struct Port {
        sock: c_int,
        noblock: bool,
        proto: u32,
        laddr: SockAddr,
        raddr: SockAddr,
        remote_host: *mut c_char,
        remote_hostname: *mut c_char,
        remote_hostname_resolv: c_int,
        remote_hostname_errcode: c_int,
        remote_port: *mut c_char,
        #[cfg(any(feature = "pg14", feature = "pg15", feature = "pg16"))]
        can_accept_connections: c_int,
        #[cfg(feature = "pg18")]
        local_host: [c_char; 64],
        database_name: *mut c_char,
        user_name: *mut c_char,
        cmdline_options: *mut c_char,
    }

    #[repr(C)]
    struct SockAddr {
        addr: libc::sockaddr_storage,
        salen: libc::socklen_t,
    }

    // SAFETY: the port is set before a client is authenticated and lives as long as the session; the options are null
    // or a string.
    let options = unsafe {
        if pg_sys::MyProcPort.is_null() {
            return false;
        }
        let options = (*pg_sys::MyProcPort.cast::<Port>()).cmdline_options;
        if options.is_null() {
            return false;
        }
        CStr::from_ptr(options)
    };
    options.to_bytes().windows(BYPASS.len()).any(|window| window == BYPASS)
}
