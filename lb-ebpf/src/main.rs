//! The BPF programs: entry points around the pipeline of `lb_common`.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(clippy::inline_always, reason = "the stack and the verifier decide what may be a call")]
#![expect(clippy::cast_possible_truncation, reason = "helpers and contexts speak in other widths than programs return")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "a field of the context is reached and read in one go")]
#![expect(clippy::needless_pass_by_value, reason = "aya's entry points take their context by value")]
#![expect(internal_features, reason = "core's atomics hide fetch_add on targets without compare and swap")]

mod frame;
mod log;
mod maps;
mod socket;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, xdp_action},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh},
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use lb_common::{
    pipeline::{self, Hook},
    settings::Setting,
    tables::World as _,
    verdict::{Action, Verdict},
};

use crate::{frame::Frame, maps::Kernel, socket::Call};

/// On to the next program of the chain. `TC_ACT_OK` would end it and skip the CNI's (design.md section 2.4).
const TCX_NEXT: i32 = -1;

/// NAT points 1 and 3 on a device with native XDP.
#[xdp(frags)]
pub(crate) fn lb_xdp(context: XdpContext) -> u32 {
    // SAFETY: the context pointer is valid for the whole program.
    let device = unsafe { (*context.ctx).ingress_ifindex };
    let mut frame = Frame::new(context);
    let verdict = pipeline::ingress(&mut frame, &Kernel, Hook::Xdp, device);
    Kernel.count(verdict.counter);
    log::verdict(frame.context(), verdict);
    match verdict.action {
        Action::Drop => xdp_action::XDP_DROP,
        // XDP makes no other verdict: see `Hook::Xdp`.
        Action::Pass | Action::Reply | Action::ToHost | Action::Forward | Action::Undecided => xdp_action::XDP_PASS,
    }
}

/// NAT points 1 and 3 at tcx ingress.
#[classifier]
pub(crate) fn lb_ingress(context: TcContext) -> i32 {
    from_device(context, Hook::Tc)
}

/// NAT point 1 for this host's processes, at tcx egress of `ballast0`.
#[classifier]
pub(crate) fn lb_host(context: TcContext) -> i32 {
    from_device(context, Hook::Host)
}

/// NAT points 2 and 4 at tcx egress.
#[classifier]
pub(crate) fn lb_egress(context: TcContext) -> i32 {
    let mut frame = Frame::of_tc(context);
    let verdict = pipeline::egress(&mut frame, &Kernel);
    act(&frame, Hook::Tc, verdict)
}

/// The clock of conntrack's stamps, for user space's test runs: returns the low 32 bits of jiffies.
#[classifier]
pub(crate) fn lb_clock(_context: TcContext) -> i32 {
    Kernel.now().cast_signed()
}

#[inline(always)]
fn from_device(context: TcContext, hook: Hook) -> i32 {
    let mut frame = Frame::of_tc(context);
    // A packet that was received somewhere carries the interface it came by; one made here does not.
    let device = field(&frame, |skb| if hook == Hook::Host { skb.ingress_ifindex } else { skb.ifindex });
    let verdict = pipeline::ingress(&mut frame, &Kernel, hook, device);
    act(&frame, hook, verdict)
}

#[inline(always)]
fn act(frame: &Frame<TcContext>, hook: Hook, verdict: Verdict) -> i32 {
    Kernel.count(verdict.counter);
    log::verdict(frame.context(), verdict);
    match verdict.action {
        Action::Pass | Action::Undecided => TCX_NEXT,
        Action::Drop => TC_ACT_SHOT,
        // From `ballast0` an answer goes up to the process that asked, from a device back out of it.
        Action::Reply => {
            redirect(field(frame, |skb| skb.ifindex), if hook == Hook::Host { u64::from(BPF_F_INGRESS) } else { 0 })
        }
        Action::ToHost => redirect(Kernel.setting(Setting::HostDevice) as u32, u64::from(BPF_F_INGRESS)),
        // SAFETY: no parameters: the kernel looks up the neighbour by the packet's own addresses.
        Action::Forward => unsafe { bpf_redirect_neigh(verdict.device, core::ptr::null_mut(), 0, 0) as i32 },
    }
}

#[inline(always)]
fn field(frame: &Frame<TcContext>, read: impl FnOnce(&aya_ebpf::bindings::__sk_buff) -> u32) -> u32 {
    // SAFETY: the context pointer is valid for the whole program.
    read(unsafe { &*frame.context().as_ptr().cast() })
}

#[inline(always)]
fn redirect(device: u32, flags: u64) -> i32 {
    // SAFETY: the helper has no precondition; a device that is gone drops the packet.
    unsafe { bpf_redirect(device, flags) as i32 }
}

/// `connect` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub(crate) fn lb_connect4(context: SockAddrContext) -> i32 {
    socket::ask4(&context, Call::Connect)
}

/// `connect` of an IPv6 socket, IPv4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub(crate) fn lb_connect6(context: SockAddrContext) -> i32 {
    socket::ask6(&context, Call::Connect)
}

/// `sendmsg` of UDP to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn lb_sendmsg4(context: SockAddrContext) -> i32 {
    socket::ask4(&context, Call::Send)
}

/// `sendmsg` of UDP to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn lb_sendmsg6(context: SockAddrContext) -> i32 {
    socket::ask6(&context, Call::Send)
}

/// `recvmsg` of UDP on an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn lb_recvmsg4(context: SockAddrContext) -> i32 {
    socket::received4(&context)
}

/// `recvmsg` of UDP on an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn lb_recvmsg6(context: SockAddrContext) -> i32 {
    socket::received6(&context)
}

/// `getpeername` of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn lb_peername4(context: SockAddrContext) -> i32 {
    socket::peername4(&context)
}

/// `getpeername` of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn lb_peername6(context: SockAddrContext) -> i32 {
    socket::peername6(&context)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel's helpers ask for a licence that is compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
