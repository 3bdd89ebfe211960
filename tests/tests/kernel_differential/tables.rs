//! The tables of both sides, compared.

use std::{cmp::Ordering, collections::BTreeMap};

use lb_common::{
    fragment::{Fragment, FragmentKey},
    half_open::HalfOpen,
    testing::{FamilyTables, Memory},
    verdict::Counter,
};
use lb_userspace::{image::Table, store::MapStore as _};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use crate::{
    frames::Random,
    twin::{Plan, Twin},
};

impl Twin {
    /// Every table the packet programs write, whole and with its stamps; the conntrack entries. Of the half-open slots
    /// those that may be used.
    pub(crate) fn compare(&self) -> usize {
        let mut counters = self.datapath.maps.counters().expect("counters");
        counters.retain(|_, count| *count > 0);
        assert_eq!(&counters, &*self.memory.counters.borrow());
        let mut traffic = BTreeMap::new();
        for (service, (packets, bytes)) in self.memory.traffic.borrow().iter() {
            traffic.extend([(service * 2, *packets), (service * 2 + 1, *bytes)]);
        }
        traffic.retain(|_, word| *word > 0);
        assert_eq!(self.words("LB_SVC_TRAFFIC"), traffic);
        let mut services = BTreeMap::new();
        let flows = self.compare_family::<[u8; 4]>(&mut services) + self.compare_family::<[u8; 16]>(&mut services);
        assert_eq!(self.words("LB_SVC_CONNS"), services);
        flows
    }

    /// What no packet may change: the configuration, half-open slots that are not used, what belongs to sockets.
    pub(crate) fn compare_rest(&mut self) {
        for table in Table::ALL {
            let mut kernel = self.datapath.maps.dump(table).expect("a dump");
            kernel.sort();
            let kernel = kernel.iter().map(|(key, value)| (&**key, &**value));
            assert!(kernel.eq(self.image.table(table)), "{table:?} was changed");
        }
        assert_eq!(self.words("LB_SOCKETS"), BTreeMap::new());
        self.compare_family_rest::<[u8; 4]>();
        self.compare_family_rest::<[u8; 16]>();
    }

    fn compare_family_rest<A: Plan>(&self) {
        assert_eq!(self.datapath.maps.connected::<A>().expect("sockets"), []);
        let slots = self.datapath.maps.entries(A::HALF_OPEN).expect("slots");
        for (index, slot) in slots.iter().skip(usize::try_from(self.setup.half_open).expect("few")) {
            assert!(slot.iter().all(|byte| *byte == 0), "{} {index:02x?} is used", A::HALF_OPEN);
        }
    }

    fn words(&self, map: &str) -> BTreeMap<u32, u64> {
        self.datapath.maps.words(map).unwrap_or_else(|error| panic!("{map}: {error}"))
    }

    /// Adds the family's connections to those by service.
    fn compare_family<A: Plan>(&self, services: &mut BTreeMap<u32, u64>) -> usize {
        let (maps, tables) = (&self.datapath.maps, A::seen(&self.memory));
        let flows = tables.conntrack.borrow();
        let mut met = 0;
        maps.each_flow::<A>(|key, entry| {
            assert_eq!(Some(&entry), flows.get(&key), "{key:?}");
            met += 1;
        })
        .expect("flows");
        assert_eq!(met, flows.len(), "{}", A::CONNTRACK);
        let mut backends = BTreeMap::new();
        for ((service, backend), count) in tables.connections.borrow().iter() {
            *services.entry(*service).or_default() += count;
            *backends.entry(*backend).or_default() += count;
        }
        assert_eq!(self.words(A::CONNECTIONS), backends);
        let slots = tables.half_open.borrow();
        let kernel = maps.first(A::HALF_OPEN, self.setup.half_open).expect("slots");
        for (index, slot) in (0..).zip(&kernel) {
            let free = HalfOpen::new_zeroed();
            let wanted = slots.get(&index).unwrap_or(&free);
            let found = HalfOpen::<A>::read_from_bytes(slot).expect("a slot");
            assert_eq!(&found, wanted, "{} {index}", A::HALF_OPEN);
        }
        assert!(slots.keys().all(|index| *index < self.setup.half_open));
        let known = tables.fragments.borrow();
        let mut met = 0;
        maps.each_entry(A::FRAGMENTS, |key, value| {
            let key = FragmentKey::read_from_bytes(key).expect("a fragment's key");
            let found = Fragment::read_from_bytes(value).expect("a fragment");
            assert_eq!(Some(&found), known.get(&key), "{key:?}");
            met += 1;
        })
        .expect("fragments");
        assert_eq!(met, known.len(), "{}", A::FRAGMENTS);
        flows.len()
    }

    /// Whether the kernel has counted what memory has, and `counter` once more: two times may explain the same bytes and
    /// tables, a fragment's age by another reason.
    pub(crate) fn counts_agree(&self, counter: Counter) -> bool {
        let mut kernel = self.datapath.maps.counters().expect("counters");
        kernel.retain(|_, count| *count > 0);
        let mut ours = self.memory.counters.borrow().clone();
        *ours.entry(counter).or_default() += 1;
        kernel == ours
    }

    /// Whether the kernel's tables hold what memory does, of all entries that a packet has written: those that have changed
    /// since `before`, now or in `late`. That is memory after the same packet at a time of which no entry had a stamp.
    pub(crate) fn written_agree(&self, before: &Memory, late: &Memory) -> bool {
        self.family_agrees(&before.v4, &late.v4) && self.family_agrees(&before.v6, &late.v6)
    }

    fn family_agrees<A: Plan>(&self, before: &FamilyTables<A>, late: &FamilyTables<A>) -> bool {
        let (maps, now) = (&self.datapath.maps, A::seen(&self.memory));
        let flows = written(&before.conntrack.borrow(), &late.conntrack.borrow(), &now.conntrack.borrow());
        let slots = written(&before.half_open.borrow(), &late.half_open.borrow(), &now.half_open.borrow());
        let fragments = written(&before.fragments.borrow(), &late.fragments.borrow(), &now.fragments.borrow());
        let holds = |map, key: &[u8], wanted: Option<&[u8]>| maps.entry(map, key).expect(map).as_deref() == wanted;
        flows.iter().all(|(key, wanted)| maps.flow::<A>(key).expect("a flow") == *wanted)
            && slots.iter().all(|(index, wanted)| {
                let free = HalfOpen::new_zeroed();
                holds(A::HALF_OPEN, index.as_bytes(), Some(wanted.as_ref().unwrap_or(&free).as_bytes()))
            })
            && fragments
                .iter()
                .all(|(key, wanted)| holds(A::FRAGMENTS, key.as_bytes(), wanted.as_ref().map(Fragment::as_bytes)))
    }

    /// Takes entries of a family whose conntrack is nearly full from both sides, as a collector would, but without regard
    /// to which belong together: what is left of a flow must be dealt with as well. Of the fragments, which the kernel
    /// forgets as it likes when there are thousands, as many are left.
    pub(crate) fn collect<A: Plan>(&mut self, random: &mut Random) {
        let tables = A::of(&mut self.memory);
        let fragments = tables.fragments.get_mut();
        if fragments.len() * 4 >= tables.conntrack_capacity * 3 {
            for key in fragments.keys().copied().filter(|_| random.chance(50)).collect::<Vec<_>>() {
                fragments.remove(&key);
                assert!(self.datapath.maps.remove_entry(A::FRAGMENTS, key.as_bytes()).expect("a removal"), "{key:?}");
            }
        }
        let flows = tables.conntrack.get_mut();
        if flows.len() * 4 < tables.conntrack_capacity * 3 {
            return;
        }
        let keys: Vec<_> = flows.keys().copied().filter(|_| random.chance(50)).collect();
        for key in keys {
            flows.remove(&key);
            assert!(self.datapath.maps.remove_flow::<A>(&key).expect("a removal"), "{key:?}");
        }
    }
}

/// The entries that have changed since `before`, now or in `late`, as they are now.
fn written<K: Ord + Copy, V: PartialEq + Copy>(
    before: &BTreeMap<K, V>,
    late: &BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
) -> Vec<(K, Option<V>)> {
    let keys = differing(before, late).into_iter().chain(differing(before, now));
    keys.map(|key| (key, now.get(&key).copied())).collect()
}

/// The keys whose entries differ: one walk over both.
fn differing<K: Ord + Copy, V: PartialEq>(one: &BTreeMap<K, V>, other: &BTreeMap<K, V>) -> Vec<K> {
    let (mut left, mut right) = (one.iter().peekable(), other.iter().peekable());
    let mut keys = Vec::new();
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return keys,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
        };
        let found = if order == Ordering::Greater { None } else { left.next() };
        let wanted = if order == Ordering::Less { None } else { right.next() };
        if found != wanted {
            keys.extend(found.or(wanted).map(|(key, _)| *key));
        }
    }
}
