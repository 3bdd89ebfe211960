//! The tables read back as service ports with their frontends and backends: what the kernel serves, whoever asked for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
};

use ipnet::IpNet;
use lb_common::{
    backend::{Backend, NextHop},
    frontend::{Frontend, FrontendKey, FrontendWord, PrefixFlags, PrefixKey, Scope},
    ring::RingWord,
};
use zerocopy::FromBytes as _;

use super::{
    Image, Table,
    octets::{Octets, array, decode, model_protocol},
};
use crate::{
    desired::{BackendAddr, FrontendKind, Rules},
    model::{IpFamily, Protocol},
};

/// A service port of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programmed {
    /// Family.
    pub family: IpFamily,
    /// Frontends, in the order of the table.
    pub frontends: Vec<ProgrammedFrontend>,
    /// Every backend that flows may use.
    pub backends: BTreeMap<BackendAddr, ProgrammedBackend>,
}

/// A frontend of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgrammedFrontend {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: NonZeroU16,
    /// Protocol.
    pub protocol: Protocol,
    /// Which set outsiders are sent to.
    pub outside: Scope,
    /// What it is, where the tables tell.
    pub kind: Option<FrontendKind>,
}

/// A backend of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgrammedBackend {
    /// Its number.
    pub id: u32,
    /// New connections are sent to it.
    pub is_chosen: bool,
    /// The tables show that it is on this node. They do not show that one is not.
    pub is_local: bool,
}

impl Programmed {
    /// The port of the Service: that of its cluster IP.
    pub fn service_port(&self) -> Option<NonZeroU16> {
        let of = |kind| self.frontends.iter().find(|frontend| frontend.kind == Some(kind)).map(|it| it.port);
        of(FrontendKind::ClusterIp).or_else(|| of(FrontendKind::LoadBalancer))
    }
}

/// Every service port in the tables, by its number.
pub fn programmed(image: &Image) -> BTreeMap<u32, Programmed> {
    let mut found = BTreeMap::new();
    add::<[u8; 4]>(image, &mut found);
    add::<[u8; 16]>(image, &mut found);
    found
}

/// The prefixes with all of `flags`.
pub fn prefixes(image: &Image, flags: PrefixFlags) -> Vec<IpNet> {
    let mut found = Vec::new();
    add_prefixes::<[u8; 4]>(image, flags, &mut found);
    add_prefixes::<[u8; 16]>(image, flags, &mut found);
    found
}

fn add_prefixes<A: Octets>(image: &Image, wanted: PrefixFlags, found: &mut Vec<IpNet>) {
    let prefixes = image.table(A::PREFIXES).filter_map(decode::<PrefixKey<A>, PrefixFlags>);
    found.extend(prefixes.filter(|(_, flags)| flags.contains(wanted)).filter_map(|(key, _)| {
        let length = u8::try_from(key.length.get()).ok()?;
        IpNet::new(key.addr.to_ip(), length).ok()
    }));
}

/// The word of a set and the backends in its ring, `None` where a slot is empty. `index` is `2 * service + scope`.
pub(super) fn ring(image: &Image, index: u32) -> Option<(RingWord, Vec<Option<u32>>)> {
    let word = RingWord::read_from_bytes(image.get(Table::Services, &index.to_ne_bytes())?).ok()?;
    let slots = word.offset()..word.offset().saturating_add(word.length());
    let backend = |slot: u32| {
        let bytes = image.get(Table::Rings, &slot.to_ne_bytes())?;
        bytes.try_into().ok().map(u32::from_ne_bytes)
    };
    Some((word, slots.map(backend).collect()))
}

fn add<A: Octets>(image: &Image, found: &mut BTreeMap<u32, Programmed>) {
    let records: BTreeMap<u32, Frontend<A>> = array(image, A::RECORDS).collect();
    let owned: BTreeSet<IpAddr> =
        image.table(A::VIPS).filter_map(decode::<A, u64>).map(|(vip, _)| vip.to_ip()).collect();
    let service_cidrs = prefixes(image, PrefixFlags::SERVICE);
    for (key, word) in image.table(A::FRONTENDS).filter_map(decode::<FrontendKey<A>, FrontendWord>) {
        let Some(record) = records.get(&word.id().0) else { continue };
        let at = A::socket(key.address);
        let (Ok(port), Some(protocol)) = (NonZeroU16::try_from(at.port()), model_protocol(key.protocol)) else {
            continue;
        };
        let rules = Rules { pod: record.pod, host: record.host, outside: record.outside };
        // With masqueradeAll a cluster IP's rules are those of others.
        let kind = if rules.are_internal() || service_cidrs.iter().any(|net| net.contains(&at.ip())) {
            Some(FrontendKind::ClusterIp)
        } else {
            // Whether an address of the node itself is meant as a nodePort or as a load balancer's shows in the port.
            owned.contains(&at.ip()).then_some(FrontendKind::LoadBalancer)
        };
        let frontend = ProgrammedFrontend { addr: at.ip(), port, protocol, outside: record.outside.scope(), kind };
        entry::<A>(found, record.service.get()).frontends.push(frontend);
    }
    let hops: BTreeMap<u32, NextHop<A>> = array(image, A::NEXT_HOPS).collect();
    let mut rings: BTreeMap<(u32, u32), BTreeSet<u32>> = BTreeMap::new();
    let local_pods = prefixes(image, PrefixFlags::LOCAL_PODS);
    for (id, backend) in array::<Backend<A>>(image, A::BACKENDS) {
        let at = A::socket(backend.address);
        let (service @ 1.., Ok(port)) = (backend.service.get(), at.port().try_into()) else { continue };
        let mut in_ring = |scope: u32| {
            let members = || ring(image, service * 2 + scope).into_iter().flat_map(|(_, ids)| ids).flatten().collect();
            rings.entry((service, scope)).or_insert_with(members).contains(&id)
        };
        let (in_cluster, in_local) = (in_ring(0), in_ring(1));
        let hop = hops.get(&backend.next_hop.get());
        let is_local = in_local
            || hop.is_some_and(|hop| hop.flags.get() & NextHop::<A>::LOCAL != 0)
            || local_pods.iter().any(|cidr| cidr.contains(&at.ip()));
        let backend = ProgrammedBackend { id, is_chosen: in_cluster || in_local, is_local };
        entry::<A>(found, service).backends.insert(BackendAddr { addr: at.ip(), port }, backend);
    }
    for service in found.values_mut().filter(|service| service.family == A::FAMILY) {
        let port = service.service_port();
        let unsure = service.frontends.iter_mut().filter(|frontend| frontend.kind.is_none());
        for frontend in unsure.filter(|frontend| port.is_some_and(|port| port != frontend.port)) {
            frontend.kind = Some(FrontendKind::NodePort);
        }
    }
}

fn entry<A: Octets>(found: &mut BTreeMap<u32, Programmed>, service: u32) -> &mut Programmed {
    let empty = || Programmed { family: A::FAMILY, frontends: Vec::new(), backends: BTreeMap::new() };
    found.entry(service).or_insert_with(empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::{desired, fixture},
        ids::Ids,
        image::{Capacity, build},
    };

    #[test]
    fn the_tables_tell_what_was_asked_for() {
        let (model, node) = fixture::web();
        let desired = desired(&model, &node);
        let mut ids = Ids::default();
        let image = build(&desired, &mut ids, &BTreeMap::new(), &[], &Capacity::uniform(64)).image;
        let found = programmed(&image);
        assert_eq!(found.len(), desired.services.len());
        for (key, wanted) in &desired.services {
            let found = &found[&ids.services.get(key).expect("a number")];
            let frontends: BTreeSet<_> = found.frontends.iter().map(|it| (it.addr, it.port, it.kind)).collect();
            assert_eq!(frontends, wanted.frontends.iter().map(|it| (it.addr, it.port, Some(it.kind))).collect());
            let backends: BTreeSet<_> = found.backends.keys().copied().collect();
            assert_eq!(backends, wanted.backends);
            let local: BTreeSet<_> = found.backends.iter().filter(|(_, it)| it.is_local).map(|(at, _)| *at).collect();
            assert_eq!(local, wanted.local);
        }
        assert_eq!(prefixes(&image, PrefixFlags::SERVICE), node.service_cidrs);
    }
}
