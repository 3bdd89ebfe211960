//! The tables, filled alike in the kernel and in memory, and a packet run on both.

use std::collections::BTreeMap;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use lb_common::{
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId, Sets},
    checksum::Sum,
    fragment::Fragment,
    frontend::{
        ClientRule, Frontend, FrontendFlags, FrontendId, FrontendKey, FrontendWord, PrefixFlags, PrefixKey,
        SOURCE_ALLOWED, Scope, SourceKey, SourceRange, VIP_OWNED,
    },
    pipeline::{self, Hook},
    protocol::{Port, Protocol},
    ring::{RingWord, WhenEmpty},
    settings::{Setting, snat_ports},
    tables::World as _,
    testing::{Buffer, FamilyTables, Memory, l4_checksum_is_right},
    tuple::L4Addr,
    verdict::Action,
};
use lb_tests::Bpffs;
use lb_userspace::{
    bpf::{Datapath, FlowFamily, MapSizes},
    image::Table,
    store::MapStore as _,
};
use zerocopy::{FromBytes as _, IntoBytes as _, native_endian::U32};

/// Addresses of a family: outside, pod, other pod, remote pod, node, VIP, empty VIP, Local VIP, unallocated, foreign.
pub(crate) trait Plan: FlowFamily {
    const IPV6: bool;
    const TABLES: [Table; 6];
    const SOURCES: Table;
    const FRAGMENTS: &'static str;
    const CONNECTIONS: &'static str;
    fn addr(last: u8, net: u8) -> Self;
    fn of(memory: &mut Memory) -> &mut FamilyTables<Self>;
    fn seen(memory: &Memory) -> &FamilyTables<Self>;
}

impl Plan for [u8; 4] {
    const IPV6: bool = false;
    const TABLES: [Table; 6] =
        [Table::Frontends4, Table::Records4, Table::Vips4, Table::Prefixes4, Table::Backends4, Table::NextHops4];
    const SOURCES: Table = Table::Sources4;
    const FRAGMENTS: &'static str = "LB4_FRAGMENTS";
    const CONNECTIONS: &'static str = "LB4_BKD_CONNS";

    fn addr(last: u8, net: u8) -> Self {
        [10, net, 0, last]
    }

    fn of(memory: &mut Memory) -> &mut FamilyTables<Self> {
        &mut memory.v4
    }

    fn seen(memory: &Memory) -> &FamilyTables<Self> {
        &memory.v4
    }
}

impl Plan for [u8; 16] {
    const IPV6: bool = true;
    const TABLES: [Table; 6] =
        [Table::Frontends6, Table::Records6, Table::Vips6, Table::Prefixes6, Table::Backends6, Table::NextHops6];
    const SOURCES: Table = Table::Sources6;
    const FRAGMENTS: &'static str = "LB6_FRAGMENTS";
    const CONNECTIONS: &'static str = "LB6_BKD_CONNS";

    fn addr(last: u8, net: u8) -> Self {
        [0xfd, 0, 0, 0x10, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
    }

    fn of(memory: &mut Memory) -> &mut FamilyTables<Self> {
        &mut memory.v6
    }

    fn seen(memory: &Memory) -> &FamilyTables<Self> {
        &memory.v6
    }
}

pub(crate) const POD: u8 = 1;
pub(crate) const REMOTE: u8 = 2;
pub(crate) const OUTSIDE: u8 = 9;
pub(crate) const NODE: u8 = 5;
pub(crate) const SERVICE: u8 = 96;

/// Both sides of the comparison.
pub(crate) struct Twin {
    pub(crate) datapath: Datapath,
    pub(crate) memory: Memory,
    /// Frames the kernel's test run does not take.
    pub(crate) refused: usize,
}

impl Twin {
    pub(crate) fn new(bpffs: &Bpffs) -> Self {
        let sizes = MapSizes { services: 64, frontends: 64, backends: 64, rings: 64, conntrack: 8192 };
        let datapath = Datapath::open(bpffs.path(), &sizes).expect("the datapath");
        let mut twin = Self { datapath, memory: Memory::default(), refused: 0 };
        twin.memory.v4.conntrack_capacity = 8192;
        twin.memory.v6.conntrack_capacity = 8192;
        for (setting, word) in [
            (Setting::HostDevice, 1),
            (Setting::HostMac, 0x0001_0203_0405_0607 & 0xffff_ffff_ffff),
            (Setting::SnatPorts, snat_ports(40_000, 40_063)),
            (Setting::HashSeed, 0x1234_5678_9abc_def0),
            (Setting::TicksPerSecond, 250),
        ] {
            twin.memory.settings.insert(setting, word);
            twin.set(Table::Settings, &(setting as u32).to_ne_bytes(), &word.to_ne_bytes());
        }
        twin.fill::<[u8; 4]>(0);
        twin.fill::<[u8; 16]>(16);
        twin
    }

    fn set(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.datapath.maps.update(table, key, value).unwrap_or_else(|error| panic!("{table:?}: {error}"));
    }

    /// Services `base + 1` (two backends), `base + 2` (none, reject), `base + 3` (none, drop), for TCP and UDP.
    fn fill<A: Plan>(&mut self, base: u32) {
        let [frontends, records, vips, prefixes, backends, next_hops] = A::TABLES;
        let hops = [(1, 1_u32, 0), (2, 1, 0), (3, 1, NextHop::<A>::LOCAL)];
        for (id, ifindex, flags) in hops {
            let prefsrc = A::addr(1, NODE);
            let hop = NextHop { ifindex: U32::new(ifindex), generation: U32::new(1), flags: U32::new(flags), prefsrc };
            A::of(&mut self.memory).next_hops.insert(id, hop);
            self.set(next_hops, &id.to_ne_bytes(), hop.as_bytes());
        }
        let at = |addr: A, port: u16| L4Addr { addr, port: Port::new(port) };
        let targets = [(1, at(A::addr(1, POD), 8080), 1), (2, at(A::addr(1, REMOTE), 8080), 2)];
        for (id, address, hop) in targets {
            let backend = Backend {
                address,
                sets: Sets::CLUSTER.with(Sets::LOCAL),
                reserved: 0,
                service: ServiceId::new(base + 1),
                generation: U32::new(7),
                next_hop: NextHopId::new(hop),
                next_hop_generation: U32::ZERO,
            };
            A::of(&mut self.memory).backends.insert(id, backend);
            self.set(backends, &id.to_ne_bytes(), backend.as_bytes());
            let slot = base + id - 1;
            self.memory.rings.insert(slot, BackendId::new(id));
            self.set(Table::Rings, &slot.to_ne_bytes(), BackendId::new(id).as_bytes());
        }
        for (service, length, empty) in [(1, 2, WhenEmpty::Reject), (2, 0, WhenEmpty::Reject), (3, 0, WhenEmpty::Drop)]
        {
            for scope in 0..2 {
                let index = (base + service) * 2 + scope;
                let word = RingWord::new(if length == 0 { 0 } else { base }, length, empty, 1);
                self.memory.services.insert(index, word);
                self.set(Table::Services, &index.to_ne_bytes(), word.as_bytes());
            }
            for (number, protocol) in [(0, Protocol::TCP), (1, Protocol::UDP), (2, Protocol::SCTP)] {
                let address = at(A::addr(u8::try_from(service).expect("small"), SERVICE), 80);
                let id = FrontendId(service * 3 + number);
                let record = Frontend {
                    service: ServiceId::new(base + service),
                    pod: ClientRule::new(Scope::Cluster, false),
                    host: ClientRule::new(Scope::Cluster, true),
                    outside: ClientRule::new(Scope::Local, true),
                    // The service with backends takes TCP from some alone.
                    flags: if (service, number) == (1, 0) { FrontendFlags::SOURCE_RANGES } else { FrontendFlags::NONE },
                    address,
                    protocol,
                    reserved: 0,
                };
                let (key, word) = (FrontendKey::new(protocol, address), FrontendWord::new(id, 1));
                A::of(&mut self.memory).records.insert(id.0, record);
                A::of(&mut self.memory).frontends.insert(key, word);
                self.set(records, &id.0.to_ne_bytes(), record.as_bytes());
                self.set(frontends, key.as_bytes(), word.as_bytes());
            }
            let vip = A::addr(u8::try_from(service).expect("small"), SERVICE);
            A::of(&mut self.memory).vips.push(vip);
            self.set(vips, vip.as_bytes(), &VIP_OWNED.to_ne_bytes());
        }
        let bits = if A::IPV6 { 48 } else { 16 };
        let full = 8 * u32::try_from(size_of::<A>()).expect("small");
        for (length, addr) in [(bits, A::addr(0, POD)), (bits, A::addr(0, NODE)), (full, A::addr(1, OUTSIDE))] {
            A::of(&mut self.memory).sources.push((base + 1, length, addr));
            let range = SourceRange { service: ServiceId::new(base + 1), addr };
            let key = SourceKey { length: U32::new(SourceRange::<A>::SERVICE_BITS + length), range };
            self.set(A::SOURCES, key.as_bytes(), &SOURCE_ALLOWED.to_ne_bytes());
        }
        for (net, flags) in [(SERVICE, PrefixFlags::SERVICE), (POD, PrefixFlags::LOCAL_PODS)] {
            let addr = A::addr(0, net);
            A::of(&mut self.memory).prefixes.push((bits, addr, flags));
            self.set(prefixes, PrefixKey { length: U32::new(bits), addr }.as_bytes(), flags.as_bytes());
        }
    }

    /// Runs a frame on both sides and compares; the frame as it left.
    pub(crate) fn run(&mut self, program: (&'static str, Option<Hook>), frame: &[u8]) -> Vec<u8> {
        let (name, hook) = program;
        self.memory.now = self.datapath.clock().expect("the clock");
        let mut out = vec![0; 4096];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let loaded = self.datapath.program(name).expect("the program");
        let result = if name == "lb_xdp" {
            let loaded: &mut Xdp = loaded.try_into().expect("XDP");
            loaded.test_run(options)
        } else {
            let loaded: &mut SchedClassifier = loaded.try_into().expect("tc");
            loaded.test_run(options)
        };
        let result = match result {
            Ok(result) => result,
            // A test run wants an IP header behind an ethertype that promises one.
            Err(_) if frame.len() < 14 + 40 => {
                self.refused += 1;
                return frame.to_vec();
            }
            Err(error) => panic!("{name}: {error:?} for {frame:02x?}"),
        };
        out.truncate(usize::try_from(result.data_size_out).expect("small"));
        let mut buffer = Buffer(frame.to_vec());
        let verdict = match hook {
            Some(hook) => pipeline::ingress(&mut buffer, &self.memory, hook, u32::from(hook != Hook::Host)),
            None => pipeline::egress(&mut buffer, &self.memory),
        };
        self.memory.count(verdict.counter);
        let expected = match (hook, verdict.action) {
            // XDP_DROP; XDP_PASS and TC_ACT_SHOT; TCX_NEXT; TC_ACT_REDIRECT.
            (Some(Hook::Xdp), Action::Drop) => 1,
            (Some(Hook::Xdp), Action::Pass) | (_, Action::Drop) => 2,
            (_, Action::Pass) => u32::MAX,
            (_, Action::Reply | Action::ToHost | Action::Forward) => 7,
            (_, Action::Undecided) => panic!("{name}: undecided"),
        };
        assert_eq!(
            (result.return_value, &out),
            (expected, &buffer.0),
            "{name}: {:?} for {frame:02x?}",
            verdict.counter
        );
        sound(name, verdict.action, frame, &out);
        out
    }

    /// Every table the programs write, whole, against memory; the conntrack entries.
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

    fn words(&self, map: &str) -> BTreeMap<u32, u64> {
        self.datapath.maps.words(map).unwrap_or_else(|error| panic!("{map}: {error}"))
    }

    /// Adds the family's connections to those by service.
    fn compare_family<A: Plan>(&self, services: &mut BTreeMap<u32, u64>) -> usize {
        let tables = A::seen(&self.memory);
        let mut kernel: BTreeMap<_, _> = self.datapath.maps.flows::<A>().expect("flows").into_iter().collect();
        let mut memory = tables.conntrack.borrow().clone();
        // The clocks are read one after the other.
        for entry in kernel.values_mut().chain(memory.values_mut()) {
            entry.stamp = U32::ZERO;
        }
        assert_eq!(kernel.len(), memory.len());
        for (key, entry) in &memory {
            assert_eq!(kernel.get(key), Some(entry), "{key:?}");
        }
        let mut backends = BTreeMap::new();
        for ((service, backend), count) in tables.connections.borrow().iter() {
            *services.entry(*service).or_default() += count;
            *backends.entry(*backend).or_default() += count;
        }
        assert_eq!(self.words(A::CONNECTIONS), backends);
        let mut fragments = BTreeMap::new();
        for (key, value) in self.datapath.maps.entries(A::FRAGMENTS).expect("fragments") {
            let mut fragment = Fragment::read_from_bytes(&value).expect("a fragment");
            fragment.stamp = U32::ZERO;
            fragments.insert(key.into_vec(), fragment);
        }
        let known = tables.fragments.borrow();
        assert_eq!(fragments.len(), known.len());
        for (key, fragment) in known.iter() {
            let wanted = Fragment { stamp: U32::ZERO, ..*fragment };
            assert_eq!(fragments.get(key.as_bytes()), Some(&wanted), "{key:?}");
        }
        kernel.len()
    }
}

/// What a rewritten or answered frame promises: checksums that are right, if the frame's were, and no packet longer than
/// its frame. That both sides agree does not show it: they are the same code.
fn sound(name: &str, action: Action, frame: &[u8], out: &[u8]) {
    if frame == out || fragmented(out) {
        return;
    }
    let answered = action == Action::Reply;
    if answered || l4_checksum_is_right(frame) == Some(true) {
        assert_ne!(l4_checksum_is_right(out), Some(false), "{name}: {frame:02x?} became {out:02x?}");
    }
    if answered || packet_is_right(frame) == Some(true) {
        assert_ne!(packet_is_right(out), Some(false), "{name}: {frame:02x?} became {out:02x?}");
    }
}

/// Whether an untagged frame is a fragment: only the first one has a checksum, of more than itself.
fn fragmented(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([8, 0]) => frame.get(20..22).is_some_and(|field| field[0] & 0x3f != 0 || field[1] != 0),
        // Behind other extension headers as well.
        Some([0x86, 0xdd]) => frame.get(20).is_some_and(|next| [0, 43, 44, 51, 60].contains(next)),
        _ => true,
    }
}

/// Whether an untagged frame holds the whole of its packet, under a right header checksum.
fn packet_is_right(frame: &[u8]) -> Option<bool> {
    let length = |at: usize| Some(usize::from(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?)));
    match frame.get(12..14)? {
        [8, 0] => {
            let header = frame.get(14..14 + 4 * usize::from(frame.get(14)? & 15))?;
            Some(frame.len() >= 14 + length(16)? && Sum::default().add(header).fold() == 0xffff)
        }
        [0x86, 0xdd] => Some(frame.len() >= 54 + length(18)?),
        _ => None,
    }
}
