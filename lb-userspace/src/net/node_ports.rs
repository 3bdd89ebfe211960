//! Which addresses of this node nodePorts are served on (semantics.md 2.9).

use std::net::IpAddr;

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
    /// Sorted, each once; never loopback or link-local ones.
    pub addresses: Vec<IpAddr>,
    /// Where that is not what was asked for.
    pub problems: Vec<Problem>,
}

const OBJECT: &str = "nodePortAddresses";

impl NodePortAddresses {
    /// The addresses to serve, among those this node has. `internal_ips` are those of the own Node, whose name is
    /// `node`; `None` if there is no such Node.
    pub fn serve(&self, addresses: &[Address], node: &str, internal_ips: Option<&[IpAddr]>) -> Served {
        let mut found: Vec<IpAddr> = addresses
            .iter()
            .filter(|address| address.usable && address.universe)
            .map(|address| address.net.addr())
            .filter(|addr| is_global(*addr))
            .collect();
        found.sort_unstable();
        found.dedup();
        let mut problems: Vec<Problem> = self.loopback_problem().into_iter().collect();
        match self {
            Self::All => {}
            Self::Ranges(ranges) => found.retain(|addr| {
                let mut same_family = ranges.iter().filter(|net| net.addr().is_ipv4() == addr.is_ipv4()).peekable();
                same_family.peek().is_none() || same_family.any(|net| net.contains(addr))
            }),
            Self::Primary | Self::PrimaryAndLocalhost => {
                let primary = primary(internal_ips.unwrap_or_default());
                problems.extend(primary_problems(node, internal_ips.is_some(), &primary, &found));
                found.retain(|addr| primary.contains(addr));
            }
            Self::Localhost => found.clear(),
        }
        Served { addresses: found, problems }
    }

    fn loopback_problem(&self) -> Option<Problem> {
        let asked = match self {
            Self::All | Self::Primary => return None,
            Self::Ranges(ranges) => ranges.iter().find(|net| net.addr().is_loopback())?.to_string(),
            Self::Localhost | Self::PrimaryAndLocalhost => "localhost".to_owned(),
        };
        Some(Problem {
            object: OBJECT.to_owned(),
            cause: format!("{asked}: nodePorts on loopback addresses are not honoured yet"),
            fix: "use an address of the node, or the cluster IP; remove it from nodePortAddresses".to_owned(),
        })
    }
}

/// The first of each family.
fn primary(internal_ips: &[IpAddr]) -> Vec<IpAddr> {
    let first = |v4: bool| internal_ips.iter().copied().find(|addr| addr.is_ipv4() == v4);
    first(true).into_iter().chain(first(false)).collect()
}

fn primary_problems(node: &str, is_known: bool, primary: &[IpAddr], here: &[IpAddr]) -> Vec<Problem> {
    let problem = |cause: String, fix: &str| Problem { object: OBJECT.to_owned(), cause, fix: fix.to_owned() };
    if primary.is_empty() {
        let cause = if is_known {
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
        let addresses = [
            address("192.0.2.1/24"),
            address("198.51.100.1/24"),
            address("127.0.0.1/8"),
            address("169.254.20.10/32"),
            address("fe80::1/64"),
            address("::1/128"),
            address("2001:db8::1/64"),
            Address { usable: false, ..address("2001:db8::2/64") },
            Address { universe: false, ..address("192.0.2.3/32") },
            address("192.0.2.1/32"),
        ];
        let internal_ips: Option<Vec<IpAddr>> =
            internal_ips.map(|ips| ips.iter().map(|ip| ip.parse().expect("an address")).collect());
        let served = asked.serve(&addresses, "n1", internal_ips.as_deref());
        (
            served.addresses.iter().map(ToString::to_string).collect(),
            served.problems.into_iter().map(|problem| problem.cause).collect(),
        )
    }

    fn ranges(ranges: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Ranges(ranges.iter().map(|net| net.parse().expect("a range")).collect())
    }

    #[test]
    fn rule_2_9_node_ports_are_served_on_global_addresses_in_the_allowed_ranges() {
        for (asked, expected) in [
            (NodePortAddresses::All, &["192.0.2.1", "198.51.100.1", "2001:db8::1"][..]),
            (ranges(&["192.0.2.0/25"]), &["192.0.2.1", "2001:db8::1"]),
            (ranges(&["192.0.2.0/25", "2001:db8:1::/48"]), &["192.0.2.1"]),
            (ranges(&["192.0.2.0/25", "198.51.100.1/32", "::/0"]), &["192.0.2.1", "198.51.100.1", "2001:db8::1"]),
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
    fn rule_2_9_3_loopback_node_ports_are_told_not_to_be_honoured() {
        let loopback = ranges(&["127.0.0.0/8", "2001:db8:1::/48"]);
        for (asked, expected) in [
            (NodePortAddresses::Localhost, &[][..]),
            (NodePortAddresses::PrimaryAndLocalhost, &["192.0.2.1"]),
            (loopback, &[]),
        ] {
            let (addresses, problems) = served(&asked, Some(&["192.0.2.1"]));
            assert_eq!(addresses, expected, "{asked:?}");
            assert!(problems.len() == 1 && problems[0].contains("not honoured yet"), "{problems:?}");
        }
    }
}
