//! What sessions and cutters tell each other of channels, in shared memory: who waits, what is shown, what is asked for.
//!
//! Nothing here is needed for correctness: it says who shall wake up, and starts afresh with the server. What there is no
//! room for still works, at the pace of polling.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, PgLwLock, pg_shmem_init};

use super::databases;
use crate::pg::clock;
use crate::pg::condition::Condition;
use crate::pg::worker;

const CHANNELS: usize = 256;
const REQUESTS: usize = 32;
/// A snapshot's name has at most 27 characters.
const NAME_BYTES: usize = 64;

/// A channel that somebody reads.
#[derive(Default)]
#[repr(C)]
pub struct Channel {
    /// Database and channel; 0: free.
    key: AtomicU64,
    /// `CLOCK_BOOTTIME` until when somebody waits for news.
    demand_until_ns: AtomicU64,
    /// The newest tick that is shown.
    last_tick: AtomicU64,
    news: Condition,
}

/// Everything that needs no lock.
#[repr(C)]
pub struct Shared {
    launcher_pid: AtomicI32,
    /// Counts requests.
    requests: AtomicU64,
    channels: [Channel; CHANNELS],
    answered: Condition,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            launcher_pid: AtomicI32::new(0),
            requests: AtomicU64::new(0),
            channels: std::array::from_fn(|_| Channel::default()),
            answered: Condition::default(),
        }
    }
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    #[default]
    Free,
    Asked,
    Done,
    /// The snapshot that was given is older than the last batch.
    TooOld,
    /// The batch could not be made; the cutter has logged why.
    Failed,
}

/// "Cut a batch now, and say where it ends."
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Request {
    pub state: State,
    /// Each has another one, so that no answer is taken for that to a later request.
    number: u64,
    database: u32,
    channel: i32,
    asker_pid: i32,
    /// The exported snapshot to cut by; empty: a new one.
    name: [u8; NAME_BYTES],
    name_length: usize,
    pub tick: u64,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            state: State::Free,
            number: 0,
            database: 0,
            channel: 0,
            asker_pid: 0,
            name: [0; NAME_BYTES],
            name_length: 0,
            tick: 0,
        }
    }
}

impl Request {
    pub fn snapshot(&self) -> Option<&str> {
        let name = std::str::from_utf8(&self.name[..self.name_length]).unwrap_or("");
        (!name.is_empty()).then_some(name)
    }
}

// SAFETY: plain integers and PostgreSQL's condition variables, no pointers, valid at any address of any process.
unsafe impl PGRXSharedMemory for Shared {}
// SAFETY: as above.
unsafe impl PGRXSharedMemory for Request {}

// SAFETY: the names are this extension's own.
static SHARED: PgAtomic<Shared> = unsafe { PgAtomic::new(c"pgquorum feed") };
// SAFETY: as above.
static ASKED: PgLwLock<[Request; REQUESTS]> = unsafe { PgLwLock::new(c"pgquorum feed requests") };

/// Asks for the shared memory; only while the server starts.
#[allow(unexpected_cfgs)] // the macro asks for pgrx's feature pg13, which this crate does not have
pub fn init() {
    pg_shmem_init!(SHARED);
    pg_shmem_init!(ASKED);
}

/// The launcher, in itself.
pub fn i_am_the_launcher() {
    SHARED.get().launcher_pid.store(worker::own_pid(), SeqCst);
}

pub fn wake_launcher() {
    worker::wake(SHARED.get().launcher_pid.load(SeqCst));
}

/// Up to which tick the cutter has shown a channel since the server started: that far everything is durable, and on as
/// many standbys as is promised. 0: not yet.
pub fn shown(database: u32, channel: i32) -> u64 {
    let key = key(database, channel);
    let entry = SHARED.get().channels.iter().find(|entry| entry.key.load(SeqCst) == key);
    entry.map_or(0, Channel::last_tick)
}

fn key(database: u32, channel: i32) -> u64 {
    u64::from(database) << 32 | u64::from(channel.cast_unsigned())
}

/// The entry of a channel, made if there is room.
pub fn of_channel(database: u32, channel: i32) -> Option<&'static Channel> {
    let key = key(database, channel);
    let entries = &SHARED.get().channels;
    entries.iter().find(|entry| entry.key.load(SeqCst) == key).or_else(|| {
        entries.iter().find(|entry| {
            let owner = entry.key.compare_exchange(0, key, SeqCst, SeqCst).unwrap_or_else(|owner| owner);
            owner == 0 || owner == key
        })
    })
}

/// Gives back the entries of channels of this database that are not among these.
pub fn forget_channels(database: u32, keep: &[i32]) {
    for entry in &SHARED.get().channels {
        let key = entry.key.load(SeqCst);
        let channel = (key as u32).cast_signed();
        if key >> 32 == u64::from(database) && key != 0 && !keep.contains(&channel) {
            entry.demand_until_ns.store(0, SeqCst);
            entry.last_tick.store(0, SeqCst);
            entry.key.store(0, SeqCst);
            entry.news.wake_all();
        }
    }
}

impl Channel {
    /// Somebody waits for news for so many milliseconds.
    pub fn demand(&self, database: u32, milliseconds: u64) {
        let until_ns = clock::boottime_ns() + milliseconds * clock::NS_PER_MS;
        if self.demand_until_ns.fetch_max(until_ns, SeqCst) < clock::boottime_ns() {
            databases::wake_cutter(database);
        }
    }

    pub fn is_in_demand(&self, now_ns: u64) -> bool {
        self.demand_until_ns.load(SeqCst) > now_ns
    }

    /// 0: not known yet.
    pub fn last_tick(&self) -> u64 {
        self.last_tick.load(SeqCst)
    }

    pub fn publish(&self, last_tick: u64) {
        if self.last_tick.swap(last_tick, SeqCst) != last_tick {
            self.news.wake_all();
        }
    }

    pub fn news(&self) -> &Condition {
        &self.news
    }
}

/// A request of this session, taken back when dropped, also after an error.
pub struct Asking(usize);

impl Asking {
    /// `None`: too many sessions ask at once.
    pub fn new(database: u32, channel: i32, snapshot: &str) -> Option<Self> {
        let (own_pid, number) = (worker::own_pid(), SHARED.get().requests.fetch_add(1, SeqCst) + 1);
        let mut requests = ASKED.exclusive();
        let free = requests
            .iter()
            .position(|request| request.state == State::Free || !worker::lives(request.asker_pid))?;
        let mut request = Request {
            state: State::Asked,
            number,
            database,
            channel,
            asker_pid: own_pid,
            ..Request::default()
        };
        request.name_length = snapshot.len().min(NAME_BYTES);
        request.name[..request.name_length].copy_from_slice(&snapshot.as_bytes()[..request.name_length]);
        requests[free] = request;
        drop(requests);
        databases::wake_cutter(database);
        Some(Self(free))
    }

    pub fn answer(&self) -> Request {
        ASKED.share()[self.0]
    }

    pub fn news(&self) -> &'static Condition {
        &SHARED.get().answered
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let own_pid = worker::own_pid();
        let mut requests = ASKED.exclusive();
        // Unless the slot was taken for a dead one's.
        if requests[self.0].asker_pid == own_pid {
            requests[self.0] = Request::default();
        }
    }
}

/// The open requests to the cutter of a database: their numbers, channels and snapshots.
pub fn asked(database: u32) -> Vec<(usize, i32, Request)> {
    let requests = ASKED.share();
    let open = requests.iter().enumerate().filter(|(_, r)| r.state == State::Asked && r.database == database);
    open.map(|(index, request)| (index, request.channel, *request)).collect()
}

/// Answers a request, unless it was taken back.
pub fn answer(index: usize, asked: &Request, state: State, tick: u64) {
    let mut requests = ASKED.exclusive();
    let request = &mut requests[index];
    if request.state == State::Asked && request.number == asked.number {
        (request.state, request.tick) = (state, tick);
    }
    drop(requests);
    SHARED.get().answered.wake_all();
}
