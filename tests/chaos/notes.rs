//! What the run says while it goes on: on standard output and in a file beside the logs.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::history::Recorder;

pub struct Notes {
    recorder: Arc<Recorder>,
    file: Mutex<File>,
}

impl Notes {
    /// # Panics
    /// The file cannot be made.
    pub fn new(file: &Path, recorder: &Arc<Recorder>) -> Notes {
        let file = File::create(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        Notes { recorder: recorder.clone(), file: Mutex::new(file) }
    }

    pub fn say(&self, text: &str) {
        let line = format!("{:9.3} {text}", self.recorder.elapsed().as_secs_f64());
        println!("{line}");
        let _ = writeln!(self.file.lock().expect("not poisoned"), "{line}");
    }
}
