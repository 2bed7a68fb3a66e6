//! Ports for servers of tests.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// A base port such that no port of the cluster, grown by three nodes, is in use. Never the same one twice in a process.
pub(crate) fn free_base_port(nodes: usize) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = (std::process::id() % 40) as u16 * 200;
    let count = nodes as u16 + 3;
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut bases = (0..200).map(|_| 20_000 + (spread + NEXT.fetch_add(200, Ordering::Relaxed)) % 12_000);
    let found = bases.find(|base| (1..=count).all(|i| free(base + i) && free(base + 100 + i)));
    found.expect("free ports")
}

/// Ports that nobody uses and that this process has not been given before.
///
/// # Panics
/// There are none.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let base = free_base_port(N);
    std::array::from_fn(|i| base + 1 + i as u16)
}
