//! What a device is to us (design.md section 2.5).

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use super::{Address, Link, host_device, is_global, pattern::matches};
use crate::report::Problem;

/// What a device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// A node address or a default route.
    Uplink,
    /// Other nodes' pods, in a tunnel.
    Overlay,
    /// A pod of this node.
    Pod,
    /// Nothing of ours.
    Ignored,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uplink => "uplink",
            Self::Overlay => "overlay",
            Self::Pod => "pod",
            Self::Ignored => "ignored",
        })
    }
}

/// Whether XDP is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum XdpMode {
    /// On uplinks that are hardware or virtio.
    #[default]
    Auto,
    /// On uplinks of any kind.
    On,
    /// Nowhere.
    Off,
}

/// An override for the devices whose names match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InterfaceRule {
    /// A name, in which `*` stands for anything and `?` for one character.
    #[serde(rename = "match")]
    pub pattern: String,
    /// The role, if not the one we would give.
    #[serde(default)]
    pub role: Option<Role>,
    /// XDP, if not as for all devices.
    #[serde(default)]
    pub xdp: Option<XdpMode>,
}

/// A device with its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Why it has this role.
    pub why: String,
    /// Not up, and for this reason nothing of ours: it may be again.
    pub resting: bool,
    /// Whether XDP is wanted.
    pub xdp: bool,
    /// Why XDP is wanted or not.
    pub xdp_why: String,
    /// What XDP costs on this device, if it is wanted where it would not be chosen.
    pub xdp_cost: Option<String>,
}

/// Tunnels that carry other nodes' pods.
const OVERLAYS: [&str; 10] =
    ["vxlan", "geneve", "ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "ip6gretap", "wireguard"];

/// Gives every device but our own pair its role. Of the rules that match a name the first that gives a role decides the
/// role, and the first that gives `xdp` decides that; a rule that matches nothing is told.
pub fn classify(
    links: &[Link],
    addresses: &[Address],
    default_routes: &BTreeSet<u32>,
    rules: &[InterfaceRule],
    xdp: XdpMode,
) -> (Vec<Device>, Vec<Problem>) {
    let node = NodeView { links, addresses, default_routes };
    let mut devices = Vec::new();
    for link in links.iter().filter(|link| link.name != host_device::NAME && link.name != host_device::PEER) {
        let matching = || rules.iter().filter(|rule| matches(&rule.pattern, &link.name));
        let forced = matching().find_map(|rule| Some((rule.role?, &rule.pattern)));
        let (role, why) = match forced {
            Some((role, pattern)) => (role, format!("interfaces rule {pattern:?}")),
            None => node.role(link),
        };
        let resting = role == Role::Ignored && !link.up && forced.is_none();
        let asked = matching().find_map(|rule| Some((rule.xdp?, format!("interfaces rule {:?}", rule.pattern))));
        let (mode, asked_by) = asked.unwrap_or_else(|| (xdp, "xdp setting".to_owned()));
        let (xdp, xdp_why) = xdp_for(link, role, mode, &asked_by);
        let xdp_cost = link.kind.as_ref().filter(|_| xdp).map(|kind| {
            format!("XDP is forced on a {kind} device, whose senders lose segmentation and checksum offload by it")
        });
        devices.push(Device {
            ifindex: link.ifindex,
            name: link.name.clone(),
            role,
            why,
            resting,
            xdp,
            xdp_why,
            xdp_cost,
        });
    }
    let unmatched = rules.iter().filter(|rule| !links.iter().any(|link| matches(&rule.pattern, &link.name)));
    let problems = unmatched.map(|rule| Problem {
        object: format!("interfaces rule {:?}", rule.pattern),
        cause: "no interface has such a name".to_owned(),
        fix: "correct the name, or bring the interface up: the rule applies as soon as it appears".to_owned(),
    });
    (devices, problems.collect())
}

/// Whether XDP is wanted, and why.
fn xdp_for(link: &Link, role: Role, mode: XdpMode, asked_by: &str) -> (bool, String) {
    match (role, mode) {
        (Role::Overlay | Role::Pod | Role::Ignored, _) => (false, "XDP is for uplinks".to_owned()),
        (Role::Uplink, XdpMode::On) => (true, format!("{asked_by}: on")),
        (Role::Uplink, XdpMode::Off) => (false, format!("{asked_by}: off")),
        // A kind means software, where XDP costs the sender's segmentation and checksum offload; hardware and virtio
        // have none.
        (Role::Uplink, XdpMode::Auto) => match &link.kind {
            None => (true, "an uplink on hardware or virtio".to_owned()),
            Some(kind) => (false, format!("never chosen on a {kind} device")),
        },
    }
}

/// What the role of a device depends on beside itself.
struct NodeView<'a> {
    links: &'a [Link],
    addresses: &'a [Address],
    default_routes: &'a BTreeSet<u32>,
}

impl NodeView<'_> {
    fn role(&self, link: &Link) -> (Role, String) {
        if link.loopback {
            return (Role::Ignored, "loopback".to_owned());
        }
        if !link.up {
            return (Role::Ignored, "down".to_owned());
        }
        let kind = link.kind.as_deref();
        if let Some(kind) = kind.filter(|kind| OVERLAYS.contains(kind)) {
            return (Role::Overlay, kind.to_owned());
        }
        let master = link.master.and_then(|master| self.links.iter().find(|link| link.ifindex == master));
        if let Some(bridge) = master.filter(|master| master.kind.as_deref() == Some("bridge")) {
            // What a pod or a virtual machine hangs on is one of these; other ports lead out of the node, if its own
            // traffic leaves through the bridge.
            let inwards = link.foreign_peer || matches!(kind, Some("veth" | "tun"));
            return match self.uplink(bridge).filter(|_| !inwards) {
                Some(why) => (Role::Uplink, format!("port of bridge {}, which has {why}", bridge.name)),
                None => (Role::Pod, format!("port of bridge {}", bridge.name)),
            };
        }
        if kind == Some("bridge") {
            return (Role::Ignored, "a bridge: its ports carry the hooks".to_owned());
        }
        if let Some(why) = self.uplink(link) {
            return (Role::Uplink, why);
        }
        if link.foreign_peer {
            return (Role::Pod, "its peer is in another network namespace".to_owned());
        }
        (Role::Ignored, "no node address, no default route, no pod behind it".to_owned())
    }

    /// What makes a device an uplink, if anything.
    fn uplink(&self, link: &Link) -> Option<String> {
        if self.default_routes.contains(&link.ifindex) {
            return Some("a default route".to_owned());
        }
        let address = self.addresses.iter().find(|address| self.is_node_address(link, address))?;
        Some(format!("node address {}", address.net.addr()))
    }

    /// Whether this address of `link` belongs to a network the device leads to. Some CNI plugins give the gateway's or
    /// the node's address, without a network, to every pod's device.
    fn is_node_address(&self, link: &Link, address: &Address) -> bool {
        let addr = address.net.addr();
        if address.ifindex != link.ifindex || !address.universe || !is_global(addr) {
            return false;
        }
        let lent = || {
            let elsewhere = |other: &&Address| other.net.addr() == addr && other.ifindex != link.ifindex;
            link.foreign_peer || self.addresses.iter().find(elsewhere).is_some()
        };
        address.net.prefix_len() < address.net.max_prefix_len() || !lent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str, kind: Option<&str>) -> Link {
        Link { ifindex, name: name.to_owned(), kind: kind.map(str::to_owned), up: true, ..Link::default() }
    }

    fn address(ifindex: u32, net: &str) -> Address {
        Address { ifindex, net: net.parse().expect("an address"), usable: true, universe: true }
    }

    /// `name role` of each device, followed by `xdp` where it is wanted.
    fn roles(links: &[Link], addresses: &[Address], default_routes: &[u32]) -> Vec<String> {
        let default_routes = default_routes.iter().copied().collect();
        let (devices, problems) = classify(links, addresses, &default_routes, &[], XdpMode::Auto);
        assert_eq!(problems, []);
        devices.iter().map(line).collect()
    }

    fn line(device: &Device) -> String {
        format!("{} {}{}", device.name, device.role, if device.xdp { " xdp" } else { "" })
    }

    fn shown(rules: &[InterfaceRule], xdp: XdpMode) -> Vec<String> {
        let links = [
            Link { loopback: true, ..link(1, "lo", None) },
            link(2, "eth0", None),
            Link { foreign_peer: true, ..link(3, "eth1", Some("veth")) },
            Link { foreign_peer: true, ..link(4, "pod1", Some("veth")) },
            link(5, "vxlan0", Some("vxlan")),
            link(6, "br0", Some("bridge")),
            Link { master: Some(6), foreign_peer: true, ..link(7, "vethbr", Some("veth")) },
            Link { up: false, ..link(8, "eth2", None) },
            link(9, "ballast0", Some("veth")),
            link(10, "dummy0", Some("dummy")),
        ];
        let addresses = [
            address(1, "127.0.0.1/8"),
            address(2, "192.0.2.1/24"),
            address(4, "fe80::1/64"),
            address(5, "10.244.1.0/32"),
            address(6, "10.244.1.1/24"),
            address(8, "198.51.100.1/24"),
        ];
        let (devices, _) = classify(&links, &addresses, &[3].into(), rules, xdp);
        devices.iter().map(line).collect()
    }

    #[test]
    fn every_kind_of_device_gets_its_role() {
        let expected = [
            "lo ignored",
            "eth0 uplink xdp",
            "eth1 uplink",
            "pod1 pod",
            "vxlan0 overlay",
            "br0 ignored",
            "vethbr pod",
            "eth2 ignored",
            "dummy0 ignored",
        ];
        assert_eq!(shown(&[], XdpMode::Auto), expected);
    }

    #[test]
    fn a_node_of_the_test_world_has_uplinks_and_routed_pods() {
        let veth = |ifindex, name| Link { foreign_peer: true, ..link(ifindex, name, Some("veth")) };
        let links = [veth(2, "eth0"), veth(3, "eth1"), veth(4, "pod1"), veth(5, "pod2")];
        let addresses = [
            address(2, "192.168.1.2/24"),
            address(2, "fd00:192:168:1::2/64"),
            address(3, "192.168.11.2/24"),
            address(4, "fe80::1/64"),
            Address { universe: false, ..address(5, "169.254.1.1/32") },
        ];
        let expected = ["eth0 uplink", "eth1 uplink", "pod1 pod", "pod2 pod"];
        assert_eq!(roles(&links, &addresses, &[2]), expected);
        // The first uplink loses its default route.
        assert_eq!(roles(&links, &addresses, &[]), expected);
    }

    #[test]
    fn a_borrowed_address_makes_no_uplink() {
        let veth = |ifindex, name| Link { foreign_peer: true, ..link(ifindex, name, Some("veth")) };
        // The CNI's ptp plugin puts the gateway's address on each; others put the node's.
        let links =
            [link(2, "eth0", None), veth(3, "gw1"), veth(4, "gw2"), veth(5, "node1"), link(6, "lo1", Some("dummy"))];
        let addresses = [
            address(2, "192.0.2.1/32"),
            address(2, "2001:db8::1/64"),
            address(3, "10.244.1.1/32"),
            address(4, "10.244.1.1/32"),
            address(5, "192.0.2.1/32"),
            address(6, "192.0.2.1/32"),
        ];
        let expected = ["eth0 uplink xdp", "gw1 pod", "gw2 pod", "node1 pod", "lo1 ignored"];
        assert_eq!(roles(&links, &addresses, &[2]), expected);
        // A cloud's /32 on a device that has it alone is a node address like any other.
        assert_eq!(roles(&links[..1], &addresses[..1], &[]), ["eth0 uplink xdp"]);
    }

    #[test]
    fn ports_of_a_bridge_lead_outwards_only_where_the_node_does() {
        let port = |ifindex, name, kind, master| Link { master: Some(master), ..link(ifindex, name, kind) };
        let links = [
            link(2, "br0", Some("bridge")),
            port(3, "eth0", None, 2),
            port(4, "tap0", Some("tun"), 2),
            port(5, "veth0", Some("veth"), 2),
            link(6, "cni0", Some("bridge")),
            port(7, "eth1", None, 6),
            port(8, "vxlan1", Some("vxlan"), 6),
            link(9, "bond0", Some("bond")),
            port(10, "eth2", None, 9),
        ];
        let expected = [
            "br0 ignored",
            "eth0 uplink xdp",
            "tap0 pod",
            "veth0 pod",
            "cni0 ignored",
            "eth1 pod",
            "vxlan1 overlay",
            "bond0 uplink",
            "eth2 ignored",
        ];
        assert_eq!(roles(&links, &[address(9, "192.0.2.1/24")], &[2]), expected);
    }

    #[test]
    fn the_first_rule_that_says_something_decides_it() {
        let rule = |role, xdp| InterfaceRule { pattern: "eth*".to_owned(), role, xdp };
        let rules =
            [rule(None, Some(XdpMode::On)), rule(Some(Role::Uplink), Some(XdpMode::Off)), rule(Some(Role::Pod), None)];
        let (devices, _) = classify(&[link(2, "eth0", None)], &[], &BTreeSet::new(), &rules, XdpMode::Off);
        assert_eq!(devices.iter().map(line).collect::<Vec<_>>(), ["eth0 uplink xdp"]);
        assert!(devices.iter().all(|device| device.xdp_why.contains("interfaces rule")), "{devices:?}");
    }

    #[test]
    fn a_device_that_is_down_rests_unless_a_rule_wants_nothing_of_it() {
        let links = [Link { up: false, ..link(2, "eth0", None) }, link(3, "dummy0", Some("dummy"))];
        let rule = InterfaceRule { pattern: "eth0".to_owned(), role: Some(Role::Ignored), xdp: None };
        for (rules, expected) in [(vec![], [true, false]), (vec![rule], [false, false])] {
            let (devices, _) = classify(&links, &[], &BTreeSet::new(), &rules, XdpMode::Auto);
            let resting: Vec<_> = devices.iter().map(|device| device.resting).collect();
            assert_eq!(resting, expected, "{devices:?}");
        }
    }

    #[test]
    fn xdp_is_never_chosen_on_software_devices_unless_asked() {
        assert!(shown(&[], XdpMode::On).contains(&"eth1 uplink xdp".to_owned()));
        assert!(!shown(&[], XdpMode::Off).iter().any(|line| line.ends_with("xdp")));
        let rule = InterfaceRule { pattern: "eth1".to_owned(), role: None, xdp: Some(XdpMode::On) };
        assert!(shown(&[rule], XdpMode::Off).contains(&"eth1 uplink xdp".to_owned()));
        let links = [link(2, "eth0", None), link(3, "eth1", Some("veth"))];
        let (devices, _) = classify(&links, &[], &[2, 3].into(), &[], XdpMode::On);
        let costs: Vec<_> = devices.iter().map(|device| device.xdp_cost.is_some()).collect();
        assert_eq!(costs, [false, true], "{devices:?}");
    }

    #[test]
    fn a_rule_overrides_and_one_without_device_is_told() {
        let rule = |pattern: &str, role| InterfaceRule { pattern: pattern.to_owned(), role, xdp: None };
        let rules = [rule("pod*", Some(Role::Ignored)), rule("dummy?", Some(Role::Uplink))];
        let lines = shown(&rules, XdpMode::Auto);
        assert!(lines.contains(&"pod1 ignored".to_owned()) && lines.contains(&"dummy0 uplink".to_owned()));
        let (_, problems) = classify(&[], &[], &BTreeSet::new(), &[rule("eth9", None)], XdpMode::Auto);
        assert!(problems.iter().any(|problem| problem.object.contains("eth9")));
    }
}
