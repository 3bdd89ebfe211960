//! The ways to the backends, as the kernel goes them: device, source, router and MTU.
//!
//! Packets leave by the kernel's own routing and `bpf_redirect_neigh`, so its neighbour table is the one that counts, and
//! the tables of our programs hold no MAC: see [`super::neighbours`] for what the kernel knows of a next hop.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::StreamExt as _;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType, RouteVia};
use rtnetlink::RouteMessageBuilder;

use super::netlink::{Netlink, address_of, failed, mtu_of};
use crate::image::NextHopInfo;

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// What our programs are told of it.
    pub info: NextHopInfo,
    /// The router it leads by; none where the address is on the device's own link.
    pub gateway: Option<IpAddr>,
    /// The MTU its route names.
    pub route_mtu: Option<u32>,
    /// What an ICMP error said that it takes, until the kernel forgets it.
    pub learned_mtu: Option<u32>,
}

impl NextHop {
    /// Whose MAC packets to `addr` carry: the neighbour and its device; none for an address of this node.
    pub fn neighbour(&self, addr: IpAddr) -> Option<(u32, IpAddr)> {
        (!self.info.local).then(|| (self.info.ifindex, self.gateway.unwrap_or(addr)))
    }

    /// What gets there in one piece, where the device takes `device` bytes.
    pub fn mtu(&self, device: Option<u32>) -> Option<u32> {
        [device, self.route_mtu, self.learned_mtu].into_iter().flatten().min()
    }
}

/// Errors that mean "no way there": no route, `unreachable`, `prohibit` and `blackhole` routes, a kernel without IPv6.
const NO_ROUTE: [i32; 7] = [
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::ESRCH,
    libc::EACCES,
    libc::EINVAL,
    libc::EAFNOSUPPORT,
    libc::EOPNOTSUPP,
];

impl Netlink {
    /// The way to an address; `None` when there is none.
    pub async fn next_hop(&self, addr: IpAddr) -> io::Result<Option<NextHop>> {
        let mut query = match addr {
            IpAddr::V4(addr) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(addr, 32).build(),
            IpAddr::V6(addr) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(addr, 128).build(),
        };
        // A question, not a route: the kernel's answer is what counts.
        query.header.table = RouteHeader::RT_TABLE_UNSPEC;
        query.header.protocol = RouteProtocol::Unspec;
        query.header.kind = RouteType::Unspec;
        let mut stream = std::pin::pin!(self.handle.route().get(query).execute());
        match stream.next().await {
            None => Ok(None),
            Some(Ok(message)) => Ok(next_hop(&message)),
            Some(Err(error)) => {
                let error = failed(error);
                let no_route = error.raw_os_error().is_some_and(|errno| NO_ROUTE.contains(&errno));
                let cause = format!("cannot look up the route to {addr} (netlink): {error}");
                if no_route { Ok(None) } else { Err(io::Error::new(error.kind(), cause)) }
            }
        }
    }

    /// The ways to many addresses.
    pub async fn next_hops(&self, addrs: &BTreeSet<IpAddr>) -> io::Result<BTreeMap<IpAddr, NextHop>> {
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

fn next_hop(message: &RouteMessage) -> Option<NextHop> {
    let local = match message.header.kind {
        RouteType::Unicast => false,
        RouteType::Local => true,
        _ => return None,
    };
    let (mut ifindex, mut prefsrc, mut gateway, mut mtu, mut expires) = (None, None, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::PrefSource(addr) => prefsrc = address_of(addr),
            RouteAttribute::Gateway(addr) => gateway = address_of(addr),
            RouteAttribute::Via(RouteVia::Inet(addr)) => gateway = Some((*addr).into()),
            // A router of the other family (RFC 8950).
            RouteAttribute::Via(RouteVia::Inet6(addr)) => gateway = Some((*addr).into()),
            RouteAttribute::Metrics(metrics) => mtu = mtu_of(metrics),
            RouteAttribute::CacheInfo(cache) => expires = cache.expires != 0,
            _ => {}
        }
    }
    let info = NextHopInfo { ifindex: ifindex?, prefsrc, local };
    // Only what was learned is forgotten again.
    let (route_mtu, learned_mtu) = if expires { (None, mtu) } else { (mtu, None) };
    Some(NextHop { info, gateway, route_mtu, learned_mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_mtu_counts_and_the_neighbour_is_the_router_if_there_is_one() {
        let [addr, router] = ["10.244.2.11", "192.168.1.1"].map(|addr| addr.parse::<IpAddr>().expect("an address"));
        let info = NextHopInfo { ifindex: 3, prefsrc: None, local: false };
        let hop = NextHop { info, gateway: None, route_mtu: None, learned_mtu: None };
        assert_eq!((hop.mtu(None), hop.mtu(Some(1500))), (None, Some(1500)));
        assert_eq!(NextHop { route_mtu: Some(1400), learned_mtu: Some(1300), ..hop }.mtu(Some(1500)), Some(1300));
        assert_eq!(NextHop { route_mtu: Some(1600), ..hop }.mtu(Some(1500)), Some(1500));
        assert_eq!(hop.neighbour(addr), Some((3, addr)));
        assert_eq!(NextHop { gateway: Some(router), ..hop }.neighbour(addr), Some((3, router)));
        assert_eq!(NextHop { info: NextHopInfo { local: true, ..info }, ..hop }.neighbour(addr), None);
    }
}
