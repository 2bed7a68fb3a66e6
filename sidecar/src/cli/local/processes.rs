//! Which processes of this machine belong to a node. A process id from a file proves nothing, it may have been given to
//! another program since; so every process is asked who it is before it is signalled.

use super::cluster::LocalNode;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Programs that work on a node's data, and may outlive the sidecar that started them.
const HELPERS: [&str; 5] = ["initdb", "pg_basebackup", "pg_rewind", "pg_waldump", "pg_controldata"];

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
    /// All of PostgreSQL, the postmaster first; also what is left of one whose postmaster is gone.
    pub postgres: Vec<i32>,
    /// What the sidecar, or an earlier one, has started beside PostgreSQL: pg_basebackup, pg_rewind.
    pub helpers: Vec<i32>,
}

impl Running {
    /// Looks at the machine once.
    pub fn of(node: &LocalNode) -> Running {
        let all = processes();
        let sidecar = sidecar(node, &all);
        let data_dir = resolved(&node.config.data_dir);
        let postmaster = postmaster(&data_dir, &all);
        let mut postgres: Vec<i32> = postmaster.into_iter().collect();
        postgres.extend(postmaster.map(|p| descendants(p, &all)).unwrap_or_default());
        // Backends that outlive their postmaster have another parent, but still stand in the data directory, whatever
        // it is called by now. So do their own children.
        let ours = |cwd: &Path| is_or_was(cwd, &data_dir);
        for orphan in all.iter().filter(|(pid, p)| p.name == "postgres" && stands(**pid, ours)) {
            postgres.push(*orphan.0);
            postgres.extend(descendants(*orphan.0, &all));
        }
        // One that has just been started stands where its sidecar stood, and has not written its process id yet.
        postgres.extend(working_on(&all, &["postgres"], |path| is_or_was(path, &data_dir)));
        keep_first(&mut postgres);
        let mut helpers = sidecar.map(|s| descendants(s, &all)).unwrap_or_default();
        helpers.extend(working_on(&all, &HELPERS, |path| is_or_was(path, &data_dir)));
        keep_first(&mut helpers);
        helpers.retain(|pid| !postgres.contains(pid));
        Running { sidecar, postmaster, postgres, helpers }
    }

    pub fn nothing(&self) -> bool {
        self.sidecar.is_none() && self.postgres.is_empty() && self.helpers.is_empty()
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

/// PostgreSQL's processes and helpers that work below this directory: of nodes that were never made completely.
pub fn below(dir: &Path) -> Vec<i32> {
    let (all, dir) = (processes(), resolved(dir));
    let servers =
        all.iter().filter(|(pid, p)| p.name == "postgres" && stands(**pid, |c| c.starts_with(&dir)));
    let mut found: Vec<i32> = servers.map(|(pid, _)| *pid).collect();
    let programs: Vec<&str> = HELPERS.iter().copied().chain(["postgres"]).collect();
    found.extend(working_on(&all, &programs, |path| path.starts_with(&dir)));
    keep_first(&mut found);
    found
}

fn keep_first(pids: &mut Vec<i32>) {
    let mut seen = BTreeSet::new();
    pids.retain(|pid| seen.insert(*pid));
}

/// As the kernel names it, also if the last part of it is gone.
fn resolved(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap_or_else(|_| match (dir.parent().map(Path::canonicalize), dir.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => dir.to_owned(),
    })
}

/// Whether this is the data directory, something in it, or one that a copy was made in (`data.clone-…`) or has replaced
/// (`data.old-…`).
fn is_or_was(path: &Path, data_dir: &Path) -> bool {
    let Some(name) = data_dir.file_name() else { return false };
    let beside = data_dir.parent().and_then(|parent| path.strip_prefix(parent).ok());
    let first = beside.and_then(|rest| rest.components().next()).map(|c| c.as_os_str().as_encoded_bytes());
    let rest = first.and_then(|first| first.strip_prefix(name.as_encoded_bytes()));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b".clone-") || rest.starts_with(b".old-"))
}

/// Those of these programs that have such a directory among their arguments.
fn working_on(all: &BTreeMap<i32, Process>, programs: &[&str], ours: impl Fn(&Path) -> bool) -> Vec<i32> {
    let found = all.iter().filter(|(_, p)| programs.contains(&p.name.as_str())).map(|(pid, _)| *pid);
    let names = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Both `-D DIR` and `--pgdata=DIR`.
        line.split(|b| *b == 0).any(|word| {
            let value = word.iter().position(|b| *b == b'/').map(|at| &word[at..]).unwrap_or_default();
            std::str::from_utf8(value).is_ok_and(|path| ours(Path::new(path)))
        })
    };
    found.filter(names).collect()
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

/// Whether it is stopped, or there is no such process any more.
pub fn stands_still(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, after)| after.split_whitespace().next());
    matches!(state, Some("T" | "t" | "Z" | "X") | None)
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
    stands(pid, |cwd| cwd == dir)
}

/// The kernel marks a directory that is removed.
fn stands(pid: i32, ours: impl Fn(&Path) -> bool) -> bool {
    let Ok(cwd) = std::fs::read_link(format!("/proc/{pid}/cwd")) else { return false };
    let text = cwd.to_string_lossy();
    ours(text.strip_suffix(" (deleted)").map_or(cwd.as_path(), Path::new))
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
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| is_sidecar(&line, config))
}

/// `PROGRAM [--option]… run … CONFIG`. The program may have any name. One that starts another with these words (setsid,
/// sudo, strace) has that one's name before `run`.
fn is_sidecar(line: &[u8], config: &Path) -> bool {
    let mut words = line.split(|b| *b == 0).skip(1);
    words.find(|word| !word.starts_with(b"-")) == Some(b"run")
        && words.any(|word| {
            word.strip_prefix(b"--config=").unwrap_or(word) == config.as_os_str().as_encoded_bytes()
        })
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
    fn a_sidecar_is_known_by_what_it_runs_whatever_its_name() {
        let config = Path::new("/d/node1/node.toml");
        let is = |words: &str| is_sidecar(words.replace(' ', "\0").as_bytes(), config);
        for ours in
            ["/usr/local/bin/pgquorum run --config", "./pgq-1.2 run --config", "pgquorum --json run --config"]
        {
            assert!(is(&format!("{ours} /d/node1/node.toml")), "{ours}");
            assert!(!is(&format!("{ours} /d/node11/node.toml")), "{ours}");
        }
        assert!(is("pgquorum run --config=/d/node1/node.toml"));
        for other in [
            "vi",
            "tail -f",
            "pgquorum doctor --config",
            "setsid pgquorum run --config",
            "sudo -u me pgquorum run --config",
        ] {
            assert!(!is(&format!("{other} /d/node1/node.toml")), "{other}");
        }
    }

    #[test]
    fn directories_of_a_node_are_known_under_all_their_names() {
        let data = Path::new("/d/node1/data");
        for ours in ["/d/node1/data", "/d/node1/data/base", "/d/node1/data.clone-17", "/d/node1/data.old-3"] {
            assert!(is_or_was(Path::new(ours), data), "{ours}");
        }
        for other in
            ["/d/node1", "/d/node1/data2", "/d/node1/data.lost", "/d/node11/data", "/d/node1/database"]
        {
            assert!(!is_or_was(Path::new(other), data), "{other}");
        }
    }

    #[test]
    fn who_stands_in_a_removed_directory_still_belongs_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().canonicalize().unwrap().join("data");
        std::fs::create_dir(&data).unwrap();
        let mut sleeper = std::process::Command::new("sleep").arg("60").current_dir(&data).spawn().unwrap();
        let pid = i32::try_from(sleeper.id()).unwrap();
        std::fs::remove_dir(&data).unwrap();
        let stands = stands_in(pid, &data);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(stands);
        assert_eq!(resolved(&data), data);
    }

    #[test]
    fn a_server_that_has_just_been_started_is_known_by_its_arguments() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        // A shell under that name, which stands elsewhere and has written no file yet.
        let program = dir.join("postgres");
        // Copied by another process: what this one has open for writing, its children have until they execute, and a
        // program that anybody could write to is not started.
        let copied = std::process::Command::new("cp").arg("/bin/sh").arg(&program).status().unwrap();
        assert!(copied.success());
        let data = dir.join("node1/data");
        let mut server = std::process::Command::new(&program)
            .args(["-c", "read line", "-D"])
            .arg(&data)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(server.id()).unwrap();
        let works = |data: &Path| {
            working_on(&processes(), &["postgres"], |path| is_or_was(path, data)).contains(&pid)
        };
        let (ours, others) = (works(&data), works(&dir.join("node2/data")));
        let found_below = below(&dir).contains(&pid);
        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!((ours, others, found_below), (true, false, true));
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
