//! The machine's watchdog (`/dev/watchdog`): it restarts a machine that hangs as a whole. It runs only while this node's
//! server is, or is about to be, the primary, and is kept quiet by the driver's loop alone, while the lease is renewed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

mod ioctl {
    nix::ioctl_readwrite!(set_timeout, b'W', 6, nix::libc::c_int);
}

/// What closes the device without a restart of the machine.
const MAGIC_CLOSE: &[u8] = b"V";

/// `/dev/watchdog` is another name of the first one.
const FIRST: (u32, u32) = (10, 130);

/// What `node.toml` says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogConfig {
    pub device: PathBuf,
    pub seconds: u32,
    pub required: bool,
}

/// What the node does, as far as the watchdog is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Leads without an open primary: before the promotion is over, or while it hands over. The loop's life is enough.
    OnTheWay,
    /// Leads an open primary; the renewals of its lease keep the watchdog quiet.
    Open,
    /// Leads no more, but its server still runs as a primary. If that does not end soon, the machine is restarted.
    Ending,
    None,
}

pub struct Watchdog {
    config: Option<WatchdogConfig>,
    file: Option<File>,
    set_timeout: fn(&File, u32) -> io::Result<u32>,
    sysfs: PathBuf,
}

impl Watchdog {
    /// Opens nothing, but for one moment: an earlier sidecar that was killed has left the device running.
    pub fn new(config: Option<WatchdogConfig>) -> Watchdog {
        let mut watchdog = Watchdog { config, file: None, set_timeout, sysfs: PathBuf::from("/sys") };
        if watchdog.config.is_some() {
            match watchdog.arm() {
                Ok(()) => watchdog.disarm(),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        watchdog
    }

    /// Starts the watchdog, before a promotion. Fails only where the node must not lead without it.
    pub fn require(&mut self) -> Result<(), String> {
        match self.arm() {
            Err(error) if self.config.as_ref().is_some_and(|c| c.required) => {
                Err(format!("{error}; this node does not lead without it (watchdog-required)"))
            }
            Err(error) => {
                tracing::warn!("{error}; going on without it");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn arm(&mut self) -> Result<(), String> {
        let Some(config) = self.config.as_ref().filter(|_| self.file.is_none()) else { return Ok(()) };
        let shown = config.device.display();
        // Once it is open it can only be fed: a standby, or a sidecar that ends, would have its machine restarted.
        if runs_for_good(&self.sysfs, &config.device) {
            return Err(format!(
                "the watchdog {shown} cannot be stopped once it runs (nowayout), so it is not started. Load its driver with \
                 nowayout=0"
            ));
        }
        let mut options = std::fs::OpenOptions::new();
        let file = options
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&config.device)
            .map_err(|e| format!("the watchdog {shown} cannot be opened: {e}"))?;
        let mut opened =
            Watchdog { config: None, file: Some(file), set_timeout: self.set_timeout, sysfs: PathBuf::new() };
        let set = opened.file.as_ref().map_or(Ok(0), |f| (self.set_timeout)(f, config.seconds));
        match set {
            Ok(seconds) if seconds == config.seconds => {
                self.file = opened.file;
                self.keep_alive();
                Ok(())
            }
            Ok(seconds) => {
                opened.disarm();
                let wanted = config.seconds;
                Err(format!(
                    "the watchdog {shown} takes {seconds} s instead of {wanted} s (watchdog-timeout)"
                ))
            }
            Err(error) => {
                opened.disarm();
                Err(format!("the watchdog {shown} takes no timeout: {error}"))
            }
        }
    }

    /// A sign of life.
    pub fn keep_alive(&mut self) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(b"\0")
        {
            tracing::warn!(%error, "the watchdog takes no sign of life; the machine may be restarted");
        }
    }

    /// What follows from what the node does now.
    pub fn follow(&mut self, duty: Duty) {
        match duty {
            Duty::OnTheWay => self.keep_alive(),
            Duty::None => self.disarm(),
            Duty::Open | Duty::Ending => {}
        }
    }

    /// Stops the watchdog.
    pub fn disarm(&mut self) {
        if let Some(mut file) = self.file.take()
            && let Err(error) = file.write_all(MAGIC_CLOSE)
        {
            tracing::error!(%error, "the watchdog cannot be stopped; the machine may be restarted");
        }
    }
}

/// Whether the kernel goes on without a sign of life after the device was closed in order, as far as it says.
fn runs_for_good(sysfs: &Path, device: &Path) -> bool {
    let Ok(file) = std::fs::metadata(device) else { return false };
    if !file.file_type().is_char_device() {
        return false;
    }
    let place = match (nix::libc::major(file.rdev()), nix::libc::minor(file.rdev())) {
        FIRST => "class/watchdog/watchdog0".to_owned(),
        (major, minor) => format!("dev/char/{major}:{minor}"),
    };
    std::fs::read_to_string(sysfs.join(place).join("nowayout")).is_ok_and(|text| text.trim() == "1")
}

/// Sets the device's timeout and returns the one that it took.
fn set_timeout(file: &File, seconds: u32) -> io::Result<u32> {
    let mut value = nix::libc::c_int::try_from(seconds).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the whole call, and the kernel reads and writes one int behind the pointer.
    unsafe { ioctl::set_timeout(file.as_raw_fd(), &raw mut value) }.map_err(io::Error::from)?;
    u32::try_from(value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watchdog(device: &Path, required: bool) -> Watchdog {
        std::fs::write(device, "").unwrap();
        let config = WatchdogConfig { device: device.to_owned(), seconds: 5, required };
        let sysfs = device.with_extension("sys");
        Watchdog { config: Some(config), file: None, set_timeout: |_, seconds| Ok(seconds), sysfs }
    }

    #[test]
    fn it_runs_from_the_promotion_on_and_is_closed_by_the_magic_letter() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        let mut w = watchdog(&device, true);
        let said = || std::fs::read(&device).unwrap();
        w.keep_alive();
        w.follow(Duty::None);
        assert!(said().is_empty(), "nothing is said to a watchdog that does not run");
        w.require().unwrap();
        w.require().unwrap();
        assert_eq!(said(), b"\0");
        w.follow(Duty::OnTheWay);
        w.follow(Duty::Open);
        w.follow(Duty::Ending);
        assert_eq!(said(), b"\0\0", "an open primary is kept alive by its lease, one that ends by nobody");
        w.keep_alive();
        w.follow(Duty::None);
        assert_eq!(said(), b"\0\0\0V");
        w.follow(Duty::None);
        assert_eq!(said().len(), 4);
    }

    #[test]
    fn without_a_device_only_a_node_that_must_have_one_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        for (required, refused) in [(true, true), (false, false)] {
            let mut w = watchdog(&device, required);
            std::fs::remove_file(&device).unwrap();
            assert_eq!(w.require().is_err(), refused);
        }
        assert!(Watchdog::new(None).require().is_ok());
    }

    /// The device is another one that may be opened at will; what counts is what the kernel says of its number.
    #[test]
    fn a_watchdog_that_cannot_be_stopped_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        for required in [true, false] {
            let mut w = watchdog(&dir.path().join("watchdog"), required);
            w.config.as_mut().unwrap().device = "/dev/null".into();
            let says = w.sysfs.join("dev/char/1:3");
            std::fs::create_dir_all(&says).unwrap();
            std::fs::write(says.join("nowayout"), "1\n").unwrap();
            let done = w.require();
            assert_eq!(done.is_err(), required);
            assert!(done.err().is_none_or(|text| text.contains("nowayout=0")));
            assert!(w.file.is_none(), "it was not opened");
            std::fs::write(says.join("nowayout"), "0\n").unwrap();
            w.require().unwrap();
            assert!(w.file.is_some());
        }
    }

    #[test]
    fn a_file_that_is_no_watchdog_and_another_timeout_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("watchdog");
        let mut w = watchdog(&device, true);
        w.set_timeout = |_, _| Ok(60);
        assert!(w.require().unwrap_err().contains("60 s instead of 5 s"));
        assert_eq!(std::fs::read(&device).unwrap(), b"V", "it was opened, so it is closed in order");
        w.set_timeout = set_timeout;
        assert!(w.require().unwrap_err().contains("takes no timeout"), "a plain file");
    }
}
