//! The packet in the kernel: the only pointer arithmetic of the project.

use core::{arch::asm, hint::assert_unchecked, intrinsics::is_val_statically_known};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_pull_data, bpf_xdp_get_buff_len,
    },
    programs::{TcContext, XdpContext},
};
use lb_common::{
    checksum::{Checksum, Sum},
    packet::{L4Change, LAST_HEADER, Packet, Wire, replace_inline},
};

/// Enough for the longest headers we read: Ethernet, IPv6, TCP with its options.
const HEADERS: u32 = 14 + 40 + 60;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (kernel 6.16): no IP header checksum balances the change of addresses, so a
/// complete checksum in the skb must not follow it. Older kernels refuse the flag.
const BPF_F_IPV6: u64 = 1 << 7;

/// What differs between the contexts. The last three are those of [`Packet`].
pub(crate) trait Context: Sized {
    fn start(&self) -> usize;
    fn end(&self) -> usize;
    /// Start and end, loaded now.
    fn bounds(&self) -> (usize, usize);
    fn length(&self) -> usize;
    fn resize(&mut self, length: usize) -> Option<()>;
    fn pull(frame: &mut Frame<Self>);
    fn replace_l4(frame: &mut Frame<Self>, change: L4Change) -> Option<()>;
    fn addresses_changed(frame: &mut Frame<Self>, difference: Sum);
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
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: fields of the context the kernel called the program with.
        unsafe { (load(&raw const (*self.ctx).data), load(&raw const (*self.ctx).data_end)) }
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
    fn pull(_frame: &mut Frame<Self>) {
        // XDP sees what the driver put into the first buffer.
    }

    #[inline(always)]
    fn replace_l4(frame: &mut Frame<Self>, change: L4Change) -> Option<()> {
        replace_inline(frame, change)
    }

    #[inline(always)]
    fn addresses_changed(_frame: &mut Frame<Self>, _difference: Sum) {
        // Nobody has summed it up yet.
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
    fn bounds(&self) -> (usize, usize) {
        let skb: *const __sk_buff = self.as_ptr().cast();
        // SAFETY: fields of the context the kernel called the program with.
        unsafe { (load(&raw const (*skb).data), load(&raw const (*skb).data_end)) }
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
    fn pull(frame: &mut Frame<Self>) {
        frame.pull_bytes(LAST_HEADER as u32);
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
    fn addresses_changed(frame: &mut Frame<Self>, difference: Sum) {
        // SAFETY: the context is the one the kernel called the program with. It refuses where there is no such sum.
        unsafe { bpf_csum_update(frame.0.as_ptr().cast(), u32::from(difference.fold())) };
    }

    #[inline(always)]
    fn is_partial(frame: &mut Frame<Self>, field: usize) -> bool {
        // A change of the contents leaves a partial checksum alone, and moves any other.
        let Some(before) = frame.get::<Checksum>(field).copied() else { return false };
        frame.replace(field, 0, 0x5555, 2);
        frame.get::<Checksum>(field).is_some_and(|after| *after == before)
    }
}

/// A pointer out of the context, loaded where it is needed: one that the compiler carries along may become a number of 32
/// bits on the way, which is no pointer to the verifier.
///
/// # Safety
/// `field` must be valid for reads.
#[inline(always)]
unsafe fn load(field: *const u32) -> usize {
    // SAFETY: the caller's promise.
    unsafe { field.read_volatile() as usize }
}

/// The same value, of which the compiler knows nothing. A packet pointer whose offset is no constant needs it: the compiler
/// may neither remember what it once compared with the packet's end nor compute it anew, for the verifier only knows
/// registers.
#[inline(always)]
pub(crate) fn opaque(mut value: usize) -> usize {
    // One instruction, since the kernel takes no line of the source without one.
    // SAFETY: it moves a register onto itself.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
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
        if offset > LAST_HEADER {
            return None;
        }
        let (start, end) = if is_val_statically_known(offset) {
            (self.0.start() + offset, self.0.end())
        } else {
            let (start, end) = self.0.bounds();
            (opaque(start + offset), end)
        };
        if start + size_of::<T>() > end {
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
        let frame = Self(context);
        frame.pull_bytes(HEADERS);
        frame
    }

    /// Makes that many bytes, or all there are, lie in one piece.
    #[inline(always)]
    fn pull_bytes(&self, bytes: u32) {
        let length = self.0.len();
        let wanted = if length < bytes { length } else { bytes };
        if self.0.data() + wanted as usize > self.0.data_end() {
            // SAFETY: the context is the one the kernel called the program with. A failure leaves the packet as it is,
            // and parsing will find it too short.
            unsafe { bpf_skb_pull_data(self.0.as_ptr().cast(), wanted) };
        }
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
    fn pull(&mut self) {
        C::pull(self);
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
    fn addresses_changed(&mut self, difference: Sum) {
        C::addresses_changed(self, difference);
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
