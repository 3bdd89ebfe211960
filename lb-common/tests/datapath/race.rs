//! Two CPUs at once: another CPU's packet comes between any two steps of a packet that makes a flow.

use std::cell::Cell;

use lb_common::{
    affinity::Client,
    backend::{Backend, BackendId, NextHop, NextHopId, ServiceId},
    conntrack::{Conntrack, EntryKind},
    family::Addr,
    fragment::{Fragment, FragmentKey},
    frontend::{Frontend, FrontendId, FrontendKey, FrontendWord, PrefixFlags, Scope},
    half_open::HalfOpen,
    pipeline::{self, Hook},
    protocol::Protocol,
    ring::RingWord,
    settings::Setting,
    tables::{InsertError, Scratch, Tables, World},
    testing::{Buffer, Memory},
    tuple::FlowKey,
    udp_socket::Peer,
    verdict::{Action, Counter, Verdict},
};

use crate::{
    ip::{Ip, net},
    node::{DEVICE, From, KEEP, MASQUERADE, Node, Place, Rules, outside, remote_backend, vip},
    segment::{SYN, Segment, first},
};

both! { one_flow_made_on_two_cpus_is_whole, a_port_taken_meanwhile_is_not_shared }

/// Tables in which another CPU handles a frame before the `at`th insertion.
struct Interrupted<'a> {
    memory: &'a Memory,
    at: usize,
    inserted: Cell<usize>,
    frame: &'a Buffer,
    other: Cell<Option<Verdict>>,
}

impl World for Interrupted<'_> {
    fn now(&self) -> u32 {
        self.memory.now()
    }
    fn count(&self, counter: Counter) {
        self.memory.count(counter);
    }
    fn setting(&self, setting: Setting) -> u64 {
        self.memory.setting(setting)
    }
    fn ring(&self, service: ServiceId, scope: Scope) -> RingWord {
        self.memory.ring(service, scope)
    }
    fn slot(&self, index: u32) -> Option<BackendId> {
        self.memory.slot(index)
    }
    fn affinity(&self, service: ServiceId) -> u64 {
        self.memory.affinity(service)
    }

    fn add_traffic(&self, service: ServiceId, packets: u64, bytes: u64) {
        self.memory.add_traffic(service, packets, bytes);
    }
    fn socket_slot(&self, index: u32) -> u64 {
        self.memory.socket_slot(index)
    }
    fn set_socket_slot(&self, index: u32, word: u64) {
        self.memory.set_socket_slot(index, word);
    }
}

impl<A: Addr> Tables<A> for Interrupted<'_>
where
    Memory: Tables<A>,
{
    fn frontend(&self, key: &FrontendKey<A>) -> Option<FrontendWord> {
        self.memory.frontend(key)
    }
    fn record(&self, id: FrontendId) -> Option<&Frontend<A>> {
        self.memory.record(id)
    }
    fn is_vip(&self, addr: &A) -> bool {
        self.memory.is_vip(addr)
    }
    fn prefix(&self, addr: &A) -> PrefixFlags {
        self.memory.prefix(addr)
    }
    fn is_allowed(&self, service: ServiceId, source: &A) -> bool {
        self.memory.is_allowed(service, source)
    }

    fn backend(&self, id: BackendId) -> Option<&Backend<A>> {
        self.memory.backend(id)
    }
    fn next_hop(&self, id: NextHopId) -> Option<&NextHop<A>> {
        self.memory.next_hop(id)
    }
    fn count_connection(&self, service: ServiceId, backend: BackendId) {
        Tables::<A>::count_connection(self.memory, service, backend);
    }
    fn scratch<R>(&self, visit: impl FnOnce(&mut Scratch<A>) -> R) -> Option<R> {
        self.memory.scratch(visit)
    }
    fn conntrack<R>(&self, key: &FlowKey<A>, visit: impl FnOnce(&mut Conntrack<A>) -> R) -> Option<R> {
        self.memory.conntrack(key, visit)
    }
    fn half_open<R>(&self, index: u32, visit: impl FnOnce(&mut HalfOpen<A>) -> R) -> Option<R> {
        self.memory.half_open(index, visit)
    }
    fn insert(&self, key: &FlowKey<A>, entry: &Conntrack<A>) -> Result<(), InsertError> {
        let step = self.inserted.get();
        self.inserted.set(step + 1);
        if step == self.at {
            self.other.set(Some(pipeline::ingress(&mut self.frame.clone(), self.memory, Hook::Tc, DEVICE)));
        }
        self.memory.insert(key, entry)
    }
    fn remove(&self, key: &FlowKey<A>) {
        self.memory.remove(key);
    }
    fn client<R>(&self, index: u32, visit: impl FnOnce(&mut Client<A>) -> R) -> Option<R> {
        self.memory.client(index, visit)
    }

    fn set_connected(&self, cookie: u64, peer: &Peer<A>) -> bool {
        self.memory.set_connected(cookie, peer)
    }
    fn remove_connected(&self, cookie: u64) {
        <Memory as Tables<A>>::remove_connected(self.memory, cookie);
    }
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment> {
        self.memory.fragment(key)
    }
    fn set_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment) {
        self.memory.set_fragment(key, fragment);
    }
}

/// Handles `sent` while another CPU handles `meanwhile` before the `at`th insertion; both verdicts, if it came so far.
fn interrupted<A: Ip>(
    node: &Node<A>,
    at: usize,
    sent: &Segment<A>,
    meanwhile: &Segment<A>,
) -> Option<(Verdict, Verdict)> {
    let frame = meanwhile.frame();
    let world = Interrupted { memory: &node.memory, at, inserted: Cell::new(0), frame: &frame, other: Cell::new(None) };
    let verdict = pipeline::ingress(&mut sent.frame(), &world, Hook::Tc, DEVICE);
    world.other.get().map(|other| (verdict, other))
}

/// Every flow has all its entries, and every entry its flow.
#[track_caller]
fn whole<A: Ip>(node: &Node<A>, at: usize) {
    let entries = node.entries();
    let originals: Vec<_> = entries.iter().filter(|entry| entry.kind == EntryKind::ORIGINAL).collect();
    let mut expected = 0;
    for original in originals {
        let per_flow = if original.has_source() { 4 } else { 2 };
        let own = entries.iter().filter(|entry| {
            (entry.client, entry.frontend, entry.backend) == (original.client, original.frontend, original.backend)
        });
        assert_eq!(own.count(), per_flow, "interrupted at {at}: {entries:?}");
        expected += per_flow;
    }
    assert_eq!(entries.len(), expected, "interrupted at {at}: {entries:?}");
}

fn one_flow_made_on_two_cpus_is_whole<A: Ip>() {
    for protocol in [Protocol::TCP, Protocol::UDP] {
        for (rule, steps) in [(KEEP, 2), (MASQUERADE, 4)] {
            for at in 0..steps {
                let node = Node::with_backend(protocol, Rules::all(rule), remote_backend::<A>(), Place::Remote);
                let sent = first(protocol, outside(), vip());
                let (one, two) = interrupted(&node, at, &sent, &sent).expect("as many insertions");
                // One may be lost; refusing it would end the connection that the other has made.
                for verdict in [one, two] {
                    assert!(matches!(verdict.action, Action::Pass | Action::Drop), "at {at}: {verdict:?}");
                }
                whole(&node, at);
                // The next packet goes through, and its answer.
                let (got, _) = node.send(From::Device, &sent);
                let (back, _) = node.send(From::Device, &got.answer(SYN));
                assert_eq!((back.source, back.destination), (vip(), outside()));
            }
        }
    }
}

fn a_port_taken_meanwhile_is_not_shared<A: Ip>() {
    for at in 0..4 {
        let node = Node::with_backend(Protocol::UDP, Rules::all(MASQUERADE), remote_backend::<A>(), Place::Remote);
        let sent = first(Protocol::UDP, outside(), vip());
        let mut meanwhile = sent.clone();
        meanwhile.source.addr = A::host(net::WORLD, 77);
        let (one, two) = interrupted(&node, at, &sent, &meanwhile).expect("as many insertions");
        assert_eq!((one.counter, two.counter), (Counter::NewFlow, Counter::NewFlow));
        whole(&node, at);
        assert_eq!(node.entries().len(), 8);
    }
}
