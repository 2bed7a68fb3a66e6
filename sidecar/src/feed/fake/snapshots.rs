//! Snapshots in memory, for one reader and for several.

use super::super::source::{Answer, CopyOut, DumpTable, Shared, SharedTable, Snapshot};
use crate::feed::Position;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Together {
    pub position: Position,
    pub tables: Vec<SharedTable>,
    pub hangs: bool,
    pub held: Arc<AtomicUsize>,
}

impl Drop for Together {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared for Together {
    fn position(&self) -> Position {
        self.position
    }

    fn origin(&self) -> &str {
        "berlin"
    }

    fn version(&self) -> (u64, u64) {
        (1, 0)
    }

    fn tables(&self) -> &[SharedTable] {
        &self.tables
    }

    fn is_held(&self) -> bool {
        true
    }

    fn condition<'a>(&'a self, _table: &'a SharedTable, text: &'a str) -> Answer<'a, String> {
        Box::pin(async move { Ok(format!("checked {text}")) })
    }

    fn open<'a>(&'a self, statement: &'a str) -> Answer<'a, Box<dyn CopyOut>> {
        // What was asked for, as a row.
        let lines = vec![Bytes::from("1\ta\n2\t"), Bytes::from(format!("{statement}\n"))];
        Box::pin(async move { Ok(Box::new(Lines { lines, hangs: self.hangs }) as Box<dyn CopyOut>) })
    }
}

struct Lines {
    lines: Vec<Bytes>,
    hangs: bool,
}

impl CopyOut for Lines {
    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async {
            if self.hangs && self.lines.len() == 1 {
                std::future::pending::<()>().await;
            }
            Ok(if self.lines.is_empty() { None } else { Some(self.lines.remove(0)) })
        })
    }
}

pub struct Copied {
    pub position: Position,
    pub tables: Vec<DumpTable>,
    pub copy: Vec<Bytes>,
    pub hangs: bool,
    pub held: Arc<AtomicUsize>,
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Snapshot for Copied {
    fn position(&self) -> Position {
        self.position
    }

    fn tables(&self) -> &[DumpTable] {
        &self.tables
    }

    fn open(&mut self, _table: usize) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            Ok(if self.copy.is_empty() { None } else { Some(self.copy.remove(0)) })
        })
    }
}
