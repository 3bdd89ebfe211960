//! What a device is to us (design.md section 2.5).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Address, Link, host_device, is_global};
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
    /// Whether XDP is wanted.
    pub xdp: bool,
}

/// Tunnels that carry other nodes' pods.
const OVERLAYS: [&str; 9] = ["vxlan", "geneve", "ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "wireguard"];

/// Gives every device its role. Rules are asked in order, the first match counts; a rule that matches nothing is told.
pub fn classify(
    links: &[Link],
    addresses: &[Address],
    default_routes: &BTreeSet<u32>,
    rules: &[InterfaceRule],
    xdp: XdpMode,
) -> (Vec<Device>, Vec<Problem>) {
    let mut global: BTreeMap<u32, &Address> = BTreeMap::new();
    for address in addresses.iter().filter(|address| is_global(address.net.addr())) {
        global.entry(address.ifindex).or_insert(address);
    }
    let mut devices = Vec::new();
    for link in links.iter().filter(|link| link.name != host_device::NAME && link.name != host_device::PEER) {
        let rule = rules.iter().find(|rule| matches(&rule.pattern, &link.name));
        let (role, why) = match rule.and_then(|rule| Some((rule.role?, &rule.pattern))) {
            Some((role, pattern)) => (role, format!("interfaces rule {pattern:?}")),
            None => natural(link, links, global.get(&link.ifindex).copied(), default_routes),
        };
        let mode = rule.and_then(|rule| rule.xdp).unwrap_or(xdp);
        // A kind means software; virtio and hardware have none.
        let native = link.kind.is_none() && !link.loopback;
        let xdp = role == Role::Uplink && (mode == XdpMode::On || mode == XdpMode::Auto && native);
        devices.push(Device { ifindex: link.ifindex, name: link.name.clone(), role, why, xdp });
    }
    let unmatched = rules.iter().filter(|rule| !links.iter().any(|link| matches(&rule.pattern, &link.name)));
    let problems = unmatched.map(|rule| Problem {
        object: format!("interfaces rule {:?}", rule.pattern),
        cause: "no interface has such a name".to_owned(),
        fix: "correct the name, or bring the interface up: the rule applies as soon as it appears".to_owned(),
    });
    (devices, problems.collect())
}

fn natural(link: &Link, links: &[Link], address: Option<&Address>, default_routes: &BTreeSet<u32>) -> (Role, String) {
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
    let master = link.master.and_then(|master| links.iter().find(|link| link.ifindex == master));
    if let Some(master) = master.filter(|master| master.kind.as_deref() == Some("bridge")) {
        return if link.foreign_peer || kind == Some("veth") {
            (Role::Pod, format!("port of bridge {}", master.name))
        } else {
            (Role::Uplink, format!("port of bridge {}", master.name))
        };
    }
    if kind == Some("bridge") {
        return (Role::Ignored, "a bridge: its ports carry the hooks".to_owned());
    }
    if default_routes.contains(&link.ifindex) {
        return (Role::Uplink, "default route".to_owned());
    }
    if let Some(address) = address {
        return (Role::Uplink, format!("node address {}", address.net.addr()));
    }
    if link.foreign_peer {
        return (Role::Pod, "its peer is in another network namespace".to_owned());
    }
    (Role::Ignored, "no node address, no default route, no pod behind it".to_owned())
}

/// Whether a name matches a pattern with `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.chars(), name.chars());
    loop {
        match pattern.next() {
            None => return name.next().is_none(),
            Some('*') => {
                let rest = pattern.as_str();
                return (0..=name.as_str().len())
                    .filter_map(|skip| name.as_str().get(skip..))
                    .any(|tail| matches(rest, tail));
            }
            Some('?') => {
                if name.next().is_none() {
                    return false;
                }
            }
            Some(expected) => {
                if name.next() != Some(expected) {
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str, kind: Option<&str>) -> Link {
        Link { ifindex, name: name.to_owned(), kind: kind.map(str::to_owned), up: true, ..Link::default() }
    }

    fn address(ifindex: u32, net: &str) -> Address {
        Address { ifindex, net: net.parse().expect("an address"), usable: true }
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
        let line = |device: Device| format!("{} {}{}", device.name, device.role, if device.xdp { " xdp" } else { "" });
        devices.into_iter().map(line).collect()
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
    fn xdp_is_never_chosen_on_software_devices_unless_asked() {
        assert!(shown(&[], XdpMode::On).contains(&"eth1 uplink xdp".to_owned()));
        assert!(!shown(&[], XdpMode::Off).iter().any(|line| line.ends_with("xdp")));
        let rule = InterfaceRule { pattern: "eth1".to_owned(), role: None, xdp: Some(XdpMode::On) };
        assert!(shown(&[rule], XdpMode::Off).contains(&"eth1 uplink xdp".to_owned()));
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

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("*0", "veth10", true),
            ("e?h0", "eth0", true),
            ("e?h0", "eh0", false),
            ("", "", true),
            ("*", "ö", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
