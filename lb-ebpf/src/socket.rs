//! The socket hooks' context: addresses in and out.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use lb_common::{
    family::Addr,
    protocol::{Port, Protocol},
    socket::{Socket, connect, peer_name},
    tables::{Tables, World as _},
    tuple::L4Addr,
    verdict::SocketVerdict,
};

use crate::maps::Kernel;

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails with the return value that was set.
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// The third word of an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2).
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

#[inline(always)]
pub(crate) fn connect4(context: &SockAddrContext) -> i32 {
    decide(context, address4(context), |backend| set4(context, backend))
}

#[inline(always)]
pub(crate) fn connect6(context: &SockAddrContext) -> i32 {
    let (words, port) = (words6(context), port(context));
    if let [0, 0, MAPPED, addr] = words {
        decide(context, L4Addr { addr: addr.to_ne_bytes(), port }, |backend| set_mapped(context, backend))
    } else {
        decide(context, L4Addr { addr: bytes6(words), port }, |backend| set6(context, backend))
    }
}

#[inline(always)]
pub(crate) fn peername4(context: &SockAddrContext) -> i32 {
    if let Some(frontend) = peer_name::<[u8; 4], _>(&Kernel, cookie(context)) {
        set4(context, frontend);
    }
    ALLOW
}

#[inline(always)]
pub(crate) fn peername6(context: &SockAddrContext) -> i32 {
    if let [0, 0, MAPPED, _] = words6(context) {
        if let Some(frontend) = peer_name::<[u8; 4], _>(&Kernel, cookie(context)) {
            set_mapped(context, frontend);
        }
    } else if let Some(frontend) = peer_name::<[u8; 16], _>(&Kernel, cookie(context)) {
        set6(context, frontend);
    }
    ALLOW
}

/// Decides about a TCP socket's destination; `set` makes it the backend. Returns what the program returns.
#[inline(always)]
fn decide<A: Addr>(context: &SockAddrContext, destination: L4Addr<A>, set: impl FnOnce(L4Addr<A>)) -> i32
where
    Kernel: Tables<A>,
{
    // SAFETY: the context pointer is valid for the whole program.
    let protocol = unsafe { (*raw(context)).protocol };
    // UDP joins with sendmsg and recvmsg.
    if protocol != u32::from(Protocol::TCP.0) {
        return ALLOW;
    }
    // SAFETY: the helper takes the program's own context.
    let netns = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    let socket = Socket { cookie: cookie(context), netns, protocol: Protocol::TCP };
    match connect(&Kernel, socket, destination) {
        SocketVerdict::Leave(counter) => {
            Kernel.count(counter);
            ALLOW
        }
        SocketVerdict::Rewrite(counter, backend) => {
            Kernel.count(counter);
            set(backend);
            ALLOW
        }
        SocketVerdict::Refuse(counter) => {
            Kernel.count(counter);
            // SAFETY: the helper has no precondition.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            REFUSE
        }
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

#[inline(always)]
fn bytes6(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(a.into_iter().chain(b).chain(c).chain(d)) {
        *to = from;
    }
    bytes
}

#[inline(always)]
fn from_bytes6(bytes: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}
