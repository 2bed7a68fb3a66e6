//! Passwords as people and scripts give them: typed, piped or from a file. Never as an argument, which every user of the
//! machine sees in `ps` and the shell keeps in its history.

use super::failure::{Context, Failure};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, IsTerminal, Read, Write};
use std::path::Path;

/// Nothing that is a password is longer.
const BYTES_MAX: u64 = 1024;

/// The first line of a file, of standard input if the file is `-`, or else what is typed in answer to `prompt`. Without a
/// terminal standard input is read.
///
/// # Errors
/// It cannot be read, is empty, or the input was broken off.
pub fn read(file: Option<&Path>, prompt: &str) -> Result<String, Failure> {
    let secret = match file {
        Some(file) if file != Path::new("-") => {
            let doing = || format!("cannot read the password from {}", file.display());
            first_line(File::open(file).or_fail(doing())?).or_fail(doing())?
        }
        None if std::io::stdin().is_terminal() => typed(prompt)?,
        _ => first_line(std::io::stdin()).or_fail("cannot read the password from standard input")?,
    };
    if secret.is_empty() {
        return Err(Failure::usage("the password is empty"));
    }
    Ok(secret)
}

/// The same for a password that is new: what is typed is asked for twice.
///
/// # Errors
/// As [`read`], or it was typed differently.
pub fn read_new(file: Option<&Path>, prompt: &str) -> Result<String, Failure> {
    let secret = read(file, prompt)?;
    if file.is_none() && std::io::stdin().is_terminal() && typed("Again: ")? != secret {
        return Err(Failure::usage("that was not the same twice; nothing was changed"));
    }
    Ok(secret)
}

fn first_line(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(BYTES_MAX).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Reads from the terminal without showing what is typed.
fn typed(prompt: &str) -> Result<String, Failure> {
    let doing = "cannot read a password from the terminal";
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").or_fail(doing)?;
    let quiet = Quiet::new(&terminal).or_fail(doing)?;
    terminal.write_all(prompt.as_bytes()).or_fail(doing)?;
    let typed = line(&terminal);
    drop(quiet);
    terminal.write_all(b"\n").or_fail(doing)?;
    typed.or_fail(doing)
}

/// What is typed up to Return. The terminal edits nothing meanwhile, so that Ctrl-C, too, ends it in good order.
fn line(input: impl Read) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    for byte in BufReader::new(input).bytes() {
        match byte? {
            b'\r' | b'\n' | 4 => return String::from_utf8(bytes).map_err(std::io::Error::other),
            3 => return Err(std::io::Error::other("interrupted")),
            21 => bytes.clear(),
            8 | 127 => {
                // A character may have several bytes.
                while bytes.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            byte if (bytes.len() as u64) < BYTES_MAX => bytes.push(byte),
            _ => {}
        }
    }
    String::from_utf8(bytes).map_err(std::io::Error::other)
}

/// A terminal that shows nothing, until this is dropped.
struct Quiet {
    terminal: File,
    before: Termios,
}

impl Quiet {
    fn new(terminal: &File) -> std::io::Result<Quiet> {
        let terminal = terminal.try_clone()?;
        let before = tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        tcsetattr(&terminal, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Quiet { terminal, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(&self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_typed_with_its_corrections() {
        for (typed, read) in [
            ("secret\r", "secret"),
            ("secret\nmore\n", "secret"),
            ("secrex\u{7f}t\n", "secret"),
            ("wrong\u{15}secret\n", "secret"),
            ("secré\u{8}et\u{4}", "secret"),
            ("\u{7f}x\n", "x"),
        ] {
            assert_eq!(line(typed.as_bytes()).unwrap(), read, "{typed:?}");
        }
        assert_eq!(line("sec\u{3}".as_bytes()).unwrap_err().to_string(), "interrupted");
    }

    #[test]
    fn of_a_file_the_first_line_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        for (text, expected) in
            [("secret", "secret"), ("secret\n", "secret"), (" two words \r\nmore", " two words ")]
        {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read(Some(&file), "").unwrap(), expected);
        }
        std::fs::write(&file, "\n").unwrap();
        assert!(read(Some(&file), "").unwrap_err().message.contains("empty"));
        let missing = read(Some(&folder.path().join("none")), "").unwrap_err().message;
        assert!(missing.contains("none"), "{missing}");
    }
}
