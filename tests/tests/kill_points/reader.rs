//! The tables as a program reads them: frontend, record, service word, ring, backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    backend::{Backend, NextHop},
    family::Addr,
    frontend::{Frontend, FrontendKey, FrontendWord, Scope},
    protocol::Protocol,
    ring::RingWord,
    tuple::L4Addr,
};
use lb_userspace::{
    desired::{Desired, ServiceKey},
    image::{Image, Table},
    model,
};
use zerocopy::FromBytes;

/// A family's tables.
pub(crate) trait Side: Addr + Into<IpAddr> {
    const FRONTENDS: Table;
    const RECORDS: Table;
    const BACKENDS: Table;
    const NEXT_HOPS: Table;
}

impl Side for [u8; 4] {
    const FRONTENDS: Table = Table::Frontends4;
    const RECORDS: Table = Table::Records4;
    const BACKENDS: Table = Table::Backends4;
    const NEXT_HOPS: Table = Table::NextHops4;
}

impl Side for [u8; 16] {
    const FRONTENDS: Table = Table::Frontends6;
    const RECORDS: Table = Table::Records6;
    const BACKENDS: Table = Table::Backends6;
    const NEXT_HOPS: Table = Table::NextHops6;
}

/// A frontend as a client names it.
pub(crate) type At = (SocketAddr, u8);
/// The way to a backend: device, preferred source, flags.
type Hop = (u32, IpAddr, u32);
/// For pods, host processes and everyone else: masquerade, and the backends a connection may get.
pub(crate) type Rules = [(bool, BTreeSet<SocketAddr>); 3];

/// Follows every frontend to its backends. Panics where a step leads nowhere or to somebody else's.
pub(crate) fn read(image: &Image) -> BTreeMap<At, Rules> {
    let mut seen = BTreeMap::new();
    follow::<[u8; 4]>(image, &mut seen);
    follow::<[u8; 16]>(image, &mut seen);
    seen
}

fn follow<A: Side>(image: &Image, seen: &mut BTreeMap<At, Rules>) {
    let mut sets: BTreeMap<u32, BTreeSet<SocketAddr>> = BTreeMap::new();
    for (key, word) in image.table(A::FRONTENDS) {
        let key = FrontendKey::<A>::read_from_bytes(key).expect("a frontend's key");
        let word = FrontendWord::read_from_bytes(word).expect("a frontend's word");
        let record: Frontend<A> = at(image, A::RECORDS, word.id().0).expect("the frontend's record");
        assert_eq!((record.address, record.protocol), (key.address, key.protocol), "a record of another frontend");
        let rules = [record.pod, record.host, record.outside].map(|rule| {
            let service = record.service.get();
            let index = service * 2 + u32::from(rule.scope() == Scope::Local);
            let set = sets.entry(index).or_insert_with(|| set::<A>(image, service, index));
            (rule.masquerade(), set.clone())
        });
        seen.insert((socket(key.address), key.protocol.0), rules);
    }
}

/// The set whose word stands at `index`.
fn set<A: Side>(image: &Image, service: u32, index: u32) -> BTreeSet<SocketAddr> {
    let word: RingWord = at(image, Table::Services, index).expect("the service's word");
    let slots = word.offset()..word.offset() + word.length();
    slots.map(|slot| backend::<A>(image, service, at(image, Table::Rings, slot).expect("a slot of the ring"))).collect()
}

fn backend<A: Side>(image: &Image, service: u32, id: u32) -> SocketAddr {
    let backend: Backend<A> = at(image, A::BACKENDS, id).expect("the slot's backend");
    assert_eq!(backend.service.get(), service, "a backend of another Service");
    let hop = backend.next_hop.get();
    if hop != 0 {
        let hop: NextHop<A> = at(image, A::NEXT_HOPS, hop).expect("the backend's next hop");
        assert_ne!(hop.ifindex.get(), 0, "an empty next hop");
    }
    socket(backend.address)
}

fn at<V: FromBytes>(image: &Image, table: Table, index: u32) -> Option<V> {
    Some(V::read_from_bytes(image.get(table, &index.to_ne_bytes())?).expect("a value of its size"))
}

fn socket<A: Side>(l4: L4Addr<A>) -> SocketAddr {
    SocketAddr::new(l4.addr.into(), l4.port.number())
}

/// What a reader should see of a state.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// Whose a frontend is, and where it leads.
    pub(crate) frontends: BTreeMap<At, (ServiceKey, Rules)>,
    /// The two sets of a service port.
    pub(crate) sets: BTreeMap<ServiceKey, [BTreeSet<SocketAddr>; 2]>,
}

pub(crate) fn expected(desired: &Desired) -> Expected {
    let mut all = Expected { frontends: BTreeMap::new(), sets: BTreeMap::new() };
    for (key, service) in &desired.services {
        let protocol = match key.protocol {
            model::Protocol::Tcp => Protocol::TCP,
            model::Protocol::Udp => Protocol::UDP,
            model::Protocol::Sctp => Protocol::SCTP,
        };
        let [cluster, local] = [&service.cluster, &service.local]
            .map(|set| set.iter().map(|at| SocketAddr::new(at.addr, at.port.get())).collect::<BTreeSet<_>>());
        for frontend in &service.frontends {
            let rules = [frontend.pod, frontend.host, frontend.outside].map(|rule| {
                let set = if rule.scope() == Scope::Local { &local } else { &cluster };
                (rule.masquerade(), set.clone())
            });
            let at = (SocketAddr::new(frontend.addr, frontend.port.get()), protocol.0);
            all.frontends.insert(at, (key.clone(), rules));
        }
        all.sets.insert(key.clone(), [cluster, local]);
    }
    all
}

/// The tables without the numbers that name things in them: two images with the same meaning are equal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    frontends: BTreeMap<At, Rules>,
    backends: Vec<(SocketAddr, Option<Hop>)>,
    /// Keys and values of the tables that hold no numbers of ours.
    literal: Vec<(Table, Box<[u8]>, Box<[u8]>)>,
    /// How many entries the others have in use.
    used: Vec<(Table, usize)>,
}

pub(crate) fn meaning(image: &Image) -> Meaning {
    let literal = [Table::Vips4, Table::Vips6, Table::Prefixes4, Table::Prefixes6, Table::Settings];
    let literal = literal
        .into_iter()
        .flat_map(|table| image.table(table).map(move |(key, value)| (table, Box::from(key), Box::from(value))));
    let mut backends = Vec::new();
    let mut used: Vec<_> = [Table::Records4, Table::Records6, Table::Services, Table::Rings]
        .into_iter()
        .map(|table| (table, image.len(table)))
        .collect();
    add::<[u8; 4]>(image, &mut backends, &mut used);
    add::<[u8; 16]>(image, &mut backends, &mut used);
    backends.sort();
    Meaning { frontends: read(image), backends, literal: literal.collect(), used }
}

fn add<A: Side>(image: &Image, backends: &mut Vec<(SocketAddr, Option<Hop>)>, used: &mut Vec<(Table, usize)>) {
    for (_, value) in image.table(A::BACKENDS) {
        let backend = Backend::<A>::read_from_bytes(value).expect("a backend");
        // An empty slot keeps its generation.
        if backend.service.get() != 0 {
            let hop: Option<NextHop<A>> = at(image, A::NEXT_HOPS, backend.next_hop.get());
            let hop = hop.map(|hop| (hop.ifindex.get(), hop.prefsrc.into(), hop.flags.get()));
            backends.push((socket(backend.address), hop));
        }
    }
    let live = image
        .table(A::NEXT_HOPS)
        .filter(|(_, value)| NextHop::<A>::read_from_bytes(value).expect("a next hop").ifindex.get() != 0);
    used.push((A::NEXT_HOPS, live.count()));
}
