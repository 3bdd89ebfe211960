//! Verifies every checksum of what an interface receives: IPv4 header, TCP, UDP, ICMP, `ICMPv6`.
//!
//! A world of veths hides wrong checksums, since packets that never met a wire keep theirs unfinished and nobody
//! checks. The sink counts those apart ([`SinkReport::partial`]), so that a test can demand that there were none.

use crate::{Namespace, listen::Listener};

/// Wrong packets described in a report; all are counted.
const DESCRIBED: usize = 10;

/// What a sink saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkReport {
    /// Packets whose every checksum was verified.
    pub verified: u64,
    /// Packets whose layer 4 checksum the kernel had not finished (their IPv4 header was verified).
    pub partial: u64,
    /// Packets with nothing to verify (ARP, fragments, other protocols).
    pub other: u64,
    /// Packets with a wrong checksum.
    pub wrong: u64,
    /// Packets that came faster than they were verified: nobody knows what they were.
    pub lost: u64,
    /// Bytes of the largest packet: more than an MTU where senders leave the cutting to a device.
    pub largest: usize,
    /// The first wrong ones in words.
    pub examples: Vec<String>,
}

/// Listens on an interface from a thread of its own.
#[derive(Debug)]
pub struct ChecksumSink(Listener<SinkReport>);

impl ChecksumSink {
    /// Starts it; it sees everything that arrives once this has returned.
    ///
    /// Turns receive coalescing off there: a coalesced packet carries no checksum of its own.
    pub fn start(namespace: &Namespace, interface: &str) -> anyhow::Result<Self> {
        namespace.offload(interface, &[("gro", false)])?;
        Ok(Self(Listener::start(namespace, interface, record)?))
    }

    /// Ends it once nothing arrives any more; what it saw.
    pub fn stop(self) -> anyhow::Result<SinkReport> {
        let (report, lost) = self.0.stop_and_count_lost()?;
        Ok(SinkReport { lost, ..report })
    }
}

fn record(report: &mut SinkReport, bytes: &[u8], partial: bool) {
    report.largest = report.largest.max(bytes.len());
    match verify(bytes, partial) {
        Finding::Right if partial => report.partial += 1,
        Finding::Right => report.verified += 1,
        Finding::Nothing => report.other += 1,
        Finding::Wrong(what) => {
            report.wrong += 1;
            if report.examples.len() < DESCRIBED {
                report.examples.push(format!("{what}: {}", hex(bytes.get(..96).unwrap_or(bytes))));
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Right,
    Nothing,
    Wrong(&'static str),
}

/// Verifies an Ethernet frame; only the IPv4 header where the rest is `partial`.
fn verify(frame: &[u8], partial: bool) -> Finding {
    verify_packet(frame, partial).unwrap_or(Finding::Wrong("truncated"))
}

fn verify_packet(frame: &[u8], partial: bool) -> Option<Finding> {
    let mut offset = 12;
    let mut ethertype = word(frame, offset)?;
    while matches!(ethertype, 0x8100 | 0x88a8) {
        offset += 4;
        ethertype = word(frame, offset)?;
    }
    let packet = frame.get(offset + 2..)?;
    match ethertype {
        0x0800 => verify_ipv4(packet, partial),
        0x86dd => verify_ipv6(packet, partial),
        _ => Some(Finding::Nothing),
    }
}

fn verify_ipv4(packet: &[u8], partial: bool) -> Option<Finding> {
    let header = packet.get(..usize::from(packet.first()? & 0xf) * 4)?;
    if sum(&[header]) != 0xffff {
        return Some(Finding::Wrong("IPv4 header checksum"));
    }
    if word(packet, 6)? & 0x3fff != 0 {
        return Some(Finding::Nothing);
    }
    let payload = packet.get(header.len()..usize::from(word(packet, 2)?))?;
    let protocol = *packet.get(9)?;
    let finding = match protocol {
        // No pseudo header.
        1 => verify_sum(&[payload], partial, "ICMP checksum"),
        17 if word(payload, 6)? == 0 => Finding::Right,
        6 | 17 => verify_l4(packet.get(12..20)?, protocol, payload, partial),
        _ => Finding::Nothing,
    };
    Some(finding)
}

fn verify_ipv6(packet: &[u8], partial: bool) -> Option<Finding> {
    let mut payload = packet.get(40..40 + usize::from(word(packet, 4)?))?;
    let mut next = *packet.get(6)?;
    // Hop-by-hop and destination options (multicast reports carry them); a fragment holds no whole checksum.
    while matches!(next, 0 | 60) {
        next = *payload.first()?;
        payload = payload.get((usize::from(*payload.get(1)?) + 1) * 8..)?;
    }
    match next {
        // RFC 8200 section 8.1: over IPv6 a UDP checksum is not optional.
        17 if word(payload, 6)? == 0 => Some(Finding::Wrong("UDP checksum 0 over IPv6")),
        6 | 17 | 58 => Some(verify_l4(packet.get(8..40)?, next, payload, partial)),
        _ => Some(Finding::Nothing),
    }
}

/// `addresses` are source and destination as they lie in the header.
fn verify_l4(addresses: &[u8], protocol: u8, payload: &[u8], partial: bool) -> Finding {
    let what = match protocol {
        6 => "TCP checksum",
        17 => "UDP checksum",
        _ => "ICMPv6 checksum",
    };
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    verify_sum(&[addresses, &length, &[0, protocol], payload], partial, what)
}

fn verify_sum(parts: &[&[u8]], partial: bool, what: &'static str) -> Finding {
    if partial || sum(parts) == 0xffff { Finding::Right } else { Finding::Wrong(what) }
}

/// RFC 1071; every part but the last has an even length.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(pair.first().copied().unwrap_or(0)) << 8 | u64::from(low);
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}

fn word(bytes: &[u8], offset: usize) -> Option<u16> {
    let pair = bytes.get(offset..offset + 2)?;
    Some(u16::from_be_bytes([*pair.first()?, *pair.get(1)?]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// Whether every checksum of a frame is right.
#[cfg(test)]
pub(crate) fn is_right(frame: &[u8]) -> bool {
    verify(frame, false) == Finding::Right
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10.0.0.1:1 -> 10.0.0.2:2, UDP, payload "x"; checksums by hand.
    fn udp_frame() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0x66, 0xce, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 1, 0, 2, 0, 9, 0x73, 0xd6, b'x']);
        frame
    }

    #[test]
    fn a_right_packet_is_right() {
        assert_eq!(verify(&udp_frame(), false), Finding::Right);
    }

    #[test]
    fn a_changed_byte_is_found_unless_the_checksum_is_partial() {
        let mut frame = udp_frame();
        *frame.last_mut().expect("a payload") ^= 1;
        assert_eq!(verify(&frame, false), Finding::Wrong("UDP checksum"));
        assert_eq!(verify(&frame, true), Finding::Right);
        let mut frame = udp_frame();
        frame[22] -= 1;
        assert_eq!(verify(&frame, true), Finding::Wrong("IPv4 header checksum"));
    }

    #[test]
    fn a_truncated_packet_is_wrong() {
        let frame = udp_frame();
        for length in 14..frame.len() {
            assert!(matches!(verify(&frame[..length], false), Finding::Wrong(_)), "{length}");
        }
    }
}
