//! The life of a flow: phases and timeouts.
//!
//! ```text
//! client's entry   OPENING ---------- its packet proves that it saw the answer ---------> OPEN -> CLOSING -> CLOSED
//! backend's entry  OPENING -> ANSWERED by the SYN-ACK ---- the client's proof ----------> OPEN -> CLOSING -> CLOSED
//! UDP, the latter  OPENING ---------- a reply ------------------------------------------> OPEN
//! ```
//! What ends a connection counts only where it fits what the other end acknowledged (RFC 5961 section 3): one who guesses
//! addresses and ports must not be able to shorten its life.

use crate::{
    conntrack::{Conntrack, EntryKind, Phase},
    family::Addr,
    flow::Flow,
    fragment::Part,
    protocol::Protocol,
    tables::Tables,
    wire::l4::TcpFlags,
};

/// How long a flow lives without a packet where nothing else is configured, in seconds.
///
/// TCP established: a day, as kube-proxy sets `nf_conntrack` (RFC 5382 asks for 2 h 4 min or more), and an hour once one
/// side has closed (its `tcpCloseWaitTimeout`). UDP: as the kernel's `udp_timeout` and `udp_timeout_stream`.
const fn default_seconds(protocol: Protocol, phase: Phase) -> u32 {
    match (protocol, phase) {
        (Protocol::UDP, Phase::OPENING) => 30,
        (Protocol::UDP, _) => 180,
        (_, Phase::OPENING | Phase::ANSWERED) => 60,
        (_, Phase::OPEN) => 86_400,
        (_, Phase::HALF_CLOSED) => 3_600,
        (_, Phase::CLOSING) => 120,
        _ => 10,
    }
}

/// How long flows live, as one word ([`crate::settings::Setting::Timeouts`]): seconds of open TCP connections in bits 0..20,
/// of half-closed ones in 20..40, of UDP without an answer in 40..52, with one in 52..64. Zeroes: the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timeouts(pub u64);

impl Timeouts {
    /// Nothing is configured.
    pub const DEFAULT: Self = Self(0);
    /// The most seconds that TCP can have.
    pub const LONGEST_TCP: u32 = (1 << 20) - 1;
    /// The most seconds that UDP can have.
    pub const LONGEST_UDP: u32 = (1 << 12) - 1;

    /// Packs seconds; 0 is the default, and what is too long the longest.
    pub const fn new(open: u32, half_closed: u32, udp: u32, udp_stream: u32) -> Self {
        const fn at(seconds: u32, longest: u32, shift: u32) -> u64 {
            (if seconds < longest { seconds } else { longest } as u64) << shift
        }
        let tcp = at(open, Self::LONGEST_TCP, 0) | at(half_closed, Self::LONGEST_TCP, 20);
        Self(tcp | at(udp, Self::LONGEST_UDP, 40) | at(udp_stream, Self::LONGEST_UDP, 52))
    }

    /// How long a flow lives without a packet, in seconds.
    pub const fn seconds(self, protocol: Protocol, phase: Phase) -> u32 {
        let configured = match (protocol, phase) {
            (Protocol::UDP, Phase::OPENING) => (self.0 >> 40) as u32 & Self::LONGEST_UDP,
            (Protocol::UDP, _) => (self.0 >> 52) as u32,
            (_, Phase::OPEN) => self.0 as u32 & Self::LONGEST_TCP,
            (_, Phase::HALF_CLOSED) => (self.0 >> 20) as u32 & Self::LONGEST_TCP,
            _ => 0,
        };
        if configured == 0 { default_seconds(protocol, phase) } else { configured }
    }
}

/// Whether an entry last refreshed at `stamp` has outlived its `timeout`. Jiffies wrap: the comparison is of their distance.
#[inline(always)]
pub fn is_expired(timeout: u32, stamp: u32, now: u32, ticks_per_second: u32) -> bool {
    let age = now.wrapping_sub(stamp);
    // Another CPU may have met the entry since we read the clock: a stamp ahead of us is young, not ages old.
    age <= u32::MAX / 2 && age > timeout.wrapping_mul(ticks_per_second)
}

/// The phase of a flow whose two counting entries have these. A TCP connection is open once the client proved it; it ends
/// by either side.
#[inline(always)]
pub fn flow_phase(protocol: Protocol, original: Phase, answer: Phase) -> Phase {
    let ending = answer.0 >= Phase::CLOSING.0;
    if protocol == Protocol::TCP && original.0.max(answer.0) == Phase::CLOSING.0 && original.0 != answer.0 {
        Phase::HALF_CLOSED
    } else if protocol == Protocol::UDP || ending {
        original.max(answer)
    } else {
        original
    }
}

/// Where one direction of a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stand {
    /// Its entry's phase.
    pub phase: Phase,
    /// Its entry's [`Conntrack::mark`].
    pub mark: u32,
}

impl Stand {
    /// Of a direction without an entry.
    pub const NONE: Self = Self { phase: Phase::OPENING, mark: 0 };

    /// Of an entry.
    #[inline(always)]
    pub fn of<A>(entry: &Conntrack<A>) -> Self {
        Self { phase: entry.phase, mark: entry.mark.get() }
    }

    #[inline(always)]
    fn store<A>(self, entry: &mut Conntrack<A>) {
        entry.phase = self.phase;
        entry.mark.set(self.mark);
    }
}

/// What may lie between the end of a SYN-ACK and what the client acknowledges of it: TCP options count as its payload.
const OPTIONS: u32 = 40;
/// How far behind what the other end acknowledged a FIN or RST may lie: a keepalive or a repetition.
const BEHIND: u32 = 1 << 16;
/// How far ahead: data on the way. The larger, the easier to guess.
const AHEAD: u32 = 1 << 20;

/// What a packet tells TCP and SCTP entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// Flags.
    pub flags: TcpFlags,
    /// [`Flow::sequence`]
    pub sequence: u32,
    /// [`Flow::acknowledgment`]
    pub acknowledgment: u32,
    /// [`Flow::end`]
    pub end: u32,
}

impl Told {
    /// What is told by a packet.
    #[inline(always)]
    pub const fn by<A: Addr>(flow: &Flow<A>) -> Self {
        Self { flags: flow.flags, sequence: flow.sequence, acknowledgment: flow.acknowledgment, end: flow.end() }
    }

    /// Whether the packet's place in the stream is one that the other end waits for.
    #[inline(always)]
    const fn fits(&self, acknowledged: u32) -> bool {
        self.sequence.wrapping_sub(acknowledged).wrapping_add(BEHIND) < AHEAD + BEHIND
    }

    /// The phase after a FIN or RST in an open connection. Only an RST with the very number that the other end waits for
    /// ends it, as at the end itself (RFC 5961 section 3.2); another one counts as a FIN, which ends nothing soon. Else
    /// thousands of guesses would end an idle connection.
    #[inline(always)]
    const fn ending(&self, phase: Phase, acknowledged: u32) -> Phase {
        if self.flags.has(TcpFlags::RST) && self.sequence == acknowledged {
            Phase::CLOSED
        } else if phase.0 < Phase::CLOSING.0
            && self.flags.has(TcpFlags(TcpFlags::FIN.0 | TcpFlags::RST.0))
            && self.fits(acknowledged)
        {
            Phase::CLOSING
        } else {
            phase
        }
    }
}

/// Where both directions stand after a packet of the client. A flow that opens is proved by what acknowledges the
/// SYN-ACK: nobody else knows its number.
#[inline(always)]
pub const fn client_told(protocol: Protocol, client: Stand, backend: Stand, told: &Told) -> (Stand, Stand) {
    let tcp = protocol.0 == Protocol::TCP.0;
    let (mut client, mut backend) = (client, backend);
    let proved = told.flags.has(TcpFlags::ACK)
        && !told.flags.has(TcpFlags(TcpFlags::SYN.0 | TcpFlags::RST.0))
        && backend.phase.0 == Phase::ANSWERED.0
        && backend.mark.wrapping_sub(told.acknowledgment) <= if tcp { OPTIONS } else { 0 };
    if proved {
        // Even if somebody's RST came before: a client that gave up does not go on.
        client = Stand { phase: Phase::OPEN, mark: told.acknowledgment };
        // The backend will acknowledge this very packet first.
        backend = Stand { phase: Phase::OPEN, mark: told.sequence };
    } else if backend.phase.0 <= Phase::ANSWERED.0 {
        if told.flags.has(TcpFlags::RST) {
            client.phase = Phase::CLOSED;
        }
        return (client, backend);
    }
    // The client's packets carry the tag that only the ends know.
    let acknowledged = if tcp { backend.mark } else { client.mark };
    client.phase = told.ending(client.phase, acknowledged);
    (client, backend)
}

/// Where the backend's direction stands after its packet.
#[inline(always)]
pub const fn backend_told(protocol: Protocol, client: Stand, backend: Stand, told: &Told) -> Stand {
    let mut backend = backend;
    if backend.phase.0 > Phase::ANSWERED.0 {
        // SCTP: a backend is not a stranger.
        let acknowledged = if protocol.0 == Protocol::TCP.0 { client.mark } else { told.sequence };
        backend.phase = told.ending(backend.phase, acknowledged);
    } else if told.flags.has(TcpFlags::RST) {
        backend.phase = Phase::CLOSED;
    } else if told.flags.has(TcpFlags::SYN) {
        backend = Stand { phase: Phase::ANSWERED, mark: told.end };
    }
    backend
}

/// Lets a connection begin or end by a packet that may tell so. `entry` is a copy of what the packet met. Returns whether
/// it proved a half-open flow.
#[inline(always)]
pub(crate) fn advance<A: Addr, W: Tables<A>>(world: &W, flow: &Flow<A>, entry: &Conntrack<A>) -> bool {
    // A later fragment has no flags that could tell.
    if entry.protocol == Protocol::UDP || flow.part() == Part::LATER {
        return false;
    }
    let told = Told::by(flow);
    let original = entry.kind == EntryKind::ORIGINAL;
    let other_key = if original { entry.answer_key() } else { entry.original_key() };
    let other = world.conntrack(&other_key, |other| Stand::of(other)).unwrap_or(Stand::NONE);
    let before = Stand::of(entry);
    let (own, other_after) = if original {
        client_told(entry.protocol, before, other, &told)
    } else {
        (backend_told(entry.protocol, other, before, &told), other)
    };
    if own != before {
        world.conntrack(&flow.key, |entry| own.store(entry));
    }
    if other_after != other {
        world.conntrack(&other_key, |other| other_after.store(other));
    }
    original && other.phase == Phase::ANSWERED && other_after.phase == Phase::OPEN
}

/// Marks an entry as met by a packet that neither begins nor ends anything.
#[inline(always)]
pub fn touch<A: Addr>(entry: &mut Conntrack<A>, flow: &Flow<A>, now: u32) {
    if flow.part() != Part::LATER {
        if entry.protocol == Protocol::TCP {
            if entry.phase.0 >= Phase::OPEN.0 && flow.flags.acknowledges() {
                entry.mark.set(flow.acknowledgment);
            }
        } else if entry.protocol == Protocol::UDP && entry.kind != EntryKind::ORIGINAL {
            entry.phase = Phase::OPEN;
        }
    }
    entry.stamp.set(now);
    entry.packets.set(entry.packets.get().wrapping_add(1));
    entry.bytes.set(entry.bytes.get().wrapping_add(flow.bytes()));
}
