//! Requests over rtnetlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use crate::image::NextHopInfo;

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// MAC; zeroes where it has none.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
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
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) net: IpNet,
    pub(super) ifindex: Option<u32>,
    pub(super) prefsrc: Option<IpAddr>,
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

impl Netlink {
    /// Connects; to be called inside the runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Every device.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        let messages: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await.map_err(failed)?;
        Ok(messages.iter().map(link).collect())
    }

    /// Every address.
    pub async fn addresses(&self) -> io::Result<Vec<Address>> {
        let messages: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(failed)?;
        let address = |message: &netlink_packet_route::address::AddressMessage| {
            let mut found = None;
            for attribute in &message.attributes {
                match attribute {
                    // On a point-to-point device `Address` is the other end's.
                    AddressAttribute::Local(addr) => found = Some(*addr),
                    AddressAttribute::Address(addr) => found = found.or(Some(*addr)),
                    _ => {}
                }
            }
            let net = IpNet::new(found?, message.header.prefix_len).ok()?;
            let bad = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
            Some(Address { ifindex: message.header.index, net, usable: !message.header.flags.intersects(bad) })
        };
        Ok(messages.iter().filter_map(address).collect())
    }

    /// Devices that carry a default route.
    pub async fn default_route_devices(&self) -> io::Result<BTreeSet<u32>> {
        let routes = self.routes().await?;
        Ok(routes.into_iter().filter(|route| route.net.prefix_len() == 0).filter_map(|route| route.ifindex).collect())
    }

    /// The routes of the main table, both families.
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
                let message = message.map_err(failed)?;
                let main = message.header.table == RouteHeader::RT_TABLE_MAIN;
                if main && message.header.kind == RouteType::Unicast {
                    routes.push(route(message, any));
                }
            }
        }
        Ok(routes)
    }

    /// The way to an address; `None` when there is none.
    pub async fn next_hop(&self, addr: IpAddr) -> io::Result<Option<NextHopInfo>> {
        let query = match addr {
            IpAddr::V4(addr) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(addr, 32).build(),
            IpAddr::V6(addr) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(addr, 128).build(),
        };
        let mut query = query;
        // A question, not a route: the kernel's answer is what counts.
        query.header.table = RouteHeader::RT_TABLE_UNSPEC;
        query.header.protocol = RouteProtocol::Unspec;
        query.header.kind = RouteType::Unspec;
        let mut stream = std::pin::pin!(self.handle.route().get(query).execute());
        let message = match stream.next().await {
            None => return Ok(None),
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                let error = failed(error);
                let none = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES, libc::ESRCH];
                return if error.raw_os_error().is_some_and(|errno| none.contains(&errno)) {
                    Ok(None)
                } else {
                    Err(error)
                };
            }
        };
        let local = match message.header.kind {
            RouteType::Unicast => false,
            RouteType::Local => true,
            _ => return Ok(None),
        };
        let (mut ifindex, mut prefsrc) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => ifindex = Some(*index),
                RouteAttribute::PrefSource(addr) => prefsrc = address_of(addr),
                _ => {}
            }
        }
        Ok(ifindex.map(|ifindex| NextHopInfo { ifindex, prefsrc, local }))
    }

    /// The ways to many addresses.
    pub async fn next_hops(&self, addrs: &BTreeSet<IpAddr>) -> io::Result<BTreeMap<IpAddr, NextHopInfo>> {
        let mut requests = futures_util::stream::iter(addrs.iter().copied())
            .map(|addr| async move { (addr, self.next_hop(addr).await) })
            .buffer_unordered(64);
        let mut found = BTreeMap::new();
        while let Some((addr, hop)) = requests.next().await {
            if let Some(hop) = hop? {
                found.insert(addr, hop);
            }
        }
        Ok(found)
    }
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::LinkNetNsId(_) => link.foreign_peer = true,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind_name(kind)),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

fn address_of(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

fn route(message: RouteMessage, any: IpNet) -> Route {
    let (mut net, mut ifindex, mut prefsrc) = (any, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(addr) => {
                let prefix = message.header.destination_prefix_length;
                net = address_of(addr).and_then(|addr| IpNet::new(addr, prefix).ok()).unwrap_or(any);
            }
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::PrefSource(addr) => prefsrc = address_of(addr),
            _ => {}
        }
    }
    Route { net, ifindex, prefsrc, protocol: message.header.protocol.into(), message }
}
