//! The address plan, and the `ip` commands that build it.
//!
//! | network | IPv4 | IPv6 |
//! |---|---|---|
//! | client to router | 192.168.100.0/24 | `fd00:192:168:100::/64` |
//! | node N to router, uplink U | 192.168.(N + 10 U).0/24 | `fd00:192:168:(N + 10 U)::/64` |
//! | control plane to router | 192.168.10.0/24 | `fd00:192:168:10::/64` |
//! | pods of node N | 10.244.N.0/24 | `fd00:10:244:N::/64` |
//! | `ClusterIPs` | 10.96.0.0/16 | `fd00:10:96::/112` |
//! | `LoadBalancer` addresses | 203.0.113.0/24 | `fd00:203:0:113::/64` |
//!
//! On one segment ([`WorldBuilder::segment`](crate::WorldBuilder::segment)) the networks of all first uplinks and of the
//! control plane are one: 192.168.0.0/20 and `fd00:192:168::/56`.
//!
//! The router is .1 of each network, the others .2. A client has one address more per uplink (network 100 + U), to
//! which the nodes' route leads over that uplink: paths are symmetric, as strict reverse path filtering wants.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{Namespace, Options};

/// The network segment of the client for uplink 0.
const CLIENT_SEGMENT: u8 = 100;
/// That of the control plane: between those of nine nodes and those of their second uplinks.
const CONTROL_SEGMENT: u8 = 10;

/// The router's bridge.
pub(crate) const SEGMENT: &str = "nodes0";
/// Prefix lengths of a network of two.
const ALONE: (u8, u8) = (24, 64);
/// Prefix lengths of a segment.
const SHARED: (u8, u8) = (20, 56);

/// The ranges a router sends to the node that serves them for outside clients.
pub(crate) const SERVICE_RANGES: [&str; 4] =
    ["10.96.0.0/16", "203.0.113.0/24", "fd00:10:96::/112", "fd00:203:0:113::/64"];

pub(crate) fn client_ips(uplink: u8) -> (Ipv4Addr, Ipv6Addr) {
    segment_ips(CLIENT_SEGMENT + uplink, 2)
}

/// Where Services get their ClusterIPs from, IPv4 first.
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

pub(crate) fn control_ips() -> (Ipv4Addr, Ipv6Addr) {
    segment_ips(CONTROL_SEGMENT, 2)
}

pub(crate) fn node_ips(node: u8, uplink: u8) -> (Ipv4Addr, Ipv6Addr) {
    segment_ips(node + 10 * uplink, 2)
}

/// The router, as a node sees it on its first uplink.
pub(crate) fn gateways(node: u8) -> (Ipv4Addr, Ipv6Addr) {
    segment_ips(node, 1)
}

pub(crate) fn pod_ips(node: u8, index: u8) -> (Ipv4Addr, Ipv6Addr) {
    pod_network_ips(node, 10 + index)
}

pub(crate) fn pod_network_ips(node: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(10, 244, node, host),
        Ipv6Addr::new(0xfd00, 0x10, 0x244, hex_digits(node), 0, 0, 0, hex_digits(host)),
    )
}

pub(crate) fn pod_cidrs(node: u8) -> [String; 2] {
    [format!("10.244.{node}.0/24"), format!("fd00:10:244:{node}::/64")]
}

fn segment_ips(segment: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let ipv6 = Ipv6Addr::new(0xfd00, 0x192, 0x168, hex_digits(segment), 0, 0, 0, hex_digits(host));
    (Ipv4Addr::new(192, 168, segment, host), ipv6)
}

/// The number whose hexadecimal digits read like `decimal`: 100 becomes 0x100, so that both families read alike.
fn hex_digits(decimal: u8) -> u16 {
    let decimal = u16::from(decimal);
    decimal / 100 * 0x100 + decimal / 10 % 10 * 0x10 + decimal % 10
}

/// Settings a namespace has before its first device appears, so that devices inherit them.
pub(crate) fn prepare(namespace: &Namespace, options: &Options, forwards: bool) -> anyhow::Result<()> {
    let rp_filter = options.rp_filter.to_string();
    let forwarding = if forwards { "1" } else { "0" };
    namespace.sysctls(&[
        // Addresses are usable at once: nobody else is on these wires.
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/dad_transmits", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv4/ip_forward", forwarding),
        ("ipv6/conf/all/forwarding", forwarding),
        ("ipv6/conf/default/forwarding", forwarding),
        ("ipv4/conf/all/rp_filter", &rp_filter),
        ("ipv4/conf/default/rp_filter", &rp_filter),
    ])
}

/// Joins the client to the router.
pub(crate) fn join_client(router: &Namespace, client: &Namespace, options: &Options) -> anyhow::Result<()> {
    router.ip(&format!("link add client type veth peer name eth0 netns {}\nlink set client up\n", client.name()))?;
    let (mut at_router, mut at_client) = (String::new(), "link set eth0 up\n".to_owned());
    for uplink in 0..options.uplinks {
        address_pair(&mut at_router, "client", &mut at_client, "eth0", CLIENT_SEGMENT + uplink, ALONE);
    }
    default_route(&mut at_client, "eth0", CLIENT_SEGMENT);
    router.ip(&at_router)?;
    client.ip(&at_client)
}

/// Joins the control plane to the router, or to the segment of the nodes.
pub(crate) fn join_control_plane(router: &Namespace, plane: &Namespace, options: &Options) -> anyhow::Result<()> {
    router.ip(&format!("link add control type veth peer name eth0 netns {}\nlink set control up\n", plane.name()))?;
    let (mut at_router, mut at_plane) = (String::new(), "link set eth0 up\n".to_owned());
    if options.segment {
        line(&mut at_router, &format!("link set control master {SEGMENT}"));
    }
    let (far, prefixes) = if options.segment { (SEGMENT, SHARED) } else { ("control", ALONE) };
    address_pair(&mut at_router, far, &mut at_plane, "eth0", CONTROL_SEGMENT, prefixes);
    default_route(&mut at_plane, "eth0", CONTROL_SEGMENT);
    router.ip(&at_router)?;
    plane.ip(&at_plane)
}

/// Makes the router's side of a segment.
pub(crate) fn add_segment(router: &Namespace) -> anyhow::Result<()> {
    // A bridge without a MAC of its own takes another one with each port.
    router.ip(&format!("link add {SEGMENT} address 0a:58:c0:a8:00:01 type bridge\nlink set {SEGMENT} up\n"))
}

/// Joins node `number` to the router by all its uplinks.
pub(crate) fn join_node(router: &Namespace, node: &Namespace, number: u8, options: &Options) -> anyhow::Result<()> {
    let (mut links, mut at_router, mut at_node) = (String::new(), String::new(), String::new());
    for uplink in 0..options.uplinks {
        let (far, near) = (router_interface(number, uplink), format!("eth{uplink}"));
        line(&mut links, &format!("link add {far} type veth peer name {near} netns {}", node.name()));
        line(&mut at_router, &format!("link set {far} up"));
        line(&mut at_node, &format!("link set {near} up"));
        if options.segment && uplink == 0 {
            line(&mut at_router, &format!("link set {far} master {SEGMENT}"));
            address_pair(&mut at_router, SEGMENT, &mut at_node, &near, number, SHARED);
        } else {
            address_pair(&mut at_router, &far, &mut at_node, &near, number + 10 * uplink, ALONE);
        }
        if uplink > 0 {
            let (gateway4, gateway6) = segment_ips(number + 10 * uplink, 1);
            let segment = CLIENT_SEGMENT + uplink;
            line(&mut at_node, &format!("route add 192.168.{segment}.0/24 via {gateway4} dev {near}"));
            line(&mut at_node, &format!("route add fd00:192:168:{segment}::/64 via {gateway6} dev {near}"));
        }
    }
    default_route(&mut at_node, "eth0", number);
    let ((via4, via6), [cidr4, cidr6]) = (node_ips(number, 0), pod_cidrs(number));
    line(&mut at_router, &format!("route add {cidr4} via {via4}"));
    line(&mut at_router, &format!("route add {cidr6} via {via6}"));
    router.ip(&links)?;
    router.ip(&at_router)?;
    node.ip(&at_node)
}

/// The router's end of a node's uplink.
pub(crate) fn router_interface(node: u8, uplink: u8) -> String {
    if uplink == 0 { format!("node{node}") } else { format!("node{node}u{uplink}") }
}

/// Joins a pod to its node by a routed veth pair: the node's end carries no global address (so it is never taken for
/// an uplink); it answers for the gateway 169.254.1.1 by proxy ARP and is `fe80::1`.
pub(crate) fn join_pod(
    node: &Namespace,
    interface: &str,
    node_ips: (Ipv4Addr, Ipv6Addr),
    pod: &Namespace,
    pod_ips: (Ipv4Addr, Ipv6Addr),
) -> anyhow::Result<()> {
    node.ip(&format!("link add {interface} type veth peer name eth0 netns {}\n", pod.name()))?;
    node.sysctls(&[
        (&format!("ipv4/conf/{interface}/proxy_arp"), "1"),
        // Else the answer is delayed by a random part of 0.8 s.
        (&format!("ipv4/neigh/{interface}/proxy_delay"), "0"),
    ])?;
    let ((ip4, ip6), (src4, src6)) = (pod_ips, node_ips);
    node.ip(&format!(
        "link set {interface} up\n\
         addr add fe80::1/64 dev {interface} nodad\n\
         route add {ip4}/32 dev {interface} src {src4}\n\
         route add {ip6}/128 dev {interface} src {src6}\n"
    ))?;
    pod.ip(&format!(
        "link set eth0 up\n\
         addr add {ip4}/32 dev eth0\n\
         addr add {ip6}/128 dev eth0 nodad\n\
         route add default via 169.254.1.1 dev eth0 onlink src {ip4}\n\
         route add default via fe80::1 dev eth0 src {ip6}\n"
    ))
}

fn address_pair(
    at_router: &mut String,
    far: &str,
    at_other: &mut String,
    near: &str,
    segment: u8,
    (prefix4, prefix6): (u8, u8),
) {
    for (batch, interface, host) in [(at_router, far, 1), (at_other, near, 2)] {
        let (ipv4, ipv6) = segment_ips(segment, host);
        line(batch, &format!("addr add {ipv4}/{prefix4} dev {interface}"));
        line(batch, &format!("addr add {ipv6}/{prefix6} dev {interface} nodad"));
    }
}

fn default_route(batch: &mut String, interface: &str, segment: u8) {
    let (ipv4, ipv6) = segment_ips(segment, 1);
    line(batch, &format!("route add default via {ipv4} dev {interface}"));
    line(batch, &format!("route add default via {ipv6} dev {interface}"));
}

pub(crate) fn line(batch: &mut String, command: &str) {
    batch.push_str(command);
    batch.push('\n');
}
