//! Who the cluster runs as. Root becomes `postgres`, or whom it names; anybody else stays who they are.

use crate::cli::failure::{Context, Failure};
use nix::unistd::{Gid, Uid, User, geteuid};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The user that children run as; `None`: the one we are.
#[derive(Clone, Debug)]
pub struct Identity(Option<User>);

impl Identity {
    /// The identity for a cluster.
    ///
    /// # Errors
    /// The user does not exist, is root, or cannot be taken on.
    pub fn choose(name: Option<&str>) -> Result<Identity, Failure> {
        let find = |name: &str| {
            User::from_name(name).or_fail(format!("cannot look up the user {name}"))?.ok_or_else(|| {
                Failure::not_found(
                    "unknown_user",
                    format!("there is no user {name}; install PostgreSQL, or name one with --user"),
                )
            })
        };
        if !geteuid().is_root() {
            return match name.map(find).transpose()? {
                Some(user) if user.uid != geteuid() => Err(Failure::failed(
                    "not_root",
                    format!("only root can run a cluster as another user ({})", user.name),
                )),
                _ => Ok(Identity(None)),
            };
        }
        let user = find(name.unwrap_or("postgres"))?;
        if user.uid.is_root() {
            return Err(Failure::failed(
                "root",
                "PostgreSQL does not run as root; name another user with --user",
            ));
        }
        Ok(Identity(Some(user)))
    }

    pub fn name(&self) -> Option<String> {
        self.0.as_ref().map(|u| u.name.clone())
    }

    /// A command that runs as this user, with its home and none of the caller's groups.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(user) = &self.0 {
            // Setting the uid also empties the list of supplementary groups.
            command.gid(user.gid.as_raw()).uid(user.uid.as_raw());
            command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
        }
        command
    }

    /// Gives a file or directory to this user.
    pub fn own(&self, path: &Path) -> Result<(), Failure> {
        match &self.0 {
            Some(user) => std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .or_fail(format!("cannot give {} to {}", path.display(), user.name)),
            None => Ok(()),
        }
    }

    /// The first directory on the way to `path` that this user cannot enter.
    pub fn barred_from(&self, path: &Path) -> Option<PathBuf> {
        let user = self.0.as_ref()?;
        let barred = |p: &&Path| std::fs::metadata(p).is_ok_and(|m| !may_execute(&m, user.uid, user.gid));
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        way.iter().find(|p| barred(p)).map(|p| p.to_path_buf())
    }

    /// This program, where the user can execute it: a checkout below /root is out of reach of others, so a copy is put
    /// into the cluster's directory.
    pub fn executable(&self, cluster: &Path) -> Result<PathBuf, Failure> {
        let doing = "cannot find this program's own file";
        let own = std::env::current_exe().or_fail(doing)?;
        if self.barred_from(&own).is_none() {
            return Ok(own);
        }
        let copy = cluster.join("bin/pgquorum");
        let (from, to) = (std::fs::metadata(&own).or_fail(doing)?, std::fs::metadata(&copy));
        if !to.is_ok_and(|to| to.len() == from.len() && to.mtime() >= from.mtime()) {
            let doing = || format!("cannot copy this program to {}", copy.display());
            let new = copy.with_extension("new");
            std::fs::create_dir_all(cluster.join("bin")).or_fail(doing())?;
            std::fs::copy(&own, &new).or_fail(doing())?;
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).or_fail(doing())?;
            std::fs::rename(&new, &copy).or_fail(doing())?;
        }
        Ok(copy)
    }
}

fn may_execute(file: &std::fs::Metadata, uid: Uid, gid: Gid) -> bool {
    let shift = if file.uid() == uid.as_raw() {
        6
    } else if file.gid() == gid.as_raw() {
        3
    } else {
        0
    };
    file.mode() >> shift & 1 == 1
}
