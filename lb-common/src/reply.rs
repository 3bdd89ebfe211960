//! Answers built in place: the packet that cannot be served becomes the refusal of itself.
//!
//! On the checksums of an answer that leaves a tc hook: the packet it is made of may have a partial checksum, and the
//! kernel will then still complete it. For an RST the field is written accordingly ([`Packet::is_partial`]). For an ICMP
//! error made of a UDP packet the place where the kernel would write (byte 6 of the UDP header) is byte 6 of the ICMP
//! header, which is unused. The kernel puts the complement of the message's sum there, without a pseudo header. An ICMP
//! message adds up to zero by itself, so that it writes a (negative) zero. An ICMPv6 message does so only with its pseudo
//! header: the pseudo header's sum stands in for it until it is overwritten.

use zerocopy::IntoBytes;

use crate::{
    checksum::{Checksum, Sum},
    family::Family,
    flow::Flow,
    packet::Packet,
    protocol::Protocol,
    verdict::{Counter, Verdict},
    wire::{
        eth::Eth,
        icmp::Unreachable,
        l4::{Ports, Tcp, TcpFlags, Udp},
    },
};

/// Turns the packet into its refusal (design.md X14): RST for TCP, "port unreachable" for the others. An RST is never
/// answered.
#[inline(never)]
pub fn refuse<F: Family, P: Packet>(packet: &mut P, flow: &Flow<F::Addr>, reason: Counter) -> Verdict {
    // Behind options or extension headers there is no room for an answer where a partial checksum would be completed.
    let built = if flow.l4() != flow.l3().wrapping_add(size_of::<F::Header>()) {
        None
    } else if flow.protocol() != Protocol::TCP {
        unreachable::<F, P>(packet, flow)
    } else if flow.flags.has(TcpFlags::RST) {
        return Verdict::drop(Counter::StrayReset);
    } else {
        reset::<F, P>(packet, flow)
    };
    if built.is_some() { Verdict::reply(reason) } else { Verdict::drop(Counter::ReplyFailed) }
}

/// RFC 9293 section 3.10.7.1: the reset for a segment that belongs to no connection.
#[inline(always)]
fn reset<F: Family, P: Packet>(packet: &mut P, flow: &Flow<F::Addr>) -> Option<()> {
    let tcp: Tcp = *packet.get(flow.l4())?;
    let (sequence, acknowledgment, flags) = if tcp.flags.has(TcpFlags::ACK) {
        (tcp.acknowledgment, [0; 4], TcpFlags::RST)
    } else {
        let taken = (flow.l4_length().wrapping_sub(tcp.header_length()) as u32)
            .wrapping_add(u32::from(tcp.flags.has(TcpFlags::SYN)))
            .wrapping_add(u32::from(tcp.flags.has(TcpFlags::FIN)));
        ([0; 4], u32::from_be_bytes(tcp.sequence).wrapping_add(taken).to_be_bytes(), TcpFlags::RST_ACK)
    };
    packet.resize(flow.l4().wrapping_add(Tcp::LENGTH))?;
    let partial = packet.is_partial(flow.l4().wrapping_add(Tcp::CHECKSUM));
    // Written in place: a BPF stack has no room for it.
    let answer: &mut Tcp = packet.get_mut(flow.l4())?;
    answer.ports = Ports { source: flow.key.0.destination_port, destination: flow.key.0.source_port };
    answer.sequence = sequence;
    answer.acknowledgment = acknowledgment;
    answer.data_offset = 5 << 4;
    answer.flags = flags;
    answer.window = [0; 2];
    answer.checksum = Checksum::ZERO;
    answer.urgent = [0; 2];
    let length = Tcp::LENGTH as u16;
    let pseudo = F::pseudo(flow.key.0.destination, flow.key.0.source, Protocol::TCP.0, length);
    answer.checksum = if partial { pseudo.partial() } else { pseudo.add(answer.as_bytes()).checksum() };
    turn::<F, P>(packet, flow, Protocol::TCP.0, length)
}

/// RFC 792 and RFC 4443: port unreachable, with the header in question and eight bytes behind it.
#[inline(always)]
fn unreachable<F: Family, P: Packet>(packet: &mut P, flow: &Flow<F::Addr>) -> Option<()> {
    let (kind, code) = F::PORT_UNREACHABLE;
    let length = size_of::<Unreachable<F::Header>>();
    // The answer is longer than what it quotes: that is still there afterwards.
    packet.resize(flow.l4().wrapping_add(length))?;
    let header: F::Header = *packet.get(flow.l3())?;
    let start: [u8; 8] = *packet.get(flow.l4())?;
    let field = flow.l4().wrapping_add(Udp::CHECKSUM);
    let partial = F::IPV6 && flow.protocol() == Protocol::UDP && packet.is_partial(field);
    let answer: &mut Unreachable<F::Header> = packet.get_mut(flow.l4())?;
    answer.header = header;
    answer.start = start;
    answer.kind = kind;
    answer.code = code;
    answer.checksum = Checksum::ZERO;
    answer.unused = [0; 4];
    let sum = if F::IPV6 {
        F::pseudo(flow.key.0.destination, flow.key.0.source, F::ICMP, length as u16)
    } else {
        Sum::default()
    };
    answer.checksum = sum.add(answer.as_bytes()).checksum();
    if partial {
        let [high, low] = sum.partial().0;
        answer.unused = [0, 0, high, low];
    }
    turn::<F, P>(packet, flow, F::ICMP, length as u16)
}

/// Swaps the MACs and writes a network header for the way back.
#[inline(always)]
fn turn<F: Family, P: Packet>(packet: &mut P, flow: &Flow<F::Addr>, protocol: u8, payload: u16) -> Option<()> {
    let eth: &mut Eth = packet.get_mut(0)?;
    core::mem::swap(&mut eth.source, &mut eth.destination);
    *packet.get_mut(flow.l3())? = F::header(flow.key.0.destination, flow.key.0.source, protocol, payload);
    Some(())
}
