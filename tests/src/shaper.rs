//! A bad line in a program: packets are taken from the router, held up or lost, and given back to it. The kernel's own
//! netem would do the same, but many kernels are built without it; a TUN device they all have.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The device in the router's namespace.
pub(crate) const DEVICE: &str = "late";
/// More than any link here carries in its longest delay; what is beyond is lost, as in a router.
const HELD: usize = 20_000;

/// What a line does to packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Of a thousand packets this many are lost.
    pub loss: u32,
    pub delay: Duration,
    /// Up to this much more, for each packet anew, so packets overtake each other.
    pub jitter: Duration,
}

type Shapes = Arc<Mutex<BTreeMap<(Ipv4Addr, Ipv4Addr), Shape>>>;

/// What is known of lines, by sender and receiver. The thread that carries packets ends with its runtime.
pub(crate) struct Shaper {
    shapes: Shapes,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Shaper {
    /// Carries packets of the namespace that `enter` steps into.
    ///
    /// # Errors
    /// There can be no such device.
    pub(crate) fn start(enter: impl FnOnce() + Send + 'static) -> Result<Shaper, String> {
        let shapes = Shapes::default();
        let (end, ended) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let own = shapes.clone();
        let work = move || {
            enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async {
                let made = tokio_tun::Tun::builder().name(DEVICE).up().build();
                let tun = match made.map(|mut all| all.pop()) {
                    Ok(Some(tun)) => tun,
                    Ok(None) => return drop(ready.send(Err("no device".to_owned()))),
                    Err(e) => return drop(ready.send(Err(e.to_string()))),
                };
                let _ = ready.send(Ok(()));
                tokio::select! {
                    () = carry(&tun, &own) => {}
                    _ = ended => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("shaper".to_owned()).spawn(work);
        let thread = thread.map_err(|e| e.to_string())?;
        is_ready.recv().map_err(|e| e.to_string())?.map_err(|e| format!("a TUN device: {e}"))?;
        Ok(Shaper { shapes, end: Some(end), thread: Some(thread) })
    }

    pub(crate) fn set(&self, from: Ipv4Addr, to: Ipv4Addr, shape: Shape) {
        self.shapes.lock().expect("not poisoned").insert((from, to), shape);
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let _ = end.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn carry(tun: &tokio_tun::Tun, shapes: &Shapes) {
    let mut held: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>> = BinaryHeap::new();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut number = 0;
    let mut buffer = vec![0_u8; 65_536];
    loop {
        let next = held.peek().map(|Reverse((due, _, _))| *due);
        tokio::select! {
            () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {
                if let Some(Reverse((_, _, packet))) = held.pop() {
                    let _ = tun.send(&packet).await;
                }
            }
            read = tun.recv(&mut buffer) => {
                let Ok(length) = read else { return };
                let packet = &buffer[..length];
                let shape = addresses(packet).and_then(|pair| shapes.lock().expect("not poisoned").get(&pair).copied());
                let shape = shape.unwrap_or_default();
                if chance.below(1000) < u64::from(shape.loss) || held.len() >= HELD {
                    continue;
                }
                let jitter = chance.below(shape.jitter.as_micros() as u64 + 1);
                number += 1;
                held.push(Reverse((Instant::now() + shape.delay + Duration::from_micros(jitter), number, packet.to_vec())));
            }
        }
    }
}

/// Sender and receiver of an IPv4 packet.
fn addresses(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let at = |from: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = packet.get(from..from + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    (packet.first()? >> 4 == 4).then_some((at(12)?, at(16)?))
}

/// xorshift; which packet is lost need not be repeatable, since their order is not.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }
}
