//! What the kernel side counted, read from the maps: for a running agent, and for whoever looks at the pins without one.

use std::collections::BTreeMap;

use crate::{
    bpf::{FlowFamily, Maps},
    describe::ServiceNumbers,
    desired::BackendAddr,
    gc::{self, Survey},
    image::{Image, Table},
    model::IpFamily,
    report::MapStatus,
};

/// What the conntrack maps hold now, IPv4 and IPv6.
pub fn surveys(maps: &Maps) -> [Survey; 2] {
    [gc::survey::<[u8; 4]>(maps), gc::survey::<[u8; 16]>(maps)].map(|survey| {
        survey.unwrap_or_else(|error| {
            tracing::warn!("cannot list the flows: {error}");
            Survey::default()
        })
    })
}

/// The numbers of service port `service`; `backends` are its backends with their numbers.
pub fn of_service(
    maps: &Maps,
    service: u32,
    family: IpFamily,
    backends: impl IntoIterator<Item = (BackendAddr, u32)>,
    surveys: &[Survey],
) -> ServiceNumbers {
    let word = |map: &str, index: u32| {
        maps.word(map, index).unwrap_or_else(|error| {
            tracing::warn!("cannot read {map}: {error}");
            0
        })
    };
    let live = |pick: fn(&(u64, u64)) -> u64| -> u64 {
        surveys.iter().filter_map(|survey| survey.traffic.get(&service)).map(pick).sum()
    };
    let packets = word("LB_SVC_TRAFFIC", service * 2).wrapping_add(live(|(packets, _)| *packets));
    let bytes = word("LB_SVC_TRAFFIC", service * 2 + 1).wrapping_add(live(|(_, bytes)| *bytes));
    let map = match family {
        IpFamily::V4 => "LB4_BKD_CONNS",
        IpFamily::V6 => "LB6_BKD_CONNS",
    };
    let path = packets > 0;
    ServiceNumbers {
        connections: word("LB_SVC_CONNS", service),
        packets: path.then_some(packets),
        bytes: path.then_some(bytes),
        backends: backends.into_iter().map(|(at, id)| (at, word(map, id))).collect(),
    }
}

/// Use and capacity of every map.
pub fn map_use(maps: &Maps, mirror: &Image, [v4, v6]: &[Survey; 2]) -> BTreeMap<String, MapStatus> {
    let mut all = maps.status();
    let tables = Table::ALL.map(|table| (table.map_name(), mirror.len(table) as u64));
    let connected = [
        ("LB4_CONNECTED", maps.connected::<[u8; 4]>().map_or(0, |all| all.len() as u64)),
        ("LB6_CONNECTED", maps.connected::<[u8; 16]>().map_or(0, |all| all.len() as u64)),
    ];
    let clients = [("LB4_AFFINITY", clients::<[u8; 4]>(maps)), ("LB6_AFFINITY", clients::<[u8; 16]>(maps))];
    let flows = [("LB4_CONNTRACK", v4.entries), ("LB6_CONNTRACK", v6.entries)];
    for (name, used) in tables.into_iter().chain(flows).chain(connected).chain(clients) {
        if let Some(status) = all.get_mut(name) {
            status.used = used;
        }
    }
    all
}

/// Clients that are remembered.
fn clients<A: FlowFamily>(maps: &Maps) -> u64 {
    let mut count = 0;
    maps.each_client::<A>(|_, _| count += 1).unwrap_or_else(|error| tracing::warn!("cannot list the clients: {error}"));
    count
}

/// The counters that are not zero, by name.
pub fn counters(maps: &Maps) -> BTreeMap<String, u64> {
    let counters = maps.counters().unwrap_or_else(|error| {
        tracing::warn!("cannot read the counters: {error}");
        BTreeMap::new()
    });
    let counted = counters.into_iter().filter(|(_, count)| *count > 0);
    counted.map(|(counter, count)| (format!("{counter:?}"), count)).collect()
}
