//! The socket hooks' context: addresses in and out.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use lb_common::{
    family::Addr,
    protocol::{Port, Protocol},
    socket::{self, Socket},
    tables::{Tables, World as _},
    tuple::L4Addr,
    udp_socket::{self, Storage},
    verdict::{Counter, SocketAction},
};

use crate::maps::{Kernel, OfSocket};

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails with the return value that was set.
const REFUSE: i32 = 0;
/// State of a connected UDP socket: the kernel uses TCP's.
const ESTABLISHED: u32 = 1;

/// The third word of an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// What an application asks for with an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// `connect`
    Connect,
    /// `sendmsg`
    Send,
}

/// `connect` and `sendmsg` of an IPv4 socket, and `sendmsg` of an IPv6 one to an IPv4-mapped address.
#[inline(always)]
pub(crate) fn ask4(context: &SockAddrContext, call: Call) -> i32 {
    decide(context, call, address4(context), bound4(context), |backend| set4(context, backend))
}

#[inline(always)]
pub(crate) fn ask6(context: &SockAddrContext, call: Call) -> i32 {
    let (words, port) = (words6(context), port(context));
    match mapped(words) {
        // The kernel takes IPv4-mapped destinations of sendmsg to the IPv4 hook.
        Some(addr) if call == Call::Connect => {
            decide(context, call, L4Addr { addr, port }, bound4(context), |backend| set_mapped(context, backend))
        }
        _ => {
            let destination = L4Addr { addr: bytes6(words), port };
            decide(context, call, destination, bound6(context), |backend| set6(context, backend))
        }
    }
}

#[inline(always)]
pub(crate) fn received4(context: &SockAddrContext) -> i32 {
    if let Some(frontend) = answered(context, address4(context)) {
        set4(context, frontend);
    }
    ALLOW
}

#[inline(always)]
pub(crate) fn received6(context: &SockAddrContext) -> i32 {
    let (words, port) = (words6(context), port(context));
    if let Some(addr) = mapped(words) {
        if let Some(frontend) = answered(context, L4Addr { addr, port }) {
            set_mapped(context, frontend);
        }
    } else if let Some(frontend) = answered(context, L4Addr { addr: bytes6(words), port }) {
        set6(context, frontend);
    }
    ALLOW
}

#[inline(always)]
pub(crate) fn peername4(context: &SockAddrContext) -> i32 {
    if let Some(frontend) = peer_name::<[u8; 4]>(context) {
        set4(context, frontend);
    }
    ALLOW
}

#[inline(always)]
pub(crate) fn peername6(context: &SockAddrContext) -> i32 {
    if mapped(words6(context)).is_some() {
        if let Some(frontend) = peer_name::<[u8; 4]>(context) {
            set_mapped(context, frontend);
        }
    } else if let Some(frontend) = peer_name::<[u8; 16]>(context) {
        set6(context, frontend);
    }
    ALLOW
}

/// Decides about a destination; `set` makes it the backend. Returns what the program returns.
#[inline(always)]
fn decide<A: Addr>(
    context: &SockAddrContext,
    call: Call,
    destination: L4Addr<A>,
    bound: A,
    set: impl FnOnce(L4Addr<A>),
) -> i32
where
    Kernel: Tables<A>,
    for<'a> OfSocket<'a>: Storage<A>,
{
    let Some(protocol) = protocol(context) else { return ALLOW };
    let socket = socket(context, protocol, bound);
    let verdict = match (protocol, call) {
        (Protocol::TCP, _) => socket::connect(&Kernel, socket, destination),
        (_, Call::Connect) => udp_socket::connect(&Kernel, &OfSocket(context), socket, destination),
        (_, Call::Send) => udp_socket::send(&Kernel, &OfSocket(context), socket, destination),
    };
    Kernel.count(verdict.counter);
    match verdict.action {
        SocketAction::Leave => ALLOW,
        SocketAction::Rewrite => {
            set(verdict.backend);
            ALLOW
        }
        SocketAction::Refuse => {
            // SAFETY: the helper has no precondition.
            unsafe { bpf_set_retval(-verdict.counter.errno()) };
            REFUSE
        }
    }
}

/// What a datagram from `from` answers.
#[inline(always)]
fn answered<A: Addr>(context: &SockAddrContext, from: L4Addr<A>) -> Option<L4Addr<A>>
where
    for<'a> OfSocket<'a>: Storage<A>,
{
    if protocol(context) != Some(Protocol::UDP) {
        return None;
    }
    let frontend = udp_socket::received(&OfSocket(context), socket(context, Protocol::UDP, A::UNSPECIFIED), from)?;
    Kernel.count(Counter::SocketReceive);
    Some(frontend)
}

#[inline(always)]
fn peer_name<A: Addr>(context: &SockAddrContext) -> Option<L4Addr<A>>
where
    Kernel: Tables<A>,
    for<'a> OfSocket<'a>: Storage<A>,
{
    match protocol(context)? {
        Protocol::UDP => udp_socket::peer_name(&OfSocket(context)),
        _ => socket::peer_name(&Kernel, cookie(context)),
    }
}

/// TCP or UDP: what a Service can have and a socket hook sees.
#[inline(always)]
fn protocol(context: &SockAddrContext) -> Option<Protocol> {
    // SAFETY: the context pointer is valid for the whole program.
    match unsafe { (*raw(context)).protocol } {
        6 => Some(Protocol::TCP),
        17 => Some(Protocol::UDP),
        _ => None,
    }
}

#[inline(always)]
fn socket<A: Addr>(context: &SockAddrContext, protocol: Protocol, bound: A) -> Socket<A> {
    // SAFETY: the helper takes the program's own context.
    let netns = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    let connected = own(context, |sock| sock.state) == ESTABLISHED;
    Socket { cookie: cookie(context), netns, protocol, connected, bound }
}

/// The IPv4 address that the socket is bound to.
#[inline(always)]
fn bound4(context: &SockAddrContext) -> [u8; 4] {
    own(context, |sock| sock.src_ip4).to_ne_bytes()
}

/// The IPv6 address that the socket is bound to.
#[inline(always)]
fn bound6(context: &SockAddrContext) -> [u8; 16] {
    let words = [0, 1, 2, 3].map(|index| {
        own(context, |sock| {
            let [a, b, c, d] = sock.src_ip6;
            match index {
                0 => a,
                1 => b,
                2 => c,
                _ => d,
            }
        })
    });
    bytes6(words)
}

/// A field of the hook's socket; 0 without one, which the verifier thinks possible.
#[inline(always)]
fn own(context: &SockAddrContext, read: impl FnOnce(&bpf_sock) -> u32) -> u32 {
    // SAFETY: the context pointer is valid for the whole program.
    let sock = unsafe { (*raw(context)).__bindgen_anon_1.sk };
    // SAFETY: null or the context's socket, of which the kernel translates each field.
    unsafe { sock.as_ref() }.map_or(0, read)
}

/// The IPv4 address in an IPv4-mapped one.
#[inline(always)]
const fn mapped(words: [u32; 4]) -> Option<[u8; 4]> {
    match words {
        [0, 0, MAPPED, addr] => Some(addr.to_ne_bytes()),
        _ => None,
    }
}

#[inline(always)]
fn raw(context: &SockAddrContext) -> *mut bpf_sock_addr {
    context.sock_addr
}

#[inline(always)]
fn cookie(context: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}

/// The context holds the port in the first two bytes of a u32, in network order.
#[inline(always)]
fn port(context: &SockAddrContext) -> Port {
    // SAFETY: the context pointer is valid for the whole program. Volatile: the verifier wants whole-word accesses.
    Port((unsafe { (&raw const (*raw(context)).user_port).read_volatile() } as u16).to_ne_bytes())
}

#[inline(always)]
fn address4(context: &SockAddrContext) -> L4Addr<[u8; 4]> {
    // SAFETY: as in `port`.
    let addr = unsafe { (&raw const (*raw(context)).user_ip4).read_volatile() };
    L4Addr { addr: addr.to_ne_bytes(), port: port(context) }
}

#[inline(always)]
fn words6(context: &SockAddrContext) -> [u32; 4] {
    // SAFETY: as in `port`.
    let first = unsafe { (&raw const (*raw(context)).user_ip6).cast::<u32>() };
    // SAFETY: the array has four words.
    [0, 1, 2, 3].map(|index| unsafe { first.add(index).read_volatile() })
}

#[inline(always)]
fn set_port(context: &SockAddrContext, port: Port) {
    // SAFETY: as in `port`.
    unsafe { (&raw mut (*raw(context)).user_port).write_volatile(u32::from(u16::from_ne_bytes(port.0))) };
}

#[inline(always)]
fn set4(context: &SockAddrContext, new: L4Addr<[u8; 4]>) {
    // SAFETY: as in `port`.
    unsafe { (&raw mut (*raw(context)).user_ip4).write_volatile(u32::from_ne_bytes(new.addr)) };
    set_port(context, new.port);
}

/// An IPv4 address as an IPv6 socket has it.
#[inline(always)]
fn set_mapped(context: &SockAddrContext, new: L4Addr<[u8; 4]>) {
    set_words6(context, [0, 0, MAPPED, u32::from_ne_bytes(new.addr)], new.port);
}

#[inline(always)]
fn set6(context: &SockAddrContext, new: L4Addr<[u8; 16]>) {
    set_words6(context, from_bytes6(new.addr), new.port);
}

#[inline(always)]
fn set_words6(context: &SockAddrContext, words: [u32; 4], port: Port) {
    // SAFETY: as in `port`.
    let first = unsafe { (&raw mut (*raw(context)).user_ip6).cast::<u32>() };
    let [a, b, c, d] = words;
    // SAFETY: the array has four words.
    unsafe {
        first.write_volatile(a);
        first.add(1).write_volatile(b);
        first.add(2).write_volatile(c);
        first.add(3).write_volatile(d);
    }
    set_port(context, port);
}

/// Byte by byte: iterators over the parts would take a third of the stack.
#[inline(always)]
const fn bytes6([front, second, third, last]: [u32; 4]) -> [u8; 16] {
    let ([a, b, c, d], [e, f, g, h]) = (front.to_ne_bytes(), second.to_ne_bytes());
    let ([i, j, k, l], [m, n, o, p]) = (third.to_ne_bytes(), last.to_ne_bytes());
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

#[inline(always)]
fn from_bytes6(bytes: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}
