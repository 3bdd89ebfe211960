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

use std::{io, net::IpAddr, path::PathBuf};

pub use self::{
    netlink::{Address, Link, Netlink},
    netns::netns_cookie,
    next_hops::NextHop,
};

/// Where cgroup2 is mounted.
pub fn cgroup2_root() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    mounts
        .lines()
        .find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = before.split(' ').nth(4)?;
            after.starts_with("cgroup2 ").then(|| PathBuf::from(point))
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 is mounted"))
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
    fn a_namespace_has_a_cookie_that_stays() {
        let cookie = netns_cookie().expect("a cookie");
        assert!(cookie != 0 && netns_cookie().expect("a cookie") == cookie);
    }
}
