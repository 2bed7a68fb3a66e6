//! Who servers run as: PostgreSQL refuses root, so root starts them as the user postgres.

use nix::unistd::{User, geteuid};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

pub(crate) const SERVER_USER: &str = "postgres";

pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// `None`: the user that the tests run as.
fn server_user() -> Option<User> {
    is_root().then(|| {
        let found = User::from_name(SERVER_USER).expect("the list of users");
        found.unwrap_or_else(|| panic!("there is no user {SERVER_USER}; `make setup` installs PostgreSQL"))
    })
}

/// A command that runs as the servers do.
///
/// # Panics
/// Their user does not exist.
pub fn server_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = server_user() {
        command.gid(user.gid.as_raw()).uid(user.uid.as_raw()).env("HOME", &user.dir);
    }
    command
}

/// Gives a directory to the servers' user.
pub(crate) fn give(path: &Path) {
    if let Some(user) = server_user() {
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .expect("giving a directory to the servers' user");
    }
}

/// A new directory below /var/tmp that the servers may use. Whoever asked for it removes it.
///
/// # Panics
/// It cannot be made.
pub fn server_directory(prefix: &str) -> std::path::PathBuf {
    server_directory_below(Path::new("/var/tmp"), prefix)
}

/// The same below another directory.
///
/// # Panics
/// It cannot be made.
pub fn server_directory_below(base: &Path, prefix: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(base).expect("a directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("permissions");
    give(dir.path());
    dir.keep()
}
