//! One agent for each state directory.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// Held as long as this lives; a crash frees it.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
}

/// The lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error(
        "another agent (pid {pid}) runs on {state_dir}; stop it, or give this one another --state-dir, --bpffs and --cgroup"
    )]
    Held {
        /// Who.
        pid: String,
        /// On what.
        state_dir: PathBuf,
    },
    /// The file system refused.
    #[error("cannot lock {path}: {cause}; make it writable, or name another --state-dir")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

impl InstanceLock {
    /// Takes the lock of a state directory.
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("lock");
        let failed = |cause| LockError::Io { path: path.clone(), cause };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let pid = match file.read_to_string(&mut pid) {
                    Ok(_) if !pid.trim().is_empty() => pid.trim().to_owned(),
                    Ok(_) | Err(_) => "unknown".to_owned(),
                };
                return Err(LockError::Held { pid, state_dir: state_dir.to_owned() });
            }
            Err(error) => return Err(failed(error.into())),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_it_and_a_drop_frees_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = InstanceLock::take(directory.path()).expect("the lock");
        let error = InstanceLock::take(directory.path()).expect_err("refused").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())) && error.contains("--state-dir"), "{error}");
        drop(lock);
        InstanceLock::take(directory.path()).expect("free again");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = InstanceLock::take(Path::new("/nonexistent")).expect_err("refused").to_string();
        assert!(error.contains("/nonexistent/lock"), "{error}");
    }
}
