//! The tables, filled alike in the kernel and in memory, and a packet run on both.

use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp};
use lb_common::{
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId, Sets},
    frontend::{
        ClientRule, Frontend, FrontendFlags, FrontendId, FrontendKey, FrontendWord, PrefixFlags, PrefixKey,
        SOURCE_ALLOWED, Scope, SourceKey, SourceRange, VIP_OWNED,
    },
    pipeline::{self, Hook},
    protocol::{Port, Protocol},
    ring::{RingWord, WhenEmpty},
    settings::{Setting, snat_ports},
    tables::World as _,
    testing::{Buffer, FamilyTables, Memory},
    tuple::L4Addr,
    verdict::{Action, Verdict},
};
use lb_tests::Bpffs;
use lb_userspace::{
    bpf::{Datapath, FlowFamily, MapSizes},
    image::{Image, Table},
    store::MapStore as _,
};
use zerocopy::{IntoBytes as _, native_endian::U32};

use crate::sound::{Faults, faults};

/// Addresses of a family: outside, pod, other pod, remote pod, node, VIP, empty VIP, Local VIP, unallocated, foreign.
pub(crate) trait Plan: FlowFamily {
    const IPV6: bool;
    const TABLES: [Table; 6];
    const SOURCES: Table;
    const FRAGMENTS: &'static str;
    const HALF_OPEN: &'static str;
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
    const HALF_OPEN: &'static str = "LB4_HALF_OPEN";
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
    const HALF_OPEN: &'static str = "LB6_HALF_OPEN";
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

/// Readings of the clock within a packet, at most.
const READINGS: u32 = 16;

/// How large the tables of a round are, and how fast its flows get old.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) conntrack: u32,
    pub(crate) half_open: u32,
    pub(crate) ticks_per_second: u64,
}

/// What the kernel's test run did with a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// Both sides decided alike.
    Taken,
    /// It does not take such a frame.
    Refused,
}

/// Both sides of the comparison.
pub(crate) struct Twin {
    pub(crate) datapath: Datapath,
    pub(crate) memory: Memory,
    pub(crate) setup: Setup,
    /// The configuration, as it was written.
    pub(crate) image: Image,
    /// The clock when it was last looked at.
    clock: u32,
    /// Packets during which it moved.
    pub(crate) moved: usize,
    /// Packets about which both sides agreed.
    pub(crate) agreed: usize,
    pub(crate) faults: Faults,
}

impl Twin {
    pub(crate) fn new(bpffs: &Bpffs, setup: Setup) -> Self {
        // What the services below need: the slow variant reads them after each packet.
        let sizes = MapSizes { services: 20, frontends: 24, backends: 4, rings: 20, conntrack: setup.conntrack };
        let datapath = Datapath::open(bpffs.path(), &sizes).expect("the datapath");
        let mut twin = Self {
            datapath,
            memory: Memory::default(),
            setup,
            image: Image::default(),
            clock: 0,
            moved: 0,
            agreed: 0,
            faults: Faults::default(),
        };
        let capacity = usize::try_from(setup.conntrack).expect("small");
        twin.memory.v4.conntrack_capacity = capacity;
        twin.memory.v6.conntrack_capacity = capacity;
        for (setting, word) in [
            (Setting::HostDevice, 1),
            (Setting::HostMac, 0x0001_0203_0405_0607 & 0xffff_ffff_ffff),
            (Setting::SnatPorts, snat_ports(40_000, 40_063)),
            (Setting::HashSeed, 0x1234_5678_9abc_def0),
            (Setting::TicksPerSecond, setup.ticks_per_second),
            (Setting::HalfOpenSlots, u64::from(setup.half_open)),
        ] {
            twin.memory.settings.insert(setting, word);
            twin.set(Table::Settings, &(setting as u32).to_ne_bytes(), &word.to_ne_bytes());
        }
        twin.fill::<[u8; 4]>(0);
        twin.fill::<[u8; 16]>(16);
        twin.look_at_clock();
        twin
    }

    fn set(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.datapath.maps.update(table, key, value).unwrap_or_else(|error| panic!("{table:?}: {error}"));
        self.image.insert_bytes(table, key.into(), value.into());
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
        for (net, flags) in [
            (SERVICE, PrefixFlags::SERVICE),
            (POD, PrefixFlags::LOCAL_PODS.with(PrefixFlags::DETECTED)),
            (REMOTE, PrefixFlags::DETECTED),
        ] {
            let addr = A::addr(0, net);
            A::of(&mut self.memory).prefixes.push((bits, addr, flags));
            self.set(prefixes, PrefixKey { length: U32::new(bits), addr }.as_bytes(), flags.as_bytes());
        }
    }

    /// The time now: packets are seen between two looks.
    pub(crate) fn look_at_clock(&mut self) {
        self.clock = self.datapath.clock().expect("the clock");
    }

    /// Runs a frame on both sides and compares; the frame as it left.
    pub(crate) fn run(&mut self, program: (&'static str, Option<Hook>), frame: &[u8]) -> (Run, Vec<u8>) {
        let (name, hook) = program;
        let before = self.clock;
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
            Err(_) if is_refused(name, frame) => {
                // Too short to be anything: memory must see that as well.
                let (_, seen) = self.decide(program, frame);
                assert!(
                    hook == Some(Hook::Host) || seen == (returned(program, Action::Pass), frame.to_vec()),
                    "{name}"
                );
                return (Run::Refused, frame.to_vec());
            }
            Err(error) => {
                eprintln!("{name}: {error:?} for {frame:02x?}");
                self.faults.failed += 1;
                return (Run::Refused, frame.to_vec());
            }
        };
        out.truncate(usize::try_from(result.data_size_out).expect("small"));
        self.look_at_clock();
        let kernel = (result.return_value, out);
        let verdict = self.follow(program, frame, &kernel, before);
        self.memory.count(verdict.counter);
        self.agreed += 1;
        let found = faults(name, result.return_value, verdict.action, frame, &kernel.1);
        if found != Faults::default() {
            eprintln!("{name}: {:?}: {found:?}: {frame:02x?} became {:02x?}", verdict.counter, kernel.1);
            self.faults.add(found);
        }
        (Run::Taken, kernel.1)
    }

    /// Lets memory decide as the kernel did between `before` and the last look at the clock.
    fn follow(
        &mut self,
        program: (&'static str, Option<Hook>),
        frame: &[u8],
        kernel: &(u32, Vec<u8>),
        before: u32,
    ) -> Verdict {
        let (name, _) = program;
        self.memory.now = before;
        if before == self.clock {
            let (verdict, seen) = self.decide(program, frame);
            assert_eq!(kernel, &seen, "{name}: {:?} for {frame:02x?}", verdict.counter);
            return verdict;
        }
        self.moved += 1;
        let saved = self.memory.clone();
        self.memory.now = self.clock;
        let _late = self.decide(program, frame);
        let late = self.memory.clone();
        for (now, turn) in moments(before, self.clock) {
            self.memory.clone_from(&saved);
            self.memory.now = now;
            self.memory.turn.set(turn);
            let (verdict, seen) = self.decide(program, frame);
            if *kernel == seen && self.written_agree(&saved, &late) && self.counts_agree(verdict.counter) {
                self.memory.turn.set(None);
                return verdict;
            }
        }
        self.memory = saved;
        self.memory.now = self.clock;
        let (verdict, seen) = self.decide(program, frame);
        assert_eq!(kernel, &seen, "{name}: {:?} for {frame:02x?}, at no time", verdict.counter);
        self.compare();
        panic!("{name}: {:?} for {frame:02x?}: the tables agree at no time", verdict.counter);
    }

    /// What memory makes of a frame: its verdict, and what the kernel's program would return and leave.
    fn decide(&self, program: (&'static str, Option<Hook>), frame: &[u8]) -> (Verdict, (u32, Vec<u8>)) {
        let mut buffer = Buffer(frame.to_vec());
        let verdict = match program.1 {
            Some(hook) => pipeline::ingress(&mut buffer, &self.memory, hook, u32::from(hook != Hook::Host)),
            None => pipeline::egress(&mut buffer, &self.memory),
        };
        (verdict, (returned(program, verdict.action), buffer.0))
    }
}

/// What a program returns for an action.
fn returned((name, hook): (&'static str, Option<Hook>), action: Action) -> u32 {
    match (hook, action) {
        // XDP_DROP; XDP_PASS and TC_ACT_SHOT; TCX_NEXT; TC_ACT_REDIRECT.
        (Some(Hook::Xdp), Action::Drop) => 1,
        (Some(Hook::Xdp), Action::Pass) | (_, Action::Drop) => 2,
        (_, Action::Pass) => u32::MAX,
        (_, Action::Reply | Action::ToHost | Action::Forward) => 7,
        (_, Action::Undecided) => panic!("{name}: undecided"),
    }
}

/// Whether the kernel's test run cannot make a packet of a frame: it wants an Ethernet header, and for tc behind an
/// ethertype that promises one an IP header.
fn is_refused(name: &str, frame: &[u8]) -> bool {
    let least = match frame.get(12..14) {
        None => return true,
        _ if name == "lb_xdp" => 14,
        Some([8, 0]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        Some(_) => 14,
    };
    frame.len() < least
}

/// Every course a clock may take from one time to another while a packet is looked at: where it stands, and after how many
/// readings it shows another time. Those that are likely come first.
fn moments(from: u32, to: u32) -> impl Iterator<Item = (u32, Option<(u32, u32)>)> {
    let ticks = to.wrapping_sub(from);
    let still = (0..=ticks).map(move |tick| (from.wrapping_add(tick), None));
    let moving = (1..=ticks).flat_map(move |step| {
        (0..=ticks - step).flat_map(move |tick| {
            let now = from.wrapping_add(tick);
            (1..READINGS).map(move |readings| (now, Some((readings, now.wrapping_add(step)))))
        })
    });
    still.chain(moving)
}
