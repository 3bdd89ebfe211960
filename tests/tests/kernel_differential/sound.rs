//! What must hold of every frame that a program has taken, whatever both sides agree on: they are the same code.

use lb_common::{checksum::Sum, testing::l4_checksum_is_right, verdict::Action};

/// What was found wrong, counted.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Faults {
    /// `XDP_ABORTED`.
    pub(crate) aborted: usize,
    /// Test runs that failed though the frame is one they take.
    pub(crate) failed: usize,
    /// Frames that were changed and have a wrong checksum now.
    pub(crate) checksums: usize,
    /// Packets that are longer than their frames now.
    pub(crate) longer: usize,
}

impl Faults {
    pub(crate) fn add(&mut self, other: Self) {
        self.aborted += other.aborted;
        self.failed += other.failed;
        self.checksums += other.checksums;
        self.longer += other.longer;
    }
}

/// What is wrong with what a program returned and left. A frame that was wrong when it came may leave so.
pub(crate) fn faults(name: &str, returned: u32, action: Action, frame: &[u8], out: &[u8]) -> Faults {
    let mut found = Faults { aborted: usize::from(name == "lb_xdp" && returned == 0), ..Faults::default() };
    if frame == out {
        return found;
    }
    let (frame, out) = (untagged(frame), untagged(out));
    // An answer is made here, whatever it answers to.
    let answered = action == Action::Reply;
    let spoilt = |check: fn(&[u8]) -> Option<bool>| {
        let before = if answered { Some(true) } else { check(&frame) };
        usize::from(before == Some(true) && check(&out) == Some(false))
    };
    found.checksums = spoilt(l4_checksum_is_right).max(spoilt(header_is_right));
    found.longer = spoilt(fits_its_frame);
    found
}

/// A frame without its tags.
fn untagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    while matches!(frame.get(12..14), Some([0x81, 0] | [0x88, 0xa8])) && frame.len() >= 18 {
        frame.drain(12..16);
    }
    frame
}

/// Whether an IPv4 header's checksum is right.
fn header_is_right(frame: &[u8]) -> Option<bool> {
    if frame.get(12..14)? != [8, 0] {
        return None;
    }
    let header = frame.get(14..14 + 4 * usize::from(frame.get(14)? & 15))?;
    Some(Sum::default().add(header).fold() == 0xffff)
}

/// Whether a frame holds the whole of its packet or fragment.
fn fits_its_frame(frame: &[u8]) -> Option<bool> {
    let length = |at: usize| Some(usize::from(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?)));
    match frame.get(12..14)? {
        [8, 0] => Some(frame.len() >= 14 + length(16)?),
        [0x86, 0xdd] => Some(frame.len() >= 54 + length(18)?),
        _ => None,
    }
}
