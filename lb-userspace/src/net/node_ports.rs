//! Which addresses of this node nodePorts are served on (semantics.md 2.9).

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{Address, is_global};
use crate::report::Problem;

/// `nodePortAddresses` of `KubeProxyConfiguration`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every address of the node.
    #[default]
    All,
    /// Those in the ranges; a family without a range is served on all its addresses.
    Ranges(Vec<IpNet>),
    /// The first `InternalIP` of each family in the own Node's status.
    Primary,
    /// Loopback addresses.
    Localhost,
    /// Both.
    PrimaryAndLocalhost,
}

/// What [`NodePortAddresses`] come to on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Sorted, each once; never link-local ones. Loopback ones are for this node's processes alone (semantics.md 2.9.3).
    pub addresses: Vec<IpAddr>,
    /// Where that is not what was asked for.
    pub problems: Vec<Problem>,
}

const OBJECT: &str = "nodePortAddresses";

/// Whom the node calls its own.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// Its name.
    pub name: &'a str,
    /// The `InternalIP`s of the own Node; `None` if there is no such Node.
    pub internal_ips: Option<&'a [IpAddr]>,
    /// `bindAddress` of `KubeProxyConfiguration`: the primary address of its family, whatever the Node says.
    pub bind_address: Option<IpAddr>,
}

impl Own<'_> {
    /// As kube-proxy's `detectNodeIPs` finds them: the first one of each family is the primary one. Empty if unknown.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let bind = self.bind_address;
        let others = self.internal_ips.unwrap_or_default().iter().copied();
        bind.into_iter().chain(others.filter(|ip| bind.is_none_or(|bind| bind.is_ipv4() != ip.is_ipv4()))).collect()
    }
}

impl NodePortAddresses {
    /// Whether loopback addresses are named.
    pub fn asks_for_localhost(&self) -> bool {
        match self {
            Self::All | Self::Primary => false,
            Self::Ranges(ranges) => ranges.iter().any(|net| net.addr().is_loopback()),
            Self::Localhost | Self::PrimaryAndLocalhost => true,
        }
    }

    /// The addresses to serve, among those this node has.
    pub fn serve(&self, addresses: &[Address], own: &Own<'_>) -> Served {
        let mut found: Vec<IpAddr> = addresses
            .iter()
            .filter(|address| address.usable && (address.universe || LOOPBACK.contains(&address.net.addr())))
            .map(|address| address.net.addr())
            .filter(|addr| is_global(*addr) || LOOPBACK.contains(addr))
            .collect();
        found.sort_unstable();
        found.dedup();
        let mut problems = Vec::new();
        match self {
            Self::All => {}
            Self::Ranges(ranges) => {
                found.retain(|addr| {
                    let mut same_family = ranges.iter().filter(|net| net.addr().is_ipv4() == addr.is_ipv4()).peekable();
                    same_family.peek().is_none() || same_family.any(|net| net.contains(addr))
                });
                let missed = |net: &&IpNet| net.addr().is_loopback() && !found.iter().any(|addr| net.contains(addr));
                problems.extend(ranges.iter().find(missed).map(no_loopback));
            }
            Self::Primary | Self::PrimaryAndLocalhost => {
                let primary = primary(&own.addresses());
                problems.extend(primary_problems(own, &primary, &found));
                let localhost = *self == Self::PrimaryAndLocalhost;
                found.retain(|addr| primary.contains(addr) || localhost && addr.is_loopback());
            }
            Self::Localhost => found.retain(IpAddr::is_loopback),
        }
        let asks = matches!(self, Self::Localhost | Self::PrimaryAndLocalhost);
        if asks && !found.iter().any(IpAddr::is_loopback) {
            problems.push(no_loopback(&"localhost"));
        }
        Served { addresses: found, problems }
    }
}

/// The loopback addresses nodePorts are served on: others of 127/8 stay the node's own.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

fn no_loopback(asked: &impl Display) -> Problem {
    Problem {
        object: OBJECT.to_owned(),
        cause: format!(
            "{asked}: no usable address of this machine; of loopback addresses 127.0.0.1 and ::1 are served"
        ),
        fix: "set lo up, or write localhost".to_owned(),
    }
}

/// The first of each family.
fn primary(own: &[IpAddr]) -> Vec<IpAddr> {
    let first = |v4: bool| own.iter().copied().find(|addr| addr.is_ipv4() == v4);
    first(true).into_iter().chain(first(false)).collect()
}

fn primary_problems(own: &Own<'_>, primary: &[IpAddr], here: &[IpAddr]) -> Vec<Problem> {
    let node = own.name;
    let problem = |cause: String, fix: &str| Problem { object: OBJECT.to_owned(), cause, fix: fix.to_owned() };
    if primary.is_empty() {
        let cause = if own.internal_ips.is_some() {
            format!("primary: Node {node} has no InternalIP in status.addresses, so no nodePort is served")
        } else {
            format!("primary: there is no Node {node}, so no nodePort is served")
        };
        let fix = "add the Node document with an InternalIP, correct --node, or write ranges instead of primary";
        return vec![problem(cause, fix)];
    }
    let absent = primary.iter().filter(|addr| !here.contains(addr));
    absent
        .map(|addr| {
            if own.bind_address == Some(*addr) {
                let cause = format!("primary: bindAddress {addr} is no usable address of this machine");
                return problem(cause, "correct bindAddress, or give the address to an interface");
            }
            let cause = format!("primary: InternalIP {addr} of Node {node} is no usable address of this machine");
            problem(cause, "correct status.addresses of the Node or --node, or give the address to an interface")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(net: &str) -> Address {
        Address { ifindex: 2, net: net.parse().expect("an address"), usable: true, universe: true }
    }

    fn served(asked: &NodePortAddresses, internal_ips: Option<&[&str]>) -> (Vec<String>, Vec<String>) {
        served_with(asked, internal_ips, None)
    }

    fn served_with(
        asked: &NodePortAddresses,
        internal_ips: Option<&[&str]>,
        bind_address: Option<&str>,
    ) -> (Vec<String>, Vec<String>) {
        let addresses = [
            address("192.0.2.1/24"),
            address("198.51.100.1/24"),
            Address { universe: false, ..address("127.0.0.1/8") },
            address("169.254.20.10/32"),
            address("fe80::1/64"),
            Address { universe: false, ..address("::1/128") },
            address("2001:db8::1/64"),
            Address { usable: false, ..address("2001:db8::2/64") },
            Address { universe: false, ..address("192.0.2.3/32") },
            address("192.0.2.1/32"),
        ];
        let internal_ips: Option<Vec<IpAddr>> =
            internal_ips.map(|ips| ips.iter().map(|ip| ip.parse().expect("an address")).collect());
        let bind_address = bind_address.map(|ip| ip.parse().expect("an address"));
        let own = Own { name: "n1", internal_ips: internal_ips.as_deref(), bind_address };
        let served = asked.serve(&addresses, &own);
        (
            served.addresses.iter().map(ToString::to_string).collect(),
            served.problems.into_iter().map(|problem| problem.cause).collect(),
        )
    }

    fn ranges(ranges: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Ranges(ranges.iter().map(|net| net.parse().expect("a range")).collect())
    }

    #[test]
    fn rule_2_9_node_ports_are_served_on_global_and_loopback_addresses_in_the_allowed_ranges() {
        for (asked, expected) in [
            (NodePortAddresses::All, &["127.0.0.1", "192.0.2.1", "198.51.100.1", "::1", "2001:db8::1"][..]),
            (ranges(&["192.0.2.0/25"]), &["192.0.2.1", "::1", "2001:db8::1"]),
            (ranges(&["192.0.2.0/25", "2001:db8:1::/48"]), &["192.0.2.1"]),
            (
                ranges(&["192.0.2.0/25", "198.51.100.1/32", "::/0"]),
                &["192.0.2.1", "198.51.100.1", "::1", "2001:db8::1"],
            ),
        ] {
            assert_eq!(served(&asked, None), (expected.iter().map(ToString::to_string).collect(), vec![]), "{asked:?}");
        }
    }

    #[test]
    fn rule_2_9_1_primary_is_the_first_internal_ip_of_each_family() {
        let ips = ["198.51.100.1", "192.0.2.1", "2001:db8::1"];
        let (addresses, problems) = served(&NodePortAddresses::Primary, Some(&ips));
        assert_eq!((addresses, problems), (vec!["198.51.100.1".to_owned(), "2001:db8::1".to_owned()], vec![]));
        // A family the Node does not have is not served.
        assert_eq!(served(&NodePortAddresses::Primary, Some(&ips[..1])).0, ["198.51.100.1"]);
    }

    #[test]
    fn a_bind_address_is_the_primary_one_of_its_family() {
        let ips = ["198.51.100.1", "2001:db8::1"];
        let (addresses, problems) = served_with(&NodePortAddresses::Primary, Some(&ips), Some("192.0.2.1"));
        assert_eq!((addresses, problems), (vec!["192.0.2.1".to_owned(), "2001:db8::1".to_owned()], vec![]));
        // Also where there is no Node, and of nobody else's family.
        assert_eq!(served_with(&NodePortAddresses::Primary, None, Some("2001:db8::1")).0, ["2001:db8::1"]);
        assert_eq!(served_with(&NodePortAddresses::All, None, Some("192.0.2.1")).0.len(), 5, "primary alone asks");
        let (addresses, problems) = served_with(&NodePortAddresses::Primary, Some(&ips), Some("203.0.113.1"));
        assert_eq!(addresses, ["2001:db8::1"]);
        assert!(problems.len() == 1 && problems[0].contains("bindAddress 203.0.113.1 is no usable"), "{problems:?}");
    }

    #[test]
    fn a_primary_address_that_is_not_there_is_told() {
        for (internal_ips, expected) in [
            (None, "there is no Node n1"),
            (Some(&[][..]), "Node n1 has no InternalIP"),
            (Some(&["203.0.113.1"][..]), "InternalIP 203.0.113.1 of Node n1 is no usable address of this machine"),
        ] {
            let (addresses, problems) = served(&NodePortAddresses::Primary, internal_ips);
            assert_eq!(addresses, [""; 0]);
            assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
        }
    }

    #[test]
    fn rule_2_9_3_loopback_addresses_are_served_where_they_are_asked_for() {
        for (asked, expected) in [
            (NodePortAddresses::Localhost, &["127.0.0.1", "::1"][..]),
            (NodePortAddresses::PrimaryAndLocalhost, &["127.0.0.1", "192.0.2.1", "::1"]),
            (ranges(&["127.0.0.0/8", "2001:db8:1::/48"]), &["127.0.0.1"]),
        ] {
            let (addresses, problems) = served(&asked, Some(&["192.0.2.1"]));
            assert_eq!(
                (addresses, problems),
                (expected.iter().map(ToString::to_string).collect(), vec![]),
                "{asked:?}"
            );
        }
    }

    #[test]
    fn loopback_addresses_that_cannot_be_served_are_told() {
        let (addresses, problems) = served(&ranges(&["127.0.0.2/32", "2001:db8::/32"]), None);
        assert_eq!(addresses, ["2001:db8::1"]);
        assert!(problems.len() == 1 && problems[0].starts_with("127.0.0.2/32: no usable address"), "{problems:?}");
        let own = Own { name: "n1", internal_ips: None, bind_address: None };
        let served = NodePortAddresses::Localhost.serve(&[address("192.0.2.1/24")], &own);
        assert_eq!(served.addresses, [] as [IpAddr; 0]);
        assert!(served.problems.len() == 1 && served.problems[0].cause.starts_with("localhost: "), "{served:?}");
    }
}
