//! A parsed packet of a protocol that Services know.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    native_endian::{U16, U32},
};

use crate::{
    family::{Addr, Depth, Family, RARE},
    fragment::{Part, Position},
    packet::Packet,
    protocol::{Port, Protocol},
    sctp,
    tuple::{FlowKey, FlowTuple, L4Addr, Side},
    verdict::Counter,
    wire::l4::{Ports, Sctp, Tcp, TcpFlags, Udp},
};

/// A packet whose lengths were all checked. Only [`Flow::parse`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Flow<A> {
    /// The packet's own addresses, ports and protocol (TCP, UDP or SCTP), as conntrack knows them.
    pub key: FlowKey<A>,
    /// TCP flags, or what SCTP says in those words; none for UDP.
    pub flags: TcpFlags,
    /// TCP: the sequence number, host order. SCTP: the verification tag, or what an INIT-ACK wants to see as such.
    pub sequence: u32,
    /// TCP: the acknowledgment number, host order. SCTP: the verification tag.
    pub acknowledgment: u32,
    /// Offset of the network header in the frame.
    l3: usize,
    /// Offset of the transport header in the frame.
    l4: usize,
    /// Bytes of transport header and payload, as the network header says.
    l4_length: usize,
    /// Which part of a packet it is.
    position: Position,
}

impl<A: Addr> Flow<A> {
    /// A flow to [parse](Self::parse) into: in place, for the sake of the BPF stack.
    #[inline(always)]
    pub const fn empty() -> Self {
        let key = FlowTuple {
            source: A::UNSPECIFIED,
            destination: A::UNSPECIFIED,
            source_port: Port::NONE,
            destination_port: Port::NONE,
            protocol: Protocol(0),
            // All zeroes: that is stored in whole words.
            side: Side(0),
            reserved: [0; 2],
        };
        Self {
            key: FlowKey(key),
            flags: TcpFlags::NONE,
            sequence: 0,
            acknowledgment: 0,
            l3: 0,
            l4: 0,
            l4_length: 0,
            position: Position::WHOLE,
        }
    }

    /// Parses a frame of family `F` whose network header begins at `l3`, seen at `side`. The error is the reason to pass
    /// it up untouched; for [`Counter::Icmp`] and [`Counter::Fragment`] all is read
    /// but ports.
    #[inline(always)]
    pub fn parse<F: Family<Addr = A>, P: Packet, D: Depth>(
        &mut self,
        packet: &P,
        l3: usize,
        side: Side,
    ) -> Result<(), Counter> {
        let l3 = D::network(l3);
        let network = F::parse::<P, D>(packet, l3)?;
        let l4 = network.payload;
        let length = network.payload_length;
        let mut result = Ok(());
        let part = network.position.part;
        let unread = Ports { source: Port::NONE, destination: Port::NONE };
        let mut sequence = 0;
        let mut acknowledgment = 0;
        let (ports, flags) = match network.protocol {
            // Its first fragment has them.
            Protocol::TCP | Protocol::UDP if D::FULL && part == Part::LATER => {
                result = Err(Counter::Fragment);
                (unread, TcpFlags::NONE)
            }
            Protocol::TCP => {
                let tcp: &Tcp = packet.get(l4).ok_or(Counter::Malformed)?;
                let header = tcp.header_length();
                // RFC 9293: the data offset is at least 5.
                if header < Tcp::LENGTH || header > length {
                    return Err(Counter::Malformed);
                }
                sequence = u32::from_be_bytes(tcp.sequence);
                acknowledgment = u32::from_be_bytes(tcp.acknowledgment);
                (tcp.ports, tcp.flags)
            }
            Protocol::UDP => {
                let udp: &Udp = packet.get(l4).ok_or(Counter::Malformed)?;
                let said = usize::from(u16::from_be_bytes(udp.length));
                // A fragment has only a part of what is said.
                if said < Udp::LENGTH || said > length && !(D::FULL && part == Part::FIRST) {
                    return Err(Counter::Malformed);
                }
                (udp.ports, TcpFlags::NONE)
            }
            Protocol::SCTP if !D::FULL => return Err(RARE),
            Protocol::SCTP if part == Part::WHOLE => {
                let sctp: &Sctp = packet.get(l4).ok_or(Counter::Malformed)?;
                let chunk: &u8 = packet.get(l4.wrapping_add(size_of::<Sctp>())).ok_or(Counter::Malformed)?;
                if length <= size_of::<Sctp>() {
                    return Err(Counter::Malformed);
                }
                let flags = sctp::flags(*chunk);
                acknowledgment = u32::from_be_bytes(sctp.tag);
                sequence = acknowledgment;
                if flags.has(TcpFlags::SYN) && flags.has(TcpFlags::ACK) {
                    let wanted: &[u8; 4] = packet.get(l4.wrapping_add(sctp::INITIATE_TAG)).ok_or(Counter::Malformed)?;
                    sequence = u32::from_be_bytes(*wanted);
                }
                (sctp.ports, flags)
            }
            // Read so far, for those who look into errors.
            Protocol(number) if number == F::ICMP && D::FULL && part == Part::WHOLE => {
                result = Err(Counter::Icmp);
                (unread, TcpFlags::NONE)
            }
            // Its checksum is that of the whole packet, whose length a fragment does not tell.
            Protocol::SCTP if D::FULL && part != Part::WHOLE => return Err(Counter::Sctp),
            // A fragment of anything else.
            _ if D::FULL && part != Part::WHOLE => return Err(Counter::OtherProtocol),
            Protocol(number) if number == F::ICMP => return Err(Counter::Icmp),
            _ => return Err(Counter::OtherProtocol),
        };
        let (source, destination) = F::addresses(packet, l3).ok_or(Counter::Malformed)?;
        *self = Self {
            key: FlowKey(FlowTuple {
                source: *source,
                destination: *destination,
                source_port: ports.source,
                destination_port: ports.destination,
                protocol: network.protocol,
                side,
                reserved: [0; 2],
            }),
            flags,
            sequence,
            acknowledgment,
            l3,
            l4,
            l4_length: length,
            position: network.position,
        };
        result
    }

    /// Source.
    #[inline(always)]
    pub fn source(&self) -> L4Addr<A> {
        L4Addr { addr: self.key.0.source, port: self.key.0.source_port }
    }

    /// Destination.
    #[inline(always)]
    pub fn destination(&self) -> L4Addr<A> {
        L4Addr { addr: self.key.0.destination, port: self.key.0.destination_port }
    }

    /// Transport protocol.
    #[inline(always)]
    pub fn protocol(&self) -> Protocol {
        self.key.0.protocol
    }

    /// Offset of the network header.
    #[inline(always)]
    pub const fn l3(&self) -> usize {
        self.l3
    }

    /// Offset of the transport header.
    #[inline(always)]
    pub const fn l4(&self) -> usize {
        self.l4
    }

    /// Bytes of transport header and payload.
    #[inline(always)]
    pub const fn l4_length(&self) -> usize {
        self.l4_length
    }

    /// Which part of a packet it is.
    #[inline(always)]
    pub const fn part(&self) -> Part {
        self.position.part
    }

    /// Where in its packet it is.
    #[inline(always)]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// What the other side can acknowledge of this packet at most: for TCP the sequence number behind it (options count
    /// as payload here), for SCTP the tag its answers carry.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        if self.key.0.protocol.0 != Protocol::TCP.0 {
            return self.sequence;
        }
        let payload = self.l4_length.wrapping_sub(Tcp::LENGTH) as u32;
        self.sequence.wrapping_add(self.flags.has(TcpFlags::SYN) as u32).wrapping_add(payload)
    }

    /// Bytes from the network header on.
    #[inline(always)]
    pub const fn bytes(&self) -> u64 {
        self.l4.wrapping_sub(self.l3).wrapping_add(self.l4_length) as u64
    }
}

/// A parsed packet in memory of the CPU's own, for the next subprogram: a BPF verifier that sees where its offsets come
/// from would follow each way to each of them.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Parked<A> {
    tuple: FlowTuple<A>,
    l3: U16,
    l4: U16,
    l4_length: U32,
    sequence: U32,
    acknowledgment: U32,
    flags: TcpFlags,
    part: Part,
    reserved: [u8; 2],
}

impl<A: Addr> Parked<A> {
    /// Parks a flow.
    #[inline(always)]
    pub fn set(&mut self, flow: &Flow<A>) {
        self.tuple = flow.key.0;
        self.l3.set(flow.l3 as u16);
        self.l4.set(flow.l4 as u16);
        self.l4_length.set(flow.l4_length as u32);
        self.sequence.set(flow.sequence);
        self.acknowledgment.set(flow.acknowledgment);
        self.flags = flow.flags;
        self.part = flow.position.part;
        self.reserved = [0; 2];
    }

    /// The flow that was parked.
    #[inline(always)]
    pub fn get(&self) -> Flow<A> {
        Flow {
            key: FlowKey(self.tuple),
            flags: self.flags,
            sequence: self.sequence.get(),
            acknowledgment: self.acknowledgment.get(),
            l3: usize::from(self.l3.get()),
            l4: usize::from(self.l4.get()),
            l4_length: self.l4_length.get() as usize,
            position: Position { part: self.part, ..Position::WHOLE },
        }
    }
}

const _: () = assert!(size_of::<Ports>() == 4);
