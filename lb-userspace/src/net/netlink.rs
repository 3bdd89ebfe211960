//! Requests over rtnetlink.

use std::{collections::BTreeSet, io, net::IpAddr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoBridge, InfoData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType},
    tc::TcAttribute,
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent flags, as the kernel reports them")]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// `veth`, `bridge`, `vxlan`, ...; none for hardware and loopback.
    pub kind: Option<String>,
    /// Administratively up.
    pub up: bool,
    /// Loopback.
    pub loopback: bool,
    /// Its bridge or bond.
    pub master: Option<u32>,
    /// Whether its peer is in another network namespace.
    pub foreign_peer: bool,
    /// The device at its other end or below it, in this namespace: the peer of a veth, the parent of a VLAN.
    pub peer: Option<u32>,
    /// Neither ARP nor neighbour discovery.
    pub noarp: bool,
    /// MAC; zeroes where it has none.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// A bridge of which netfilter sees what it forwards, whatever is set for all bridges.
    pub netfilter: bool,
    /// The XDP program on it.
    pub xdp_program: Option<u32>,
}

/// An address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its device.
    pub ifindex: u32,
    /// Address and prefix.
    pub net: IpNet,
    /// Not tentative, and no duplicate was found.
    pub usable: bool,
    /// Valid everywhere (`scope global` in `ip address`), not on one link or host only.
    pub universe: bool,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) net: IpNet,
    /// The devices it leads to: several for a multipath route, none for a blackhole.
    pub(super) devices: Vec<u32>,
    pub(super) prefsrc: Option<IpAddr>,
    /// MTU, if the route has one of its own.
    pub(super) mtu: Option<u32>,
    pub(super) protocol: u8,
    pub(super) message: RouteMessage,
}

/// A netlink connection.
#[derive(Clone, Debug)]
pub struct Netlink {
    pub(super) handle: Handle,
}

pub(super) fn failed(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// The same for a request whose errno nobody asks for, with what was asked of the kernel.
pub(super) fn failed_to(what: &str) -> impl Fn(rtnetlink::Error) -> io::Error {
    move |error| {
        let error = failed(error);
        io::Error::new(error.kind(), format!("cannot {what} (netlink): {error}"))
    }
}

impl Netlink {
    /// Connects; to be called inside the runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Every device.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(failed_to("list network devices"))?;
        Ok(messages.iter().map(link).collect())
    }

    /// Kinds of the classic tc filters on a device, both directions.
    pub async fn filters(&self, ifindex: u32) -> io::Result<Vec<String>> {
        let index = i32::try_from(ifindex).map_err(io::Error::other)?;
        let mut kinds = Vec::new();
        for egress in [false, true] {
            let request = self.handle.traffic_filter(index).get();
            let request = if egress { request.egress() } else { request.ingress() };
            let mut stream = std::pin::pin!(request.execute());
            while let Some(message) = stream.next().await {
                match message {
                    Ok(message) => kinds.extend(message.attributes.into_iter().find_map(|attribute| match attribute {
                        TcAttribute::Kind(kind) => Some(kind),
                        _ => None,
                    })),
                    // A device without a qdisc for them has no filters.
                    Err(rtnetlink::Error::NetlinkError(message)) if -message.raw_code() == libc::EINVAL => {}
                    Err(error) => return Err(failed_to("list tc filters")(error)),
                }
            }
        }
        Ok(kinds)
    }

    /// Every address.
    pub async fn addresses(&self) -> io::Result<Vec<Address>> {
        let messages: Vec<_> =
            self.handle.address().get().execute().try_collect().await.map_err(failed_to("list addresses"))?;
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Devices that carry a default route.
    pub async fn default_route_devices(&self) -> io::Result<BTreeSet<u32>> {
        let routes = self.routes().await?;
        Ok(routes.into_iter().filter(|route| route.net.prefix_len() == 0).flat_map(|route| route.devices).collect())
    }

    /// Whom routes of the main table reach by certain links and by no other; no default route, nothing link-local.
    pub async fn nets_behind(&self, links: &[Link], is_one: impl Fn(&str) -> bool) -> io::Result<Vec<IpNet>> {
        let wanted: BTreeSet<u32> = links.iter().filter(|link| is_one(&link.name)).map(|link| link.ifindex).collect();
        Ok(nets_by(&self.routes().await?, &wanted))
    }

    /// The routes of the main table, both families, blackholes and the like too.
    pub(super) async fn routes(&self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for (version, any) in [(IpVersion::V4, "0.0.0.0/0"), (IpVersion::V6, "::/0")] {
            let query = match version {
                IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
            };
            let any: IpNet = any.parse().map_err(io::Error::other)?;
            let mut stream = std::pin::pin!(self.handle.route().get(query).execute());
            while let Some(message) = stream.next().await {
                match message {
                    Ok(message) if message.header.table == RouteHeader::RT_TABLE_MAIN => {
                        routes.push(route(message, any));
                    }
                    Ok(_) => {}
                    // A kernel without IPv6 has no IPv6 routes.
                    Err(rtnetlink::Error::NetlinkError(message))
                        if matches!(-message.raw_code(), libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {}
                    Err(error) => return Err(failed_to("list routes")(error)),
                }
            }
        }
        Ok(routes)
    }
}

fn nets_by(routes: &[Route], devices: &BTreeSet<u32>) -> Vec<IpNet> {
    let leads = |route: &&Route| {
        let mut by = route.devices.iter();
        route.net.prefix_len() > 0
            && super::is_global(route.net.addr())
            && by.next().is_some_and(|first| devices.contains(first))
            && by.all(|device| devices.contains(device))
    };
    let nets: BTreeSet<IpNet> = routes.iter().filter(leads).map(|route| route.net).collect();
    nets.into_iter().collect()
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        noarp: flags.contains(LinkFlags::Noarp),
        ..Link::default()
    };
    let mut peer_index = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::LinkNetNsId(_) => link.foreign_peer = true,
            LinkAttribute::Link(peer) => peer_index = Some(*peer),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Xdp(parts) => {
                link.xdp_program = parts.iter().find_map(|part| match part {
                    LinkXdp::ProgId(id) => Some(*id),
                    _ => None,
                });
            }
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.netfilter = infos.iter().any(|info| match info {
                    LinkInfo::Data(InfoData::Bridge(data)) => {
                        data.contains(&InfoBridge::NfCallIpTables(true))
                            && data.contains(&InfoBridge::NfCallIp6Tables(true))
                    }
                    _ => false,
                });
            }
            _ => {}
        }
    }
    // An index of another namespace says nothing here.
    link.peer = peer_index.filter(|_| !link.foreign_peer);
    link
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point device `Address` is the other end's.
            AddressAttribute::Local(addr) => found = Some(*addr),
            AddressAttribute::Address(addr) => found = found.or(Some(*addr)),
            _ => {}
        }
    }
    let header = &message.header;
    let net = IpNet::new(found?, header.prefix_len).ok()?;
    let bad = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let usable = !header.flags.intersects(bad);
    Some(Address { ifindex: header.index, net, usable, universe: header.scope == AddressScope::Universe })
}

pub(super) fn address_of(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

pub(super) fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None })
}

fn route(message: RouteMessage, any: IpNet) -> Route {
    let (mut net, mut devices, mut prefsrc, mut mtu) = (any, Vec::new(), None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(addr) => {
                let prefix = message.header.destination_prefix_length;
                net = address_of(addr).and_then(|addr| IpNet::new(addr, prefix).ok()).unwrap_or(any);
            }
            RouteAttribute::Oif(index) if message.header.kind == RouteType::Unicast => devices.push(*index),
            RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| hop.interface_index)),
            RouteAttribute::PrefSource(addr) => prefsrc = address_of(addr),
            RouteAttribute::Metrics(metrics) => mtu = mtu_of(metrics),
            _ => {}
        }
    }
    Route { net, devices, prefsrc, mtu, protocol: message.header.protocol.into(), message }
}
