//! What the kernel knows of the next hops: their MACs, and which of them do not answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use futures_util::TryStreamExt as _;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::{
    netlink::{Netlink, failed_to},
    next_hops::WaysTo,
};
use crate::report::Problem;

/// An entry of the kernel's neighbour tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC, once that is known.
    pub mac: Option<[u8; 6]>,
    /// As `ip neigh` calls it, in small letters.
    pub state: &'static str,
    /// It was asked and did not answer. One that packets are for is asked again and again: the kernel calls it failed only
    /// now and then.
    pub silent: bool,
}

/// How long one may take to answer, in `USER_HZ`: the kernel asks once a second.
const PATIENCE: u32 = 100;

/// By device and address.
pub type Neighbours = BTreeMap<(u32, IpAddr), Neighbour>;

impl Netlink {
    /// Every neighbour, both families.
    pub async fn neighbours(&self) -> io::Result<Neighbours> {
        let stream = self.handle.neighbours().get().execute();
        let messages: Vec<NeighbourMessage> = stream.try_collect().await.map_err(failed_to("list neighbours"))?;
        Ok(messages.iter().filter_map(neighbour).collect())
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let (mut addr, mut mac, mut since) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => addr = Some(IpAddr::from(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => addr = Some(IpAddr::from(*ip)),
            NeighbourAttribute::CacheInfo(cache) => since = cache.updated,
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match message.header.state {
        NeighbourState::Incomplete => "incomplete",
        NeighbourState::Reachable => "reachable",
        NeighbourState::Stale => "stale",
        NeighbourState::Delay => "delay",
        NeighbourState::Probe => "probe",
        NeighbourState::Failed => "failed",
        NeighbourState::Noarp => "noarp",
        NeighbourState::Permanent => "permanent",
        _ => "none",
    };
    let silent = match message.header.state {
        NeighbourState::Failed => true,
        NeighbourState::Incomplete => since >= PATIENCE,
        _ => false,
    };
    Some(((message.header.ifindex, addr?), Neighbour { mac, state, silent }))
}

/// Next hops that do not answer, with how many backends are behind each.
pub fn warnings(ways: &WaysTo, neighbours: &Neighbours, device: impl Fn(u32) -> String) -> Vec<Problem> {
    let mut behind: BTreeMap<(u32, IpAddr), BTreeSet<IpAddr>> = BTreeMap::new();
    for (addr, way) in ways {
        if let Some(next) = way.neighbour(*addr)
            && neighbours.get(&next).is_some_and(|neighbour| neighbour.silent)
        {
            behind.entry(next).or_default().insert(*addr);
        }
    }
    let problem = |((ifindex, next), addrs): ((u32, IpAddr), BTreeSet<IpAddr>)| {
        let device = device(ifindex);
        let whose = match addrs.len() {
            1 if addrs.contains(&next) => "the backend there is".to_owned(),
            1 => "the backend behind it is".to_owned(),
            count => format!("{count} backends behind it are"),
        };
        Problem {
            object: format!("next hop {next} dev {device}"),
            cause: format!("it does not answer: {whose} not reached"),
            fix: format!(
                "see `ip neigh show dev {device}` and what should answer there; the kernel asks again by itself"
            ),
        }
    };
    behind.into_iter().map(problem).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use netlink_packet_route::neighbour::NeighbourCacheInfo;

    use super::*;
    use crate::{image::NextHopInfo, net::NextHop};

    #[test]
    fn a_next_hop_that_does_not_answer_is_told_once_with_those_behind_it() {
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let way = |gateway| {
            let info = NextHopInfo { ifindex: 2, prefsrc: None, local: false };
            Arc::new(NextHop { info, gateway, route_mtu: None, learned_mtu: None })
        };
        let ways = BTreeMap::from([
            (ip(1), way(Some(ip(9)))),
            (ip(2), way(Some(ip(9)))),
            (ip(3), way(None)),
            (ip(4), way(None)),
        ]);
        let told = |silent: &[u8]| {
            let entry = |last: u8, silent| ((2, ip(last)), Neighbour { mac: None, state: "none", silent });
            let neighbours = [3, 9, 77].map(|last| entry(last, silent.contains(&last)));
            let problems = warnings(&ways, &neighbours.into(), |ifindex| format!("eth{ifindex}"));
            problems.into_iter().map(|problem| format!("{}: {}", problem.object, problem.cause)).collect::<Vec<_>>()
        };
        assert_eq!(told(&[77]), [""; 0]);
        let both = [
            "next hop 10.0.0.3 dev eth2: it does not answer: the backend there is not reached",
            "next hop 10.0.0.9 dev eth2: it does not answer: 2 backends behind it are not reached",
        ];
        assert_eq!(told(&[3, 9]), both);
    }

    #[test]
    fn who_is_being_asked_is_silent_after_a_second() {
        let silent = |state, updated: u32| {
            // Confirmed, used, updated, references.
            let cache: Vec<u8> = [0, 0, updated, 1].iter().flat_map(|number: &u32| number.to_ne_bytes()).collect();
            let mut message = NeighbourMessage::default();
            message.header.state = state;
            message.attributes = vec![
                NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 1].into())),
                NeighbourAttribute::CacheInfo(NeighbourCacheInfo::parse(&cache).expect("four numbers")),
            ];
            neighbour(&message).expect("a neighbour").1.silent
        };
        let incomplete = [0, PATIENCE - 1, PATIENCE].map(|updated| silent(NeighbourState::Incomplete, updated));
        assert_eq!(incomplete, [false, false, true]);
        assert!(silent(NeighbourState::Failed, 0) && !silent(NeighbourState::Stale, 10 * PATIENCE));
    }
}
