//! The packet in the kernel: the only pointer arithmetic of the project.

use core::hint::assert_unchecked;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_pull_data, bpf_xdp_get_buff_len},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    checksum::Checksum,
    packet::{L4Change, Packet, Wire, replace_inline},
};

/// No header we touch begins behind this: gives the verifier a bound where an offset is not a constant.
const LAST_OFFSET: usize = 255;

/// Enough for the longest headers we read: Ethernet, IPv6, TCP with its options.
const HEADERS: u32 = 14 + 40 + 60;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (kernel 6.16): no IP header checksum balances the change of addresses, so a
/// complete checksum in the skb must not follow it. Older kernels refuse the flag.
const BPF_F_IPV6: u64 = 1 << 7;

/// What differs between the contexts. The last three are those of [`Packet`].
pub(crate) trait Context: Sized {
    fn start(&self) -> usize;
    fn end(&self) -> usize;
    fn length(&self) -> usize;
    fn resize(&mut self, length: usize) -> Option<()>;
    fn replace_l4(frame: &mut Frame<Self>, change: L4Change) -> Option<()>;
    fn is_partial(frame: &mut Frame<Self>, field: usize) -> bool;
}

impl Context for XdpContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the context is the one the kernel called the program with.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }

    #[inline(always)]
    fn resize(&mut self, _length: usize) -> Option<()> {
        // XDP leaves answers to tcx: see `Hook::Xdp`.
        None
    }

    #[inline(always)]
    fn replace_l4(frame: &mut Frame<Self>, change: L4Change) -> Option<()> {
        replace_inline(frame, change)
    }

    #[inline(always)]
    fn is_partial(_frame: &mut Frame<Self>, _field: usize) -> bool {
        false
    }
}

impl Context for TcContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.len() as usize
    }

    #[inline(always)]
    fn resize(&mut self, length: usize) -> Option<()> {
        let skb = self.as_ptr().cast();
        // Growing first turns a complete checksum of the old contents into none; trimming would keep it.
        // SAFETY: the context is the one the kernel called the program with; every packet pointer is derived anew.
        unsafe { bpf_skb_change_tail(skb, self.len().wrapping_add(1), 0) };
        // SAFETY: as above.
        let failed = unsafe { bpf_skb_change_tail(skb, length as u32, 0) };
        if failed == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn replace_l4(frame: &mut Frame<Self>, change: L4Change) -> Option<()> {
        let zero = if change.zero_is_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | zero;
        let difference = u64::from(change.addresses.fold());
        let followed = if change.ipv6 {
            frame.replace(change.field, 0, difference, pseudo | BPF_F_IPV6)
                || frame.replace(change.field, 0, difference, pseudo)
        } else {
            frame.replace(change.field, 0, difference, pseudo)
        };
        let (old, new) = change.ports;
        if followed && old != new {
            let (from, to) = (u64::from(u16::from_ne_bytes(old.0)), u64::from(u16::from_ne_bytes(new.0)));
            return frame.replace(change.field, from, to, zero | 2).then_some(());
        }
        followed.then_some(())
    }

    #[inline(always)]
    fn is_partial(frame: &mut Frame<Self>, field: usize) -> bool {
        // A change of the contents leaves a partial checksum alone, and moves any other.
        let Some(before) = frame.get::<Checksum>(field).copied() else { return false };
        frame.replace(field, 0, 0x5555, 2);
        frame.get::<Checksum>(field).is_some_and(|after| *after == before)
    }
}

/// A frame in a context.
pub(crate) struct Frame<C>(C);

impl<C: Context> Frame<C> {
    /// Views the frame of an XDP program.
    #[inline(always)]
    pub(crate) fn new(context: C) -> Self {
        Self(context)
    }

    /// What the kernel called the program with.
    #[inline(always)]
    pub(crate) fn context(&self) -> &C {
        &self.0
    }

    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        if offset > LAST_OFFSET {
            return None;
        }
        let start = self.0.start() + offset;
        if start + size_of::<T>() > self.0.end() {
            return None;
        }
        // Headers behind Ethernet's fourteen bytes stand at multiples of four: the kernel's NET_IP_ALIGN, which the
        // verifier assumes as well. A machine that does not align them can load them unaligned.
        // SAFETY: as said; nothing but the width of loads depends on it.
        unsafe { assert_unchecked(start.is_multiple_of(if offset & 3 == 2 { 4 } else { 2 })) };
        Some(start as *mut T)
    }
}

impl Frame<TcContext> {
    /// Views the frame of a tc program; makes its headers lie in one piece.
    #[inline(always)]
    pub(crate) fn of_tc(context: TcContext) -> Self {
        let length = context.len();
        let wanted = if length < HEADERS { length } else { HEADERS };
        if context.data() + wanted as usize > context.data_end() {
            // SAFETY: the context is the one the kernel called the program with. A failure leaves the packet as it is,
            // and parsing will find it too short.
            unsafe { bpf_skb_pull_data(context.as_ptr().cast(), wanted) };
        }
        Self(context)
    }

    #[inline(always)]
    fn replace(&mut self, field: usize, from: u64, to: u64, flags: u64) -> bool {
        // SAFETY: the context is the one the kernel called the program with; packet pointers are derived anew after it.
        unsafe { bpf_l4_csum_replace(self.0.as_ptr().cast(), field as u32, from, to, flags) == 0 }
    }
}

impl<C: Context> Packet for Frame<C> {
    #[inline(always)]
    fn get<T: Wire>(&self, offset: usize) -> Option<&T> {
        // SAFETY: `at` checked the bounds; `Wire` types have no alignment and accept every bit pattern; the borrow of
        // the frame keeps it from being resized meanwhile.
        self.at(offset).map(|header| unsafe { &*header })
    }

    #[inline(always)]
    fn get_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as in `get`, and the frame is borrowed mutably.
        self.at(offset).map(|header| unsafe { &mut *header })
    }

    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        self.0.start() + bytes <= self.0.end() || self.0.length() >= bytes
    }

    #[inline(always)]
    fn replace_l4(&mut self, change: L4Change) -> Option<()> {
        C::replace_l4(self, change)
    }

    #[inline(always)]
    fn is_partial(&mut self, field: usize) -> bool {
        C::is_partial(self, field)
    }

    #[inline(always)]
    fn resize(&mut self, length: usize) -> Option<()> {
        self.0.resize(length)
    }
}
