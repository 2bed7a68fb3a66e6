//! What the clients did, call by call, and what they were told.

use serde::Serialize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a client asked for. Numbers are given once in a run, so each write can be told from all others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    Insert {
        id: u64,
    },
    Transfer {
        id: u64,
        from: i32,
        to: i32,
        amount: i64,
    },
    Append {
        id: u64,
        key: i64,
    },
    /// All balances in one snapshot of the leader, or of any node.
    Balances {
        anywhere: bool,
    },
    Read {
        key: i64,
    },
}

impl Op {
    pub fn is_write(&self) -> bool {
        matches!(self, Op::Insert { .. } | Op::Transfer { .. } | Op::Append { .. })
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Op::Insert { .. } => "insert",
            Op::Transfer { .. } => "transfer",
            Op::Append { .. } => "append",
            Op::Balances { .. } => "balances",
            Op::Read { .. } => "read",
        }
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done: a write was acknowledged, a read returned this.
    Ok(Seen),
    /// It did not happen and never will.
    Failed(String),
    /// It may have happened, or may yet.
    Unknown(String),
}

/// What an answer showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    Nothing,
    /// How many accounts there are, and their sum.
    Balances(i64, i64),
    /// The list of the key, with the appended number at its end if it was an append.
    List(Vec<u64>),
}

/// One call. Times are microseconds of this process's monotonic clock since the run began.
#[derive(Clone, Debug, Serialize)]
pub struct Call {
    pub client: u32,
    pub op: Op,
    /// Just before the first byte of it was sent.
    pub start: u64,
    /// Just after the last byte of the answer was read, or when the client gave up.
    pub end: u64,
    /// Which node the session was with, and the newest epoch in its database when the session began: no later than the
    /// epoch in which the call was answered.
    pub node: u64,
    pub epoch: u64,
    pub outcome: Outcome,
    /// The server said with a WARNING that it did not wait for its standbys.
    pub warned: bool,
}

impl Call {
    pub fn acknowledged(&self) -> bool {
        self.op.is_write() && matches!(self.outcome, Outcome::Ok(_))
    }
}

/// Where all clients write to.
pub struct Recorder {
    begin: Instant,
    calls: Mutex<Vec<Call>>,
    next_id: AtomicU64,
    /// The start of the acknowledged write that began last, and its node.
    newest: Mutex<(u64, u64)>,
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder {
            begin: Instant::now(),
            calls: Mutex::default(),
            next_id: AtomicU64::new(1),
            newest: Mutex::default(),
        }
    }

    pub fn now(&self) -> u64 {
        self.begin.elapsed().as_micros() as u64
    }

    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    pub fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub fn add(&self, call: Call) {
        if call.acknowledged() {
            let mut newest = self.newest.lock().expect("not poisoned");
            *newest = (*newest).max((call.start, call.node));
        }
        self.calls.lock().expect("not poisoned").push(call);
    }

    /// When the acknowledged write that began last began, and who acknowledged it.
    pub fn newest(&self) -> (u64, u64) {
        *self.newest.lock().expect("not poisoned")
    }

    /// The end of the first acknowledged write that began after this moment.
    pub fn first_after(&self, moment: u64) -> Option<u64> {
        let calls = self.calls.lock().expect("not poisoned");
        // They are in order of their ends, but for what happens between a client's look at the clock and its turn here.
        let recent = calls.iter().rev().take_while(|c| c.end + 1_000_000 >= moment);
        recent.filter(|c| c.acknowledged() && c.start >= moment).map(|c| c.end).min()
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("not poisoned").clone()
    }
}
