//! Removes what worlds left behind whose owner was killed before it could clean up.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Once,
};

use crate::{cgroup, netns, sys};

static SWEPT: Once = Once::new();

/// Sweeps once per process. Two processes may sweep at once: what the other removed first is no error.
pub(crate) fn sweep() {
    SWEPT.call_once(|| {
        // Processes first: they hold namespaces, mounts and links.
        if let Ok(mount) = sys::cgroup2_mount() {
            for path in orphans_in(&mount) {
                report(cgroup::remove(&path), &path);
            }
        }
        for path in orphans_in(Path::new(netns::NAMES)) {
            if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                report(netns::delete(name), &path);
            }
        }
        for path in orphans_in(&std::env::temp_dir()) {
            for mount in sys::mounts_below(&path) {
                report(sys::unmount(&mount), &mount);
            }
            report(fs::remove_dir_all(&path).map_err(Into::into), &path);
        }
    });
}

fn orphans_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(sys::is_orphan))
        .map(|entry| entry.path())
        .collect()
}

fn report(result: anyhow::Result<()>, path: &Path) {
    if let Err(error) = result
        && path.exists()
    {
        eprintln!("world: leftover of a dead owner: {error:#}");
    }
}
