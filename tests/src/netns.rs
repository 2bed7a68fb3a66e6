//! Machines that are network namespaces: one a node, one for the client, and a router between them that can drop packets
//! from one to another without a sound, in one direction or in both. Neither side sees a closed connection or an error,
//! as when a switch dies. Needs root and `ip`; addresses are used inside these namespaces only.

use crate::shaper::{DEVICE, Shape, Shaper};
use crate::user::{SERVER_USER, is_root};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once};
use tokio::signal::unix::{SignalKind, signal};

/// The client's place in the network; nodes have their own numbers.
pub const CLIENT: u64 = 100;

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
const SUBNET: &str = "10.77.0.0/24";
/// Names begin with this and the number of the process that made them.
const PREFIX: &str = "pgqtest";

/// Namespaces and what is dropped between them. All are removed, with the processes in them, when this is dropped.
pub struct Network {
    tag: String,
    places: Vec<u64>,
    dropped: Mutex<Vec<(u64, u64)>>,
    shaped: Mutex<Vec<(u64, u64)>>,
    shaper: Mutex<Option<Shaper>>,
    environment: Mutex<Vec<(u64, String, String)>>,
}

/// Its only route leads to the shaper.
const SHAPED_TABLE: &str = "77";

impl Network {
    /// Why there can be no namespaces here, if so.
    pub fn refused() -> Option<String> {
        if !is_root() {
            return Some("network namespaces need root".to_owned());
        }
        // Tests that look at the same time do not take each other's place for a refusal.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}-{}-try{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = ip(&["netns", "add", &name]);
        let _ = ip(&["netns", "del", &name]);
        made.err()
    }

    /// A network with nodes 1 to `nodes` and the client, in which everybody reaches everybody.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(nodes: u64) -> Network {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static WATCHED: Once = Once::new();
        WATCHED.call_once(end_with_this_process);
        remove_left_overs();
        let tag = format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let places = (1..=nodes).chain([CLIENT]).collect();
        let network = Network {
            tag,
            places,
            dropped: Mutex::default(),
            shaped: Mutex::default(),
            shaper: Mutex::default(),
            environment: Mutex::default(),
        };
        let router = network.router();
        must(&["netns", "add", &router]);
        must(&["-n", &router, "link", "set", "lo", "up"]);
        for place in &network.places {
            network.connect(*place);
        }
        let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        network.inside_of(&router, forward).expect("forwarding between the namespaces");
        network
    }

    /// The places are not on one wire but behind a router, because a router can be told by sender and receiver what to
    /// drop. The address still says that they share a subnet: that is what rules for neighbours go by.
    fn connect(&self, place: u64) {
        let (router, space) = (self.router(), self.namespace(place));
        let (port, address) = (format!("to{place}"), self.address(place));
        let (gateway, host) = (format!("{ROUTER}/32"), format!("{address}/32"));
        let (inside, via) = (format!("{address}/24"), ROUTER.to_string());
        must(&["netns", "add", &space]);
        must(&[
            "link", "add", &port, "netns", &router, "type", "veth", "peer", "name", "eth0", "netns", &space,
        ]);
        must(&["-n", &router, "link", "set", &port, "up"]);
        must(&["-n", &router, "addr", "add", &gateway, "dev", &port]);
        must(&["-n", &router, "route", "add", &host, "dev", &port]);
        must(&["-n", &space, "link", "set", "lo", "up"]);
        must(&["-n", &space, "link", "set", "eth0", "up"]);
        must(&["-n", &space, "addr", "add", &inside, "dev", "eth0", "noprefixroute"]);
        must(&["-n", &space, "route", "add", &gateway, "dev", "eth0"]);
        must(&["-n", &space, "route", "add", SUBNET, "via", &via]);
    }

    pub fn address(&self, place: u64) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(place).expect("places are below 254"))
    }

    fn router(&self) -> String {
        format!("{}-router", self.tag)
    }

    fn namespace(&self, place: u64) -> String {
        format!("{}-{place}", self.tag)
    }

    /// From now on nothing that `from` sends reaches `to`.
    pub fn drop_packets(&self, from: u64, to: u64) {
        let mut dropped = self.dropped.lock().expect("not poisoned");
        if !dropped.contains(&(from, to)) {
            self.rule("add", from, to);
            dropped.push((from, to));
        }
    }

    /// From now on packets of `from` reach `to` late or not at all.
    ///
    /// # Errors
    /// There is no TUN device here.
    pub fn shape(&self, from: u64, to: u64, shape: Shape) -> Result<(), String> {
        let mut shaper = self.shaper.lock().expect("not poisoned");
        if shaper.is_none() {
            *shaper = Some(self.start_shaper()?);
        }
        if let Some(shaper) = shaper.as_ref() {
            shaper.set(self.address(from), self.address(to), shape);
        }
        let mut shaped = self.shaped.lock().expect("not poisoned");
        if !shaped.contains(&(from, to)) {
            self.shaped_rule("add", from, to);
            shaped.push((from, to));
        }
        Ok(())
    }

    fn start_shaper(&self) -> Result<Shaper, String> {
        let router = self.router();
        let space = File::open(file_of(&router)).map_err(|e| e.to_string())?;
        let enter = move || setns(space, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
        let shaper = Shaper::start(enter)?;
        // What comes back from the device has a sender that does not live there.
        let trust = || {
            ["all", DEVICE]
                .iter()
                .try_for_each(|name| std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0"))
        };
        self.inside_of(&router, trust).map_err(|e| e.to_string())?;
        ip(&["-n", &router, "route", "add", "default", "dev", DEVICE, "table", SHAPED_TABLE])?;
        Ok(shaper)
    }

    fn shaped_rule(&self, change: &str, from: u64, to: u64) {
        let (port, router) = (format!("to{from}"), self.router());
        let (from, to) = (self.address(from).to_string(), self.address(to).to_string());
        // Those that come back from the device take the way of all others.
        must(&[
            "-n",
            &router,
            "rule",
            change,
            "pref",
            "20000",
            "iif",
            &port,
            "from",
            &from,
            "to",
            &to,
            "lookup",
            SHAPED_TABLE,
        ]);
    }

    /// Neither hears the other any more.
    pub fn cut(&self, one: u64, other: u64) {
        self.drop_packets(one, other);
        self.drop_packets(other, one);
    }

    /// Everybody reaches everybody again.
    pub fn heal(&self) {
        for (from, to) in self.dropped.lock().expect("not poisoned").drain(..) {
            self.rule("del", from, to);
        }
        for (from, to) in self.shaped.lock().expect("not poisoned").drain(..) {
            self.shaped_rule("del", from, to);
        }
    }

    fn rule(&self, change: &str, from: u64, to: u64) {
        let (from, to) = (self.address(from).to_string(), self.address(to).to_string());
        must(&["-n", &self.router(), "rule", change, "from", &from, "to", &to, "blackhole"]);
    }

    /// Does something from a place; connections that it opens stay there.
    pub fn inside<T: Send>(&self, place: u64, work: impl FnOnce() -> T + Send) -> T {
        self.inside_of(&self.namespace(place), work)
    }

    fn inside_of<T: Send>(&self, space: &str, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(file_of(space)).expect("the namespace");
        // A namespace belongs to a thread, so a thread of its own leaves all others where they are.
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that runs at a place as root. The process that is started becomes the program, so its id is the same.
    pub fn command(&self, place: u64, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(place)]).arg(program);
        command
    }

    /// The same as the user that servers run as.
    pub fn server_command(&self, place: u64, program: &Path) -> Command {
        self.as_server(self.command(place, Path::new("setpriv")), place, program)
    }

    /// The same as a service manager starts it: in a session of its own. The kernel shares the processors out among
    /// sessions first, and each of PostgreSQL's processes is one. Sidecars that shared one with the tests would get less
    /// than any of these, where more wants to run than there are processors.
    pub fn service_command(&self, place: u64, program: &Path) -> Command {
        let mut command = self.command(place, Path::new("setsid"));
        command.arg("setpriv");
        self.as_server(command, place, program)
    }

    /// `command` ends with `setpriv`.
    fn as_server(&self, mut command: Command, place: u64, program: &Path) -> Command {
        command.args(["--reuid", SERVER_USER, "--regid", SERVER_USER, "--clear-groups", "--"]);
        // By `env`, so that only the program itself sees it.
        command.arg("env");
        let all = self.environment.lock().expect("not poisoned");
        command.args(
            all.iter().filter(|(at, ..)| *at == place).map(|(_, name, value)| format!("{name}={value}")),
        );
        command.arg(program).env("HOME", "/var/lib/postgresql").env("USER", SERVER_USER);
        command
    }

    /// What commands that start from now on at a place find in their environment.
    pub fn set_environment(&self, place: u64, name: &str, value: &str) {
        let mut all = self.environment.lock().expect("not poisoned");
        all.retain(|(at, known, _)| (*at, known.as_str()) != (place, name));
        all.push((place, name.to_owned(), value.to_owned()));
    }

    /// All processes at a place.
    pub fn processes(&self, place: u64) -> Vec<i32> {
        processes(&self.namespace(place))
    }

    /// SIGKILL to everything that runs at a place.
    pub fn kill_all(&self, place: u64) {
        kill_all(&self.namespace(place));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in &self.places {
            remove(&self.namespace(*place));
        }
        remove(&self.router());
    }
}

fn file_of(space: &str) -> PathBuf {
    Path::new("/run/netns").join(space)
}

/// Only what runs in a namespace of our own is found this way, so nothing else is ever hit.
fn kill_all(space: &str) {
    // What forks while it is being killed is found the next time.
    for _ in 0..20 {
        let pids = processes(space);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn processes(space: &str) -> Vec<i32> {
    let listed = ip(&["netns", "pids", space]).unwrap_or_default();
    listed.lines().filter_map(|l| l.trim().parse().ok()).collect()
}

fn remove(space: &str) {
    if file_of(space).exists() {
        kill_all(space);
        let _ = ip(&["netns", "del", space]);
    }
}

/// Services have sessions of their own, so what ends this process from its terminal does not reach them.
fn end_with_this_process() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let number = runtime.block_on(async {
            let mut interrupted = signal(SignalKind::interrupt()).expect("to be told of SIGINT");
            let mut terminated = signal(SignalKind::terminate()).expect("to be told of SIGTERM");
            tokio::select! {
                _ = interrupted.recv() => Signal::SIGINT,
                _ = terminated.recv() => Signal::SIGTERM,
            }
        });
        let mine = format!("{PREFIX}-{}-", std::process::id());
        spaces().filter(|name| name.starts_with(&mine)).for_each(|name| remove(&name));
        std::process::exit(128 + number as i32);
    });
}

fn spaces() -> impl Iterator<Item = String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Those of a test that was killed before it could tidy up.
fn remove_left_overs() {
    for name in spaces() {
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1)?.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&name);
        }
    }
}

fn must(args: &[&str]) {
    ip(args).unwrap_or_else(|e| panic!("{e}"));
}

fn ip(args: &[&str]) -> Result<String, String> {
    let said = |why: &str| format!("ip {}: {}", args.join(" "), why.trim());
    let out =
        Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(|e| said(&e.to_string()))?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => Err(said(&String::from_utf8_lossy(&out.stderr))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    /// Two places with a socket each, which waits this long for a packet. `None`: there can be no such network here.
    fn two_places(patience: Duration) -> Option<(Network, UdpSocket, UdpSocket)> {
        if let Some(why) = Network::refused() {
            crate::skipped(&why);
            return None;
        }
        let network = Network::new(2);
        let socket = |place| {
            let address = (network.address(place), 999);
            let socket = network.inside(place, || UdpSocket::bind(address)).expect("a socket");
            socket.set_read_timeout(Some(patience)).expect("a timeout");
            socket
        };
        let (one, two) = (socket(1), socket(2));
        Some((network, one, two))
    }

    #[test]
    fn packets_are_dropped_in_the_direction_that_was_named() {
        let Some((network, one, two)) = two_places(Duration::from_millis(300)) else { return };
        let passes = |from: &UdpSocket, to: &UdpSocket| {
            let sent = from.send_to(b"x", to.local_addr().expect("bound"));
            assert!(sent.is_ok(), "who sends notices nothing: {sent:?}");
            to.recv(&mut [0; 8]).is_ok()
        };
        assert!(passes(&one, &two) && passes(&two, &one));
        network.drop_packets(1, 2);
        assert!(!passes(&one, &two) && passes(&two, &one));
        network.heal();
        network.cut(1, 2);
        assert!(!passes(&one, &two) && !passes(&two, &one));
        network.heal();
        assert!(passes(&one, &two) && passes(&two, &one));
    }

    #[test]
    fn packets_are_late_or_lost_in_the_direction_that_was_named() {
        let Some((network, one, two)) = two_places(Duration::from_secs(1)) else { return };
        let takes = |from: &UdpSocket, to: &UdpSocket| {
            let begin = std::time::Instant::now();
            from.send_to(b"x", to.local_addr().expect("bound")).expect("who sends notices nothing");
            to.recv(&mut [0; 8]).ok().map(|_| begin.elapsed())
        };
        let late = Shape { delay: Duration::from_millis(200), ..Shape::default() };
        network.shape(1, 2, late).expect("a TUN device");
        assert!(takes(&one, &two).expect("late, not lost") >= late.delay);
        assert!(takes(&two, &one).expect("untouched") < late.delay);
        network.shape(1, 2, Shape { loss: 1000, ..Shape::default() }).expect("a TUN device");
        assert!(takes(&one, &two).is_none() && takes(&two, &one).is_some());
        network.heal();
        assert!(takes(&one, &two).expect("healed") < late.delay);
    }
}
