//! Verdicts, and the counter behind each reason.

use crate::{family::Addr, tuple::L4Addr};

/// What happens to a packet, and why. Every byte has a value: the BPF verifier refuses to return a register of which LLVM
/// left a part undefined, as it does with an enum's unused payload.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Verdict {
    /// What happens.
    pub action: Action,
    /// The reason, for the entry point to count.
    pub counter: Counter,
    reserved: u16,
    /// For [`Action::Forward`] the interface index; else zero.
    pub device: u32,
}

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Action {
    /// On to the next program and the stack, rewritten or untouched.
    Pass,
    /// Gone.
    Drop,
    /// The packet now holds our answer: back where it came from.
    Reply,
    /// An answer to a process of this host, rewritten: into the stack by way of `ballast0`.
    ToHost,
    /// From a process of this host, rewritten: out of the device with [this index](Verdict::device).
    Forward,
    /// Not decided yet: the fast path leaves it to the slow one. Never leaves the pipeline.
    Undecided,
}

impl Verdict {
    #[inline(always)]
    const fn new(action: Action, counter: Counter, device: u32) -> Self {
        Self { action, counter, reserved: 0, device }
    }

    /// [`Action::Pass`]
    #[inline(always)]
    pub const fn pass(reason: Counter) -> Self {
        Self::new(Action::Pass, reason, 0)
    }

    /// [`Action::Drop`]
    #[inline(always)]
    pub const fn drop(reason: Counter) -> Self {
        Self::new(Action::Drop, reason, 0)
    }

    /// [`Action::Reply`]
    #[inline(always)]
    pub const fn reply(reason: Counter) -> Self {
        Self::new(Action::Reply, reason, 0)
    }

    /// [`Action::ToHost`]
    #[inline(always)]
    pub const fn to_host(reason: Counter) -> Self {
        Self::new(Action::ToHost, reason, 0)
    }

    /// [`Action::Forward`]
    #[inline(always)]
    pub const fn forward(reason: Counter, device: u32) -> Self {
        Self::new(Action::Forward, reason, device)
    }

    /// [`Action::Undecided`]
    #[inline(always)]
    pub(crate) const fn undecided(reason: Counter) -> Self {
        Self::new(Action::Undecided, reason, 0)
    }
}

const _: () = assert!(size_of::<Verdict>() == 8);

/// What a socket hook does to a call, and why. No byte is undefined, for the reason [`Verdict`] has none, and whole words
/// of it lie where the verifier wants them on the stack.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
pub struct SocketVerdict<A> {
    /// For [`SocketAction::Rewrite`] the new destination; else [`L4Addr::NONE`].
    pub backend: L4Addr<A>,
    /// What happens.
    pub action: SocketAction,
    /// The reason, for the entry point to count.
    pub counter: Counter,
}

/// What a socket hook does to a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SocketAction {
    /// Left alone.
    Leave,
    /// The destination becomes another one.
    Rewrite,
    /// The call fails with the error that [`Counter::errno`] names.
    Refuse,
}

impl<A: Addr> SocketVerdict<A> {
    /// [`SocketAction::Leave`]
    #[inline(always)]
    pub const fn leave(reason: Counter) -> Self {
        Self { action: SocketAction::Leave, counter: reason, backend: L4Addr::NONE }
    }

    /// [`SocketAction::Rewrite`]
    #[inline(always)]
    pub const fn rewrite(reason: Counter, backend: L4Addr<A>) -> Self {
        Self { action: SocketAction::Rewrite, counter: reason, backend }
    }

    /// [`SocketAction::Refuse`]
    #[inline(always)]
    pub const fn refuse(reason: Counter) -> Self {
        Self { action: SocketAction::Refuse, counter: reason, backend: L4Addr::NONE }
    }
}

/// Index of a counter in `LB_COUNTERS` (per-CPU array of u64). One for each reason a verdict can have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Counter {
    /// Passed: neither IPv4 nor IPv6.
    OtherLink = 0,
    /// Passed: more than two VLAN tags.
    Vlan = 1,
    /// Passed: a length or version field that does not fit the frame.
    Malformed = 2,
    /// Rewritten: an ICMP error about a packet of a flow.
    IcmpError = 3,
    /// Passed: too many IPv6 extension headers, or a routing header with segments left.
    ExtensionHeader = 4,
    /// Passed: a later fragment of a packet whose first one was not seen.
    Fragment = 5,
    /// Passed: ICMP or ICMPv6 that is no error about a packet of a flow.
    Icmp = 6,
    /// Passed: a protocol Services do not know.
    OtherProtocol = 7,
    /// Passed: no frontend, no flow, no address of ours.
    NotAService = 8,
    /// Passed to tcx by XDP, which cannot answer or redirect to the host: counted there again.
    Deferred = 9,
    /// Rewritten: first packet of a new flow.
    NewFlow = 10,
    /// Rewritten: from the client of a known flow to its backend (NAT point 1).
    ToBackend = 11,
    /// Rewritten: the source on the way to the backend (NAT point 2).
    SourceNat = 12,
    /// Rewritten: a backend's answer, back to the client's address (NAT point 3).
    ToClient = 13,
    /// Rewritten: a backend's answer, from the frontend's address (NAT point 4).
    FromFrontend = 14,
    /// Rewritten: a backend's answer to a process of this host.
    HostReply = 15,
    /// Passed: a fragment of an SCTP packet, whose checksum cannot be followed.
    Sctp = 16,
    /// Refused: the service has no endpoint (semantics.md 2.3.1).
    NoEndpoint = 17,
    /// Dropped: the policy is Local and no endpoint is here (semantics.md 2.3.2, 2.3.3).
    NoLocalEndpoint = 18,
    /// Refused: an address of ours, but no such port (semantics.md 2.3.6).
    NoSuchPort = 19,
    /// Dropped: in a Service CIDR, but nobody's (semantics.md 2.3.7).
    Unallocated = 20,
    /// Refused: a TCP segment or SCTP packet to a frontend that opens nothing and belongs to no flow.
    NoState = 21,
    /// Dropped: an RST to a frontend that belongs to no flow.
    StrayReset = 22,
    /// Refused: another flow has the same client and backend between the NAT points, and no other port is free.
    TupleTaken = 23,
    /// Refused: the conntrack table is full.
    ConntrackFull = 24,
    /// Refused: no free source port towards this backend.
    SnatExhausted = 25,
    /// Refused: no route to the backend, or none with a source address.
    NoRoute = 26,
    /// Dropped: a table names something that is not there. Please file a bug.
    Inconsistent = 27,
    /// Dropped: reached `ballast0` and is nothing that can be translated.
    HostUntranslated = 28,
    /// Dropped: an answer could not be built in place.
    ReplyFailed = 29,
    /// Flows removed because their backend is gone or they ended, to make a new choice; those of `HalfOpenEvicted` as well.
    FlowReplaced = 30,
    /// Socket hook: connection sent to a backend.
    SocketConnect = 31,
    /// Socket hook: not to a frontend.
    SocketOther = 32,
    /// Socket hook: left to the packet path (drop policy, UDP of a pod, a socket that was given up, or the frontend asks for it).
    SocketLeft = 33,
    /// Socket hook: refused, the service has no endpoint.
    SocketNoEndpoint = 34,
    /// Socket hook: refused, an address of ours but no such port.
    SocketNoSuchPort = 35,
    /// Flows whose source port was changed, because another one has the same client and backend between the NAT points.
    PortChanged = 36,
    /// Dropped: a fragment that overlaps the first one, which has the ports.
    FragmentOverlap = 37,
    /// Dropped: a later fragment to an address of ours, of a packet whose first one made no flow.
    FragmentRefused = 38,
    /// Dropped: to an address of ours from one that nobody can have: loopback, multicast, unspecified.
    Martian = 39,
    /// Flows removed before anybody proved them, to make room for newer ones: a flood, or too small a conntrack table.
    HalfOpenEvicted = 40,
    /// Passed: TCP without state while the takeover lasts; it may be a connection that kube-proxy's rules translate.
    TakenOver = 41,
    /// Dropped: from an address of this node's pods, but by an uplink or overlay.
    SpoofedSource = 42,
    /// Socket hook: datagram of a host process sent to a backend.
    SocketSend = 43,
    /// Socket hook: a backend's datagram shown to a host process as the frontend's.
    SocketReceive = 44,
    /// Socket hook: the UDP socket speaks to every backend it could get by another address already, so that answers could
    /// not be told apart. All of it is left to the packet path from now on; refused is what that cannot serve: a socket that
    /// is connected, or speaks to nodePorts of this node.
    SocketAmbiguous = 45,
    /// Socket hook: the same, for a UDP socket that speaks to more frontends at once than are remembered for a socket, or
    /// when more connected ones are there than are remembered.
    SocketFull = 46,
    /// Socket hook: refused, the socket is bound to a loopback address, from which no backend elsewhere can be reached.
    SocketBoundLoopback = 47,
    /// Connected UDP sockets of host processes that were ended because their backend is gone.
    SocketDestroyed = 48,
    /// Dropped: the client is in none of the source ranges of a load balancer address (semantics.md 2.7.1).
    SourceRange = 49,
    /// Socket hook: refused for the same reason, where no packet path could drop it: the address is this node's own.
    SocketSourceRange = 50,
    /// Clients of a Service with sessionAffinity that were forgotten before their timeout, to make room for newer ones.
    AffinityEvicted = 51,
}

impl Counter {
    /// Entries of `LB_COUNTERS`.
    pub const CAPACITY: u32 = 64;

    /// Every counter in index order.
    pub const ALL: [Self; 52] = [
        Self::OtherLink,
        Self::Vlan,
        Self::Malformed,
        Self::IcmpError,
        Self::ExtensionHeader,
        Self::Fragment,
        Self::Icmp,
        Self::OtherProtocol,
        Self::NotAService,
        Self::Deferred,
        Self::NewFlow,
        Self::ToBackend,
        Self::SourceNat,
        Self::ToClient,
        Self::FromFrontend,
        Self::HostReply,
        Self::Sctp,
        Self::NoEndpoint,
        Self::NoLocalEndpoint,
        Self::NoSuchPort,
        Self::Unallocated,
        Self::NoState,
        Self::StrayReset,
        Self::TupleTaken,
        Self::ConntrackFull,
        Self::SnatExhausted,
        Self::NoRoute,
        Self::Inconsistent,
        Self::HostUntranslated,
        Self::ReplyFailed,
        Self::FlowReplaced,
        Self::SocketConnect,
        Self::SocketOther,
        Self::SocketLeft,
        Self::SocketNoEndpoint,
        Self::SocketNoSuchPort,
        Self::PortChanged,
        Self::FragmentOverlap,
        Self::FragmentRefused,
        Self::Martian,
        Self::HalfOpenEvicted,
        Self::TakenOver,
        Self::SpoofedSource,
        Self::SocketSend,
        Self::SocketReceive,
        Self::SocketAmbiguous,
        Self::SocketFull,
        Self::SocketBoundLoopback,
        Self::SocketDestroyed,
        Self::SourceRange,
        Self::SocketSourceRange,
        Self::AffinityEvicted,
    ];

    /// The error (Linux errno) of a call that a socket hook refuses for this reason.
    #[inline(always)]
    pub const fn errno(self) -> i32 {
        match self {
            // EACCES: what a firewall's refusal looks like.
            Self::SocketSourceRange => 13,
            // EADDRNOTAVAIL
            Self::SocketBoundLoopback => 99,
            // ECONNREFUSED
            _ => 111,
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < Counter::ALL.len() {
        #[expect(clippy::indexing_slicing, reason = "compile time, bounded by the loop")]
        let counter = Counter::ALL[index];
        assert!(counter as usize == index);
        index += 1;
    }
};
