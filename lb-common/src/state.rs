//! The life of a flow: phases and timeouts.

use crate::{
    conntrack::{Conntrack, EntryKind, Phase},
    family::Addr,
    flow::Flow,
    fragment::Part,
    protocol::Protocol,
    wire::l4::TcpFlags,
};

/// How long a flow lives without a packet, in seconds.
///
/// TCP established: a day, as kube-proxy sets `nf_conntrack` (RFC 5382 asks for 2 h 4 min or more). UDP: as its
/// `udp_timeout` and `udp_timeout_stream`.
pub const fn timeout_seconds(protocol: Protocol, phase: Phase) -> u32 {
    match (protocol, phase) {
        (Protocol::UDP, Phase::OPENING) => 30,
        (Protocol::UDP, _) => 180,
        (_, Phase::OPENING) => 60,
        (_, Phase::OPEN) => 86_400,
        (_, Phase::CLOSING) => 120,
        _ => 10,
    }
}

/// Whether an entry last refreshed at `stamp` has outlived its phase. Jiffies wrap: the comparison is of their distance.
#[inline(always)]
pub fn is_expired(protocol: Protocol, phase: Phase, stamp: u32, now: u32, ticks_per_second: u32) -> bool {
    let age = now.wrapping_sub(stamp);
    // Another CPU may have met the entry since we read the clock: a stamp ahead of us is young, not ages old.
    age <= u32::MAX / 2 && age > timeout_seconds(protocol, phase).wrapping_mul(ticks_per_second)
}

/// The phase after a packet with `flags` met an entry of `kind` in `phase`.
///
/// The original entry sees the client's packets: a segment without SYN means that the server answered. The others
/// see the backend's: any packet is the answer. FIN and RST only ever move forward, a SYN that opens starts anew.
#[inline(always)]
pub const fn next_phase(protocol: Protocol, kind: EntryKind, phase: Phase, flags: TcpFlags) -> Phase {
    let original = matches!(kind, EntryKind::ORIGINAL);
    if protocol.0 == Protocol::UDP.0 {
        return if original { phase } else { Phase::OPEN };
    }
    if flags.has(TcpFlags::RST) {
        return Phase::CLOSED;
    }
    if phase.0 >= Phase::CLOSING.0 {
        return phase;
    }
    if flags.has(TcpFlags::FIN) {
        return Phase::CLOSING;
    }
    if original && flags.has(TcpFlags::SYN) { phase } else { Phase::OPEN }
}

/// Marks an entry as met by a packet.
#[inline(always)]
pub fn touch<A: Addr>(entry: &mut Conntrack<A>, flow: &Flow<A>, now: u32) {
    // A later fragment has no flags that could tell.
    if flow.part() != Part::LATER {
        entry.phase = next_phase(entry.protocol, entry.kind, entry.phase, flow.flags);
    }
    entry.stamp.set(now);
    entry.packets.set(entry.packets.get().wrapping_add(1));
    entry.bytes.set(entry.bytes.get().wrapping_add(flow.bytes()));
}
