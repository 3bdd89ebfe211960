//! Tags, options and extension headers: a packet that wears them is treated as it would be without.

use lb_common::{
    conntrack::EntryKind,
    pipeline::Hook,
    protocol::Protocol,
    testing::Buffer,
    verdict::{Action, Counter},
};

use crate::{
    ip::Ip,
    node::{From, KEEP, MASQUERADE, Node, Place, Rules, host, other_vip, outside, pod, remote_backend, vip},
    segment::{ACK, SYN, SYN_ACK, Segment, first, sum, tcp, udp},
};

both! {
    a_flow_is_the_same_in_every_dress,
    a_refusal_keeps_its_tags,
    what_cannot_be_refused_in_place_is_dropped,
    a_third_tag_is_not_read,
}

/// What may stand before or behind a network header.
#[derive(Clone, Debug, Default)]
struct Dress {
    /// Ethertypes of tags.
    tags: Vec<[u8; 2]>,
    /// IPv4: options. IPv6: extension headers, each by its number and its bytes behind the next header's number.
    inner: Vec<(u8, Vec<u8>)>,
}

impl Dress {
    fn put_on<A: Ip>(&self, frame: &Buffer) -> Buffer {
        let mut frame = frame.0.clone();
        if A::is_v6() {
            let payload = frame.split_off(54);
            let last = frame[20];
            let mut extensions = Vec::new();
            for (index, (_, bytes)) in self.inner.iter().enumerate() {
                extensions.push(self.inner.get(index + 1).map_or(last, |(next, _)| *next));
                extensions.extend(bytes);
            }
            frame[20] = self.inner.first().map_or(last, |(first, _)| *first);
            let length = u16::try_from(payload.len() + extensions.len()).expect("a small packet");
            frame[18..20].copy_from_slice(&length.to_be_bytes());
            frame.extend(extensions);
            frame.extend(payload);
        } else {
            let options: Vec<u8> = self.inner.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            let length = u16::from_be_bytes([frame[16], frame[17]]) + u16::try_from(options.len()).expect("a few");
            frame[14] += u8::try_from(options.len() / 4).expect("a few");
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            frame.splice(34..34, options.iter().copied());
            frame[24..26].fill(0);
            let checksum = !sum(&[&frame[14..34 + options.len()]]);
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        for tag in self.tags.iter().rev() {
            frame.splice(12..12, [tag[0], tag[1], 0x20, 5]);
        }
        Buffer(frame)
    }
}

const VLAN: [u8; 2] = [0x81, 0x00];
const QINQ: [u8; 2] = [0x88, 0xa8];

fn dresses<A: Ip>() -> Vec<Dress> {
    let eight = |number: u8, rest: [u8; 7]| (number, rest.to_vec());
    let inners: Vec<Vec<(u8, Vec<u8>)>> = if A::is_v6() {
        let hop_by_hop = eight(0, [0, 5, 2, 0, 0, 1, 0]);
        let destination = (60, [vec![1], vec![1, 12], vec![0; 12]].concat());
        // Nothing left of the route: the destination is where it goes.
        let routing = eight(43, [0, 4, 0, 0, 0, 0, 0]);
        let authentication = (51, [vec![4], vec![0; 22]].concat());
        vec![
            vec![hop_by_hop.clone()],
            vec![authentication.clone()],
            vec![hop_by_hop, destination.clone(), routing, authentication, destination.clone()],
            vec![destination; 6],
        ]
    } else {
        vec![vec![(0, vec![1, 1, 1, 0])], vec![(0, vec![0; 40])]]
    };
    let mut dresses: Vec<Dress> =
        [vec![VLAN], vec![QINQ], vec![QINQ, VLAN]].into_iter().map(|tags| Dress { tags, inner: Vec::new() }).collect();
    for inner in inners {
        dresses.push(Dress { tags: Vec::new(), inner: inner.clone() });
        dresses.push(Dress { tags: vec![VLAN], inner });
    }
    dresses
}

/// A packet plain and dressed, each at a node of its own; both do the same.
struct Pair<A: Ip> {
    plain: Node<A>,
    dressed: Node<A>,
    dress: Dress,
}

impl<A: Ip> Pair<A> {
    #[track_caller]
    fn ingress(&self, frame: &mut Buffer, hook: Hook, local: bool) -> Action {
        let mut other = self.dress.put_on::<A>(frame);
        let verdict = self.plain.ingress(frame, hook, local);
        assert_eq!(self.dressed.ingress(&mut other, hook, local), verdict, "{:?}", self.dress);
        self.check(frame, &other);
        verdict.action
    }

    #[track_caller]
    fn egress(&self, frame: &mut Buffer) -> Action {
        let mut other = self.dress.put_on::<A>(frame);
        let verdict = self.plain.egress(frame);
        assert_eq!(self.dressed.egress(&mut other), verdict, "{:?}", self.dress);
        self.check(frame, &other);
        verdict.action
    }

    /// Same bytes but for the dress, and flows that count more bytes but are else the same.
    #[track_caller]
    fn check(&self, frame: &Buffer, other: &Buffer) {
        assert_eq!(*other, self.dress.put_on::<A>(frame), "{:?}", self.dress);
        let entries = |node: &Node<A>| {
            let mut entries = node.entries();
            for entry in &mut entries {
                entry.bytes = 0.into();
            }
            entries
        };
        assert_eq!(entries(&self.dressed), entries(&self.plain), "{:?}", self.dress);
    }
}

fn a_flow_is_the_same_in_every_dress<A: Ip>() {
    for dress in dresses::<A>() {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            for (client, hook, local) in
                [(outside::<A>(), Hook::Tc, false), (pod(), Hook::Xdp, false), (host(), Hook::Host, true)]
            {
                for rule in [KEEP, MASQUERADE] {
                    let node = Node::<A>::with_backend(protocol, Rules::all(rule), remote_backend(), Place::Remote);
                    let pair = Pair { plain: Node::copy_of(&node), dressed: node, dress: dress.clone() };
                    let mut frame = first(protocol, client, vip()).frame();
                    for _ in 0..2 {
                        frame = first(protocol, client, vip()).frame();
                        pair.ingress(&mut frame, hook, local);
                        pair.egress(&mut frame);
                    }
                    let seen = Segment::<A>::read(&frame);
                    assert_eq!(seen.destination, remote_backend());
                    let mut answer = seen.answer(SYN_ACK).frame();
                    // XDP leaves a host's answer to tc.
                    pair.ingress(&mut answer, Hook::Xdp, false);
                    let mut answer = seen.answer(SYN_ACK).frame();
                    if pair.ingress(&mut answer, Hook::Tc, false) == Action::Pass {
                        pair.egress(&mut answer);
                    }
                    let back = Segment::<A>::read(&answer);
                    assert_eq!((back.source, back.destination), (vip(), client));
                }
            }
        }
    }
}

/// A node that knows nothing of the packet's flow refuses it.
fn refusing<A: Ip>() -> Node<A> {
    Node::with_backend(Protocol::TCP, Rules::all(KEEP), remote_backend(), Place::Remote)
}

fn a_refusal_keeps_its_tags<A: Ip>() {
    for dress in dresses::<A>().into_iter().filter(|dress| dress.inner.is_empty()) {
        for sent in [tcp::<A>(outside(), other_vip(), SYN), tcp(outside(), vip(), ACK), udp(outside(), vip())] {
            let mut node = refusing::<A>();
            A::tables_mut(&mut node.memory).vips.push(other_vip::<A>().addr);
            let pair = Pair { plain: Node::copy_of(&node), dressed: node, dress: dress.clone() };
            assert_eq!(pair.ingress(&mut sent.frame(), Hook::Tc, false), Action::Reply);
        }
    }
}

fn what_cannot_be_refused_in_place_is_dropped<A: Ip>() {
    for dress in dresses::<A>().into_iter().filter(|dress| !dress.inner.is_empty()) {
        for sent in [tcp::<A>(outside(), vip(), ACK), udp(outside(), vip())] {
            let node = refusing::<A>();
            let mut frame = dress.put_on::<A>(&sent.frame());
            let verdict = node.ingress(&mut frame, Hook::Tc, false);
            assert_eq!((verdict.action, verdict.counter), (Action::Drop, Counter::ReplyFailed));
        }
    }
}

#[track_caller]
fn untouched<A: Ip>(dress: &Dress, reason: Counter) {
    let node = refusing::<A>();
    node.send(From::Device, &tcp(outside(), vip(), SYN));
    let sent = dress.put_on::<A>(&tcp::<A>(outside(), vip(), ACK).frame());
    let mut frame = sent.clone();
    let verdict = node.ingress(&mut frame, Hook::Tc, false);
    assert_eq!((verdict.action, verdict.counter), (Action::Pass, reason), "{dress:?}");
    let verdict = node.egress(&mut frame);
    assert_eq!((verdict.action, verdict.counter), (Action::Pass, reason), "{dress:?}");
    assert_eq!(frame, sent);
    assert_eq!(node.kinds(), [EntryKind::ORIGINAL, EntryKind::REPLY]);
}

fn a_third_tag_is_not_read<A: Ip>() {
    untouched::<A>(&Dress { tags: vec![QINQ, VLAN, VLAN], inner: Vec::new() }, Counter::Vlan);
}

#[test]
fn v6_chains_that_end_nowhere_are_passed() {
    let extension = |number: u8, length: u8, rest: u8| (number, [vec![length, 0, rest], vec![0; 4]].concat());
    for (inner, reason) in [
        // Too many.
        (vec![extension(60, 0, 0); 7], Counter::ExtensionHeader),
        // Segments left: the packet goes elsewhere first.
        (vec![extension(43, 0, 1)], Counter::ExtensionHeader),
        // Longer than the packet.
        (vec![extension(60, 200, 0)], Counter::Malformed),
        (vec![extension(51, 255, 0)], Counter::Malformed),
        // What is behind it is too far in.
        (vec![(60, [vec![31, 1], vec![0; 253]].concat())], Counter::ExtensionHeader),
    ] {
        untouched::<[u8; 16]>(&Dress { tags: Vec::new(), inner }, reason);
    }
}
