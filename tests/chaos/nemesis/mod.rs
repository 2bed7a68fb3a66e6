//! Carries out what the plan says, and heals it again.

mod clock;
mod members;
mod network;
mod processes;

use crate::disks;
use crate::history::Recorder;
use crate::notes::Notes;
use crate::plan::{Disk, Fault, Who};
use pgquorum_tests::NetCluster;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

pub use clock::Clocks;
pub use members::{member_trouble, mend_members, unmark};

pub struct Nemesis {
    cluster: Arc<NetCluster>,
    recorder: Arc<Recorder>,
    notes: Arc<Notes>,
    clocks: bool,
    fillers: Vec<PathBuf>,
    frozen: Vec<u64>,
    /// The change of durability, until the usual one is asked for.
    durability: Option<JoinHandle<()>>,
    /// Commits wait for nobody, and that stays so.
    weak: bool,
    /// Requests that are on their way; their answers are noted and decide nothing.
    asking: Vec<JoinHandle<()>>,
}

impl Nemesis {
    pub fn new(
        cluster: &Arc<NetCluster>,
        recorder: &Arc<Recorder>,
        notes: &Arc<Notes>,
        clocks: bool,
        weak: bool,
    ) -> Nemesis {
        Nemesis {
            cluster: cluster.clone(),
            recorder: recorder.clone(),
            notes: notes.clone(),
            clocks,
            fillers: Vec::new(),
            frozen: Vec::new(),
            durability: None,
            weak,
            asking: Vec::new(),
        }
    }

    /// Who acknowledged last: what clients take for the leader.
    fn leader(&self) -> u64 {
        self.recorder.newest().1.max(1)
    }

    fn place(&self, who: Who) -> u64 {
        let leader = self.leader();
        match who {
            Who::Leader => leader,
            Who::Other(n) => {
                let others = self.cluster.others(leader);
                others[n as usize % others.len()]
            }
        }
    }

    /// # Errors
    /// The fault is not possible now; nothing was done.
    pub fn inject(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Kill(part, who) => self.kill(part, who),
            Fault::Freeze(part, who) => self.freeze(part, who),
            Fault::PowerCut(who) => self.power_cut(&[self.place(who)]),
            Fault::PowerCutTwo(a, b) => self.power_cut(&[self.place(a), self.place(b)]),
            Fault::PowerCutAll => self.power_cut(&self.cluster.ids()),
            Fault::RestartAll => self.terminate_all(),
            Fault::Isolate(who, clients) => self.isolate(self.place(who), clients),
            Fault::Split(with) => self.split(with),
            Fault::Deaf(who) => self.deaf(self.place(who)),
            Fault::Mute(who) => self.mute(self.place(who)),
            Fault::OneWay(a, b) => self.one_way(self.place(a), self.place(b)),
            Fault::Link(a, b) => self.link(self.place(a), self.place(b)),
            Fault::Bridge(who) => self.bridge(self.place(who)),
            Fault::Slow(who, loss, delay) => self.slow(self.place(who), loss, delay),
            Fault::SlowAll(loss, delay) => self.slow_all(loss, delay),
            Fault::Full(disk, who) => self.fill(disk, who),
            Fault::ChangeLeader(n) => self.change_leader(Who::Other(n)),
            Fault::Replace(n) => self.replace(Who::Other(n)),
            Fault::MarkDown(n) => self.mark_down(Who::Other(n)),
            Fault::EndSessions => self.end_sessions(),
            Fault::Durability(k) => self.change_durability(k),
            Fault::Clock(who, seconds) => self.step_clock(who, seconds),
        }
    }

    fn fill(&mut self, disk: Disk, who: Who) -> Result<(), String> {
        let place = self.place(who);
        let target = match disk {
            Disk::Data => disks::data_disk(&self.cluster, place),
            Disk::Wal if disks::has_wal_disk(&self.cluster, place) => disks::wal_disk(&self.cluster, place),
            Disk::Wal => return Err("the node's database was copied anew, its WAL is beside it".to_owned()),
        };
        self.fillers.push(disks::fill(&target)?);
        if disk == Disk::Wal {
            // There is room in the segments that exist; only a new one meets the full disk.
            let leader = self.leader();
            let sql =
                "SELECT concat(pg_logical_emit_message(false, 'chaos', repeat('x', 100)), pg_switch_wal())";
            self.ask(move |cluster| {
                let done = (0..6).take_while(|_| cluster.ask(leader, sql).is_ok()).count();
                format!("{done} segments of WAL were switched")
            });
        }
        Ok(())
    }

    fn end_sessions(&mut self) -> Result<(), String> {
        let leader = self.leader();
        self.ask(move |cluster| {
            let sql =
                "SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_activity WHERE usename = 'chaos'";
            format!("sessions ended: {:?}", cluster.ask(leader, sql))
        });
        Ok(())
    }

    /// Does something that may take its time, beside the rest, and notes what it returns.
    fn ask(&mut self, work: impl FnOnce(&NetCluster) -> String + Send + 'static) {
        let (cluster, notes) = (self.cluster.clone(), self.notes.clone());
        self.asking.push(std::thread::spawn(move || {
            let answer = work(&cluster);
            notes.say(&format!("  answer: {}", answer.chars().take(200).collect::<String>()));
        }));
    }

    /// Undoes everything; at its return nothing stands in the way of the cluster any more.
    pub fn heal(&mut self) {
        for filler in self.fillers.drain(..) {
            disks::empty(&filler);
        }
        self.cluster.network.heal();
        if self.clocks {
            Clocks::reset(&self.cluster);
        }
        self.thaw();
        self.revive();
        if let Some(change) = self.durability.take() {
            self.usual_durability(change);
        }
    }

    /// Starts sidecars that have ended, as a service manager does.
    pub fn revive(&self) {
        for place in self.cluster.ids() {
            if self.cluster.sidecar(place).is_none()
                && self.cluster.node_dir(place).join("node.toml").exists()
            {
                self.cluster.start_node(place);
            }
        }
    }

    /// Waits for requests that are on their way.
    pub fn finish(&mut self) {
        for asked in self.asking.drain(..).chain(self.durability.take()) {
            asked.join().expect("a request does not panic");
        }
    }
}
