//! `ballast backend list`.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    backend::{Backend, NextHop},
    settings::Setting,
};

use super::{ListError, Tables, unreadable};
use crate::{
    image::{
        self, Image,
        octets::{Octets, array},
    },
    model::{IpFamily, ObjectName},
    net::{self, Netlink},
    plan,
    report::BackendRow,
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
    let devices = device_names(&tables).await;
    let slots = [slots::<[u8; 4]>(&image), slots::<[u8; 16]>(&image)];
    let words = |map: &str| tables.maps.words(map).map_err(|cause| unreadable(&format_args!("map {map}"), cause));
    let connections = [words("LB4_BKD_CONNS")?, words("LB6_BKD_CONNS")?];
    let mut rows = Vec::new();
    for (id, programmed) in image::programmed(&image) {
        if wanted.as_ref().is_some_and(|wanted| !wanted.contains(&id)) {
            continue;
        }
        let family = usize::from(programmed.family == IpFamily::V6);
        for (at, backend) in &programmed.backends {
            let slot = slots[family].get(&backend.id);
            let hop = slot.and_then(|slot| slot.hop);
            let name = |ifindex: u32| devices.get(&ifindex).cloned().unwrap_or_else(|| format!("#{ifindex}"));
            rows.push(BackendRow {
                service: tables.name(id),
                address: at.addr,
                port: at.port.get(),
                slot: backend.id,
                generation: slot.map_or(0, |slot| slot.generation),
                device: hop.map(|(ifindex, _)| name(ifindex)),
                source: hop.and_then(|(_, source)| source),
                connections: connections[family].get(&backend.id).copied().unwrap_or(0),
                state: if backend.is_chosen { "in use" } else { "no new connections" }.to_owned(),
            });
        }
    }
    rows.sort();
    Ok(rows)
}

fn slots<A: Octets>(image: &Image) -> BTreeMap<u32, Slot> {
    let hops: BTreeMap<u32, NextHop<A>> = array(image, A::NEXT_HOPS).collect();
    let hop = |backend: &Backend<A>| {
        let hop = hops.get(&backend.next_hop.get()).filter(|hop| hop.ifindex.get() != 0)?;
        Some((hop.ifindex.get(), (hop.prefsrc != A::UNSPECIFIED).then(|| hop.prefsrc.to_ip())))
    };
    array::<Backend<A>>(image, A::BACKENDS)
        .map(|(id, backend)| (id, Slot { generation: backend.generation.get(), hop: hop(&backend) }))
        .collect()
}

/// The names of the agent's devices. Seen from another network namespace the same numbers are other devices.
async fn device_names(tables: &Tables) -> BTreeMap<u32, String> {
    let agents = tables.maps.word("LB_SETTINGS", Setting::NetnsCookie as u32).ok();
    if agents.is_none() || agents != net::netns_cookie().ok() {
        return BTreeMap::new();
    }
    let links = async { Netlink::open()?.links().await };
    match links.await {
        Ok(links) => links.into_iter().map(|link| (link.ifindex, link.name)).collect(),
        Err(error) => {
            tracing::debug!("devices go by their numbers: {error}");
            BTreeMap::new()
        }
    }
}
