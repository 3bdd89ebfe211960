//! The node's network: what there is (links, addresses, routes), what happens to it, and the device of our own.
//! The only module that speaks netlink.

pub mod events;
pub mod host_device;
mod netlink;
mod netns;
pub mod reserved_ports;
pub mod roles;

use std::{io, net::IpAddr, path::PathBuf};

use ipnet::IpNet;

pub use self::{
    netlink::{Address, Link, Netlink},
    netns::netns_cookie,
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

/// Addresses nodePorts are served on: those of this node in `allowed`, or all of them if that is empty, never loopback
/// or link-local ones (semantics.md 2.9).
pub fn node_port_addresses(addresses: &[Address], allowed: &[IpNet]) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = addresses
        .iter()
        .filter(|address| address.usable && is_global(address.net.addr()))
        .map(|address| address.net.addr())
        .filter(|addr| allowed.is_empty() || allowed.iter().any(|net| net.contains(addr)))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
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

    fn address(net: &str, usable: bool) -> Address {
        Address { ifindex: 2, net: net.parse().expect("an address"), usable }
    }

    #[test]
    fn rule_2_9_node_ports_are_served_on_global_addresses_in_the_allowed_ranges() {
        let addresses = [
            address("192.0.2.1/24", true),
            address("127.0.0.1/8", true),
            address("fe80::1/64", true),
            address("2001:db8::1/64", true),
            address("2001:db8::2/64", false),
            address("192.0.2.1/32", true),
        ];
        let text = |allowed: &[&str]| {
            let allowed: Vec<IpNet> = allowed.iter().map(|net| net.parse().expect("a range")).collect();
            node_port_addresses(&addresses, &allowed).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(text(&[]), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(text(&["192.0.2.0/25"]), ["192.0.2.1"]);
        assert_eq!(text(&["198.51.100.0/24"]), [""; 0]);
    }

    #[test]
    fn a_namespace_has_a_cookie_that_stays() {
        let cookie = netns_cookie().expect("a cookie");
        assert!(cookie != 0 && netns_cookie().expect("a cookie") == cookie);
    }
}
