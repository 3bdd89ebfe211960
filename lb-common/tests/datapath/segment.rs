//! Frames as the tests write and read them: offsets and checksums are computed here anew, not by the code under test.

use lb_common::{
    protocol::{Port, Protocol},
    testing::{Buffer, crc32c, l4_checksum_is_right},
    tuple::L4Addr,
    wire::l4::TcpFlags,
};

use crate::ip::Ip;

pub(crate) const SYN: TcpFlags = TcpFlags::SYN;
pub(crate) const ACK: TcpFlags = TcpFlags::ACK;
pub(crate) const SYN_ACK: TcpFlags = TcpFlags(0x12);
pub(crate) const FIN_ACK: TcpFlags = TcpFlags(0x11);

/// MACs of the frames that [`Segment::frame`] builds.
pub(crate) const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub(crate) const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// What is in a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Segment<A> {
    pub(crate) source: L4Addr<A>,
    pub(crate) destination: L4Addr<A>,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transport {
    Tcp { flags: TcpFlags, sequence: u32, acknowledgment: u32 },
    Udp,
    Sctp,
}

/// A TCP segment without payload.
pub(crate) fn tcp<A: Ip>(source: L4Addr<A>, destination: L4Addr<A>, flags: TcpFlags) -> Segment<A> {
    let transport = Transport::Tcp { flags, sequence: 0x1234_5678, acknowledgment: 0x9abc_def0 };
    Segment { source, destination, transport, payload: Vec::new() }
}

/// A UDP datagram.
pub(crate) fn udp<A: Ip>(source: L4Addr<A>, destination: L4Addr<A>) -> Segment<A> {
    Segment { source, destination, transport: Transport::Udp, payload: b"ballast".to_vec() }
}

/// An SCTP packet with an INIT chunk.
pub(crate) fn sctp<A: Ip>(source: L4Addr<A>, destination: L4Addr<A>) -> Segment<A> {
    Segment { source, destination, transport: Transport::Sctp, payload: vec![1; 8] }
}

/// The first packet of a client.
pub(crate) fn first<A: Ip>(protocol: Protocol, source: L4Addr<A>, destination: L4Addr<A>) -> Segment<A> {
    match protocol {
        Protocol::TCP => tcp(source, destination, SYN),
        Protocol::UDP => udp(source, destination),
        Protocol::SCTP => sctp(source, destination),
        other => panic!("no first packet for {other:?}"),
    }
}

/// The one's complement sum of big-endian words, folded (RFC 1071).
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// An IP packet behind an Ethernet header, with its header checksum.
pub(crate) fn network<A: Ip>(source: &A, destination: &A, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a small packet");
    let mut frame = [RECEIVER, SENDER].concat();
    if A::is_v6() {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([protocol, 61]);
        frame.extend(source.as_ref());
        frame.extend(destination.as_ref());
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((length + 20).to_be_bytes());
        frame.extend([0xbe, 0xef, 0x40, 0, 61, protocol, 0, 0]);
        frame.extend(source.as_ref());
        frame.extend(destination.as_ref());
        let checksum = !sum(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

/// The checksum of an L4 message with its pseudo header, as a whole (0 when the field in it is right).
pub(crate) fn l4_checksum<A: Ip>(source: &A, destination: &A, protocol: u8, message: &[u8]) -> u16 {
    let length = u16::try_from(message.len()).expect("a small packet");
    !sum(&[source.as_ref(), destination.as_ref(), &[0, protocol], &length.to_be_bytes(), message])
}

/// Offset of the transport header.
pub(crate) fn l4_offset<A: Ip>() -> usize {
    if A::is_v6() { 54 } else { 34 }
}

impl<A: Ip> Segment<A> {
    pub(crate) fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp { .. } => Protocol::TCP,
            Transport::Udp => Protocol::UDP,
            Transport::Sctp => Protocol::SCTP,
        }
    }

    pub(crate) fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The other direction: ends swapped, TCP flags `flags`.
    pub(crate) fn answer(&self, flags: TcpFlags) -> Self {
        let transport = match self.transport {
            Transport::Tcp { sequence, acknowledgment, .. } => {
                Transport::Tcp { flags, sequence: acknowledgment, acknowledgment: sequence.wrapping_add(1) }
            }
            other => other,
        };
        // As SCTP a DATA chunk.
        let payload = if transport == Transport::Sctp { b"\0answer".to_vec() } else { b"answer".to_vec() };
        Self { source: self.destination, destination: self.source, transport, payload }
    }

    /// The frame, all checksums right.
    pub(crate) fn frame(&self) -> Buffer {
        let mut message = [self.source.port.0, self.destination.port.0].concat();
        let field = match self.transport {
            Transport::Tcp { flags, sequence, acknowledgment } => {
                message.extend(sequence.to_be_bytes());
                message.extend(acknowledgment.to_be_bytes());
                message.extend([0x50, flags.0, 0x20, 0, 0, 0, 0, 0]);
                Some(16)
            }
            Transport::Udp => {
                message.extend(u16::try_from(self.payload.len() + 8).expect("a small packet").to_be_bytes());
                message.extend([0, 0]);
                Some(6)
            }
            Transport::Sctp => {
                message.extend([0xab, 0xcd, 0xef, 0x01, 0, 0, 0, 0]);
                None
            }
        };
        message.extend(&self.payload);
        if self.transport == Transport::Sctp {
            let crc = crc32c(&message);
            message[8..12].copy_from_slice(&crc);
        }
        let protocol = self.protocol().0;
        if let Some(field) = field {
            let checksum = l4_checksum(&self.source.addr, &self.destination.addr, protocol, &message);
            message[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        Buffer(network(&self.source.addr, &self.destination.addr, protocol, &message))
    }

    /// Reads a TCP, UDP or SCTP frame back; every length and checksum must be right.
    #[track_caller]
    pub(crate) fn read(frame: &Buffer) -> Self {
        let (source, destination, protocol, message) = read_network::<A>(frame);
        assert_eq!(l4_checksum_is_right(&frame.0), Some(true), "L4 checksum of {frame:02x?}");
        let port = |offset: usize| Port([message[offset], message[offset + 1]]);
        let word = |offset: usize| u32::from_be_bytes(message[offset..offset + 4].try_into().expect("four bytes"));
        let (transport, header) = match protocol {
            6 => {
                assert_eq!(l4_checksum(&source, &destination, 6, message), 0);
                let flags = TcpFlags(message[13]);
                let transport = Transport::Tcp { flags, sequence: word(4), acknowledgment: word(8) };
                (transport, usize::from(message[12] >> 4) * 4)
            }
            17 => {
                assert_eq!(l4_checksum(&source, &destination, 17, message), 0);
                (Transport::Udp, 8)
            }
            132 => (Transport::Sctp, 12),
            other => panic!("neither TCP, UDP nor SCTP: {other}"),
        };
        Self {
            source: L4Addr { addr: source, port: port(0) },
            destination: L4Addr { addr: destination, port: port(2) },
            transport,
            payload: message[header..].to_vec(),
        }
    }
}

/// Source, destination, protocol and payload of an IP frame; lengths and header checksum must be right.
#[track_caller]
pub(crate) fn read_network<A: Ip>(frame: &Buffer) -> (A, A, u8, &[u8]) {
    let bytes = &frame.0;
    let addr = |from: usize| A::read_from_bytes(&bytes[from..from + size_of::<A>()]).expect("as many bytes");
    let length = |from: usize| usize::from(u16::from_be_bytes([bytes[from], bytes[from + 1]]));
    if A::is_v6() {
        assert_eq!(bytes[12..14], [0x86, 0xdd]);
        assert_eq!(bytes[14] >> 4, 6);
        assert_eq!(length(18), bytes.len() - 54, "payload length");
        (addr(22), addr(38), bytes[20], &bytes[54..])
    } else {
        assert_eq!(bytes[12..15], [8, 0, 0x45]);
        assert_eq!(sum(&[&bytes[14..34]]), 0xffff, "IPv4 header checksum");
        assert_eq!(length(16), bytes.len() - 14, "total length");
        (addr(26), addr(30), bytes[23], &bytes[34..])
    }
}
