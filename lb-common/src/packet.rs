//! What the pipeline needs of a packet, wherever it lies.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{
    checksum::{Checksum, Sum},
    protocol::Port,
};

/// A header that may be viewed in place in packet memory.
pub trait Wire: FromBytes + IntoBytes + Unaligned + Immutable + KnownLayout + Copy {}
impl<T: FromBytes + IntoBytes + Unaligned + Immutable + KnownLayout + Copy> Wire for T {}

/// A change to an L4 header that its checksum must follow.
#[derive(Clone, Copy, Debug)]
pub struct L4Change {
    /// Offset of the checksum field in the frame.
    pub field: usize,
    /// UDP: a zero field means "none" and stays; a computed zero is written as all ones (RFC 768).
    pub zero_is_none: bool,
    /// The pseudo header is IPv6's: no header checksum balances the change of addresses.
    pub ipv6: bool,
    /// Difference of the addresses, which are in the pseudo header.
    pub addresses: Sum,
    /// Port before and after.
    pub ports: (Port, Port),
}

/// No header that begins behind this offset is viewed: a kernel's verifier asks for some bound.
pub const LAST_HEADER: usize = 255;

/// A frame from its Ethernet header on. Every access is checked against its end.
pub trait Packet {
    /// Views a header. `None`: it does not fit the frame, or begins behind [`LAST_HEADER`].
    fn get<T: Wire>(&self, offset: usize) -> Option<&T>;

    /// Views a header to change it.
    fn get_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T>;

    /// Makes more than the plain headers viewable in place: options, extension headers, a quoted packet.
    fn pull(&mut self);

    /// Whether the frame has at least `bytes` bytes, those that are not viewable in place included.
    fn holds(&self, bytes: usize) -> bool;

    /// Lets the L4 checksum follow a change already made (design.md section 2.6). `None` only where the field lies
    /// outside the frame.
    fn replace_l4(&mut self, change: L4Change) -> Option<()>;

    /// An address of a packet without transport header was changed, by this difference, and no checksum in it balances
    /// that: the sum that a device may have taken of the whole must follow.
    fn addresses_changed(&mut self, difference: Sum);

    /// Whether the L4 checksum is partial: the field holds the pseudo header's sum and a later device adds the rest.
    /// May overwrite the field.
    fn is_partial(&mut self, field: usize) -> bool;

    /// Makes the frame `length` bytes long; new bytes are unspecified.
    fn resize(&mut self, length: usize) -> Option<()>;
}

/// Lets the checksum follow in place (RFC 1624): right wherever the field holds the whole checksum, as in XDP and in
/// memory; never at tc (design.md section 2.6).
#[inline(always)]
pub fn replace_inline<P: Packet>(packet: &mut P, change: L4Change) -> Option<()> {
    let field: &mut Checksum = packet.get_mut(change.field)?;
    if change.zero_is_none && *field == Checksum::ZERO {
        return Some(());
    }
    let (old, new) = change.ports;
    let updated = field.replace(change.addresses.remove(&old.0).add(&new.0));
    // RFC 768: a computed zero is sent as all ones.
    *field = if change.zero_is_none && updated == Checksum::ZERO { Checksum::ALL_ONES } else { updated };
    Some(())
}
