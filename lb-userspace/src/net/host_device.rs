//! `ballast0`: the catch-all of this host's own packets to Services (design.md section 2.3).
//!
//! A veth pair without addresses. The Service CIDRs and the load balancer addresses are routed into it; its egress hook
//! sends every packet on to its backend, and answers come back out of it, so that strict reverse path filtering agrees.

use std::{collections::BTreeMap, io, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{
    link::LinkMessage,
    route::{RouteMessage, RouteProtocol},
};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{
    Link, Netlink,
    netlink::{Route, failed},
};
use crate::report::Problem;

/// The device with the hook.
pub const NAME: &str = "ballast0";
/// Its peer: there must be one.
pub const PEER: &str = "ballast1";
/// Marks our routes (`ip route` shows it as `proto 98`).
const PROTOCOL: u8 = 98;
/// Takes GSO packets whole.
const MTU: u32 = 65_535;

/// The device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Interface index.
    pub ifindex: u32,
    /// MAC.
    pub mac: [u8; 6],
}

/// Makes the pair, or takes over the one that is there.
pub async fn ensure(netlink: &Netlink) -> io::Result<HostDevice> {
    if find(&netlink.links().await?, NAME).is_none() {
        let pair = LinkVeth::new(NAME, PEER).mtu(MTU).arp(false).build();
        netlink.handle.link().add(pair).execute().await.map_err(failed)?;
    }
    let links = netlink.links().await?;
    for name in [PEER, NAME] {
        let link = find(&links, name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name} is missing; delete {NAME}")))?;
        if name == NAME && link.kind.as_deref() != Some("veth") {
            let text = format!("a device {NAME} exists that is no veth pair; rename or delete it");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        // No link-local address and no router solicitations: it is nobody's network.
        quiet(name)?;
        if !link.up || link.mtu != MTU {
            let up: LinkMessage = LinkUnspec::new_with_index(link.ifindex).mtu(MTU).arp(false).up().build();
            netlink.handle.link().set(up).execute().await.map_err(failed)?;
        }
    }
    let links = netlink.links().await?;
    let link = find(&links, NAME).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "ballast0 vanished"))?;
    Ok(HostDevice { ifindex: link.ifindex, mac: link.mac })
}

/// Whether it exists.
pub async fn exists(netlink: &Netlink) -> io::Result<bool> {
    Ok(find(&netlink.links().await?, NAME).is_some())
}

/// Removes the pair and with it all routes into it; whether there was one.
pub async fn remove(netlink: &Netlink) -> io::Result<bool> {
    let links = netlink.links().await?;
    let Some(link) = find(&links, NAME) else { return Ok(false) };
    netlink.handle.link().del(link.ifindex).execute().await.map_err(failed)?;
    Ok(true)
}

fn find<'a>(links: &'a [Link], name: &str) -> Option<&'a Link> {
    links.iter().find(|link| link.name == name)
}

fn quiet(name: &str) -> io::Result<()> {
    let write = |file: &str, value: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{file}");
        match std::fs::write(&path, value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}"))),
        }
    };
    write("addr_gen_mode", "1")?;
    write("accept_ra", "0")
}

/// Makes exactly these routes lead into the device; the value is the source address to prefer. Other programs' routes
/// are never touched: one to the same prefix is told as a problem.
pub async fn sync_routes(
    netlink: &Netlink,
    device: HostDevice,
    wanted: &BTreeMap<IpNet, Option<IpAddr>>,
) -> io::Result<Vec<Problem>> {
    let routes = netlink.routes().await?;
    let ours = |route: &&Route| route.protocol == PROTOCOL && route.ifindex == Some(device.ifindex);
    let mut present: BTreeMap<IpNet, &Route> = BTreeMap::new();
    for route in routes.iter().filter(ours) {
        if wanted.get(&route.net) == Some(&route.prefsrc) {
            present.insert(route.net, route);
        } else {
            netlink.handle.route().del(route.message.clone()).execute().await.map_err(failed)?;
        }
    }
    let mut problems = Vec::new();
    for (net, prefsrc) in wanted.iter().filter(|(net, _)| !present.contains_key(net)) {
        if let Some(foreign) = routes.iter().find(|route| route.net == *net && !ours(route)) {
            problems.push(Problem {
                object: format!("route {net}"),
                cause: format!("another route to it exists (protocol {})", foreign.protocol),
                fix: "processes of this node use that route instead of the Service; remove it if it is not meant"
                    .to_owned(),
            });
            continue;
        }
        let message = message(*net, *prefsrc, device.ifindex);
        if let Err(error) = netlink.handle.route().add(message).execute().await {
            let cause = failed(error).to_string();
            problems.push(Problem {
                object: format!("route {net}"),
                cause: format!("cannot be added: {cause}"),
                fix: "processes of this node reach these addresses only by the socket hooks; see `ip route`".to_owned(),
            });
        }
    }
    Ok(problems)
}

fn message(net: IpNet, prefsrc: Option<IpAddr>, ifindex: u32) -> RouteMessage {
    let protocol = RouteProtocol::from(PROTOCOL);
    match net {
        IpNet::V4(net) => {
            let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(ifindex)
                .scope(netlink_packet_route::route::RouteScope::Link)
                .protocol(protocol);
            match prefsrc {
                Some(IpAddr::V4(source)) => route.pref_source(source).build(),
                _ => route.build(),
            }
        }
        IpNet::V6(net) => {
            let route = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(ifindex)
                .protocol(protocol);
            match prefsrc {
                Some(IpAddr::V6(source)) => route.pref_source(source).build(),
                _ => route.build(),
            }
        }
    }
}
