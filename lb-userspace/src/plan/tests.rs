//! Properties over random sequences of desired states, on a store as strict as the kernel's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
};

use lb_common::{
    frontend::{ClientRule, Frontend, FrontendFlags, FrontendKey, FrontendWord, Scope},
    ring::{RingWord, WhenEmpty},
    settings::Setting,
};
use proptest::prelude::*;
use zerocopy::{FromBytes, native_endian::U32};

use super::*;
use crate::{
    desired::{BackendAddr, Desired, DesiredFrontend, DesiredService, FrontendKind, ServiceKey},
    ids::Ids,
    image::{Capacity, NextHopInfo, build, octets::decode},
    model::{IpFamily, ObjectName, Protocol},
    store::testing::FakeStore,
};

/// What one step of a run asks for.
#[derive(Clone, Debug)]
struct State {
    desired: Desired,
    next_hops: BTreeMap<IpAddr, NextHopInfo>,
    /// The write at which the first attempt fails.
    fails_at: Option<usize>,
    /// What happens before the build.
    restart: Restart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    No,
    /// The agent starts again with its saved ids.
    Saved,
    /// And without them.
    Lost,
}

fn addr(family: IpFamily, net: u8, host: u8) -> IpAddr {
    match family {
        IpFamily::V4 => [10, net, 0, host].into(),
        IpFamily::V6 => [0xfd00, u16::from(net), 0, 0, 0, 0, 0, u16::from(host)].into(),
    }
}

const PORT: NonZeroU16 = NonZeroU16::new(80).expect("not zero");

prop_compose! {
    fn service(index: u8, family: IpFamily)(
        states in prop::collection::vec(0_u8..4, 5),
        rules in prop::collection::vec((0_u8..4, 0_u8..4, 0_u8..4), 1..3),
    ) -> (ServiceKey, DesiredService) {
        let at = |host: usize| BackendAddr { addr: addr(family, 1, u8::try_from(host).expect("small")), port: PORT };
        let set = |least: u8| (0..states.len()).filter(|host| states[*host] >= least).map(at).collect::<BTreeSet<_>>();
        let frontends: Vec<_> = rules.iter().zip(1..).map(|((pod, host, outside), number)| DesiredFrontend {
            addr: addr(family, 96, index * 4 + number),
            port: PORT,
            kind: FrontendKind::ClusterIp,
            pod: ClientRule(*pod),
            host: ClientRule(*host),
            outside: ClientRule(*outside),
            flags: FrontendFlags::NONE,
        }).collect();
        let mut service = DesiredService {
            backends: set(1),
            cluster: set(2),
            cluster_empty: WhenEmpty::Reject,
            local: set(3),
            local_empty: if set(1).is_empty() { WhenEmpty::Reject } else { WhenEmpty::Drop },
            frontends,
            sources: BTreeSet::new(),
            affinity: None,
        };
        if !service.uses(Scope::Local) {
            service.local.clear();
        }
        let name = ObjectName { namespace: "default".into(), name: format!("s{index}") };
        (ServiceKey { service: name, port_name: String::new(), protocol: Protocol::Tcp, family }, service)
    }
}

fn one_service() -> impl Strategy<Value = (ServiceKey, DesiredService)> {
    (0_u8..4, prop_oneof![Just(IpFamily::V4), Just(IpFamily::V6)])
        .prop_flat_map(|(index, family)| service(index, family))
}

prop_compose! {
    fn state()(
        services in prop::collection::btree_map(0_u8..8, one_service(), 0..6),
        devices in prop::collection::vec(0_u32..4, 10),
        fails_at in prop::option::of(0_usize..40),
        restart in prop_oneof![4 => Just(Restart::No), 1 => Just(Restart::Saved), 1 => Just(Restart::Lost)],
        detector in any::<bool>(),
    ) -> State {
        let services: BTreeMap<_, _> = services.into_values().collect();
        let vips = services.values().flat_map(|service| &service.frontends).map(|it| it.addr).collect();
        let cidr = |text: &str| text.parse().expect("a prefix");
        let desired = Desired {
            services,
            vips,
            service_cidrs: vec![cidr("10.96.0.0/16"), cidr("fd00:96::/112")],
            local_pod_cidrs: if detector { vec![cidr("10.1.0.0/24")] } else { vec![] },
            detected: if detector { vec![cidr("10.1.0.0/24")] } else { vec![] },
            ..Desired::default()
        };
        let next_hops = devices.iter().enumerate().map(|(index, device)| {
            let family = if index % 2 == 0 { IpFamily::V4 } else { IpFamily::V6 };
            let info = NextHopInfo { ifindex: *device, prefsrc: Some(addr(family, 0, 1)), local: *device == 3 };
            (addr(family, 1, u8::try_from(index / 2).expect("small")), info)
        }).collect();
        State { desired, next_hops, fails_at, restart }
    }
}

/// A node over time.
struct Node {
    ids: Ids,
    saved: Vec<u8>,
    store: FakeStore,
    mirror: Image,
    /// Every owner a backend slot ever had in the maps, by generation.
    history: BTreeMap<(Table, u32, u32), (u32, BackendAddr)>,
}

impl Node {
    fn new(capacity: Capacity) -> Self {
        let store = FakeStore::new(capacity);
        Self { ids: Ids::default(), saved: vec![], store, mirror: Image::default(), history: BTreeMap::new() }
    }

    fn restart(&mut self, kind: Restart, desired: &Desired) {
        let mirror = read_mirror(&mut self.store).expect("dumps");
        assert_eq!(mirror, self.mirror, "the mirror is what the kernel holds");
        self.ids = match kind {
            Restart::No => return,
            Restart::Saved if !self.saved.is_empty() => Ids::from_json(&self.saved).expect("our own file"),
            Restart::Saved | Restart::Lost => Ids::default(),
        };
        self.ids.adopt(&mirror, desired);
    }

    fn build(&mut self, state: &State) -> Image {
        let settings = [(Setting::HashSeed, 7)];
        let built = build(&state.desired, &mut self.ids, &state.next_hops, &settings, &Capacity::of(&self.store));
        self.saved = self.ids.to_json().expect("serialises");
        built.image
    }

    /// Applies a plan and checks the tables after every single write.
    fn apply(&mut self, plan: &Plan, fails_at: Option<usize>) -> Result<Applied, ApplyError> {
        let start = self.mirror.clone();
        let mut checked = self.mirror.clone();
        let mut waited = false;
        for step in plan.steps() {
            match step {
                Step::Grace => waited = true,
                Step::Write(op) => {
                    match &op.value {
                        Some(value) => checked.insert_bytes(op.table, op.key.clone(), value.clone()),
                        None => checked.remove_bytes(op.table, &op.key),
                    }
                    assert_consistent::<[u8; 4]>(&checked, &checked);
                    assert_consistent::<[u8; 16]>(&checked, &checked);
                    if !waited {
                        // Somebody who read a word before the plan began finds all it leads to.
                        assert_consistent::<[u8; 4]>(&start, &checked);
                        assert_consistent::<[u8; 16]>(&start, &checked);
                    }
                }
            }
        }
        self.store.fail_after(fails_at);
        let result = apply(plan, &mut self.store, &mut self.mirror);
        self.store.fail_after(None);
        self.record_history();
        result
    }

    fn record_history(&mut self) {
        let mut live = Vec::new();
        for (table, key, value) in [Table::Backends4, Table::Backends6]
            .into_iter()
            .flat_map(|table| self.mirror.table(table).map(move |(key, value)| (table, key, value)))
        {
            let id = u32::from_ne_bytes(key.try_into().expect("an index"));
            let (service, generation, at) =
                if table == Table::Backends4 { owner::<[u8; 4]>(value) } else { owner::<[u8; 16]>(value) };
            assert_ne!(generation, 0);
            let newest = self.history.range((table, id, 0)..=(table, id, u32::MAX)).next_back();
            assert!(newest.is_none_or(|((_, _, newest), _)| *newest <= generation), "a generation went back");
            if let Some(at) = at {
                live.push(((table, id, generation), (service, at)));
            }
        }
        for (slot, owner) in live {
            assert_eq!(*self.history.entry(slot).or_insert(owner), owner, "{slot:?} has a second owner");
        }
    }

    fn settle(&mut self, state: &State) {
        self.restart(state.restart, &state.desired);
        for fails_at in [state.fails_at, None] {
            let image = self.build(state);
            if self.apply(&diff(&image, &self.mirror), fails_at).is_ok() {
                assert_eq!(self.mirror, image);
                self.ids.commit();
                return;
            }
        }
        panic!("the second attempt has no reason to fail");
    }
}

fn owner<A: Octets>(value: &[u8]) -> (u32, u32, Option<BackendAddr>) {
    let backend = Backend::<A>::read_from_bytes(value).expect("a backend");
    let at = A::socket(backend.address);
    let at = NonZeroU16::new(at.port()).map(|port| BackendAddr { addr: at.ip(), port });
    let service = backend.service.get();
    (service, backend.generation.get(), at.filter(|_| service != 0))
}

fn entry<V: FromBytes>(image: &Image, table: Table, index: u32) -> Option<V> {
    image.get(table, &index.to_ne_bytes()).map(|value| V::read_from_bytes(value).expect("of its size"))
}

/// Every frontend of `words` leads to its own record in `image`, every set its rules name has a word in `words`, and
/// every slot of that ring is a live backend of that service in `image`.
fn assert_consistent<A: Octets>(words: &Image, image: &Image) {
    for (key, word) in words.table(A::FRONTENDS).filter_map(decode::<FrontendKey<A>, FrontendWord>) {
        let record: Frontend<A> = entry(image, A::RECORDS, word.id().0).expect("a record");
        assert_eq!((record.address, record.protocol), (key.address, key.protocol));
        for rule in [record.pod, record.host, record.outside] {
            let service = record.service.get();
            let index = service * 2 + u32::from(rule.scope() == Scope::Local);
            let ring: RingWord = entry(words, Table::Services, index).expect("a word");
            for slot in ring.offset()..ring.offset() + ring.length() {
                let id: U32 = entry(image, Table::Rings, slot).expect("a slot");
                let backend: Backend<A> = entry(image, A::BACKENDS, id.get()).expect("a backend");
                assert_eq!(backend.service.get(), service);
                let hop = backend.next_hop.get();
                assert!(hop == 0 || entry::<NextHop<A>>(image, A::NEXT_HOPS, hop).is_some_and(|it| it.ifindex != 0));
            }
        }
    }
}

fn numbers(ids: &Ids) -> BTreeMap<(ServiceKey, Option<BackendAddr>), u32> {
    let names: BTreeMap<_, _> = ids.services.owners().map(|(key, id)| (id, key)).collect();
    let mut numbers: BTreeMap<_, _> = ids.services.owners().map(|(key, id)| ((key.clone(), None), id)).collect();
    for family in [&ids.v4, &ids.v6] {
        for (key, id) in family.backends.owners() {
            numbers.insert((names[&key.service].clone(), Some(key.at)), id);
        }
        let distinct: BTreeSet<_> = family.backends.owners().map(|(_, id)| id).collect();
        assert_eq!(distinct.len(), family.backends.owners().count(), "no id has two owners");
        let distinct: BTreeSet<_> = family.records.owners().map(|(_, id)| id).collect();
        assert_eq!(distinct.len(), family.records.owners().count());
    }
    numbers
}

fn run(states: &[State], capacity: &Capacity) {
    let mut node = Node::new(capacity.clone());
    for state in states {
        let (before, published) = (numbers(&node.ids), node.mirror.clone());
        node.settle(state);
        let after = numbers(&node.ids);
        let moves_nothing = state.restart != Restart::Lost;
        for (key, id) in before.iter().filter(|(key, id)| moves_nothing && was_seen(key, **id, &published)) {
            assert!(after.get(key).is_none_or(|now| now == id), "{key:?} moved");
        }
        let again = node.build(state);
        assert!(diff(&again, &node.mirror).is_empty() || !fits(state, capacity), "nothing changed, nothing is written");
    }
}

/// Whether anybody can know the number: that of a backend which was never written is forgotten with its agent.
fn was_seen((_, at): &(ServiceKey, Option<BackendAddr>), id: u32, published: &Image) -> bool {
    let Some(at) = at else { return true };
    let record = |table: Table| published.get(table, &id.to_ne_bytes());
    let written = match at.addr {
        IpAddr::V4(_) => record(Table::Backends4).and_then(|record| owner::<[u8; 4]>(record).2),
        IpAddr::V6(_) => record(Table::Backends6).and_then(|record| owner::<[u8; 16]>(record).2),
    };
    written == Some(*at)
}

/// Whether room may be missing: a second build can then admit what the first had to refuse.
fn fits(_state: &State, capacity: &Capacity) -> bool {
    capacity.get(Table::Rings) >= 1024
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_of_every_plan_is_consistent_and_ids_are_stable(states in prop::collection::vec(state(), 1..8)) {
        run(&states, &Capacity::uniform(4096));
    }

    /// Arrays so small that slots are reused at once and Services are refused.
    #[test]
    fn slots_are_reused_with_growing_generations(states in prop::collection::vec(state(), 1..12), rings in 8_u32..64) {
        let capacity = Capacity::uniform(24).with(Table::Rings, rings).with(Table::Records4, 12);
        run(&states, &capacity);
    }

    #[test]
    fn a_restart_with_unchanged_objects_writes_nothing(state in state(), lost in any::<bool>()) {
        let mut node = Node::new(Capacity::uniform(4096));
        node.settle(&state);
        node.restart(if lost { Restart::Lost } else { Restart::Saved }, &state.desired);
        let image = node.build(&state);
        prop_assert_eq!(diff(&image, &node.mirror), Plan::default());
    }
}

#[test]
fn a_failed_write_is_named_and_leaves_the_mirror_true() {
    let mut store = FakeStore::new(Capacity::uniform(4));
    let mut desired = Image::default();
    for index in 1..3_u32 {
        desired.insert(Table::Settings, &index, &7_u64);
    }
    let mut mirror = Image::default();
    store.fail_after(Some(1));
    let error = apply(&diff(&desired, &mirror), &mut store, &mut mirror).expect_err("fails");
    assert!(error.to_string().contains("LB_SETTINGS failed after 1 of 2"), "{error}");
    assert_eq!(mirror, read_mirror(&mut store).expect("dumps"));
    store.fail_after(None);
    assert_eq!(apply(&diff(&desired, &mirror), &mut store, &mut mirror).expect("works").writes, 1);
    assert_eq!(mirror, desired);
}
