//! Numbers that agree with what the maps hold: at every start, and when the saved state is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    backend::{Backend, NextHop},
    frontend::{Frontend, FrontendKey, FrontendWord},
    ring::RingWord,
};

use super::{BackendKey, Ids, Lease, NextHopKey, RecordKey, Rings, slots::Found};
use crate::{
    desired::{BackendAddr, Desired, ServiceKey},
    image::{
        Image, Table,
        octets::{Octets, array, decode, model_protocol},
    },
    model::Protocol,
};

/// Who should own a frontend, by address.
type Wanted<'a> = BTreeMap<(IpAddr, u16, Protocol), &'a ServiceKey>;

impl Ids {
    /// The numbers of a node whose saved state is lost: service ports are recognised by their frontends, backends by
    /// their addresses, so that nothing in use moves. What is not recognised is freed.
    pub fn recover(mirror: &Image, desired: &Desired) -> Self {
        let mut ids = Self::default();
        ids.adopt(mirror, desired);
        ids
    }

    /// Makes a loaded state agree with the maps. What the maps hold in use and nobody here owns rests until the first
    /// plan is applied; generations never fall behind the maps'.
    pub fn adopt(&mut self, mirror: &Image, desired: &Desired) {
        let wanted: Wanted<'_> = desired
            .services
            .iter()
            .flat_map(|(key, service)| service.frontends.iter().map(move |frontend| (frontend, key)))
            .map(|(frontend, key)| ((frontend.addr, frontend.port.get(), key.protocol), key))
            .collect();
        let mut claims: BTreeMap<u32, BTreeSet<&ServiceKey>> = BTreeMap::new();
        let mut live = BTreeSet::new();
        claim::<[u8; 4]>(mirror, &wanted, &mut claims, &mut live);
        claim::<[u8; 16]>(mirror, &wanted, &mut claims, &mut live);
        let words: BTreeMap<(u32, usize), RingWord> = mirror
            .table(Table::Services)
            .filter_map(decode::<zerocopy::native_endian::U32, RingWord>)
            .map(|(index, word)| ((index.get() / 2, (index.get() % 2) as usize), word))
            .collect();
        live.extend(words.keys().map(|(service, _)| *service));

        // A saved name that every frontend contradicts belongs to another state of the maps.
        let contradicted: Vec<u32> = self
            .services
            .owners()
            .filter(|(key, id)| claims.get(id).is_some_and(|claims| !claims.contains(key)))
            .map(|(_, id)| id)
            .collect();
        for id in contradicted {
            self.services.disown(id);
        }
        let names: BTreeMap<u32, ServiceKey> = self.services.owners().map(|(key, id)| (id, key.clone())).collect();
        let mut taken: BTreeSet<ServiceKey> = names.values().cloned().collect();
        let mut found = BTreeMap::new();
        for id in live.into_iter().filter(|id| *id != 0) {
            let owner = names.get(&id).cloned().or_else(|| {
                // Where frontends of one number speak for several, an address has moved: whoever got the number would
                // for a moment give its backends to the clients of the others.
                let claims = claims.get(&id).filter(|claims| claims.len() == 1)?;
                claims.first().filter(|key| !taken.contains(**key)).map(|key| (*key).clone())
            });
            taken.extend(owner.clone());
            let generation = self.services.generation(id).max(1);
            found.insert(id, Found { owner, live: true, generation });
        }
        self.services.adopt(found);
        let services: BTreeSet<u32> = self.services.owners().map(|(_, id)| id).collect();

        self.adopt_family::<[u8; 4]>(mirror, &services);
        self.adopt_family::<[u8; 16]>(mirror, &services);
        self.rings = rings(mirror, words, &services);
    }

    fn adopt_family<A: Octets>(&mut self, mirror: &Image, services: &BTreeSet<u32>) {
        let ids = self.family_mut(A::FAMILY);
        ids.next_hops.adopt(next_hops::<A>(mirror));
        ids.records.adopt(records::<A>(mirror, services));
        ids.backends.adopt(backends::<A>(mirror, services));
    }
}

/// Which keys of `wanted` the frontends of each service number speak for, and which numbers records name.
fn claim<'a, A: Octets>(
    mirror: &Image,
    wanted: &Wanted<'a>,
    claims: &mut BTreeMap<u32, BTreeSet<&'a ServiceKey>>,
    live: &mut BTreeSet<u32>,
) {
    let records: BTreeMap<u32, Frontend<A>> = array(mirror, A::RECORDS).collect();
    live.extend(records.values().map(|record| record.service.get()));
    for (key, word) in mirror.table(A::FRONTENDS).filter_map(decode::<FrontendKey<A>, FrontendWord>) {
        let at = A::socket(key.address);
        let Some(record) = records.get(&word.id().0) else { continue };
        let Some(protocol) = model_protocol(key.protocol) else { continue };
        if let Some(owner) = wanted.get(&(at.ip(), at.port(), protocol)).filter(|owner| owner.family == A::FAMILY) {
            claims.entry(record.service.get()).or_default().insert(owner);
        }
    }
}

fn next_hops<A: Octets>(mirror: &Image) -> BTreeMap<u32, Found<NextHopKey>> {
    array(mirror, A::NEXT_HOPS)
        .map(|(id, hop): (u32, NextHop<A>)| {
            let live = hop.ifindex.get() != 0;
            let owner = live.then(|| NextHopKey {
                ifindex: hop.ifindex.get(),
                prefsrc: (hop.prefsrc != A::UNSPECIFIED).then(|| hop.prefsrc.to_ip()),
                local: hop.flags.get() & NextHop::<A>::LOCAL != 0,
            });
            (id, Found { owner, live, generation: hop.generation.get() })
        })
        .collect()
}

fn records<A: Octets>(mirror: &Image, services: &BTreeSet<u32>) -> BTreeMap<u32, Found<RecordKey>> {
    let tags: BTreeMap<u32, u32> = mirror
        .table(A::FRONTENDS)
        .filter_map(decode::<FrontendKey<A>, FrontendWord>)
        .map(|(_, word)| (word.id().0, (word.0 >> 32) as u32))
        .collect();
    array(mirror, A::RECORDS)
        .map(|(id, record): (u32, Frontend<A>)| {
            let at = A::socket(record.address);
            let owner = model_protocol(record.protocol)
                .filter(|_| services.contains(&record.service.get()) && tags.contains_key(&id))
                .map(|protocol| RecordKey {
                    service: record.service.get(),
                    rules: [record.pod.0, record.host.0, record.outside.0],
                    flags: record.flags.0,
                    addr: at.ip(),
                    port: at.port(),
                    protocol,
                });
            (id, Found { owner, live: true, generation: tags.get(&id).copied().unwrap_or(0) })
        })
        .collect()
}

fn backends<A: Octets>(mirror: &Image, services: &BTreeSet<u32>) -> BTreeMap<u32, Found<BackendKey>> {
    array(mirror, A::BACKENDS)
        .map(|(id, backend): (u32, Backend<A>)| {
            let service = backend.service.get();
            let at = A::socket(backend.address);
            let at = at.port().try_into().ok().map(|port| BackendAddr { addr: at.ip(), port });
            let owner = at.filter(|_| services.contains(&service)).map(|at| BackendKey { service, at });
            (id, Found { owner, live: service != 0, generation: backend.generation.get() })
        })
        .collect()
}

fn rings(mirror: &Image, words: BTreeMap<(u32, usize), RingWord>, services: &BTreeSet<u32>) -> Rings {
    let slots: BTreeMap<u32, u32> = array(mirror, Table::Rings)
        .map(|(index, backend): (u32, zerocopy::native_endian::U32)| (index, backend.get()))
        .collect();
    let mut ours = BTreeMap::new();
    let mut foreign = Vec::new();
    for ((service, scope), word) in words {
        if services.contains(&service) {
            let range = word.offset()..word.offset().saturating_add(word.length());
            let slots = range.map(|index| slots.get(&index).copied().unwrap_or(0)).collect();
            ours.insert((service, scope), Lease { word, slots });
        } else {
            foreign.push(word);
        }
    }
    Rings::adopt(ours, &foreign)
}
