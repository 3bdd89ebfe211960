//! `ballast backend list`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use lb_common::{
    backend::{self, Backend},
    settings::Setting,
};

use super::{ListError, Tables, unreadable};
use crate::{
    image::{
        self, Image,
        octets::{Octets, array},
    },
    model::{IpFamily, ObjectName},
    net::{self, Link, Netlink, WaysTo, neighbours::Neighbours},
    plan,
    report::{BackendRow, NextHopRow},
};

/// What the tables say of a backend beside its address.
struct Slot {
    generation: u32,
    hop: Option<(u32, Option<IpAddr>)>,
}

/// Every backend in the tables, or those of one Service.
pub async fn backends(mut tables: Tables, service: Option<&ObjectName>) -> Result<Vec<BackendRow>, ListError> {
    let wanted = tables.numbers(service)?;
    let image = plan::read_mirror(&mut tables.maps).map_err(|cause| unreadable(&"the pinned maps", cause))?;
    let slots = [slots::<[u8; 4]>(&image), slots::<[u8; 16]>(&image)];
    let words = |map: &str| tables.maps.words(map).map_err(|cause| unreadable(&format_args!("map {map}"), cause));
    let connections = [words("LB4_BKD_CONNS")?, words("LB6_BKD_CONNS")?];
    let programmed: Vec<_> = image::programmed(&image)
        .into_iter()
        .filter(|(id, _)| wanted.as_ref().is_none_or(|wanted| wanted.contains(id)))
        .collect();
    let addrs = programmed.iter().flat_map(|(_, service)| service.backends.keys().map(|at| at.addr)).collect();
    let around = Surroundings::of(&tables, &addrs).await;
    let mut rows = Vec::new();
    for (id, programmed) in programmed {
        let family = usize::from(programmed.family == IpFamily::V6);
        for (at, backend) in &programmed.backends {
            let slot = slots[family].get(&backend.id);
            let hop = slot.and_then(|slot| slot.hop);
            rows.push(BackendRow {
                service: tables.name(id),
                address: at.addr,
                port: at.port.get(),
                slot: backend.id,
                generation: slot.map_or(0, |slot| slot.generation),
                device: hop.map(|(ifindex, _)| around.device(ifindex)),
                source: hop.and_then(|(_, source)| source),
                mtu: around.mtu(at.addr),
                next_hop: around.next_hop(at.addr),
                connections: connections[family].get(&backend.id).copied().unwrap_or(0),
                state: if backend.is_chosen { "in use" } else { "no new connections" }.to_owned(),
            });
        }
    }
    rows.sort();
    Ok(rows)
}

fn slots<A: Octets>(image: &Image) -> BTreeMap<u32, Slot> {
    let hops: BTreeMap<u32, backend::NextHop<A>> = array(image, A::NEXT_HOPS).collect();
    let hop = |backend: &Backend<A>| {
        let hop = hops.get(&backend.next_hop.get()).filter(|hop| hop.ifindex.get() != 0)?;
        Some((hop.ifindex.get(), (hop.prefsrc != A::UNSPECIFIED).then(|| hop.prefsrc.to_ip())))
    };
    array::<Backend<A>>(image, A::BACKENDS)
        .map(|(id, backend)| (id, Slot { generation: backend.generation.get(), hop: hop(&backend) }))
        .collect()
}

/// The network of the agent's node, as it is now. Seen from another network namespace it would be another one: nothing then.
#[derive(Default)]
struct Surroundings {
    links: BTreeMap<u32, Link>,
    ways: WaysTo,
    neighbours: Neighbours,
}

impl Surroundings {
    async fn of(tables: &Tables, addrs: &BTreeSet<IpAddr>) -> Self {
        let agents = tables.maps.word("LB_SETTINGS", Setting::NetnsCookie as u32).ok();
        if agents.is_none() || agents != net::netns_cookie().ok() {
            return Self::default();
        }
        let asked = async {
            let netlink = Netlink::open()?;
            let links = netlink.links().await?.into_iter().map(|link| (link.ifindex, link)).collect();
            let ways = net::next_hops(addrs).await?;
            Ok::<_, io::Error>(Self { links, ways, neighbours: netlink.neighbours().await? })
        };
        asked.await.unwrap_or_else(|error| {
            tracing::debug!("devices go by their numbers: {error}");
            Self::default()
        })
    }

    fn device(&self, ifindex: u32) -> String {
        self.links.get(&ifindex).map_or_else(|| format!("#{ifindex}"), |link| link.name.clone())
    }

    fn mtu(&self, addr: IpAddr) -> Option<u32> {
        let way = self.ways.get(&addr)?;
        way.mtu(self.links.get(&way.info.ifindex).map(|link| link.mtu))
    }

    fn next_hop(&self, addr: IpAddr) -> Option<NextHopRow> {
        let next = self.ways.get(&addr)?.neighbour(addr)?;
        let known = self.neighbours.get(&next);
        let mac = known.and_then(|known| known.mac).map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        let state = known.map_or("none", |known| known.state).to_owned();
        Some(NextHopRow { address: next.1, mac, state })
    }
}
