//! [`Desired`] in, [`Image`] out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::{
    backend::{Backend, NextHop, NextHopId, ServiceId, Sets},
    frontend::{
        ClientRule, Frontend, FrontendFlags, FrontendId, FrontendKey, FrontendWord, PrefixFlags, PrefixKey,
        SOURCE_ALLOWED, Scope, SourceKey, SourceRange, VIP_OWNED,
    },
    ring::WhenEmpty,
    settings::Setting,
    tuple::L4Addr,
};
use zerocopy::native_endian::U32;

mod some;

pub use self::some::{BuiltSome, build_some};
use super::{
    Image, Table,
    capacity::{Capacity, enlarging},
    octets::{Octets, wire_protocol},
    ring_order::ring_order,
};
use crate::{
    desired::{BackendAddr, Desired, DesiredFrontend, DesiredService, ServiceKey},
    ids::{BackendKey, Ids, MAX_RING, NextHopKey, RecordKey},
    model::{IpFamily, ObjectName},
    report::Problem,
};

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHopInfo {
    /// The device.
    pub ifindex: u32,
    /// The source address the route prefers.
    pub prefsrc: Option<IpAddr>,
    /// The address belongs to this node.
    pub local: bool,
}

/// Where the ways to backends are known.
pub trait NextHops {
    /// The way to an address; none: there is none, or it is not known.
    fn next_hop(&self, addr: IpAddr) -> Option<NextHopInfo>;
}

impl NextHops for BTreeMap<IpAddr, NextHopInfo> {
    fn next_hop(&self, addr: IpAddr) -> Option<NextHopInfo> {
        self.get(&addr).copied()
    }
}

/// What [`build`] made.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// The tables as they should be.
    pub image: Image,
    /// What does not fit.
    pub refused: Vec<Problem>,
}

/// Makes the tables that hold `desired`, and gives numbers to what is new in it.
///
/// A Service that does not fit is left out whole; those that are programmed already come first. Numbers that are no
/// longer used rest until [`Ids::commit`].
pub fn build(
    desired: &Desired,
    ids: &mut Ids,
    next_hops: &dyn NextHops,
    settings: &[(Setting, u64)],
    capacity: &Capacity,
) -> Built {
    ids.fit(capacity);
    let mut services: BTreeMap<&ObjectName, Vec<(&ServiceKey, &DesiredService)>> = BTreeMap::new();
    for (key, service) in &desired.services {
        services.entry(&key.service).or_default().push((key, service));
    }
    let mut order: Vec<_> = services.into_iter().collect();
    order.sort_by_key(|(_, ports)| ports.iter().all(|(key, _)| ids.services.get(key).is_none()));

    let mut builder = Builder { ids, next_hops, capacity, built: Built::default() };
    builder.settings(settings);
    builder.prefixes(desired);
    let claimed: BTreeSet<IpAddr> =
        desired.services.values().flat_map(|service| &service.frontends).map(|frontend| frontend.addr).collect();
    for vip in desired.vips.difference(&claimed) {
        builder.unclaimed_vip(*vip);
    }
    for (name, ports) in order {
        if let Err(full) = builder.service(&ports, &desired.vips) {
            builder.built.refused.push(full.problem(format!("Service {name}")));
        }
    }
    builder.finish()
}

/// A table without room.
struct Full {
    table: Table,
    needed: usize,
    room: usize,
    max_entries: u32,
}

impl Full {
    fn problem(&self, object: String) -> Problem {
        let Self { table, needed, room, max_entries } = self;
        let map = table.map_name();
        Problem {
            object,
            cause: format!(
                "does not fit and is not programmed: map {map} (max_entries {max_entries}) has room for {room} more \
                 entries, {needed} are needed"
            ),
            fix: enlarging(*table),
        }
    }
}

struct Builder<'a> {
    ids: &'a mut Ids,
    next_hops: &'a dyn NextHops,
    capacity: &'a Capacity,
    built: Built,
}

impl Builder<'_> {
    fn settings(&mut self, settings: &[(Setting, u64)]) {
        for (setting, value) in settings {
            self.built.image.insert(Table::Settings, &U32::new(*setting as u32), value);
        }
    }

    fn prefixes(&mut self, desired: &Desired) {
        let kinds = [
            (&desired.service_cidrs, PrefixFlags::SERVICE),
            (&desired.local_pod_cidrs, PrefixFlags::LOCAL_PODS),
            (&desired.detected, PrefixFlags::DETECTED),
        ];
        let mut prefixes: BTreeMap<IpNet, PrefixFlags> = BTreeMap::new();
        for net in kinds.iter().flat_map(|(nets, _)| *nets).map(IpNet::trunc) {
            // The longest match alone is found: it says what the ranges around it say too.
            let around = kinds.iter().filter(|(nets, _)| nets.iter().any(|other| other.contains(&net)));
            prefixes.insert(net, around.fold(PrefixFlags::NONE, |flags, (_, flag)| flags.with(*flag)));
        }
        for (net, flags) in prefixes {
            let table = match net {
                IpNet::V4(_) => Table::Prefixes4,
                IpNet::V6(_) => Table::Prefixes6,
            };
            if let Err(full) = self.count(table, 1) {
                self.built.refused.push(full.problem(format!("prefix {net}")));
                continue;
            }
            let length = U32::new(u32::from(net.prefix_len()));
            let image = &mut self.built.image;
            match net {
                IpNet::V4(net) => image.insert(table, &PrefixKey { length, addr: net.addr().octets() }, &flags),
                IpNet::V6(net) => image.insert(table, &PrefixKey { length, addr: net.addr().octets() }, &flags),
            }
        }
    }

    /// An address of a Service none of whose ports has a frontend.
    fn unclaimed_vip(&mut self, vip: IpAddr) {
        match self.count(vip_table(vip), 1) {
            Ok(()) => self.vip(vip),
            Err(full) => self.built.refused.push(full.problem(format!("address {vip}"))),
        }
    }

    fn vip(&mut self, vip: IpAddr) {
        match vip {
            IpAddr::V4(vip) => self.built.image.insert(Table::Vips4, &vip.octets(), &VIP_OWNED),
            IpAddr::V6(vip) => self.built.image.insert(Table::Vips6, &vip.octets(), &VIP_OWNED),
        }
    }

    /// Whether `needed` more entries fit into a hash or trie.
    fn count(&self, table: Table, needed: usize) -> Result<(), Full> {
        let max_entries = match table {
            // Old ranges go only when no program can hold the record that asks for them: a plan needs room for both.
            Table::Sources4 | Table::Sources6 => self.capacity.get(table) / 2,
            _ => self.capacity.get(table),
        };
        let room = (max_entries as usize).saturating_sub(self.built.image.len(table));
        if needed <= room { Ok(()) } else { Err(Full { table, needed, room, max_entries }) }
    }

    /// Programs all ports of one Service, or none.
    fn service(&mut self, ports: &[(&ServiceKey, &DesiredService)], vips: &BTreeSet<IpAddr>) -> Result<(), Full> {
        self.admit(ports, vips)?;
        self.ids.begin();
        let mut entered = Vec::new();
        for (key, service) in ports {
            entered.push(self.number(key, service)?);
        }
        // The rings come last, since first fit alone can tell whether they fit.
        let rings = entered.iter().try_for_each(|numbers| self.rings(numbers));
        if let Err(full) = rings {
            for numbers in &entered {
                self.unmark(numbers);
            }
            self.ids.give_back();
            return Err(full);
        }
        for numbers in &entered {
            match numbers.key.family {
                IpFamily::V4 => self.write::<[u8; 4]>(numbers),
                IpFamily::V6 => self.write::<[u8; 16]>(numbers),
            }
            for frontend in numbers.service.frontends.iter().filter(|frontend| vips.contains(&frontend.addr)) {
                self.vip(frontend.addr);
            }
        }
        Ok(())
    }

    /// Counts before anything is numbered.
    fn admit(&self, ports: &[(&ServiceKey, &DesiredService)], vips: &BTreeSet<IpAddr>) -> Result<(), Full> {
        let slots = |table, needed: usize, room: usize, max_entries| {
            if needed <= room { Ok(()) } else { Err(Full { table, needed, room, max_entries }) }
        };
        let max_services = self.capacity.services();
        let fresh = ports.iter().filter(|(key, _)| self.ids.services.get(key).is_none()).count();
        slots(Table::Services, fresh, self.ids.services.room(max_services), max_services)?;
        for (family, tables) in [
            (IpFamily::V4, (Table::Backends4, Table::Records4, Table::Frontends4, Table::Vips4, Table::Sources4)),
            (IpFamily::V6, (Table::Backends6, Table::Records6, Table::Frontends6, Table::Vips6, Table::Sources6)),
        ] {
            let (mut backends, mut records, mut frontends, mut sources) = (0, 0, 0, 0);
            let mut addrs = BTreeSet::new();
            let ids = self.ids.family(family);
            for (key, service) in ports.iter().filter(|(key, _)| key.family == family) {
                let id = self.ids.services.get(key);
                let is_new = |at: &&BackendAddr| {
                    id.is_none_or(|service| ids.backends.get(&BackendKey { service, at: **at }).is_none())
                };
                backends += service.backends.iter().filter(is_new).count();
                frontends += service.frontends.len();
                sources += service.sources.len();
                records += service
                    .frontends
                    .iter()
                    .filter(|frontend| id.is_none_or(|id| ids.records.get(&record_key(id, key, frontend)).is_none()))
                    .count();
                addrs.extend(service.frontends.iter().map(|frontend| frontend.addr));
                for ring in [&service.cluster, &service.local] {
                    slots(Table::Rings, ring.len(), MAX_RING, self.capacity.get(Table::Rings))?;
                }
            }
            let (max_backends, max_records) = (self.capacity.get(tables.0), self.capacity.records(tables.1));
            slots(tables.0, backends, ids.backends.room(max_backends), max_backends)?;
            slots(tables.1, records, ids.records.room(max_records), max_records)?;
            self.count(tables.2, frontends)?;
            self.count(tables.4, sources)?;
            self.count(tables.3, addrs.iter().filter(|addr| vips.contains(addr) && !self.has_vip(**addr)).count())?;
        }
        Ok(())
    }

    fn has_vip(&self, addr: IpAddr) -> bool {
        let image = &self.built.image;
        match addr {
            IpAddr::V4(addr) => image.get(Table::Vips4, &addr.octets()).is_some(),
            IpAddr::V6(addr) => image.get(Table::Vips6, &addr.octets()).is_some(),
        }
    }

    /// Numbers a port, its backends and its records. [`Self::admit`] has counted, so there is room.
    fn number<'a>(&mut self, key: &'a ServiceKey, service: &'a DesiredService) -> Result<Numbers<'a>, Full> {
        let full = |table, max_entries| Full { table, needed: 1, room: 0, max_entries };
        let max_services = self.capacity.services();
        let id = self.ids.services.assign(key, max_services).ok_or_else(|| full(Table::Services, max_services))?;
        let (backend_table, record_table) = match key.family {
            IpFamily::V4 => (Table::Backends4, Table::Records4),
            IpFamily::V6 => (Table::Backends6, Table::Records6),
        };
        let (max_backends, max_records) = (self.capacity.get(backend_table), self.capacity.records(record_table));
        let ids = self.ids.family_mut(key.family);
        let mut backends = BTreeMap::new();
        for at in &service.backends {
            let backend = ids.backends.assign(&BackendKey { service: id, at: *at }, max_backends);
            backends.insert(*at, backend.ok_or_else(|| full(backend_table, max_backends))?);
        }
        let mut records = Vec::new();
        for frontend in &service.frontends {
            let record = ids.records.assign(&record_key(id, key, frontend), max_records);
            records.push(record.ok_or_else(|| full(record_table, max_records))?);
        }
        Ok(Numbers { key, service, id, backends, records })
    }

    fn unmark(&mut self, numbers: &Numbers<'_>) {
        self.ids.services.unmark(numbers.id);
        let ids = self.ids.family_mut(numbers.key.family);
        for id in numbers.backends.values() {
            ids.backends.unmark(*id);
        }
        for id in &numbers.records {
            ids.records.unmark(*id);
        }
    }

    fn rings(&mut self, numbers: &Numbers<'_>) -> Result<(), Full> {
        let service = numbers.service;
        let max_entries = self.capacity.get(Table::Rings);
        for (index, scope, set, when_empty) in [
            (0, Scope::Cluster, &service.cluster, service.cluster_empty),
            (1, Scope::Local, &service.local, service.local_empty),
        ] {
            if !service.uses(scope) {
                self.ids.rings.retire(numbers.id, index);
                continue;
            }
            let slots: Vec<u32> = ring_order(numbers.key, set)
                .into_iter()
                .filter_map(|backend| numbers.backends.get(&backend).copied())
                .collect();
            // What an empty ring means does not matter while it is not empty: the word must not change for it.
            let when_empty = if slots.is_empty() { when_empty } else { WhenEmpty::Reject };
            if self.ids.rings.assign(numbers.id, index, &slots, when_empty, max_entries).is_none() {
                let room = (max_entries as usize).saturating_sub(self.ids.rings.used());
                return Err(Full { table: Table::Rings, needed: slots.len(), room, max_entries });
            }
        }
        Ok(())
    }

    fn write<A: Octets>(&mut self, numbers: &Numbers<'_>) {
        let Numbers { key, service, id, backends, records } = numbers;
        for (at, backend) in backends {
            let next_hop = self.next_hop::<A>(at.addr);
            let generation = self.ids.family(A::FAMILY).backends.generation(*backend);
            let Some(address) = A::l4(at.addr, at.port.get()) else { continue };
            let in_set = |scope, set: &BTreeSet<BackendAddr>| service.uses(scope) && set.contains(at);
            let mut sets = Sets::NONE;
            for (scope, set) in [(Scope::Cluster, &service.cluster), (Scope::Local, &service.local)] {
                if in_set(scope, set) {
                    sets = sets.with(Sets::of(scope));
                }
            }
            let record = Backend {
                address,
                sets,
                reserved: 0,
                service: ServiceId::new(*id),
                generation: U32::new(generation),
                next_hop,
                next_hop_generation: U32::ZERO,
            };
            self.built.image.insert(A::BACKENDS, &U32::new(*backend), &record);
        }
        if let Some(seconds) = service.affinity {
            self.built.image.insert(Table::Affinities, &U32::new(*id), &u64::from(seconds));
        }
        for net in &service.sources {
            let Some(addr) = A::from_ip(net.network()) else { continue };
            let range = SourceRange { service: ServiceId::new(*id), addr };
            let length = U32::new(SourceRange::<A>::SERVICE_BITS + u32::from(net.prefix_len()));
            self.built.image.insert(A::SOURCES, &SourceKey { length, range }, &SOURCE_ALLOWED);
        }
        for (frontend, record) in service.frontends.iter().zip(records) {
            let Some(address) = A::l4(frontend.addr, frontend.port.get()) else { continue };
            let protocol = wire_protocol(key.protocol);
            let DesiredFrontend { pod, host, outside, flags, .. } = *frontend;
            let service = ServiceId::new(*id);
            let content = Frontend { service, pod, host, outside, flags, address, protocol, reserved: 0 };
            self.built.image.insert(A::RECORDS, &U32::new(*record), &content);
            let tag = self.ids.family(A::FAMILY).records.generation(*record);
            let word = FrontendWord::new(FrontendId(*record), tag);
            self.built.image.insert(A::FRONTENDS, &FrontendKey::of_host(protocol, address), &word);
        }
        for (index, scope) in [Scope::Cluster, Scope::Local].into_iter().enumerate() {
            let Some(lease) = self.ids.rings.lease(*id, index).filter(|_| service.uses(scope)) else { continue };
            for (slot, backend) in (lease.word.offset()..).zip(&lease.slots) {
                self.built.image.insert(Table::Rings, &U32::new(slot), &U32::new(*backend));
            }
            let word = U32::new(id * 2 + u32::from(scope == Scope::Local));
            self.built.image.insert(Table::Services, &word, &lease.word);
        }
    }

    /// A backend without a next hop is served without masquerading, so a full table is not a reason to refuse.
    fn next_hop<A: Octets>(&mut self, addr: IpAddr) -> NextHopId {
        let Some(info) = self.next_hops.next_hop(addr).filter(|info| info.ifindex != 0) else {
            return NextHopId::new(0);
        };
        let max_entries = self.capacity.get(A::NEXT_HOPS);
        let hops = &mut self.ids.family_mut(A::FAMILY).next_hops;
        let prefsrc = info.prefsrc.and_then(A::from_ip);
        let owner = NextHopKey { ifindex: info.ifindex, prefsrc: prefsrc.map(A::to_ip), local: info.local };
        let Some(id) = hops.assign(&owner, max_entries) else {
            let map = A::NEXT_HOPS.map_name();
            let problem = Problem {
                object: format!("route to {addr}"),
                cause: format!(
                    "map {map} (max_entries {max_entries}) is full: the backend is served without masquerading"
                ),
                fix: enlarging(A::NEXT_HOPS),
            };
            // An address is a backend of several ports.
            if !self.built.refused.contains(&problem) {
                self.built.refused.push(problem);
            }
            return NextHopId::new(0);
        };
        let record = NextHop {
            ifindex: U32::new(info.ifindex),
            generation: U32::new(hops.generation(id)),
            flags: U32::new(if info.local { NextHop::<A>::LOCAL } else { 0 }),
            prefsrc: prefsrc.unwrap_or(A::UNSPECIFIED),
        };
        self.built.image.insert(A::NEXT_HOPS, &U32::new(id), &record);
        NextHopId::new(id)
    }

    fn finish(mut self) -> Built {
        self.ids.sweep();
        self.vacate::<[u8; 4]>();
        self.vacate::<[u8; 16]>();
        self.built
    }

    /// Slots without an owner keep their generation, and nothing else: a flow that remembers one sees that its backend
    /// is gone, and no number ever repeats in a slot.
    fn vacate<A: Octets>(&mut self) {
        let ids = self.ids.family(A::FAMILY);
        for id in ids.backends.vacant().map(|(id, _)| id).collect::<Vec<_>>() {
            self.vacant_backend::<A>(id);
        }
        let ids = self.ids.family(A::FAMILY);
        for (id, generation) in ids.next_hops.vacant() {
            let (zero, generation) = (U32::ZERO, U32::new(generation));
            let empty = NextHop { ifindex: zero, generation, flags: zero, prefsrc: A::UNSPECIFIED };
            self.built.image.insert(A::NEXT_HOPS, &U32::new(id), &empty);
        }
    }

    fn vacant_backend<A: Octets>(&mut self, id: u32) {
        let empty = Backend::<A> {
            address: L4Addr::NONE,
            sets: Sets::NONE,
            reserved: 0,
            service: ServiceId::new(0),
            generation: U32::new(self.ids.family(A::FAMILY).backends.generation(id)),
            next_hop: NextHopId(U32::ZERO),
            next_hop_generation: U32::ZERO,
        };
        self.built.image.insert(A::BACKENDS, &U32::new(id), &empty);
    }
}

/// A service port with its numbers.
struct Numbers<'a> {
    key: &'a ServiceKey,
    service: &'a DesiredService,
    id: u32,
    backends: BTreeMap<BackendAddr, u32>,
    /// In the order of the frontends.
    records: Vec<u32>,
}

fn record_key(service: u32, key: &ServiceKey, frontend: &DesiredFrontend) -> RecordKey {
    let (ClientRule(pod), ClientRule(host), ClientRule(outside)) = (frontend.pod, frontend.host, frontend.outside);
    let FrontendFlags(flags) = frontend.flags;
    let (addr, port, protocol) = (frontend.addr, frontend.port.get(), key.protocol);
    RecordKey { service, rules: [pod, host, outside], flags, addr, port, protocol }
}

const fn vip_table(addr: IpAddr) -> Table {
    match addr {
        IpAddr::V4(_) => Table::Vips4,
        IpAddr::V6(_) => Table::Vips6,
    }
}
