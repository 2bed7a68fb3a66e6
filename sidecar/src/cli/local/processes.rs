//! Which processes of this machine belong to a node. A process id from a file proves nothing, it may have been given to
//! another program since; so every process is asked who it is before it is signalled.

use super::cluster::LocalNode;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[derive(Clone, Debug)]
struct Process {
    parent: i32,
    name: String,
}

/// The processes of a node that are alive now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    pub sidecar: Option<i32>,
    pub postmaster: Option<i32>,
    /// All of PostgreSQL, the postmaster first.
    pub postgres: Vec<i32>,
    /// What the sidecar has started beside PostgreSQL: pg_basebackup, pg_rewind.
    pub helpers: Vec<i32>,
}

impl Running {
    /// Looks at the machine once.
    pub fn of(node: &LocalNode) -> Running {
        let all = processes();
        let sidecar = sidecar(node, &all);
        let data_dir = node.config.data_dir.canonicalize().unwrap_or_else(|_| node.config.data_dir.clone());
        let postmaster = postmaster(&data_dir, &all);
        let mut postgres: Vec<i32> = postmaster.into_iter().collect();
        postgres.extend(postmaster.map(|p| descendants(p, &all)).unwrap_or_default());
        // Backends that outlive their postmaster have another parent, but still stand in the data directory.
        let orphans = all.iter().filter(|(_, p)| p.name == "postgres").map(|(pid, _)| *pid);
        let orphans =
            orphans.filter(|pid| !postgres.contains(pid) && stands_in(*pid, &data_dir)).collect::<Vec<_>>();
        postgres.extend(orphans);
        let helpers = sidecar.map(|s| descendants(s, &all)).unwrap_or_default();
        let helpers = helpers.into_iter().filter(|pid| !postgres.contains(pid)).collect();
        Running { sidecar, postmaster, postgres, helpers }
    }

    pub fn nothing(&self) -> bool {
        self.sidecar.is_none() && self.postgres.is_empty()
    }

    /// All processes in the order in which a power cut is imitated best: first those that could still acknowledge.
    pub fn all(&self) -> Vec<i32> {
        let rest = self.postgres.iter().copied().filter(|p| Some(*p) != self.postmaster);
        self.postmaster
            .into_iter()
            .chain(self.sidecar)
            .chain(rest)
            .chain(self.helpers.iter().copied())
            .collect()
    }
}

/// All living processes. One that has ended and was not yet collected by its parent is dead.
fn processes() -> BTreeMap<i32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, parse_stat(&stat)?))
    })
    .collect()
}

/// `pid (name) state parent …`; the name may hold spaces and brackets.
fn parse_stat(stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then(|| Process { parent, name: name.to_owned() })
}

fn descendants(of: i32, all: &BTreeMap<i32, Process>) -> Vec<i32> {
    let mut family = BTreeSet::from([of]);
    let mut found = Vec::new();
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|(pid, p)| family.contains(&p.parent) && !family.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        family.extend(&more);
        found.extend(more);
    }
}

fn stands_in(pid: i32, dir: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir)
}

fn postmaster(data_dir: &Path, all: &BTreeMap<i32, Process>) -> Option<i32> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    (pid > 1 && all.contains_key(&pid) && stands_in(pid, data_dir)).then_some(pid)
}

/// The process in the pid file if its command line names this node's configuration, else any that does.
fn sidecar(node: &LocalNode, all: &BTreeMap<i32, Process>) -> Option<i32> {
    let noted = std::fs::read_to_string(node.pid_file()).ok().and_then(|t| t.trim().parse::<i32>().ok());
    let config = node.config_file();
    let is_ours = |pid: &i32| all.contains_key(pid) && runs(*pid, &config);
    noted
        .filter(is_ours)
        .or_else(|| all.keys().copied().filter(|pid| *pid > 1).find(|pid| runs(*pid, &config)))
}

fn runs(pid: i32, config: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
    let program = words.first().copied().unwrap_or_default();
    program.ends_with(b"pgquorum")
        && words.contains(&b"run".as_slice())
        && words.contains(&config.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let p = parse_stat("17 (postgres: a) b (c)) S 5 17 17 0").unwrap();
        assert_eq!((p.parent, p.name.as_str()), (5, "postgres: a) b (c)"));
        assert!(parse_stat("17 (pgquorum) Z 5 17").is_none());
        assert!(parse_stat("nonsense").is_none());
    }

    #[test]
    fn families_are_found_to_the_last_grandchild() {
        let all: BTreeMap<i32, Process> = [(2, 1), (3, 2), (4, 3), (5, 1), (6, 5)]
            .into_iter()
            .map(|(pid, parent)| (pid, Process { parent, name: String::new() }))
            .collect();
        assert_eq!(descendants(2, &all), [3, 4]);
        assert_eq!(descendants(4, &all), Vec::<i32>::new());
    }

    #[test]
    fn a_stale_pid_file_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        // This test's own process is alive, but it is not a postmaster of that directory.
        std::fs::write(dir.path().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        assert_eq!(postmaster(dir.path(), &processes()), None);
        std::fs::write(dir.path().join("postmaster.pid"), "-1\n").unwrap();
        assert_eq!(postmaster(dir.path(), &processes()), None);
    }
}
