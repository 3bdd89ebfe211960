//! What `cargo xtask bench packet` measures the datapath against: programs that do nothing, and programs that read a
//! TCP/IPv4 tuple and look it up in one kernel hash. Never loaded by the agent.

#![no_std]
#![no_main]
#![expect(clippy::inline_always, reason = "a call would be measured as well")]
#![expect(clippy::needless_pass_by_value, reason = "aya's entry points take their context by value")]

use core::mem::transmute;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::HashMap,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// As in the datapath: on to the next program.
const TCX_NEXT: i32 = -1;
/// Source and destination address and both ports of IPv4 without options behind Ethernet.
const TUPLE: usize = 26;
const TUPLE_LENGTH: usize = 12;

/// Of the datapath's size, so that neither fits a cache the other does not.
#[btf_map]
static FLOWS: HashMap<[u32; 3], u64, 262_144> = HashMap::new();

/// The cost of running a program at all.
#[xdp(frags)]
pub(crate) fn floor_xdp(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The same at tc.
#[classifier]
pub(crate) fn floor_tc(_context: TcContext) -> i32 {
    TCX_NEXT
}

/// One hash lookup of the packet's tuple, and a count in what it found.
#[xdp(frags)]
pub(crate) fn lookup_xdp(context: XdpContext) -> u32 {
    lookup(context.data(), context.data_end());
    xdp_action::XDP_PASS
}

/// The same at tc.
#[classifier]
pub(crate) fn lookup_tc(context: TcContext) -> i32 {
    lookup(context.data(), context.data_end());
    TCX_NEXT
}

#[inline(always)]
fn lookup(start: usize, end: usize) {
    if start + TUPLE + TUPLE_LENGTH > end {
        return;
    }
    // SAFETY: the bounds were checked; the type has no alignment.
    let bytes: [u8; TUPLE_LENGTH] = unsafe { *((start + TUPLE) as *const [u8; TUPLE_LENGTH]) };
    // SAFETY: plain bytes of the same size.
    let key: [u32; 3] = unsafe { transmute(bytes) };
    if let Some(count) = FLOWS.get_ptr_mut(key) {
        // SAFETY: a live map value; a lost count is all a race costs.
        unsafe { *count += 1 };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel's helpers ask for a licence that is compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
