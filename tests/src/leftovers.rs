//! What worlds leave behind: finding it, and removing it where the owner was killed before it could.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Once,
};

use crate::{cgroup, netns, sys};

static SWEPT: Once = Once::new();

/// Sweeps once per process.
pub(crate) fn sweep() {
    SWEPT.call_once(sweep_leftovers);
}

/// Removes what worlds left whose owners are gone. Two processes may do so at once: what the other removed first is no
/// error.
pub fn sweep_leftovers() {
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
}

/// All that this machine has of the world called `id`, or of the worlds whose names start with it: namespaces, mounts,
/// cgroups, folders, processes.
pub fn traces(id: &str) -> Vec<String> {
    let mut traces = Vec::new();
    let folders = [Path::new(netns::NAMES).to_owned(), std::env::temp_dir()];
    for folder in folders.into_iter().chain(sys::cgroup2_mount()) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(id)));
        traces.extend(ours.map(|entry| entry.path().display().to_string()));
    }
    let mounts = sys::mounts_below(Path::new("/")).into_iter().map(|path| path.display().to_string());
    traces.extend(mounts.filter(|path| path.contains(id)));
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let mentions = |file: &str| {
            let bytes = fs::read(process.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(id)
        };
        // Dead, and waiting for its parent to ask: nothing of a world is left in it.
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let dead = stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']));
        if !dead && (mentions("cgroup") || mentions("cmdline")) {
            traces.push(process.path().display().to_string());
        }
    }
    traces
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
