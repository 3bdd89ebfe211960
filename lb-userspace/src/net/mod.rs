//! The node's network: what there is (links, addresses, routes), what happens to it, and the device of our own.
//! The only module that speaks netlink.

pub mod bridges;
pub mod events;
pub mod host_device;
pub mod neighbours;
mod netlink;
mod netns;
mod next_hops;
pub mod node_ports;
mod pattern;
pub mod reserved_ports;
pub mod roles;
pub mod sock_diag;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

pub use self::{
    netlink::{Address, Link, Netlink},
    netns::netns_cookie,
    next_hops::{NextHop, Ways, WaysTo, next_hops},
};

/// Magic number of cgroup2 in `statfs(2)`.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// Where cgroup2 is mounted.
pub fn cgroup2_root() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    highest_cgroup2(&mounts).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 is mounted"))
}

/// The mount that shows most of the hierarchy, the first of several. A container with a cgroup namespace of its own sees
/// its own cgroup as `/`, and the node's, mounted beside it, as `/..` for each level above (`cgroup_namespaces(7))`: hooks
/// in the first would serve the agent alone.
fn highest_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    cgroup2_below(mountinfo, Path::new("/"))
}

/// Whether a directory is one of a cgroup2 file system.
pub fn is_cgroup2(path: &Path) -> io::Result<bool> {
    Ok(i128::from(rustix::fs::statfs(path)?.f_type) == i128::from(CGROUP2_MAGIC))
}

/// The cgroup2 that somebody means who names `path`: that itself, or what is mounted below where it is none, as with both
/// versions of cgroups in one folder.
pub fn cgroup2_at(path: PathBuf) -> PathBuf {
    if is_cgroup2(&path).unwrap_or(false) {
        return path;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    cgroup2_below(&mounts, &path).unwrap_or(path)
}

fn cgroup2_below(mountinfo: &str, folder: &Path) -> Option<PathBuf> {
    let mut highest: Option<(i64, PathBuf)> = None;
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut fields = before.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        let steps = root.split('/').filter(|step| !step.is_empty());
        let height: i64 = steps.map(|step| if step == ".." { 1 } else { -1 }).sum();
        let is_meant = after.starts_with("cgroup2 ") && Path::new(point).starts_with(folder);
        if is_meant && highest.as_ref().is_none_or(|(known, _)| height > *known) {
            highest = Some((height, PathBuf::from(point)));
        }
    }
    highest.map(|(_, point)| point)
}

/// Neither loopback, link-local, multicast nor unspecified.
pub fn is_global(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            !(addr.is_loopback() || addr.is_link_local() || addr.is_multicast() || addr.is_unspecified())
        }
        IpAddr::V6(addr) => {
            !(addr.is_loopback() || addr.is_unicast_link_local() || addr.is_multicast() || addr.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_cgroups_are_told_from_a_containers_own() {
        let root = |text: &str| highest_cgroup2(text).map(|path| path.display().to_string());
        let own = "36 25 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";
        let part = "37 25 0:30 /kubepods/pod1 /part rw - cgroup2 cgroup rw\n";
        let node = "38 25 0:30 /../../.. /host/cgroup rw - cgroup2 cgroup2 rw\n";
        let v1 = "39 25 0:31 /../.. /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(root(&[v1, part, own].concat()).as_deref(), Some("/sys/fs/cgroup"));
        assert_eq!(root(&[own, node, part].concat()).as_deref(), Some("/host/cgroup"));
        assert_eq!(root(&[own, &own.replace("/sys/fs", "/second")].concat()).as_deref(), Some("/sys/fs/cgroup"));
        assert_eq!(root(v1), None);
        let hybrid = "40 25 0:30 / /host/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let below = |folder: &str| cgroup2_below(&[own, hybrid].concat(), Path::new(folder));
        assert_eq!(below("/host/cgroup"), Some("/host/cgroup/unified".into()));
        assert_eq!(below("/host/cg"), None);
        assert_eq!(cgroup2_at("/nowhere".into()), PathBuf::from("/nowhere"), "whose error names it");
    }

    #[test]
    fn a_namespace_has_a_cookie_that_stays() {
        let cookie = netns_cookie().expect("a cookie");
        assert!(cookie != 0 && netns_cookie().expect("a cookie") == cookie);
    }
}
