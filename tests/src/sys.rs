//! Who owns a world: names that tell a living owner from a dead one, and mounts.

use std::{
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustix::mount::{MountFlags, UnmountFlags};

/// What every name of a world starts with; what follows is `PID-STARTTIME-RANDOM`.
pub(crate) const PREFIX: &str = "btw-";

/// A name no other world has: the owner's pid and start time (a pid alone is used again), and a random suffix.
pub(crate) fn unique_name() -> anyhow::Result<String> {
    let pid = std::process::id();
    let start = start_time(pid).context("cannot read this process's start time from /proc")?;
    // A fresh hasher's keys are random: enough to tell the worlds of one process apart.
    let random = RandomState::new().build_hasher().finish();
    Ok(format!("{PREFIX}{pid}-{start}-{:08x}", random & 0xffff_ffff))
}

/// Whether `name` belongs to a world whose owner is gone; false for names that are no world's.
pub(crate) fn is_orphan(name: &str) -> bool {
    maker(name).is_some_and(|(pid, start)| start_time(pid) != Some(start))
}

/// The process that owns the world called `id`, while it lives.
pub fn owner(id: &str) -> Option<u32> {
    maker(id).filter(|&(pid, start)| start_time(pid) == Some(start)).map(|(pid, _)| pid)
}

/// Pid and start time that the name of a world holds.
fn maker(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Field 22 of `/proc/PID/stat`: ticks since boot at which the process started.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold spaces: count from its end.
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}

/// Mounts a BPF file system at `path`, made if need be.
pub(crate) fn mount_bpffs(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    rustix::mount::mount("bpf", path, "bpf", MountFlags::empty(), None)
        .with_context(|| format!("cannot mount a BPF file system at {}", path.display()))
}

/// Takes a mount away; pinned objects in it go once nobody holds them.
pub(crate) fn unmount(path: &Path) -> anyhow::Result<()> {
    rustix::mount::unmount(path, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", path.display()))
}

/// The mount points at or below `path`, deepest first.
pub(crate) fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let mut mounts: Vec<_> =
        mount_table().into_iter().map(|(point, _)| point).filter(|point| point.starts_with(path)).collect();
    mounts.sort();
    mounts.reverse();
    mounts
}

/// The first cgroup2 mount.
pub(crate) fn cgroup2_mount() -> anyhow::Result<PathBuf> {
    mount_table().into_iter().find(|(_, kind)| kind == "cgroup2").map(|(point, _)| point).context(
        "no cgroup2 file system is mounted: the socket hooks need one (mount -t cgroup2 none /sys/fs/cgroup/unified)",
    )
}

/// Mount points with their file system types.
fn mount_table() -> Vec<(PathBuf, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            Some((PathBuf::from(left.split(' ').nth(4)?), right.split(' ').next()?.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_owners_name_is_no_orphan() -> anyhow::Result<()> {
        let name = unique_name()?;
        assert!(!is_orphan(&name));
        assert_eq!(owner(&name), Some(std::process::id()));
        assert!(!is_orphan(&format!("{name}-node1")));
        Ok(())
    }

    #[test]
    fn a_used_again_pid_is_not_taken_for_the_owner() {
        assert!(is_orphan(&format!("{PREFIX}{}-1-00000000", std::process::id())));
        assert_eq!(owner(&format!("{PREFIX}{}-1-00000000", std::process::id())), None);
        assert!(!is_orphan("somebody-elses-netns"));
        assert!(!is_orphan("btw-not-a-number"));
    }
}
