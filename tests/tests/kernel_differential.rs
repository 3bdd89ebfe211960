//! The same packets through the programs in the kernel and through the pipeline in memory: verdicts, bytes, conntrack and
//! counters must agree.

use std::collections::BTreeMap;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use lb_common::{
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId},
    checksum::Sum,
    frontend::{
        ClientRule, Frontend, FrontendFlags, FrontendId, FrontendKey, FrontendWord, PrefixFlags, PrefixKey, Scope,
        VIP_OWNED,
    },
    pipeline::{self, Hook},
    protocol::{Port, Protocol},
    ring::{RingWord, WhenEmpty},
    settings::{Setting, snat_ports},
    tables::World as _,
    testing::{Buffer, FamilyTables, Memory},
    tuple::L4Addr,
    verdict::{Action, Counter},
};
use lb_tests::{Bpffs, needs_root};
use lb_userspace::{
    bpf::{Datapath, FlowFamily, MapSizes},
    image::Table,
    store::MapStore as _,
};
use zerocopy::{IntoBytes as _, native_endian::U32};

/// Packets for each program, as the issue asks.
const PACKETS: usize = 100_000;
const PROGRAMS: [(&str, Option<Hook>); 4] =
    [("lb_xdp", Some(Hook::Xdp)), ("lb_ingress", Some(Hook::Tc)), ("lb_host", Some(Hook::Host)), ("lb_egress", None)];

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).expect("48 bits") % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Addresses of a family: outside, pod, other pod, remote pod, node, VIP, empty VIP, Local VIP, unallocated, foreign.
trait Plan: FlowFamily {
    const IPV6: bool;
    const TABLES: [Table; 6];
    fn addr(last: u8, net: u8) -> Self;
    fn of(memory: &mut Memory) -> &mut FamilyTables<Self>;
    fn seen(memory: &Memory) -> &FamilyTables<Self>;
}

impl Plan for [u8; 4] {
    const IPV6: bool = false;
    const TABLES: [Table; 6] =
        [Table::Frontends4, Table::Records4, Table::Vips4, Table::Prefixes4, Table::Backends4, Table::NextHops4];

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

const POD: u8 = 1;
const REMOTE: u8 = 2;
const OUTSIDE: u8 = 9;
const NODE: u8 = 5;
const SERVICE: u8 = 96;

/// Both sides of the comparison.
struct Twin {
    datapath: Datapath,
    memory: Memory,
    /// Frames the kernel's test run does not take.
    refused: usize,
}

impl Twin {
    fn new(bpffs: &Bpffs) -> Self {
        let sizes = MapSizes { services: 64, frontends: 64, backends: 64, rings: 64, conntrack: 65_536 };
        let datapath = Datapath::open(bpffs.path(), &sizes).expect("the datapath");
        let mut twin = Self { datapath, memory: Memory::default(), refused: 0 };
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
                reserved: [0; 2],
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
                    flags: FrontendFlags::NONE,
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
        for (net, flags) in [(SERVICE, PrefixFlags::SERVICE), (POD, PrefixFlags::LOCAL_PODS)] {
            let addr = A::addr(0, net);
            A::of(&mut self.memory).prefixes.push((bits, addr, flags));
            self.set(prefixes, PrefixKey { length: U32::new(bits), addr }.as_bytes(), flags.as_bytes());
        }
    }

    /// Runs a frame on both sides and compares; the frame as it left.
    fn run(&mut self, program: (&'static str, Option<Hook>), frame: &[u8]) -> Vec<u8> {
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
            Some(hook) => pipeline::ingress(&mut buffer, &self.memory, hook, true),
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
        out
    }

    fn compare_flows<A: Plan>(&self) -> usize {
        let mut kernel: BTreeMap<_, _> = self.datapath.maps.flows::<A>().expect("flows").into_iter().collect();
        let mut memory = A::seen(&self.memory).conntrack.borrow().clone();
        // The clocks are read one after the other.
        for entry in kernel.values_mut().chain(memory.values_mut()) {
            entry.stamp = U32::ZERO;
        }
        assert_eq!(kernel.len(), memory.len());
        for (key, entry) in &memory {
            assert_eq!(kernel.get(key), Some(entry), "{key:?}");
        }
        kernel.len()
    }
}

/// A frame of one of the flows there can be, or an answer to the last one.
fn frame<A: Plan>(random: &mut Random, last: &[u8]) -> Vec<u8> {
    let network = if A::IPV6 { 40 } else { 20 };
    let (a, p) = if A::IPV6 { (22, 16) } else { (26, 4) };
    let l4 = 14 + network;
    if random.chance(35) && last.len() >= l4 + 8 && last[12..14] == ethertype::<A>() {
        // An answer: ends swapped.
        let mut answer = last.to_vec();
        let (source, destination) = (last[a..a + p].to_vec(), last[a + p..a + 2 * p].to_vec());
        answer[a..a + p].copy_from_slice(&destination);
        answer[a + p..a + 2 * p].copy_from_slice(&source);
        let (source, destination) = (last[l4..l4 + 2].to_vec(), last[l4 + 2..l4 + 4].to_vec());
        answer[l4..l4 + 2].copy_from_slice(&destination);
        answer[l4 + 2..l4 + 4].copy_from_slice(&source);
        if answer.len() > l4 + 13 {
            answer[l4 + 13] = random.pick(&[0x12, 0x10, 0x18, 0x11, 0x04]);
        }
        return answer;
    }
    let clients = [A::addr(1, OUTSIDE), A::addr(2, OUTSIDE), A::addr(1, POD), A::addr(1, NODE), A::addr(1, REMOTE)];
    let servers = [
        A::addr(1, SERVICE),
        A::addr(1, SERVICE),
        A::addr(1, SERVICE),
        A::addr(2, SERVICE),
        A::addr(3, SERVICE),
        A::addr(9, SERVICE),
        A::addr(1, POD),
        A::addr(1, NODE),
    ];
    let (source, destination) = (random.pick(&clients), random.pick(&servers));
    let ports =
        (random.pick(&[1000_u16, 1001, 40_000, 40_001, 65_535]), random.pick(&[80_u16, 80, 80, 81, 8080, 40_000]));
    let protocol =
        random.pick(&[6_u8, 6, 6, 17, 17, 17, 132, if A::IPV6 { 58 } else { 1 }, 47, if A::IPV6 { 60 } else { 50 }]);
    let payload = random.below(64);
    let mut segment = vec![0_u8; payload + if protocol == 6 { 20 } else { 12 }];
    for byte in &mut segment {
        *byte = random.byte();
    }
    segment[..2].copy_from_slice(&ports.0.to_be_bytes());
    segment[2..4].copy_from_slice(&ports.1.to_be_bytes());
    let length = u16::try_from(segment.len()).expect("short");
    let field = match protocol {
        6 => {
            segment[12] = 5 << 4;
            segment[13] = random.pick(&[0x02, 0x02, 0x02, 0x10, 0x18, 0x11, 0x04, 0x14, 0x12]);
            Some(16)
        }
        17 => {
            segment[4..6].copy_from_slice(&length.to_be_bytes());
            Some(6)
        }
        _ => None,
    };
    if let Some(field) = field {
        segment[field..field + 2].fill(0);
        if protocol == 6 || A::IPV6 || random.chance(80) {
            let sum = Sum::default().add(source.as_ref()).add(destination.as_ref());
            let sum = sum.add(&[0, protocol]).add(&length.to_be_bytes()).add(&segment);
            segment[field..field + 2].copy_from_slice(&sum.checksum().0);
        }
    }
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype::<A>());
    if A::IPV6 {
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([protocol, 64]);
    } else {
        let mut header = vec![0x45, 0];
        header.extend((length + 20).to_be_bytes());
        header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
        let sum = Sum::default().add(&header).add(source.as_ref()).add(destination.as_ref());
        header[10..12].copy_from_slice(&sum.checksum().0);
        frame.extend(header);
    }
    frame.extend(source.as_ref());
    frame.extend(destination.as_ref());
    frame.extend(segment);
    frame
}

fn ethertype<A: Plan>() -> [u8; 2] {
    if A::IPV6 { [0x86, 0xdd] } else { [8, 0] }
}

/// Breaks a frame somewhere.
fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(5) {
        0 => {
            let at = 12 + random.below(frame.len() - 12);
            frame[at] = random.byte();
        }
        1 => {
            let at = 14 + random.below(20.min(frame.len() - 14));
            frame[at] ^= 1 << random.below(8);
        }
        2 => {
            let length = 14 + random.below(frame.len() - 13);
            frame.truncate(length);
        }
        3 => {
            let tag = [0x81, 0, 0, 5];
            frame.splice(12..12, tag);
        }
        _ => frame.extend(std::iter::repeat_n(0, random.below(20))),
    }
}

#[test]
fn the_kernel_decides_as_the_pipeline_in_memory() {
    needs_root!();
    let bpffs = Bpffs::new().expect("a bpffs");
    let mut twin = Twin::new(&bpffs);
    let mut random = Random(0x0b57_ac1e_5eed_0001);
    let mut last = Vec::new();
    for _ in 0..PACKETS {
        for program in PROGRAMS {
            let mut frame = if random.chance(50) {
                frame::<[u8; 4]>(&mut random, &last)
            } else {
                frame::<[u8; 16]>(&mut random, &last)
            };
            if random.chance(20) {
                mutate(&mut random, &mut frame);
            }
            if frame.len() < 14 {
                continue;
            }
            last = twin.run(program, &frame);
        }
    }
    assert!(twin.refused < PACKETS * PROGRAMS.len() / 20, "{} frames were not run", twin.refused);
    let flows = twin.compare_flows::<[u8; 4]>() + twin.compare_flows::<[u8; 16]>();
    let mut kernel = twin.datapath.maps.counters().expect("counters");
    kernel.retain(|_, count| *count > 0);
    assert_eq!(&kernel, &*twin.memory.counters.borrow());
    println!("{PACKETS} packets for each of {} programs, {flows} conntrack entries; {kernel:?}", PROGRAMS.len());
    // A generator that reaches little would prove little.
    for counter in [
        Counter::NewFlow,
        Counter::ToBackend,
        Counter::SourceNat,
        Counter::ToClient,
        Counter::FromFrontend,
        Counter::HostReply,
        Counter::NoEndpoint,
        Counter::NoLocalEndpoint,
        Counter::NoSuchPort,
        Counter::Unallocated,
        Counter::NoState,
        Counter::StrayReset,
        Counter::FlowReplaced,
        Counter::Malformed,
        Counter::Vlan,
        Counter::Fragment,
        Counter::Ipv4Options,
        Counter::ExtensionHeader,
        Counter::Icmp,
        Counter::OtherProtocol,
        Counter::Sctp,
        Counter::HostUntranslated,
        Counter::Deferred,
        Counter::PortChanged,
    ] {
        assert!(kernel.get(&counter).is_some_and(|count| *count > 20), "{counter:?}: {:?}", kernel.get(&counter));
    }
}
