//! Tables as an earlier agent left them, with the ways to their backends as they are now.
//!
//! It is what can be done while the objects are not known: nothing is deleted, and no frontend, ring or generation of a
//! backend changes. Numbers of next hops are chosen by the tables alone; the first build adopts them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    backend::{Backend, NextHop, NextHopId},
    settings::Setting,
};
use zerocopy::native_endian::U32;

use super::{
    Capacity, Image, NextHopInfo, NextHops, Table,
    octets::{Octets, array, decode},
};
use crate::desired::Desired;

/// The addresses of all backends in the tables.
pub fn backends(image: &Image) -> BTreeSet<IpAddr> {
    fn of<A: Octets>(image: &Image) -> impl Iterator<Item = IpAddr> {
        array::<Backend<A>>(image, A::BACKENDS)
            .filter(|(_, backend)| backend.service.get() != 0)
            .map(|(_, backend)| backend.address.addr.to_ip())
    }
    of::<[u8; 4]>(image).chain(of::<[u8; 16]>(image)).collect()
}

/// What of the tables has routes into `ballast0`: the ranges and the addresses, without Services.
pub fn served(image: &Image) -> Desired {
    fn vips<A: Octets>(image: &Image) -> impl Iterator<Item = IpAddr> {
        image.table(A::VIPS).filter_map(decode::<A, u64>).map(|(vip, _)| vip.to_ip())
    }
    let vips = vips::<[u8; 4]>(image).chain(vips::<[u8; 16]>(image)).collect();
    let service_cidrs = super::prefixes(image, lb_common::frontend::PrefixFlags::SERVICE);
    Desired { vips, service_cidrs, ..Desired::default() }
}

/// The same tables with these ways and settings. A backend whose way is not known has none.
pub fn reroute(image: &Image, next_hops: &dyn NextHops, settings: &[(Setting, u64)], capacity: &Capacity) -> Image {
    let mut rerouted = image.clone();
    for (setting, value) in settings {
        rerouted.insert(Table::Settings, &U32::new(*setting as u32), value);
    }
    family::<[u8; 4]>(&mut rerouted, next_hops, capacity);
    family::<[u8; 16]>(&mut rerouted, next_hops, capacity);
    rerouted
}

fn family<A: Octets>(image: &mut Image, next_hops: &dyn NextHops, capacity: &Capacity) {
    let mut hops: BTreeMap<u32, NextHop<A>> = array(image, A::NEXT_HOPS).collect();
    let backends: Vec<(u32, Backend<A>)> = array(image, A::BACKENDS).collect();
    for (id, backend) in backends.into_iter().filter(|(_, backend)| backend.service.get() != 0) {
        let info = next_hops.next_hop(backend.address.addr.to_ip()).filter(|info| info.ifindex != 0);
        let next_hop = info.and_then(|info| hop(image, &mut hops, &info, capacity.get(A::NEXT_HOPS))).unwrap_or(0);
        if backend.next_hop.get() != next_hop {
            let moved = Backend { next_hop: NextHopId::new(next_hop), ..backend };
            image.insert(A::BACKENDS, &U32::new(id), &moved);
        }
    }
}

/// The number of a way: the one it has, or one that nobody has.
fn hop<A: Octets>(
    image: &mut Image,
    hops: &mut BTreeMap<u32, NextHop<A>>,
    info: &NextHopInfo,
    max_entries: u32,
) -> Option<u32> {
    let wanted = NextHop {
        ifindex: U32::new(info.ifindex),
        generation: U32::ZERO,
        flags: U32::new(if info.local { NextHop::<A>::LOCAL } else { 0 }),
        prefsrc: info.prefsrc.and_then(A::from_ip).unwrap_or(A::UNSPECIFIED),
    };
    let same =
        |hop: &NextHop<A>| (hop.ifindex, hop.flags, hop.prefsrc) == (wanted.ifindex, wanted.flags, wanted.prefsrc);
    if let Some((id, _)) = hops.iter().find(|(_, hop)| same(hop)) {
        return Some(*id);
    }
    // Numbers that were never used first: a flow may remember a vacant one.
    let fresh = hops.last_key_value().map_or(1, |(last, _)| last.saturating_add(1));
    let vacant = || hops.iter().find(|(_, hop)| hop.ifindex.get() == 0).map(|(id, _)| *id);
    let id = Some(fresh).filter(|fresh| *fresh < max_entries).or_else(vacant)?;
    let generation = hops.get(&id).map_or(0, |hop| hop.generation.get()).checked_add(1).unwrap_or(1);
    let record = NextHop { generation: U32::new(generation), ..wanted };
    image.insert(A::NEXT_HOPS, &U32::new(id), &record);
    hops.insert(id, record);
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::{desired, fixture},
        ids::Ids,
        image::{build, programmed},
        plan,
    };

    fn way(ifindex: u32) -> NextHopInfo {
        NextHopInfo { ifindex, prefsrc: None, local: false }
    }

    fn ways(addrs: &BTreeSet<IpAddr>, ifindex: u32) -> BTreeMap<IpAddr, NextHopInfo> {
        addrs.iter().map(|addr| (*addr, way(ifindex))).collect()
    }

    #[test]
    fn only_ways_and_settings_change_and_the_next_build_goes_on_from_there() {
        let (model, node) = fixture::web();
        let desired = desired(&model, &node);
        let capacity = Capacity::uniform(64);
        let mut ids = Ids::default();
        let addrs: BTreeSet<IpAddr> =
            desired.services.values().flat_map(|service| &service.backends).map(|backend| backend.addr).collect();
        let image = build(&desired, &mut ids, &ways(&addrs, 7), &[(Setting::HashSeed, 1)], &capacity).image;
        assert_eq!(backends(&image), addrs);
        assert_eq!(reroute(&image, &ways(&addrs, 7), &[(Setting::HashSeed, 1)], &capacity), image, "nothing changed");

        // Another device, but for one address that has no way any more.
        let mut now = ways(&addrs, 9);
        let lost = *addrs.first().expect("a backend");
        now.remove(&lost);
        let rerouted = reroute(&image, &now, &[(Setting::HashSeed, 1), (Setting::HostDevice, 3)], &capacity);
        assert_eq!(programmed(&rerouted), programmed(&image), "the same Services");
        let changed: BTreeSet<Table> =
            Table::ALL.into_iter().filter(|table| !rerouted.table(*table).eq(image.table(*table))).collect();
        let families = addrs.iter().map(IpAddr::is_ipv4).collect::<BTreeSet<_>>();
        for table in &changed {
            assert!(
                matches!(
                    table,
                    Table::Settings | Table::Backends4 | Table::Backends6 | Table::NextHops4 | Table::NextHops6
                ),
                "{table:?}"
            );
        }
        assert!(changed.contains(&Table::Settings) && changed.len() > families.len());
        let devices = |image: &Image| -> BTreeMap<IpAddr, u32> {
            let hops: BTreeMap<u32, NextHop<[u8; 4]>> = array(image, Table::NextHops4).collect();
            array::<Backend<[u8; 4]>>(image, Table::Backends4)
                .filter(|(_, backend)| backend.service.get() != 0)
                .map(|(_, it)| {
                    (it.address.addr.to_ip(), hops.get(&it.next_hop.get()).map_or(0, |hop| hop.ifindex.get()))
                })
                .collect()
        };
        for (addr, device) in devices(&rerouted) {
            assert_eq!(device, if addr == lost { 0 } else { 9 }, "{addr}");
        }
        // Old records stay: nothing is deleted.
        let hops: Vec<u32> =
            array::<NextHop<[u8; 4]>>(&rerouted, Table::NextHops4).map(|(_, hop)| hop.ifindex.get()).collect();
        assert!(hops.contains(&7) && hops.contains(&9), "{hops:?}");

        // The first build adopts what is there: its ways are no news.
        let mut ids = Ids::default();
        ids.adopt(&rerouted, &desired);
        let built = build(&desired, &mut ids, &now, &[(Setting::HashSeed, 1), (Setting::HostDevice, 3)], &capacity);
        let plan = plan::diff(&built.image, &rerouted);
        let beyond: Vec<String> = plan
            .steps()
            .filter_map(|step| match step {
                plan::Step::Write(op) if !matches!(op.table, Table::NextHops4 | Table::NextHops6) => {
                    Some(format!("{op:?}"))
                }
                _ => None,
            })
            .collect();
        assert_eq!(beyond, [""; 0], "only what nobody uses is taken down");
    }

    #[test]
    fn a_full_array_gives_a_vacant_number_a_new_generation() {
        let (zero, unspecified) = (U32::ZERO, [0_u8; 4]);
        let mut image = Image::default();
        let vacant = NextHop { ifindex: zero, generation: U32::new(5), flags: zero, prefsrc: unspecified };
        image.insert(Table::NextHops4, &U32::new(1), &vacant);
        let mut hops = array(&image, Table::NextHops4).collect();
        assert_eq!(hop::<[u8; 4]>(&mut image, &mut hops, &way(3), 2), Some(1));
        assert_eq!(hops[&1].generation.get(), 6);
        assert_eq!(hop::<[u8; 4]>(&mut image, &mut hops, &way(4), 2), None, "full");
        assert_eq!(hop::<[u8; 4]>(&mut image, &mut hops, &way(3), 2), Some(1), "known");
    }
}
