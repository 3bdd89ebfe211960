//! A bpffs of its own, unmounted on drop.

use std::path::Path;

use anyhow::Context as _;

use crate::sys;

/// A mounted bpffs.
#[derive(Debug)]
pub struct Bpffs(tempfile::TempDir);

impl Bpffs {
    /// Mounts one.
    pub fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("cannot make a directory for a bpffs")?;
        sys::mount_bpffs(directory.path())?;
        Ok(Self(directory))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = sys::unmount(self.0.path()) {
            eprintln!("{error:#}");
        }
    }
}
