//! A node with one service, or a few: the world in which the tests run.

use std::marker::PhantomData;

use lb_common::{
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId, Sets},
    conntrack::{Conntrack, EntryKind},
    frontend::{ClientRule, Frontend, FrontendFlags, FrontendId, FrontendKey, FrontendWord, PrefixFlags, Scope},
    pipeline::{self, Hook},
    protocol::Protocol,
    ring::{RingWord, WhenEmpty},
    settings::{Setting, snat_ports},
    testing::{Buffer, Memory},
    tuple::L4Addr,
    verdict::{Action, Counter, Verdict},
};
use zerocopy::native_endian::U32;

use crate::{
    ip::{Ip, net},
    segment::Segment,
};

/// Ticks of the clock in a second.
pub(crate) const HZ: u32 = 250;
pub(crate) const SNAT_FIRST: u16 = 20_000;
pub(crate) const SNAT_LAST: u16 = 60_000;
pub(crate) const HOST_MAC: [u8; 6] = [2, 0xba, 0x11, 0xa5, 0x70, 1];
/// Cookie of the node's network namespace.
pub(crate) const NETNS: u64 = 4711;

/// Cluster scope, source kept.
pub(crate) const KEEP: ClientRule = ClientRule::new(Scope::Cluster, false);
/// Cluster scope, source rewritten.
pub(crate) const MASQUERADE: ClientRule = ClientRule::new(Scope::Cluster, true);
/// Local scope, source kept.
pub(crate) const LOCAL: ClientRule = ClientRule::new(Scope::Local, false);

/// Rules of a frontend.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) pod: ClientRule,
    pub(crate) host: ClientRule,
    pub(crate) outside: ClientRule,
}

impl Rules {
    pub(crate) const fn all(rule: ClientRule) -> Self {
        Self { pod: rule, host: rule, outside: rule }
    }
}

/// Where packets for a backend go.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// A pod of this node.
    Pod = 1,
    /// Another node's pod.
    Remote = 2,
    /// This node itself.
    Node = 3,
    /// No route.
    Nowhere = 4,
}

pub(crate) const POD_DEVICE: u32 = 11;
pub(crate) const UPLINK: u32 = 2;
/// A device that received a packet, where it does not matter which.
pub(crate) const DEVICE: u32 = 7;

/// Who sends a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum From {
    /// A device: another machine, or a pod.
    Device,
    /// A process of this node, by `ballast0`.
    Host,
}

pub(crate) struct Node<A> {
    pub(crate) memory: Memory,
    family: PhantomData<A>,
}

// The actors of most tests.
pub(crate) fn pod<A: Ip>() -> L4Addr<A> {
    A::at(net::PODS, 5, 40_005)
}
pub(crate) fn outside<A: Ip>() -> L4Addr<A> {
    A::at(net::WORLD, 9, 40_009)
}
pub(crate) fn host<A: Ip>() -> L4Addr<A> {
    A::at(net::NODES, 1, 40_001)
}
pub(crate) fn vip<A: Ip>() -> L4Addr<A> {
    A::at(net::SERVICES, 10, 80)
}
pub(crate) fn other_vip<A: Ip>() -> L4Addr<A> {
    A::at(net::BALANCER, 11, 8_000)
}
pub(crate) fn local_backend<A: Ip>() -> L4Addr<A> {
    A::at(net::PODS, 6, 8_080)
}
pub(crate) fn remote_backend<A: Ip>() -> L4Addr<A> {
    A::at(net::REMOTE, 7, 8_080)
}
/// The source of masqueraded packets.
pub(crate) fn node_addr<A: Ip>() -> A {
    A::host(net::NODES, 1)
}

/// Service 1, at [`vip`].
pub(crate) const SERVICE: u32 = 1;
/// Backend 1, of service 1.
pub(crate) const BACKEND: u32 = 1;

impl<A: Ip> Node<A> {
    /// A node without services.
    pub(crate) fn new() -> Self {
        let mut memory = Memory { now: 1_000_000, ..Memory::default() };
        let [a, b, c, d, e, f] = HOST_MAC;
        memory.settings.extend([
            (Setting::NetnsCookie, NETNS),
            (Setting::HostMac, u64::from_le_bytes([a, b, c, d, e, f, 0, 0])),
            (Setting::SnatPorts, snat_ports(SNAT_FIRST, SNAT_LAST)),
            (Setting::HashSeed, 0x0123_4567_89ab_cdef),
            (Setting::TicksPerSecond, u64::from(HZ)),
        ]);
        let tables = A::tables_mut(&mut memory);
        tables.prefixes.push((A::NET_BITS, A::host(net::SERVICES, 0), PrefixFlags::SERVICE));
        tables.prefixes.push((A::NET_BITS, A::host(net::PODS, 0), PrefixFlags::LOCAL_PODS.with(PrefixFlags::DETECTED)));
        let mut hop = |place: Place, device: u32, flags: u32| {
            let hop = NextHop {
                ifindex: U32::new(device),
                generation: U32::new(1),
                flags: U32::new(flags),
                prefsrc: node_addr::<A>(),
            };
            tables.next_hops.insert(place as u32, hop);
        };
        hop(Place::Pod, POD_DEVICE, 0);
        hop(Place::Remote, UPLINK, 0);
        hop(Place::Node, 1, NextHop::<A>::LOCAL);
        hop(Place::Nowhere, 0, 0);
        Self { memory, family: PhantomData }
    }

    /// The same world over again, with flows and counters of its own.
    pub(crate) fn copy_of(node: &Self) -> Self {
        Self { memory: node.memory.clone(), family: PhantomData }
    }

    /// A node with service 1 at [`vip`] and its one backend, in both scopes.
    pub(crate) fn with_backend(protocol: Protocol, rules: Rules, backend: L4Addr<A>, place: Place) -> Self {
        let mut node = Self::new();
        node.frontend(SERVICE, protocol, vip(), rules);
        node.backend(BACKEND, SERVICE, backend, place);
        node.ring(SERVICE, Scope::Cluster, &[BACKEND], WhenEmpty::Reject);
        node.ring(SERVICE, Scope::Local, &[BACKEND], WhenEmpty::Reject);
        node
    }

    /// Gives a service a frontend. The record's id is the number of records.
    pub(crate) fn frontend(&mut self, service: u32, protocol: Protocol, address: L4Addr<A>, rules: Rules) {
        let tables = A::tables_mut(&mut self.memory);
        let id = u32::try_from(tables.records.len()).expect("few records") + 1;
        let record = Frontend {
            service: ServiceId::new(service),
            pod: rules.pod,
            host: rules.host,
            outside: rules.outside,
            flags: FrontendFlags::NONE,
            address,
            protocol,
            reserved: 0,
        };
        tables.records.insert(id, record);
        tables.frontends.insert(FrontendKey::of_host(protocol, address), FrontendWord::new(FrontendId(id), 1));
        tables.vips.push(address.addr);
    }

    /// Sets flags of every frontend of a service.
    pub(crate) fn flags(&mut self, service: u32, flags: FrontendFlags) {
        let records = A::tables_mut(&mut self.memory).records.values_mut();
        for record in records.filter(|record| record.service.get() == service) {
            record.flags = record.flags.with(flags);
        }
    }

    /// Gives a service an affinity of so many seconds; 0: none.
    pub(crate) fn affinity(&mut self, service: u32, seconds: u64) {
        self.memory.affinities.insert(service, seconds);
        self.flags(service, FrontendFlags::NO_POD_SOCKET.with(FrontendFlags::AFFINITY));
    }

    /// Puts a backend into some of its service's sets, without touching the rings.
    pub(crate) fn sets(&mut self, backend: u32, sets: Sets) {
        A::tables_mut(&mut self.memory).backends.get_mut(&backend).expect("a backend").sets = sets;
    }

    /// Lets the addresses of a network use a service's frontends with source ranges.
    pub(crate) fn allow(&mut self, service: u32, network: u8) {
        let range = (service, A::NET_BITS, A::host(network, 0));
        A::tables_mut(&mut self.memory).sources.push(range);
    }

    /// Fills a backend slot; its generation is one more than before.
    pub(crate) fn backend(&mut self, id: u32, service: u32, address: L4Addr<A>, place: Place) {
        let backends = &mut A::tables_mut(&mut self.memory).backends;
        let generation = backends.get(&id).map_or(0, |backend| backend.generation.get()) + 1;
        let backend = Backend {
            address,
            sets: Sets::CLUSTER.with(Sets::LOCAL),
            reserved: 0,
            service: ServiceId::new(service),
            generation: U32::new(generation),
            next_hop: NextHopId::new(place as u32),
            next_hop_generation: U32::ZERO,
        };
        backends.insert(id, backend);
    }

    pub(crate) fn ring(&mut self, service: u32, scope: Scope, backends: &[u32], when_empty: WhenEmpty) {
        let index = 2 * service + scope as u32;
        let offset = 1_000 * index;
        for (slot, id) in (offset..).zip(backends) {
            self.memory.rings.insert(slot, BackendId::new(*id));
        }
        let length = u16::try_from(backends.len()).expect("a short ring");
        self.memory.services.insert(index, RingWord::new(offset, length, when_empty, 1));
    }

    /// Runs NAT points 1 and 3.
    pub(crate) fn ingress(&self, frame: &mut Buffer, hook: Hook, local: bool) -> Verdict {
        pipeline::ingress(frame, &self.memory, hook, if local { 0 } else { DEVICE })
    }

    /// Runs NAT points 2 and 4.
    pub(crate) fn egress(&self, frame: &mut Buffer) -> Verdict {
        pipeline::egress(frame, &self.memory)
    }

    /// Sends a packet through one ingress and one egress, as the stack would, and returns what comes out with the reasons
    /// of both verdicts. Panics where the packet does not come out.
    #[track_caller]
    pub(crate) fn send(&self, from: From, segment: &Segment<A>) -> (Segment<A>, [Counter; 2]) {
        let mut frame = segment.frame();
        let inward = match from {
            From::Device => self.ingress(&mut frame, Hook::Tc, false),
            From::Host => self.ingress(&mut frame, Hook::Host, true),
        };
        let expected = if from == From::Host { Action::Forward } else { Action::Pass };
        assert_eq!(inward.action, expected, "{inward:?} for {segment:?}");
        let outward = self.egress(&mut frame);
        assert_eq!(outward.action, Action::Pass, "{outward:?} for {segment:?}");
        (Segment::read(&frame), [inward.counter, outward.counter])
    }

    /// The verdict on a packet that goes no further than its ingress, and the frame it left.
    #[track_caller]
    pub(crate) fn refused(&self, from: From, segment: &Segment<A>) -> (Action, Counter, Buffer) {
        let mut frame = segment.frame();
        let verdict = match from {
            From::Device => self.ingress(&mut frame, Hook::Tc, false),
            From::Host => self.ingress(&mut frame, Hook::Host, true),
        };
        (verdict.action, verdict.counter, frame)
    }

    /// The kinds of all conntrack entries, sorted.
    pub(crate) fn kinds(&self) -> Vec<EntryKind> {
        let mut kinds: Vec<EntryKind> = self.entries().iter().map(|entry| entry.kind).collect();
        kinds.sort();
        kinds
    }

    pub(crate) fn entries(&self) -> Vec<Conntrack<A>> {
        A::tables(&self.memory).conntrack.borrow().values().copied().collect()
    }

    /// The only entry of a kind.
    #[track_caller]
    pub(crate) fn entry(&self, kind: EntryKind) -> Conntrack<A> {
        let found: Vec<_> = self.entries().into_iter().filter(|entry| entry.kind == kind).collect();
        match found.as_slice() {
            [entry] => *entry,
            other => panic!("{} entries of {kind:?}: {other:?}", other.len()),
        }
    }

    /// Connections counted for a service and its backend.
    pub(crate) fn connections(&self, service: u32, backend: u32) -> u64 {
        A::tables(&self.memory).connections.borrow().get(&(service, backend)).copied().unwrap_or(0)
    }

    pub(crate) fn counted(&self, counter: Counter) -> u64 {
        self.memory.counters.borrow().get(&counter).copied().unwrap_or(0)
    }

    /// Lets time pass.
    pub(crate) fn pass_seconds(&mut self, seconds: u32) {
        self.memory.now = self.memory.now.wrapping_add(seconds * HZ);
    }
}
