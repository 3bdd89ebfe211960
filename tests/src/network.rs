//! How pods hang on their node, and how their packets come to other nodes.
//!
//! | network | a pod's device | to other nodes' pods |
//! |---|---|---|
//! | routed | a routed veth, no address on the node's end | over the router |
//! | bridge | a port of `cni0`, which has .1 of the podCIDR | over the router |
//! | vxlan | as routed, MTU 1450 | over `vxlan0`, which has .0 of the podCIDR |
//!
//! The tunnel is flannel's: its neighbours are written down, and what pods send to other addresses than pods' leaves with
//! the node's, since the answer to a pod's would come through the tunnel and fail the reverse path filter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Namespace, Node, wiring, wiring::line};

/// A node's bridge.
pub(crate) const BRIDGE: &str = "cni0";
/// A node's tunnel.
pub(crate) const OVERLAY: &str = "vxlan0";
/// What 1500 bytes leave beside IPv4, UDP, vxlan and Ethernet headers.
const OVERLAY_MTU: u16 = 1450;

const MASQUERADE: &str = "table inet flannel {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
        ip6 saddr fd00:10:244::/48 ip6 daddr != fd00:10:244::/48 masquerade
    }
}
";

/// The network of a world's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// Every pod on a veth pair of its own, everything routed
    #[default]
    Routed,
    /// The pods of a node on a bridge
    Bridge,
    /// Routed veths; the pods of other nodes behind a tunnel
    Vxlan,
}

/// Both families.
pub(crate) type Ips = (Ipv4Addr, Ipv6Addr);

impl Network {
    /// Prepares a node for its pods.
    pub(crate) fn prepare(self, node: &Namespace, number: u8, node_ips: Ips) -> anyhow::Result<()> {
        if self != Self::Bridge {
            let [cidr4, cidr6] = wiring::pod_cidrs(number);
            // A pod that is not there must not send its packets round between node and router.
            node.ip(&format!("route add blackhole {cidr4}\nroute add blackhole {cidr6}\n"))?;
        }
        if self == Self::Vxlan {
            node.nft(MASQUERADE)?;
        }
        self.add_device(node, number, node_ips)
    }

    /// Makes the bridge or the tunnel of a node.
    pub(crate) fn add_device(self, node: &Namespace, number: u8, node_ips: Ips) -> anyhow::Result<()> {
        let (device, mtu, kind, prefixes) = match self {
            Self::Routed => return Ok(()),
            // A bridge without a MAC of its own takes another one with each port.
            Self::Bridge => (BRIDGE, 1500, "bridge".to_owned(), (24, 64)),
            Self::Vxlan => {
                let kind = format!("vxlan id 1 dstport 8472 local {} nolearning", node_ips.0);
                (OVERLAY, OVERLAY_MTU, kind, (32, 128))
            }
        };
        let ((ip4, ip6), mac) = (self.own_ips(number), mac(number));
        node.ip(&format!(
            "link add {device} address {mac} mtu {mtu} type {kind}\n\
             link set {device} up\n\
             addr add {ip4}/{} dev {device}\n\
             addr add {ip6}/{} dev {device} nodad\n",
            prefixes.0, prefixes.1
        ))
    }

    /// Leads `from` to the pods of `to`.
    pub(crate) fn join_nodes(self, from: &Node, to: &Node, segment: bool) -> anyhow::Result<()> {
        if self == Self::Vxlan {
            self.join_tunnels(from, to)?;
        } else if !segment {
            return Ok(());
        }
        to.pod_cidrs().iter().try_for_each(|cidr| self.lead(from, to, cidr, segment))
    }

    fn join_tunnels(self, from: &Node, to: &Node) -> anyhow::Result<()> {
        let ((ip4, ip6), mac) = (self.own_ips(to.number), mac(to.number));
        from.namespace().ip(&format!(
            "neigh add {ip4} lladdr {mac} dev {OVERLAY} nud permanent\n\
             neigh add {ip6} lladdr {mac} dev {OVERLAY} nud permanent\n"
        ))?;
        from.namespace().bridge(&format!("fdb append {mac} dev {OVERLAY} dst {}\n", to.ipv4()))
    }

    /// Leads `from` to one more network of pods of `to`; on a segment without the router.
    pub(crate) fn lead(self, from: &Node, to: &Node, net: &str, segment: bool) -> anyhow::Result<()> {
        let own = match self {
            Self::Vxlan => self.own_ips(to.number),
            Self::Routed | Self::Bridge if segment => (to.ipv4(), to.ipv6()),
            Self::Routed | Self::Bridge => wiring::gateways(from.number),
        };
        let via = if net.contains(':') { IpAddr::from(own.1) } else { own.0.into() };
        let device = if self == Self::Vxlan { format!("dev {OVERLAY} onlink") } else { String::new() };
        from.namespace().ip(&format!("route replace {net} via {via} {device}\n"))
    }

    /// Joins a pod to its node.
    pub(crate) fn join_pod(
        self,
        node: &Namespace,
        number: u8,
        interface: &str,
        node_ips: Ips,
        pod: &Namespace,
        pod_ips: Ips,
    ) -> anyhow::Result<()> {
        match self {
            Self::Routed => wiring::join_pod(node, interface, node_ips, pod, pod_ips),
            Self::Bridge => self.join_port(node, number, interface, pod, pod_ips),
            Self::Vxlan => {
                wiring::join_pod(node, interface, node_ips, pod, pod_ips)?;
                node.ip(&format!("link set {interface} mtu {OVERLAY_MTU}\n"))?;
                pod.ip(&format!("link set eth0 mtu {OVERLAY_MTU}\n"))
            }
        }
    }

    fn join_port(
        self,
        node: &Namespace,
        number: u8,
        interface: &str,
        pod: &Namespace,
        (ip4, ip6): Ips,
    ) -> anyhow::Result<()> {
        let (gateway4, gateway6) = self.own_ips(number);
        let near = wiring::pod_ips(number, 0);
        let (on_link4, on_link6) =
            (ip4.octets()[..3] == near.0.octets()[..3], ip6.segments()[..4] == near.1.segments()[..4]);
        let mut batch = format!(
            "link add {interface} type veth peer name eth0 netns {}\n\
             link set {interface} master {BRIDGE}\n\
             link set {interface} up\n",
            pod.name()
        );
        // An address of another network than the bridge's.
        if !on_link4 {
            line(&mut batch, &format!("route add {ip4}/32 dev {BRIDGE}"));
        }
        if !on_link6 {
            line(&mut batch, &format!("route add {ip6}/128 dev {BRIDGE}"));
        }
        node.ip(&batch)?;
        let (prefix4, prefix6) = (if on_link4 { 24 } else { 32 }, if on_link6 { 64 } else { 128 });
        pod.ip(&format!(
            "link set eth0 up\n\
             addr add {ip4}/{prefix4} dev eth0\n\
             addr add {ip6}/{prefix6} dev eth0 nodad\n\
             route add default via {gateway4} dev eth0 onlink src {ip4}\n\
             route add default via {gateway6} dev eth0 onlink src {ip6}\n"
        ))
    }

    /// What the node itself has in its podCIDR.
    fn own_ips(self, number: u8) -> Ips {
        let host = match self {
            Self::Routed | Self::Vxlan => 0,
            Self::Bridge => 1,
        };
        wiring::pod_network_ips(number, host)
    }

    /// The source of what a node of these addresses sends to a pod: the route's, so the bridge's or the tunnel's address.
    pub(crate) fn source(self, node: &Node, to_own_pod: bool, ipv4: bool) -> IpAddr {
        let (ip4, ip6) = match self {
            Self::Bridge if to_own_pod => self.own_ips(node.number),
            Self::Vxlan if !to_own_pod => self.own_ips(node.number),
            Self::Routed | Self::Bridge | Self::Vxlan => (node.ipv4(), node.ipv6()),
        };
        if ipv4 { ip4.into() } else { ip6.into() }
    }
}

/// Of the bridge or the tunnel of a node.
fn mac(number: u8) -> String {
    format!("0a:58:0a:f4:{number:02x}:01")
}
