//! The tables, in memory and written to the kernel, and the servers and addresses they name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId, Sets},
    frontend::{
        ClientRule, Frontend, FrontendFlags, FrontendId, FrontendKey, FrontendWord, PrefixFlags, PrefixKey, Scope,
        VIP_OWNED,
    },
    protocol::{Port, Protocol},
    ring::{RingWord, WhenEmpty},
    settings::Setting,
    testing::{FamilyTables, Memory},
    tuple::L4Addr,
};
use lb_userspace::{bpf::Datapath, image::Table, store::MapStore as _};
use zerocopy::{IntoBytes as _, native_endian::U32};

/// Where backends and the plain server listen.
pub(crate) const TARGET: u16 = 8080;
pub(crate) const NODE_PORT: u16 = 30_080;

/// Networks of [`Family::addr`].
pub(crate) const BACKENDS: u8 = 7;
pub(crate) const OWN: u8 = 8;
pub(crate) const SERVICES: u8 = 96;

/// An address family of the test.
pub(crate) trait Family: lb_common::family::Addr {
    const TABLES: [Table; 6];
    /// Bits of a network.
    const BITS: u32;
    /// Number of its first service and ring slot: both families share them.
    const BASE: u32;
    fn addr(net: u8, host: u8) -> Self;
    fn loopback() -> Self;
    fn of(memory: &mut Memory) -> &mut FamilyTables<Self>;
    fn ip(self) -> IpAddr;
    /// `None`: of the other family.
    fn from_ip(ip: IpAddr) -> Option<Self>;

    fn socket(at: L4Addr<Self>) -> SocketAddr {
        SocketAddr::new(at.addr.ip(), at.port.number())
    }

    fn l4(at: SocketAddr) -> Option<L4Addr<Self>> {
        Some(L4Addr { addr: Self::from_ip(at.ip())?, port: Port::new(at.port()) })
    }
}

impl Family for [u8; 4] {
    const TABLES: [Table; 6] =
        [Table::Frontends4, Table::Records4, Table::Vips4, Table::Prefixes4, Table::Backends4, Table::NextHops4];
    const BITS: u32 = 16;
    const BASE: u32 = 0;

    fn addr(net: u8, host: u8) -> Self {
        [10, net, 0, host]
    }

    fn loopback() -> Self {
        Ipv4Addr::LOCALHOST.octets()
    }

    fn of(memory: &mut Memory) -> &mut FamilyTables<Self> {
        &mut memory.v4
    }

    fn ip(self) -> IpAddr {
        self.into()
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        if let IpAddr::V4(ip) = ip { Some(ip.octets()) } else { None }
    }
}

impl Family for [u8; 16] {
    const TABLES: [Table; 6] =
        [Table::Frontends6, Table::Records6, Table::Vips6, Table::Prefixes6, Table::Backends6, Table::NextHops6];
    const BITS: u32 = 32;
    const BASE: u32 = 16;

    fn addr(net: u8, host: u8) -> Self {
        [0xfd, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]
    }

    fn loopback() -> Self {
        Ipv6Addr::LOCALHOST.octets()
    }

    fn of(memory: &mut Memory) -> &mut FamilyTables<Self> {
        &mut memory.v6
    }

    fn ip(self) -> IpAddr {
        self.into()
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        if let IpAddr::V6(ip) = ip { Some(ip.octets()) } else { None }
    }
}

/// Both sides.
pub(crate) struct Twin {
    pub(crate) datapath: Datapath,
    pub(crate) memory: Memory,
}

impl Twin {
    /// `netns`: the cookie of the host's namespace.
    pub(crate) fn new(datapath: Datapath, netns: u64) -> Self {
        let mut twin = Self { datapath, memory: Memory::default() };
        for (setting, word) in [(Setting::NetnsCookie, netns), (Setting::HashSeed, 0x1234_5678_9abc_def0)] {
            twin.memory.settings.insert(setting, word);
            twin.set(Table::Settings, &(setting as u32).to_ne_bytes(), &word.to_ne_bytes());
        }
        twin.fill::<[u8; 4]>();
        twin.fill::<[u8; 16]>();
        twin
    }

    fn set(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.datapath.maps.update(table, key, value).unwrap_or_else(|error| panic!("{table:?}: {error}"));
    }

    /// Services: 1 has backends 1 and 2; 2 none, reject; 3 none, drop; 4 is the nodePort, backend 3; 5 and 6 are two in front
    /// of the one address of backend 4 (5), to which the way leads elsewhere.
    fn fill<A: Family>(&mut self) {
        let [.., next_hops] = A::TABLES;
        for (id, flags) in [(1_u32, NextHop::<A>::LOCAL), (2, 0)] {
            let (ifindex, generation) = (U32::new(1), U32::new(1));
            let hop = NextHop { ifindex, generation, flags: U32::new(flags), prefsrc: A::addr(OWN, 1) };
            A::of(&mut self.memory).next_hops.insert(id, hop);
            self.set(next_hops, &id.to_ne_bytes(), hop.as_bytes());
        }
        let at = |addr: A, port: u16| L4Addr { addr, port: Port::new(port) };
        let vip = |host: u8| at(A::addr(SERVICES, host), 80);
        self.service(1, &[(1, 1, 1), (2, 2, 1)], WhenEmpty::Reject, &[vip(1)], FrontendFlags::NONE);
        self.service(2, &[], WhenEmpty::Reject, &[vip(2)], FrontendFlags::NONE);
        self.service(3, &[], WhenEmpty::Drop, &[vip(3)], FrontendFlags::NONE);
        let node_ports = [at(A::addr(OWN, 1), NODE_PORT), at(A::loopback(), NODE_PORT)];
        self.service(4, &[(3, 3, 1)], WhenEmpty::Reject, &node_ports, FrontendFlags::OWN_ADDRESS);
        self.service(5, &[(4, 4, 2)], WhenEmpty::Reject, &[vip(5)], FrontendFlags::NONE);
        self.service(6, &[(5, 4, 2)], WhenEmpty::Reject, &[vip(6)], FrontendFlags::NONE);
        let [.., prefixes, _, _] = A::TABLES;
        let (addr, flags) = (A::addr(SERVICES, 0), PrefixFlags::SERVICE);
        A::of(&mut self.memory).prefixes.push((A::BITS, addr, flags));
        self.set(prefixes, PrefixKey { length: U32::new(A::BITS), addr }.as_bytes(), flags.as_bytes());
    }

    /// `targets`: number, host part of the address, next hop.
    fn service<A: Family>(
        &mut self,
        number: u32,
        targets: &[(u32, u8, u32)],
        when_empty: WhenEmpty,
        addresses: &[L4Addr<A>],
        flags: FrontendFlags,
    ) {
        let [frontends, records, vips, _, backends, _] = A::TABLES;
        let service = A::BASE + number;
        for (slot, (id, host, hop)) in (service * 8..).zip(targets) {
            let backend = Backend {
                address: L4Addr { addr: A::addr(BACKENDS, *host), port: Port::new(TARGET) },
                sets: Sets::CLUSTER.with(Sets::LOCAL),
                reserved: 0,
                service: ServiceId::new(service),
                generation: U32::new(7),
                next_hop: NextHopId::new(*hop),
                next_hop_generation: U32::ZERO,
            };
            A::of(&mut self.memory).backends.insert(*id, backend);
            self.set(backends, &id.to_ne_bytes(), backend.as_bytes());
            self.memory.rings.insert(slot, BackendId::new(*id));
            self.set(Table::Rings, &slot.to_ne_bytes(), BackendId::new(*id).as_bytes());
        }
        let length = u16::try_from(targets.len()).expect("few");
        for scope in 0..2 {
            let word = RingWord::new(service * 8, length, when_empty, 1);
            self.memory.services.insert(service * 2 + scope, word);
            self.set(Table::Services, &(service * 2 + scope).to_ne_bytes(), word.as_bytes());
        }
        let everyone = ClientRule::new(Scope::Cluster, false);
        for address in addresses {
            for protocol in [Protocol::TCP, Protocol::UDP] {
                let id = u32::try_from(A::of(&mut self.memory).records.len()).expect("few") + 1;
                let (pod, host, outside) = (everyone, everyone, everyone);
                let service = ServiceId::new(service);
                let record = Frontend { service, pod, host, outside, flags, address: *address, protocol, reserved: 0 };
                let (key, word) = (FrontendKey::of_host(protocol, *address), FrontendWord::new(FrontendId(id), 1));
                A::of(&mut self.memory).records.insert(id, record);
                A::of(&mut self.memory).frontends.insert(key, word);
                self.set(records, &id.to_ne_bytes(), record.as_bytes());
                self.set(frontends, key.as_bytes(), word.as_bytes());
            }
            if flags == FrontendFlags::NONE {
                A::of(&mut self.memory).vips.push(address.addr);
                self.set(vips, address.addr.as_bytes(), &VIP_OWNED.to_ne_bytes());
            }
        }
    }
}
