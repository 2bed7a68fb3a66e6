//! A disk that takes no writes and gives no errors, as a volume does whose array has lost its path: a file system of its
//! own under one directory, which the kernel is told to freeze. It is small, so it can also be filled.

use crate::user::{give, is_root};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SIZE_MIB: u64 = 64;

/// The file system; thawed and taken away when dropped.
pub struct StalledDisk {
    image: PathBuf,
    mounted_at: PathBuf,
}

impl StalledDisk {
    /// Why it cannot be had here.
    pub fn refused() -> Option<String> {
        if !is_root() {
            return Some("a file system can be mounted by root only".to_owned());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("this machine has no loop devices".to_owned());
        }
        let installed = |program: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
        };
        let missing = ["mkfs.ext4", "mount", "umount", "fsfreeze"].into_iter().find(|p| !installed(p));
        missing.map(|program| format!("{program} is not installed"))
    }

    /// Puts what is in this directory on a disk of its own. Nobody may use the directory meanwhile.
    ///
    /// # Panics
    /// The file system cannot be made.
    pub fn under(dir: &Path) -> StalledDisk {
        StalledDisk::of_size(dir, SIZE_MIB)
    }

    /// The same with room for this many MiB.
    ///
    /// # Panics
    /// The file system cannot be made.
    pub fn of_size(dir: &Path, mib: u64) -> StalledDisk {
        let image = dir.with_extension("image");
        let aside = dir.with_extension("aside");
        let (image_text, dir_text) = (image.display().to_string(), dir.display().to_string());
        std::fs::File::create(&image).and_then(|f| f.set_len(mib << 20)).expect("the disk's image");
        assert!(run("mkfs.ext4", &["-q", "-F", "-m", "0", &image_text]), "mkfs.ext4 {image_text}");
        let permissions = std::fs::metadata(dir).expect("the directory").permissions();
        std::fs::rename(dir, &aside).expect("moving the directory aside");
        std::fs::create_dir(dir).expect("a place for the disk");
        assert!(run("mount", &["-o", "loop", &image_text, &dir_text]), "mount {image_text}");
        let disk = StalledDisk { image, mounted_at: dir.to_owned() };
        let _ = std::fs::remove_dir(dir.join("lost+found"));
        assert!(run("cp", &["-a", &format!("{}/.", aside.display()), &dir_text]), "cp {}", aside.display());
        give(dir);
        std::fs::set_permissions(dir, permissions).expect("the directory's permissions");
        std::fs::remove_dir_all(aside).expect("removing what was copied");
        disk
    }

    /// From now on whoever writes waits.
    pub fn freeze(&self) {
        assert!(run("fsfreeze", &["-f", &self.mounted_at.display().to_string()]), "fsfreeze -f");
    }

    pub fn thaw(&self) {
        assert!(run("fsfreeze", &["-u", &self.mounted_at.display().to_string()]), "fsfreeze -u");
    }

    /// Takes all the room that is left, to the last byte.
    ///
    /// # Panics
    /// The disk cannot be written to at all.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file on the disk");
        let block = vec![0x5a_u8; 1 << 20];
        for piece in [1 << 20, 4096, 1] {
            while filler.write_all(&block[..piece]).is_ok() {}
        }
    }

    /// Gives the room back.
    ///
    /// # Panics
    /// It was not taken.
    pub fn empty(&self) {
        std::fs::remove_file(self.filler()).expect("removing what fills the disk");
    }

    fn filler(&self) -> PathBuf {
        self.mounted_at.join("pgsql_tmp_filler")
    }
}

impl Drop for StalledDisk {
    fn drop(&mut self) {
        let dir = self.mounted_at.display().to_string();
        // Without this whoever waits for the disk could not even be killed.
        let _ = run("fsfreeze", &["-u", &dir]);
        let _ = run("umount", &["-l", &dir]);
        let _ = std::fs::remove_file(&self.image);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
