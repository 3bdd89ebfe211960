//! `ballast0`: the catch-all of this host's own packets to Services (design.md section 2.3).
//!
//! A veth pair without addresses. The Service CIDRs and the load balancer addresses are routed into it; its egress hook
//! sends every packet on to its backend, and answers come back out of it, so that strict reverse path filtering agrees.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use ipnet::IpNet;
use netlink_packet_route::{
    link::LinkMessage,
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope},
};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{
    Link, Netlink,
    netlink::{Route, failed, failed_to},
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
    /// Interface index of its peer.
    pub peer_ifindex: u32,
}

/// Makes the pair, or takes over the one that is there. A device of that name that is not our pair is left alone: an
/// error that says so. `sysctls` is `/proc/sys/net`, or where it is writable.
pub async fn ensure(netlink: &Netlink, sysctls: &Path) -> io::Result<HostDevice> {
    let mut links = netlink.links().await?;
    if find(&links, NAME).is_none() && find(&links, PEER).is_none() {
        let pair = LinkVeth::new(NAME, PEER).mtu(MTU).arp(false).build();
        netlink.handle.link().add(pair).execute().await.map_err(failed_to("make the veth pair ballast0, ballast1"))?;
        links = netlink.links().await?;
    }
    let (device, peer) = pair(&links)?;
    for link in [peer, device] {
        // No link-local address and no router solicitations: it is nobody's network.
        quiet(sysctls, &link.name)?;
        if !link.up || !link.noarp || link.mtu != MTU {
            let up: LinkMessage = LinkUnspec::new_with_index(link.ifindex).mtu(MTU).arp(false).up().build();
            netlink.handle.link().set(up).execute().await.map_err(failed_to("set ballast0 and ballast1 up"))?;
        }
    }
    Ok(HostDevice { ifindex: device.ifindex, mac: device.mac, peer_ifindex: peer.ifindex })
}

/// Our two devices, if these links hold the pair we would make.
fn pair(links: &[Link]) -> io::Result<(&Link, &Link)> {
    let (device, peer) = (find(links, NAME), find(links, PEER));
    match (device, peer) {
        (Some(device), Some(peer)) if is_veth(device) && is_veth(peer) && device.peer == Some(peer.ifindex) => {
            Ok((device, peer))
        }
        (Some(_), _) | (_, Some(_)) => {
            let text = format!("a device {NAME} or {PEER} exists that is not our veth pair: rename or delete it");
            Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
        }
        (None, None) => {
            let text = format!("{NAME} vanished as soon as it was made: is another agent being cleaned up?");
            Err(io::Error::new(io::ErrorKind::NotFound, text))
        }
    }
}

fn is_veth(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth")
}

/// Whether our pair exists.
pub async fn exists(netlink: &Netlink) -> io::Result<bool> {
    Ok(pair(&netlink.links().await?).is_ok())
}

/// Removes our pair and with it all routes into it; whether there was one.
pub async fn remove(netlink: &Netlink) -> io::Result<bool> {
    let links = netlink.links().await?;
    let Ok((device, _)) = pair(&links) else { return Ok(false) };
    netlink.handle.link().del(device.ifindex).execute().await.map_err(failed_to("remove ballast0"))?;
    Ok(true)
}

fn find<'a>(links: &'a [Link], name: &str) -> Option<&'a Link> {
    links.iter().find(|link| link.name == name)
}

fn quiet(sysctls: &Path, name: &str) -> io::Result<()> {
    let write = |file: &str, value: &str| {
        let path = sysctls.join("ipv6/conf").join(name).join(file);
        match std::fs::write(&path, value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    };
    write("addr_gen_mode", "1")?;
    write("accept_ra", "0")
}

/// A route into the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The source address to prefer, which must be one of this node: it is where answers come back to.
    pub prefsrc: Option<IpAddr>,
    /// The largest packet that gets through to every backend; the device's own MTU, which takes GSO packets whole, says
    /// nothing about that.
    pub mtu: Option<u32>,
}

/// Makes exactly these routes lead into the device. Nothing is written when nothing changed, and a route is never away
/// while it changes. Other programs' routes are never touched: one to the same prefix is told as a problem.
pub async fn sync_routes(
    netlink: &Netlink,
    device: HostDevice,
    wanted: &BTreeMap<IpNet, Way>,
) -> io::Result<Vec<Problem>> {
    let routes = netlink.routes().await?;
    let changes = changes(&routes, device.ifindex, wanted);
    let mut problems: Vec<_> = changes.foreign.iter().map(|route| foreign_route(route)).collect();
    for (net, way, write) in changes.writes {
        let request = netlink.handle.route().add(message(net, way, device.ifindex));
        let request = match write {
            Write::Add => request,
            Write::Replace => request.replace(),
        };
        if let Err(error) = request.execute().await {
            problems.push(Problem {
                object: format!("route {net} dev {NAME}"),
                cause: format!("cannot be added: {}", failed(error)),
                fix: "processes of this node reach these addresses only by the socket hooks; see `ip route`".to_owned(),
            });
        }
    }
    for route in changes.stale {
        if let Err(error) = netlink.handle.route().del(route.message.clone()).execute().await {
            let error = failed(error);
            // It went by itself, for example with its source address.
            if error.raw_os_error() != Some(libc::ESRCH) {
                problems.push(Problem {
                    object: format!("route {} dev {NAME}", route.net),
                    cause: format!("it is no longer wanted and cannot be removed: {error}"),
                    fix: format!("ip route del {} dev {NAME}", route.net),
                });
            }
        }
    }
    Ok(problems)
}

/// How a route is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    /// There must be none to the prefix.
    Add,
    /// The one there is ours.
    Replace,
}

/// What makes the routes as they are into those that are wanted.
#[derive(Debug, Default)]
struct Changes<'a> {
    writes: Vec<(IpNet, Way, Write)>,
    stale: Vec<&'a Route>,
    foreign: Vec<&'a Route>,
}

fn changes<'a>(routes: &'a [Route], device: u32, wanted: &BTreeMap<IpNet, Way>) -> Changes<'a> {
    // The kernel drops host bits: a prefix with some would never be found again.
    let wanted: BTreeMap<IpNet, Way> = wanted.iter().map(|(net, way)| (net.trunc(), *way)).collect();
    let (ours, foreign): (Vec<_>, Vec<_>) =
        routes.iter().partition(|route| route.protocol == PROTOCOL && route.devices == [device]);
    let mut changes = Changes::default();
    let mut present: BTreeMap<IpNet, &Route> = BTreeMap::new();
    for route in ours {
        if wanted.contains_key(&route.net) {
            present.insert(route.net, route);
        } else {
            changes.stale.push(route);
        }
    }
    for (net, way) in wanted {
        match (present.get(&net), foreign.iter().find(|route| route.net == net)) {
            (Some(route), _) if (route.prefsrc, route.mtu) == (way.prefsrc, way.mtu) => {}
            (Some(route), Some(other)) => {
                // Which of the two the kernel would replace is not ours to guess.
                changes.stale.push(route);
                changes.foreign.push(other);
            }
            (Some(_), None) => changes.writes.push((net, way, Write::Replace)),
            (None, Some(other)) => changes.foreign.push(other),
            (None, None) => changes.writes.push((net, way, Write::Add)),
        }
    }
    changes
}

fn foreign_route(route: &Route) -> Problem {
    let to = match route.devices.first() {
        Some(ifindex) => format!("to the device with index {ifindex}"),
        None => format!("of type {:?}", route.message.header.kind).to_lowercase(),
    };
    Problem {
        object: format!("route {} dev {NAME}", route.net),
        cause: format!("not added: another program's route to it exists (protocol {}, {to})", route.protocol),
        fix: "processes of this node use that route instead of the Service; remove it if it is not meant".to_owned(),
    }
}

fn message(net: IpNet, Way { prefsrc, mtu }: Way, ifindex: u32) -> RouteMessage {
    let protocol = RouteProtocol::from(PROTOCOL);
    let mut message = match net {
        IpNet::V4(net) => {
            let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(ifindex)
                .scope(RouteScope::Link)
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
    };
    if let Some(mtu) = mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: u32 = 9;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn route(prefix: &str, prefsrc: Option<&str>, devices: &[u32], protocol: u8) -> Route {
        let prefsrc = prefsrc.map(|addr| addr.parse().expect("an address"));
        Route {
            net: net(prefix),
            devices: devices.to_vec(),
            prefsrc,
            mtu: None,
            protocol,
            message: RouteMessage::default(),
        }
    }

    /// `+` added, `~` replaced, `-` removed, `!` foreign.
    fn lines(routes: &[Route], wanted: &[(&str, Option<&str>)]) -> Vec<String> {
        let wanted = wanted.iter().map(|(prefix, source)| {
            let prefsrc = source.map(|source| source.parse().expect("an address"));
            (prefix.parse().expect("a prefix"), Way { prefsrc, mtu: None })
        });
        let changes = changes(routes, DEVICE, &wanted.collect());
        let write = |(net, _, write): &(IpNet, Way, Write)| match write {
            Write::Add => format!("+{net}"),
            Write::Replace => format!("~{net}"),
        };
        let mut lines: Vec<_> = changes.writes.iter().map(write).collect();
        lines.extend(changes.stale.iter().map(|route| format!("-{}", route.net)));
        lines.extend(changes.foreign.iter().map(|route| format!("!{}", route.net)));
        lines
    }

    #[test]
    fn only_what_differs_is_written() {
        let routes = [
            route("10.96.0.0/16", Some("192.0.2.1"), &[DEVICE], PROTOCOL),
            route("fd00:10:96::/112", None, &[DEVICE], PROTOCOL),
            route("203.0.113.1/32", None, &[DEVICE], PROTOCOL),
        ];
        let wanted = [("10.96.7.7/16", Some("192.0.2.1")), ("fd00:10:96::/112", None), ("203.0.113.1/32", None)];
        assert_eq!(lines(&routes, &wanted), [""; 0]);
        assert_eq!(lines(&routes, &[]), ["-10.96.0.0/16", "-fd00:10:96::/112", "-203.0.113.1/32"]);
        assert_eq!(lines(&routes[1..], &wanted), ["+10.96.0.0/16"]);
        let moved = [("10.96.0.0/16", Some("192.0.2.2")), wanted[1], wanted[2]];
        assert_eq!(lines(&routes, &moved), ["~10.96.0.0/16"]);
    }

    #[test]
    fn a_route_whose_mtu_differs_is_written_again() {
        let routes = [Route { mtu: Some(1500), ..route("10.96.0.0/16", None, &[DEVICE], PROTOCOL) }];
        for (mtu, writes) in [(Some(1500), 0), (Some(1450), 1), (None, 1)] {
            let wanted = BTreeMap::from([(net("10.96.0.0/16"), Way { prefsrc: None, mtu })]);
            let changes = changes(&routes, DEVICE, &wanted);
            assert_eq!(changes.writes.len(), writes, "{mtu:?}");
            assert!(changes.writes.iter().all(|(_, way, write)| way.mtu == mtu && *write == Write::Replace));
        }
        let message = message(net("10.96.0.0/16"), Way { prefsrc: None, mtu: Some(1450) }, DEVICE);
        assert!(message.attributes.contains(&RouteAttribute::Metrics(vec![RouteMetric::Mtu(1450)])), "{message:?}");
    }

    #[test]
    fn other_programs_routes_stay_and_are_told() {
        let routes = [
            route("0.0.0.0/0", None, &[2], 3),
            route("10.96.0.0/16", None, &[2], 4),
            // Our protocol number, another device; and our device, another protocol.
            route("203.0.113.1/32", None, &[3], PROTOCOL),
            route("203.0.113.2/32", None, &[DEVICE], 4),
            // A blackhole.
            route("203.0.113.3/32", None, &[], 4),
        ];
        let wanted = [
            ("10.96.0.0/16", None),
            ("203.0.113.1/32", None),
            ("203.0.113.2/32", None),
            ("203.0.113.3/32", None),
            ("203.0.113.4/32", None),
        ];
        let expected = ["+203.0.113.4/32", "!10.96.0.0/16", "!203.0.113.1/32", "!203.0.113.2/32", "!203.0.113.3/32"];
        assert_eq!(lines(&routes, &wanted), expected);
        assert_eq!(lines(&routes, &[]), [""; 0]);
        let problem = foreign_route(&routes[1]);
        assert!(problem.object.contains("10.96.0.0/16") && problem.cause.contains("index 2"), "{problem:?}");
    }

    #[test]
    fn a_route_that_got_company_is_given_up_when_it_must_change() {
        let routes =
            [route("10.96.0.0/16", Some("192.0.2.1"), &[DEVICE], PROTOCOL), route("10.96.0.0/16", None, &[2], 4)];
        assert_eq!(lines(&routes, &[("10.96.0.0/16", Some("192.0.2.1"))]), [""; 0]);
        assert_eq!(lines(&routes, &[("10.96.0.0/16", Some("192.0.2.2"))]), ["-10.96.0.0/16", "!10.96.0.0/16"]);
    }

    #[test]
    fn only_our_own_pair_is_taken_over() {
        let veth = |ifindex, name: &str, peer| Link {
            ifindex,
            name: name.to_owned(),
            kind: Some("veth".to_owned()),
            peer: Some(peer),
            ..Link::default()
        };
        let pair_of = |links: &[Link]| pair(links).map(|(device, peer)| (device.ifindex, peer.ifindex));
        assert_eq!(pair_of(&[veth(4, PEER, 5), veth(5, NAME, 4)]).expect("a pair"), (5, 4));
        let dummy = Link { kind: Some("dummy".to_owned()), ..veth(5, NAME, 4) };
        for links in [
            vec![veth(4, PEER, 6), veth(5, NAME, 7)],
            vec![veth(5, NAME, 7)],
            vec![veth(4, PEER, 6)],
            vec![veth(4, PEER, 5), dummy],
        ] {
            assert_eq!(pair_of(&links).expect_err("foreign").kind(), io::ErrorKind::AlreadyExists, "{links:?}");
        }
        assert_eq!(pair_of(&[]).expect_err("none").kind(), io::ErrorKind::NotFound);
    }
}
