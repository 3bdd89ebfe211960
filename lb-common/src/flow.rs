//! A parsed packet of a protocol that Services know.

use crate::{
    family::Family,
    packet::Packet,
    protocol::{Port, Protocol},
    tuple::{FlowKey, FlowTuple, L4Addr, Side},
    verdict::Counter,
    wire::{
        eth::Eth,
        l4::{Ports, Sctp, Tcp, TcpFlags, Udp},
    },
};

/// A packet whose lengths were all checked. Only [`Flow::parse`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Flow<A> {
    /// The packet's own addresses, ports and protocol (TCP, UDP or SCTP), as conntrack knows them.
    pub key: FlowKey<A>,
    /// TCP flags; none for other protocols.
    pub flags: TcpFlags,
    /// Offset of the transport header in the frame.
    l4: usize,
    /// Bytes of transport header and payload, as the network header says.
    l4_length: usize,
}

impl<A: crate::family::Addr> Flow<A> {
    /// A flow to [parse](Self::parse) into: in place, for the sake of the BPF stack.
    #[inline(always)]
    pub const fn empty() -> Self {
        let key = FlowTuple {
            source: A::UNSPECIFIED,
            destination: A::UNSPECIFIED,
            source_port: Port::NONE,
            destination_port: Port::NONE,
            protocol: Protocol(0),
            side: Side::INGRESS,
            reserved: [0; 2],
        };
        Self { key: FlowKey(key), flags: TcpFlags::NONE, l4: 0, l4_length: 0 }
    }

    /// Parses a frame of family `F`, seen at `side`. The error is the reason to pass it up untouched.
    #[inline(always)]
    pub fn parse<F: Family<Addr = A>, P: Packet>(&mut self, packet: &P, side: Side) -> Result<(), Counter> {
        let network = F::parse(packet)?;
        let l4 = network.payload;
        let length = network.payload_length;
        let (ports, flags) = match network.protocol {
            Protocol::TCP => {
                let tcp: &Tcp = packet.get(l4).ok_or(Counter::Malformed)?;
                let header = tcp.header_length();
                // RFC 9293: the data offset is at least 5.
                if header < Tcp::LENGTH || header > length {
                    return Err(Counter::Malformed);
                }
                (tcp.ports, tcp.flags)
            }
            Protocol::UDP => {
                let udp: &Udp = packet.get(l4).ok_or(Counter::Malformed)?;
                let said = usize::from(u16::from_be_bytes(udp.length));
                if said < Udp::LENGTH || said > length {
                    return Err(Counter::Malformed);
                }
                (udp.ports, TcpFlags::NONE)
            }
            Protocol::SCTP => {
                let sctp: &Sctp = packet.get(l4).ok_or(Counter::Malformed)?;
                if length < size_of::<Sctp>() {
                    return Err(Counter::Malformed);
                }
                (sctp.ports, TcpFlags::NONE)
            }
            Protocol(number) if number == F::ICMP => return Err(Counter::Icmp),
            _ => return Err(Counter::OtherProtocol),
        };
        let (source, destination) = F::addresses(packet).ok_or(Counter::Malformed)?;
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
            l4,
            l4_length: length,
        };
        Ok(())
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

    /// Bytes from the network header on.
    #[inline(always)]
    pub const fn bytes(&self) -> u64 {
        self.l4.wrapping_sub(Eth::LENGTH).wrapping_add(self.l4_length) as u64
    }
}

const _: () = assert!(size_of::<Ports>() == 4);
