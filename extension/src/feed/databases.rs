//! Which databases have, or may have, channels and cutters: what sessions and cutters tell the launcher, in shared memory.
//!
//! A database has an entry while somebody wants a cutter for it or a cutter serves it, so databases without channels take
//! no room. Where there is none left, all databases are visited.

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init};

use super::shared;
use crate::pg::worker;

const DATABASES: usize = 64;
const REPORTS: usize = 32;

/// A database that has, or may have, channels.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Database {
    /// 0: free.
    oid: u32,
    /// Somebody has seen or made a channel; the launcher takes it back when it starts a cutter.
    wanted: bool,
    /// 0: none.
    cutter_pid: i32,
}

/// What a cutter has found in its database, for the launcher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Found {
    #[default]
    Channels,
    /// It ends.
    Nothing,
}

/// What the launcher is told.
#[derive(Clone, Copy)]
#[repr(C)]
struct Databases {
    entries: [Database; DATABASES],
    /// Somebody wants a cutter, and there was no room to say where.
    visit_all: bool,
    /// By cutters; database 0: free.
    reports: [(u32, Found); REPORTS],
}

impl Default for Databases {
    fn default() -> Self {
        Self {
            entries: [Database::default(); DATABASES],
            visit_all: false,
            reports: [(0, Found::default()); REPORTS],
        }
    }
}

/// What the launcher has been told since it looked last.
#[derive(Debug, Default)]
pub struct News {
    /// Databases that want a cutter, each once.
    pub wanted: Vec<u32>,
    /// All databases are to be visited.
    pub visit_all: bool,
    pub reports: Vec<(u32, Found)>,
}

// SAFETY: plain integers, no pointers, valid at any address of any process.
unsafe impl PGRXSharedMemory for Databases {}

// SAFETY: the name is this extension's own.
static KNOWN: PgLwLock<Databases> = unsafe { PgLwLock::new(c"pgquorum feed databases") };

/// Asks for the shared memory; only while the server starts.
#[allow(unexpected_cfgs)] // the macro asks for pgrx's feature pg13, which this crate does not have
pub fn init() {
    pg_shmem_init!(KNOWN);
}

impl Databases {
    fn entry(&mut self, database: u32) -> Option<&mut Database> {
        self.entries.iter_mut().find(|entry| entry.oid == database)
    }

    /// The entry of a database, made if there is room.
    fn claim(&mut self, database: u32) -> Option<&mut Database> {
        let wanted = if self.entry(database).is_some() { database } else { 0 };
        let entry = self.entry(wanted)?;
        entry.oid = database;
        Some(entry)
    }

    fn report(&mut self, database: u32, found: Found) -> bool {
        match self.reports.iter_mut().find(|(free, _)| *free == 0) {
            Some(free) => {
                *free = (database, found);
                true
            }
            None => false,
        }
    }
}

/// For a launcher that begins: what cutters told another one is of no use to it.
pub fn forget_reports() {
    KNOWN.exclusive().reports = [(0, Found::default()); REPORTS];
}

/// A channel was made in this database: it needs a cutter, if there is none.
pub fn want_cutter(database: u32) {
    let mut known = KNOWN.exclusive();
    let cutter_pid = match known.claim(database) {
        Some(entry) => {
            entry.wanted = true;
            entry.cutter_pid
        }
        None => {
            known.visit_all = true;
            0
        }
    };
    drop(known);
    if !worker::lives(cutter_pid) {
        shared::wake_launcher();
    }
}

/// For the launcher.
pub fn take_news() -> News {
    let mut known = KNOWN.exclusive();
    let mut news = News { visit_all: std::mem::take(&mut known.visit_all), ..News::default() };
    for entry in &mut known.entries {
        if std::mem::take(&mut entry.wanted) {
            news.wanted.push(entry.oid);
        }
    }
    for report in &mut known.reports {
        if report.0 != 0 {
            news.reports.push(std::mem::take(report));
        }
    }
    news
}

/// The database was dropped.
pub fn forget_database(database: u32) {
    if let Some(entry) = KNOWN.exclusive().entry(database) {
        *entry = Database::default();
    }
}

/// The cutter of a database, in itself: it has found channels. False: the launcher could not be told yet.
///
/// Where there is no room for it, nobody wakes it, and it works at its own pace.
pub fn i_am_the_cutter(database: u32) -> bool {
    let mut known = KNOWN.exclusive();
    if let Some(entry) = known.claim(database) {
        entry.cutter_pid = worker::own_pid();
    }
    let told = known.report(database, Found::Channels);
    drop(known);
    shared::wake_launcher();
    told
}

/// The cutter ends for want of channels. Whoever has made one meanwhile has said so, and keeps the entry.
pub fn i_was_the_cutter(database: u32) {
    let mut known = KNOWN.exclusive();
    if let Some(entry) = known.entry(database) {
        *entry = if entry.wanted { Database { cutter_pid: 0, ..*entry } } else { Database::default() };
    }
    // If that cannot be told, the database is visited once more.
    known.report(database, Found::Nothing);
}

/// Wakes the cutter of a database that has channels.
pub fn wake_cutter(database: u32) {
    match living_cutter(database) {
        Some(pid) => worker::wake(pid),
        None => want_cutter(database),
    }
}

/// Somebody sees a channel in this database, so there should be a cutter.
pub fn expect_cutter(database: u32) {
    if living_cutter(database).is_none() {
        want_cutter(database);
    }
}

fn living_cutter(database: u32) -> Option<i32> {
    let pid = KNOWN.share().entries.iter().find(|entry| entry.oid == database).map(|entry| entry.cutter_pid);
    pid.filter(|pid| worker::lives(*pid))
}
