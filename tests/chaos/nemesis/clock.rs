//! The time of day of one node, by a library that stands between its programs and the system (Debian: `libfaketime`).
//! The machine's own clock is left alone: it belongs to others too. Monotonic clocks do not jump on real machines, and
//! do not here.

use super::Nemesis;
use crate::plan::Who;
use pgquorum_tests::{NetCluster, poll_until};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// Where each node's programs read how far off their clock is.
pub struct Clocks;

impl Clocks {
    /// `None`: the library is not installed.
    pub fn available() -> Option<&'static str> {
        LIBRARIES.into_iter().find(|file| Path::new(file).exists())
    }

    fn file(cluster: &NetCluster, place: u64) -> PathBuf {
        cluster.dir().join(format!("clock{place}"))
    }

    /// For what is started at a place afterwards.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn install(cluster: &NetCluster, place: u64, library: &str) {
        let file = Clocks::file(cluster, place);
        Clocks::set(cluster, place, 0).expect("the clock's file");
        let set = |name, value: &str| cluster.network.set_environment(place, name, value);
        set("LD_PRELOAD", library);
        set("FAKETIME_TIMESTAMP_FILE", &file.display().to_string());
        set("FAKETIME_CACHE_DURATION", "1");
        set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        set("FAKETIME_DISABLE_SHM", "1");
    }

    fn set(cluster: &NetCluster, place: u64, seconds: i64) -> Result<(), String> {
        // Replaced, not written into: a reader never meets half a line.
        let (file, new) = (Clocks::file(cluster, place), cluster.dir().join("clock.new"));
        let written = std::fs::write(&new, format!("{seconds:+}\n"));
        written.and_then(|()| std::fs::rename(&new, &file)).map_err(|e| e.to_string())
    }

    pub fn reset(cluster: &NetCluster) {
        for place in cluster.ids() {
            Clocks::set(cluster, place, 0).expect("the clock's file");
        }
    }
}

impl Nemesis {
    pub(super) fn step_clock(&mut self, who: Who, seconds: i64) -> Result<(), String> {
        let place = self.place(who);
        if !self.clocks {
            return Err("libfaketime is not installed".to_owned());
        }
        Clocks::set(&self.cluster, place, seconds)?;
        // The library looks at most once a second.
        self.ask(move |cluster| {
            let off = poll_until(Duration::from_secs(3), || {
                let sql = "SELECT extract(epoch FROM clock_timestamp())::bigint::text";
                let theirs = cluster.ask(place, sql)?.parse::<i64>().map_err(|e| e.to_string())?;
                let ours = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?;
                let off = theirs - ours.as_secs() as i64;
                if off == 0 { Err("its clock has not jumped yet".to_owned()) } else { Ok(off) }
            });
            format!("node {place} is off by {off:?} s")
        });
        Ok(())
    }
}
