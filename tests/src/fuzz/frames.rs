//! A fuzz input as a sequence of frames, each with where and when it passes, and the checksums of a frame.

use lb_common::{
    checksum::{Checksum, Sum},
    pipeline::Hook,
};

/// A frame and its way. As bytes: one byte of bits (0-1 hook: XDP, tcx ingress, `ballast0`, egress; 2 made on this
/// host; 3 its checksums are made right first; 4-7 n: the clock first goes on by 2^n - 1 ticks), the frame's length as
/// two bytes, big endian, and the frame. A frame that is cut short is the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `None`: egress.
    pub hook: Option<Hook>,
    /// Made on this host; matters at [`Hook::Host`] only.
    pub own: bool,
    /// Ticks since the frame before.
    pub ticks: u32,
    /// The frame, its checksums made right if that was asked for.
    pub frame: Vec<u8>,
}

/// Longest frame that is looked at.
const LONGEST: usize = 1514;
/// Most frames of an input.
const MOST: usize = 64;

/// The frames of an input.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Record> {
    let mut rest = bytes;
    let next = move || {
        let (&[bits, high, low], behind) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([high, low])).min(behind.len());
        let (frame, behind) = behind.split_at(length);
        rest = behind;
        let mut frame = frame.get(..length.min(LONGEST))?.to_vec();
        if bits & 8 != 0 {
            mend(&mut frame);
        }
        let hook = match bits & 3 {
            0 => Some(Hook::Xdp),
            1 => Some(Hook::Tc),
            2 => Some(Hook::Host),
            _ => None,
        };
        Some(Record { hook, own: bits & 4 != 0, ticks: (1 << (bits >> 4)) - 1, frame })
    };
    std::iter::from_fn(next).take(MOST)
}

/// Where the packet's parts lie, as far as the fixed headers tell.
struct Layout {
    addresses: (usize, usize),
    l4: usize,
    protocol: u8,
}

fn layout(frame: &[u8]) -> Option<Layout> {
    match frame.get(12..14)? {
        [8, 0] => {
            let l4 = 14 + 4 * usize::from(frame.get(14)? & 15);
            Some(Layout { addresses: (26, 34), l4, protocol: *frame.get(23)? })
        }
        [0x86, 0xdd] => Some(Layout { addresses: (22, 54), l4: 54, protocol: *frame.get(20)? }),
        _ => None,
    }
}

/// Makes the checksums of an untagged packet right: IPv4's header, and TCP, UDP and ICMP over all that follows.
fn mend(frame: &mut [u8]) -> Option<()> {
    let Layout { addresses, l4, protocol } = layout(frame)?;
    let v4 = addresses.0 == 26;
    if v4 {
        frame.get_mut(24..26)?.fill(0);
        let sum = Sum::default().add(frame.get(14..l4)?).checksum();
        frame.get_mut(24..26)?.copy_from_slice(&sum.0);
    }
    let (field, pseudo) = match protocol {
        6 => (l4 + 16, true),
        17 => (l4 + 6, true),
        1 => (l4 + 2, false),
        58 => (l4 + 2, true),
        _ => return None,
    };
    frame.get_mut(field..field + 2)?.fill(0);
    let segment = frame.get(l4..)?;
    let length = u16::try_from(segment.len()).ok()?;
    let head = Sum::default().add(frame.get(addresses.0..addresses.1)?).add(&[0, protocol]).add(&length.to_be_bytes());
    let sum = if pseudo { head } else { Sum::default() }.add(segment).checksum();
    // RFC 768: a computed zero is sent as all ones.
    let sum = if protocol == 17 && sum == Checksum::ZERO { Checksum::ALL_ONES } else { sum };
    frame.get_mut(field..field + 2)?.copy_from_slice(&sum.0);
    Some(())
}

/// Whether an untagged frame is a fragment, or may be one behind extension headers: only the first of a packet has a
/// checksum, and that of more than itself.
pub(super) fn may_be_fragment(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([8, 0]) => frame.get(20..22).is_some_and(|field| field[0] & 0x3f != 0 || field[1] != 0),
        Some([0x86, 0xdd]) => frame.get(20).is_some_and(|next| [0, 43, 44, 51, 60].contains(next)),
        _ => true,
    }
}

/// Whether the header of an untagged IPv4 packet has a right checksum; `None`: it is none, or has no whole header.
pub(super) fn header_is_right(frame: &[u8]) -> Option<bool> {
    if frame.get(12..14)? != [8, 0] {
        return None;
    }
    let length = 4 * usize::from(frame.get(14)? & 15);
    let header = frame.get(14..14 + length).filter(|header| header.len() >= 20)?;
    Some(Sum::default().add(header).fold() == 0xffff)
}

/// Whether an untagged SCTP packet behind plain headers has a right CRC32c (RFC 9260 section 6.8); `None`: it is none.
pub(super) fn crc_is_right(frame: &[u8]) -> Option<bool> {
    let Layout { addresses, l4, protocol: 132 } = layout(frame)? else { return None };
    let field = if addresses.0 == 26 { 16 } else { 18 };
    let length = usize::from(u16::from_be_bytes(*frame.get(field..field + 2)?.first_chunk()?));
    let end = if addresses.0 == 26 { 14 + length } else { 54 + length };
    let message = frame.get(l4..end).filter(|message| message.len() >= 12)?;
    let bytes = message.iter().enumerate().map(|(at, byte)| if (8..12).contains(&at) { 0 } else { *byte });
    let register = bytes.fold(u32::MAX, |register, byte| {
        (0..8).fold(register ^ u32::from(byte), |register, _| {
            if register & 1 == 0 { register >> 1 } else { register >> 1 ^ 0x82f6_3b78 }
        })
    });
    Some(message.get(8..12)? == (!register).to_le_bytes())
}
