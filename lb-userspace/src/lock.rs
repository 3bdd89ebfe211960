//! One agent for each state directory, and one for each set of pins.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock, major, minor};

/// Held as long as this lives; a crash frees it.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
}

/// The lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has the state directory.
    #[error(
        "another agent (pid {pid}) runs on {state_dir}; stop it, or give this one another --state-dir, --bpffs and --cgroup"
    )]
    Held {
        /// Who.
        pid: String,
        /// On what.
        state_dir: PathBuf,
    },
    /// Another agent, with a state directory of its own, has the pins.
    #[error(
        "another agent (pid {pid}) uses the pins in {bpffs}; stop it, or name its --state-dir to ask it; a second agent \
         needs another --state-dir, --bpffs and --cgroup"
    )]
    PinsHeld {
        /// Who.
        pid: String,
        /// Where.
        bpffs: PathBuf,
    },
    /// The file system refused.
    #[error("cannot lock {path}: {cause}; run this as root, or name another {option}")]
    Io {
        /// What was to be locked.
        path: PathBuf,
        /// Why.
        cause: io::Error,
        /// What leads elsewhere.
        option: &'static str,
    },
}

const UNKNOWN: &str = "unknown";

impl InstanceLock {
    /// Takes the lock of a state directory.
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("lock");
        let failed = |cause| LockError::Io { path: path.clone(), cause, option: "--state-dir" };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        if !try_lock(&file).map_err(failed)? {
            let mut pid = String::new();
            let pid = match file.read_to_string(&mut pid) {
                Ok(_) if !pid.trim().is_empty() => pid.trim().to_owned(),
                Ok(_) | Err(_) => UNKNOWN.to_owned(),
            };
            return Err(LockError::Held { pid, state_dir: state_dir.to_owned() });
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }

    /// Takes the lock of the pins in a bpffs, whose directory is made if need be.
    pub fn take_pins(bpffs: &Path) -> Result<Self, LockError> {
        let path = directory(bpffs);
        let failed = |cause| pins_error(&path, cause);
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                Ok(()) | Err(_) => {}
            }
            // Gone again: a cleanup ended in between.
            if let Some(lock) = Self::take_existing_pins(bpffs)? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock of the pins in a bpffs; `None` if there are none.
    pub fn take_existing_pins(bpffs: &Path) -> Result<Option<Self>, LockError> {
        let path = directory(bpffs);
        let failed = |cause| pins_error(&path, cause);
        // A bpffs holds no regular file that could carry the lock: the directory itself does.
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if !try_lock(&file).map_err(failed)? {
            let pid = holder(&file).map_or_else(|| UNKNOWN.to_owned(), |pid| pid.to_string());
            return Err(LockError::PinsHeld { pid, bpffs: bpffs.to_owned() });
        }
        // Whoever had it may have removed the directory with everything in it.
        let locked = file.metadata().map_err(failed)?.ino();
        let is_there = fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == locked);
        Ok(is_there.then_some(Self { _file: file }))
    }
}

fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join("ballast")
}

fn pins_error(path: &Path, cause: io::Error) -> LockError {
    LockError::Io { path: path.to_owned(), cause, option: "--bpffs" }
}

/// Whether the lock was free.
fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Who holds the lock of a file, as `/proc/locks` tells; a process of another pid namespace is not named there.
fn holder(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let place = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 3956 fe:00:10461354 0 EOF
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, pid, at, ..] if at == place => pid.parse().ok().filter(|pid| *pid != 0),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::soon;

    #[test]
    fn the_second_is_told_who_has_it_and_a_drop_frees_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = InstanceLock::take(directory.path()).expect("the lock");
        let error = InstanceLock::take(directory.path()).expect_err("refused").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())) && error.contains("--state-dir"), "{error}");
        drop(lock);
        soon(|| InstanceLock::take(directory.path()));
    }

    #[test]
    fn pins_have_a_lock_of_their_own() {
        let bpffs = tempfile::tempdir().expect("a directory");
        assert!(InstanceLock::take_existing_pins(bpffs.path()).expect("nothing to lock").is_none());
        let lock = InstanceLock::take_pins(bpffs.path()).expect("the lock");
        let error = InstanceLock::take_existing_pins(bpffs.path()).expect_err("refused").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())) && error.contains("--bpffs"), "{error}");
        // A cleanup removes what it has locked: whoever comes then locks the new directory.
        fs::remove_dir(directory(bpffs.path())).expect("removed");
        let next = InstanceLock::take_pins(bpffs.path()).expect("another directory");
        drop(lock);
        assert!(InstanceLock::take_pins(bpffs.path()).is_err());
        drop(next);
        soon(|| InstanceLock::take_pins(bpffs.path()));
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = InstanceLock::take(Path::new("/nonexistent")).expect_err("refused").to_string();
        assert!(error.contains("/nonexistent/lock"), "{error}");
    }
}
