//! Signals.

use super::Nemesis;
use crate::disks::data_disk;
use crate::plan::{Part, Who};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_tests::poll_until;
use std::time::Duration;

/// How long sidecars may take that were told to end.
const ORDERLY: Duration = Duration::from_secs(20);

impl Nemesis {
    /// The server's first process, if it runs at this place.
    fn postmaster(&self, place: u64) -> Option<i32> {
        let file = data_disk(&self.cluster, place).join("data/postmaster.pid");
        let pid = std::fs::read_to_string(file).ok()?.lines().next()?.trim().parse::<i32>().ok()?;
        self.cluster.network.processes(place).contains(&pid).then_some(pid)
    }

    /// The processes of this part that run.
    fn part(&self, part: Part, place: u64) -> Result<Vec<i32>, String> {
        let sidecar = || self.cluster.sidecar(place);
        let all = match part {
            Part::Sidecar => vec![sidecar()],
            Part::Postmaster => vec![self.postmaster(place)],
            Part::Both => vec![sidecar(), self.postmaster(place)],
        };
        let running: Vec<i32> = all.into_iter().flatten().collect();
        if running.is_empty() { Err("it does not run".to_owned()) } else { Ok(running) }
    }

    pub(super) fn kill(&mut self, part: Part, who: Who) -> Result<(), String> {
        send(&self.part(part, self.place(who))?, Signal::SIGKILL);
        Ok(())
    }

    /// A frozen postmaster leaves its children running; both frozen is a machine that stands still.
    pub(super) fn freeze(&mut self, part: Part, who: Who) -> Result<(), String> {
        let place = self.place(who);
        let processes = match part {
            Part::Both => self.cluster.network.processes(place),
            one => self.part(one, place)?,
        };
        send(&processes, Signal::SIGSTOP);
        self.frozen.push(place);
        Ok(())
    }

    pub(super) fn thaw(&mut self) {
        for place in self.frozen.drain(..) {
            send(&self.cluster.network.processes(place), Signal::SIGCONT);
        }
    }

    pub(super) fn power_cut(&mut self, places: &[u64]) -> Result<(), String> {
        // At once, as far as that is possible: nobody is waited for in between.
        for place in places {
            send(&self.cluster.network.processes(*place), Signal::SIGKILL);
        }
        for place in places {
            self.cluster.kill(*place);
        }
        Ok(())
    }

    pub(super) fn terminate_all(&mut self) -> Result<(), String> {
        let ids = self.cluster.ids();
        let all: Vec<i32> = ids.iter().filter_map(|place| self.cluster.sidecar(*place)).collect();
        send(&all, Signal::SIGTERM);
        let gone = || match ids.iter().filter(|id| self.cluster.sidecar(**id).is_some()).count() {
            0 => Ok(()),
            n => Err(n),
        };
        let ended = poll_until(ORDERLY, || gone().map_err(|n| format!("{n} sidecars have not ended")));
        if let Err(seen) = ended {
            self.notes.say(&format!("  after {ORDERLY:?} {seen}"));
        }
        Ok(())
    }
}

fn send(processes: &[i32], signal: Signal) {
    for pid in processes {
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}
