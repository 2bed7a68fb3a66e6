//! A temporary file for what does not fit into memory.

use pgrx::pg_sys;

use crate::capture::Spill;

/// Lives until it is closed or to the end of the transaction, whichever comes first. Its blocks count against
/// `temp_file_limit`.
pub struct SpillFile(*mut pg_sys::BufFile);

impl SpillFile {
    fn seek(&self, offset: u64) {
        // SAFETY: the file is open; positions behind its first gigabyte are found from there.
        let failed = unsafe {
            pg_sys::BufFileSeek(self.0, 0, i64::try_from(offset).unwrap_or(i64::MAX), libc::SEEK_SET)
        };
        assert!(failed == 0, "could not find a place in the temporary file of captured changes");
    }
}

impl Spill for SpillFile {
    fn create() -> Self {
        // SAFETY: file and memory belong to the top transaction, so neither the end of a statement nor that of a
        // savepoint takes them away. If creating it fails, the abort restores the owner and the context.
        unsafe {
            let owner = pg_sys::CurrentResourceOwner;
            pg_sys::CurrentResourceOwner = pg_sys::TopTransactionResourceOwner;
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopTransactionContext);
            pg_sys::PrepareTempTablespaces();
            let file = pg_sys::BufFileCreateTemp(false);
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::CurrentResourceOwner = owner;
            Self(file)
        }
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) {
        self.seek(offset);
        // SAFETY: the file is open and the bytes are readable; an error is raised if they cannot be written. A new
        // file of the next gigabyte takes the owner that the first one had.
        unsafe { pg_sys::BufFileWrite(self.0, bytes.as_ptr().cast_mut().cast(), bytes.len()) }
    }

    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) {
        self.seek(offset);
        // SAFETY: the file is open and the buffer is writable.
        let read = unsafe { pg_sys::BufFileRead(self.0, bytes.as_mut_ptr().cast(), bytes.len()) };
        assert!(
            read == bytes.len(),
            "the temporary file of captured changes is shorter than what was written"
        );
    }

    fn close(self) {
        // SAFETY: the file is open; this value is consumed.
        unsafe { pg_sys::BufFileClose(self.0) }
    }
}
