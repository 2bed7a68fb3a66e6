//! Arrays in shared memory whose length is known only when the server starts.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use pgrx::prelude::*;

/// What may lie in such an array.
///
/// # Safety
///
/// All-zero bytes are a valid value, it holds no pointers, and it may be used by several processes at once: atomics.
pub unsafe trait Shared: Sync + 'static {}

/// An array in shared memory, zeroed when the server starts and after a crash restart.
pub struct SharedSlice<T> {
    name: &'static CStr,
    length: fn() -> usize,
    start: AtomicPtr<u8>,
    count: AtomicUsize,
    holds: PhantomData<T>,
}

/// What the hooks need to know of one.
trait Area: Sync {
    fn bytes(&self) -> usize;
    fn attach(&self);
}

unsafe extern "C-unwind" {
    /// access/twophase.h; missing from pgrx's bindings.
    static max_prepared_xacts: std::ffi::c_int;
    /// postmaster/autovacuum.h; missing there as well.
    #[cfg(feature = "pg14")]
    static autovacuum_max_workers: std::ffi::c_int;
}

static AREAS: Mutex<Vec<&'static dyn Area>> = Mutex::new(Vec::new());
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;
#[cfg(not(feature = "pg14"))]
static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;

impl<T: Shared> SharedSlice<T> {
    /// `length` is asked when the server has read its configuration.
    pub const fn new(name: &'static CStr, length: fn() -> usize) -> Self {
        Self {
            name,
            length,
            start: AtomicPtr::new(std::ptr::null_mut()),
            count: AtomicUsize::new(0),
            holds: PhantomData,
        }
    }

    /// Asks for the memory; from `_PG_init`, before [`init`].
    pub fn register(&'static self) {
        if let Ok(mut areas) = AREAS.lock() {
            areas.push(self);
        }
    }

    /// Empty before the server has started.
    #[inline]
    pub fn get(&self) -> &'static [T] {
        let start = self.start.load(Relaxed).cast::<T>();
        if start.is_null() {
            return &[];
        }
        // SAFETY: `attach` has set both in the postmaster, before this process was forked; the memory is never freed,
        // it is as large as the count says, and `T` may be shared.
        unsafe { std::slice::from_raw_parts(start, self.count.load(Relaxed)) }
    }
}

/// It is about to be read: the processor fetches it while other work is done. Only a hint.
#[inline(always)]
pub fn fetch_ahead<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads nothing as far as the program can tell; every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

impl<T: Shared> Area for SharedSlice<T> {
    fn bytes(&self) -> usize {
        (self.length)() * size_of::<T>()
    }

    fn attach(&self) {
        let (mut found, bytes) = (false, self.bytes());
        // SAFETY: called from the startup hook, which holds the lock of the shared memory's index; the memory is ours
        // and aligned to a cache line.
        unsafe {
            let start = pg_sys::ShmemInitStruct(self.name.as_ptr(), bytes, &mut found).cast::<u8>();
            if !found {
                start.write_bytes(0, bytes);
            }
            self.count.store(bytes / size_of::<T>(), Relaxed);
            self.start.store(start, Relaxed);
        }
    }
}

/// Installs the hooks; once, from `_PG_init`, after all arrays have been registered.
pub fn init() {
    // SAFETY: the hooks are written once, in the postmaster, while libraries are loaded.
    unsafe {
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(at_startup);
        #[cfg(not(feature = "pg14"))]
        {
            PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
            pg_sys::shmem_request_hook = Some(at_request);
        }
        #[cfg(feature = "pg14")]
        request();
    }
}

fn request() {
    for area in AREAS.lock().into_iter().flat_map(|areas| areas.clone()) {
        // SAFETY: at the time at which memory may be requested.
        unsafe { pg_sys::RequestAddinShmemSpace(area.bytes() + 64) }
    }
}

#[cfg(not(feature = "pg14"))]
#[pg_guard]
unsafe extern "C-unwind" fn at_request() {
    // SAFETY: PREVIOUS_REQUEST was written once, in `init`.
    unsafe {
        if let Some(next) = PREVIOUS_REQUEST {
            next();
        }
    }
    request();
}

#[pg_guard]
unsafe extern "C-unwind" fn at_startup() {
    // SAFETY: PREVIOUS_STARTUP was written once, in `init`; the lock is PostgreSQL's own for this.
    unsafe {
        if let Some(next) = PREVIOUS_STARTUP {
            next();
        }
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        for area in AREAS.lock().into_iter().flat_map(|areas| areas.clone()) {
            area.attach();
        }
        pg_sys::LWLockRelease(lock);
    }
}

/// storage/lwlocknames.h: AddinShmemInitLock.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// Most processes that can have a transaction at once.
pub fn backends_max() -> usize {
    // SAFETY: settings, read when the server has them.
    let count = unsafe {
        #[cfg(not(feature = "pg14"))]
        let count = pg_sys::MaxBackends;
        // Not computed yet when PostgreSQL 14 asks for memory.
        #[cfg(feature = "pg14")]
        let count = pg_sys::MaxConnections
            + autovacuum_max_workers
            + 1
            + pg_sys::max_worker_processes
            + pg_sys::max_wal_senders;
        count
    };
    usize::try_from(count).unwrap_or(0)
}

/// `max_prepared_transactions`.
pub fn prepared_max() -> usize {
    // SAFETY: a setting.
    usize::try_from(unsafe { max_prepared_xacts }).unwrap_or(0)
}

/// This process's place among [`backends_max`]; `None`: it is of a kind that has no transactions.
pub fn backend_index() -> Option<usize> {
    // SAFETY: this process's own entry, null before the process has one.
    let number = unsafe {
        if pg_sys::MyProc.is_null() {
            return None;
        }
        #[cfg(not(any(feature = "pg17", feature = "pg18")))]
        let number = (*pg_sys::MyProc).pgprocno;
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        let number = pg_sys::MyProcNumber;
        number
    };
    usize::try_from(number).ok().filter(|number| *number < backends_max())
}
