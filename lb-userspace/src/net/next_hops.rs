//! The ways to the backends, as the kernel goes them: device, source, router and MTU.
//!
//! Packets leave by the kernel's own routing and `bpf_redirect_neigh`, so its neighbour table is the one that counts, and
//! the tables of our programs hold no MAC: see [`super::neighbours`] for what the kernel knows of a next hop.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType, RouteVia},
};
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::netlink::{address_of, mtu_of};
use crate::image::{NextHopInfo, NextHops};

/// Ways by address. Many addresses share one.
pub type WaysTo = BTreeMap<IpAddr, Arc<NextHop>>;

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// What of it lasts: without what an ICMP error taught, which is the kernel's to apply, and to forget.
    #[must_use]
    pub const fn lasting(&self) -> Self {
        Self { learned_mtu: None, ..*self }
    }

    /// Whose MAC packets to `addr` carry: the neighbour and its device; none for an address of this node.
    pub fn neighbour(&self, addr: IpAddr) -> Option<(u32, IpAddr)> {
        (!self.info.local).then(|| (self.info.ifindex, self.gateway.unwrap_or(addr)))
    }

    /// What gets there in one piece, where the device takes `device` bytes.
    pub fn mtu(&self, device: Option<u32>) -> Option<u32> {
        [device, self.route_mtu, self.learned_mtu].into_iter().flatten().min()
    }
}

/// Known ways, for the tables.
#[derive(Clone, Copy, Debug)]
pub struct Ways<'a>(pub &'a WaysTo);

impl NextHops for Ways<'_> {
    fn next_hop(&self, addr: IpAddr) -> Option<NextHopInfo> {
        self.0.get(&addr).map(|way| way.info)
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

/// Questions that are sent together: their answers fit into the socket's smallest buffer.
const TOGETHER: usize = 64;
/// An answer takes microseconds; one that was lost never comes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The ways to addresses; those without one are left out. The kernel answers one question after the other, so that many
/// are sent at once: a node may have a hundred thousand backends.
pub async fn next_hops(addrs: &BTreeSet<IpAddr>) -> io::Result<WaysTo> {
    if addrs.is_empty() {
        return Ok(WaysTo::new());
    }
    let addrs: Vec<IpAddr> = addrs.iter().copied().collect();
    let asked = tokio::task::spawn_blocking(move || {
        let mut asker = Asker::open()?;
        for some in addrs.chunks(TOGETHER) {
            asker.ask(some)?;
        }
        Ok(asker.found)
    });
    asked.await.map_err(io::Error::other)?
}

/// A socket for questions about routes.
struct Asker {
    socket: Socket,
    found: WaysTo,
    distinct: BTreeMap<NextHop, Arc<NextHop>>,
}

impl Asker {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, found: WaysTo::new(), distinct: BTreeMap::new() })
    }

    /// Asks for a few at once.
    fn ask(&mut self, addrs: &[IpAddr]) -> io::Result<()> {
        let mut questions = Vec::new();
        for (number, addr) in (0..).zip(addrs) {
            let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question(*addr)));
            message.header.flags = NLM_F_REQUEST;
            message.header.sequence_number = number;
            message.finalize();
            let begin = questions.len();
            // Each message begins at a multiple of four bytes.
            questions.resize(begin + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(questions.get_mut(begin..).unwrap_or_default());
        }
        self.socket.send(&questions, 0)?;
        let mut open: BTreeSet<usize> = (0..addrs.len()).collect();
        while !open.is_empty() {
            let (bytes, _) = uninterrupted(|| self.socket.recv_from_full()).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer about {} routes in {} s (netlink)", open.len(), PATIENCE.as_secs()),
                ),
                _ => error,
            })?;
            let mut rest = &*bytes;
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                rest = rest.get((message.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
                let number = message.header.sequence_number as usize;
                let Some(addr) = addrs.get(number).filter(|_| open.remove(&number)) else { continue };
                if let Some(hop) = answer(message.payload, *addr)? {
                    let shared = self.distinct.entry(hop).or_insert_with(|| Arc::new(hop));
                    self.found.insert(*addr, Arc::clone(shared));
                }
            }
        }
        Ok(())
    }
}

/// What `receive` gives. No signal ends the wait for it: any thread may be the one that is told of a child's end, and the kernel
/// begins no receive anew that has a limit (signal(7)).
fn uninterrupted<T>(mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn question(addr: IpAddr) -> RouteMessage {
    let mut question = match addr {
        IpAddr::V4(addr) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(addr, 32).build(),
        IpAddr::V6(addr) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(addr, 128).build(),
    };
    // A question, not a route: the kernel's answer is what counts.
    question.header.table = RouteHeader::RT_TABLE_UNSPEC;
    question.header.protocol = RouteProtocol::Unspec;
    question.header.kind = RouteType::Unspec;
    question
}

fn answer(payload: NetlinkPayload<RouteNetlinkMessage>, addr: IpAddr) -> io::Result<Option<NextHop>> {
    match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(next_hop(&route)),
        NetlinkPayload::Error(error) => {
            let error = error.to_io();
            let no_route = error.raw_os_error().is_some_and(|errno| NO_ROUTE.contains(&errno));
            let cause = format!("cannot look up the route to {addr} (netlink): {error}");
            if no_route { Ok(None) } else { Err(io::Error::new(error.kind(), cause)) }
        }
        other => Err(io::Error::other(format!("the kernel answered {other:?} about the route to {addr} (netlink)"))),
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
    fn a_signal_does_not_end_the_wait_for_an_answer() {
        use io::ErrorKind::{Interrupted, WouldBlock};
        let mut answers = [Err(Interrupted), Err(Interrupted), Ok(7), Err(Interrupted), Err(WouldBlock)].into_iter();
        let mut receive = || uninterrupted(|| answers.next().expect("one more").map_err(io::Error::from));
        assert_eq!(receive().expect("an answer"), 7);
        assert_eq!(receive().expect_err("too late").kind(), WouldBlock);
    }

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
