//! Each node's data and WAL lie on small disks of their own (tmpfs), which can be filled. Its state (votes, log) lies beside
//! them, in memory, too, where this machine has such a place: a disk that others share may stand still for half a minute,
//! and that is no fault of this run.

use pgquorum_tests::{NetCluster, poll_until};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where the whole cluster lies.
pub fn base() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/var/tmp") }
}

/// Much more than a run needs; only what is used takes memory.
const SIZE: &str = "3g";
const FILLER: &str = "filler";

pub fn data_disk(cluster: &NetCluster, place: u64) -> PathBuf {
    cluster.node_dir(place).join("disk")
}

pub fn wal_disk(cluster: &NetCluster, place: u64) -> PathBuf {
    cluster.node_dir(place).join("wal")
}

/// Moves a new node's database and its WAL to disks of their own, as an administrator would before the first start.
///
/// # Panics
/// It cannot be done.
pub fn prepare(cluster: &NetCluster, place: u64) {
    let (dir, disk, wal) = (cluster.node_dir(place), data_disk(cluster, place), wal_disk(cluster, place));
    for target in [&disk, &wal] {
        std::fs::create_dir_all(target).expect("a mount point");
        let options = format!("size={SIZE},mode=700,uid=postgres,gid=postgres");
        must(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "pgquorum-chaos"]).arg(target));
    }
    // -T: the directory itself, not into one that is there.
    let moved = |from: &Path, to: &Path| must(Command::new("mv").arg("-T").args([from, to]));
    moved(&dir.join("data"), &disk.join("data"));
    moved(&disk.join("data/pg_wal"), &wal.join("pg_wal"));
    symlink(wal.join("pg_wal"), disk.join("data/pg_wal")).expect("a link to the WAL");
    if dir.join("data.pgpass").exists() {
        moved(&dir.join("data.pgpass"), &disk.join("data.pgpass"));
    }
    let file = dir.join("node.toml");
    let text = std::fs::read_to_string(&file).expect("node.toml");
    let line = |l: &str| match l.trim_start().starts_with("data-dir") {
        true => "data-dir = \"disk/data\"\n".to_owned(),
        false => format!("{l}\n"),
    };
    let changed: String = text.lines().map(line).collect();
    assert!(changed.contains("disk/data"), "node.toml names no data-dir: {text}");
    std::fs::write(&file, changed).expect("node.toml");
}

/// Takes a node's disks away with all that is on them. Nothing of the node may run. What it has logged stays, beside the
/// folders of the nodes.
pub fn remove(cluster: &NetCluster, place: u64) {
    let dir = cluster.node_dir(place);
    let free = (1..).map(|n| dir.with_extension(format!("former{n}.log"))).find(|log| !log.exists());
    let free = free.expect("a name that is not taken");
    let _ = std::fs::rename(dir.join("sidecar.log"), &free);
    let _ = std::fs::rename(dir.join("state/postgres.log"), free.with_extension("postgres.log"));
    for disk in [data_disk(cluster, place), wal_disk(cluster, place)] {
        let _ = Command::new("umount").arg("-l").arg(&disk).output();
    }
    let _ = std::fs::remove_dir_all(dir);
}

/// Copies what is on the disks to the folder that stays, because the disks go with this process.
pub fn save(cluster: &NetCluster, place: u64) {
    for disk in [data_disk(cluster, place), wal_disk(cluster, place)] {
        let _ = std::fs::remove_file(disk.join(FILLER));
        let _ = Command::new("cp").arg("-a").arg(&disk).arg(disk.with_extension("saved")).output();
        let _ = Command::new("umount").arg("-l").arg(&disk).output();
    }
}

/// Whether the WAL of a node is still on its own disk: a copy of the database puts it back beside the data.
pub fn has_wal_disk(cluster: &NetCluster, place: u64) -> bool {
    data_disk(cluster, place).join("data/pg_wal").is_symlink()
}

/// Fills a disk to the last byte.
///
/// # Errors
/// It cannot be written to at all.
pub fn fill(disk: &Path) -> Result<PathBuf, String> {
    let file = disk.join(FILLER);
    let mut filler = File::create(&file).map_err(|e| e.to_string())?;
    let block = vec![0x5a_u8; 1 << 20];
    // Large pieces first, then what is left.
    for piece in [1 << 20, 4096, 1] {
        while filler.write_all(&block[..piece]).is_ok() {}
    }
    Ok(file)
}

/// Makes room again.
pub fn empty(filler: &Path) {
    let gone = || match std::fs::remove_file(filler) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e.to_string()),
    };
    if let Err(e) = poll_until(Duration::from_secs(2), gone) {
        eprintln!("{} could not be removed: {e}", filler.display());
    }
}

fn must(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}
