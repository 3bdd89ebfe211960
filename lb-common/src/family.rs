//! The two address families behind one interface.

use core::{fmt::Debug, hash::Hash};

use crate::{
    checksum::{Checksum, Sum},
    extension::extensions,
    fragment::Position,
    packet::{Packet, Wire},
    protocol::Protocol,
    settings::Setting,
    verdict::Counter,
    wire::{
        eth::Eth,
        icmp,
        ipv4::Ipv4,
        ipv6::{Extension, Ipv6},
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A value that may cross the map boundary: no padding, every bit pattern legal.
pub trait Abi: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static> Abi for T {}

/// An IP address as its bytes stand on the wire.
pub trait Addr: Abi + Unaligned + Eq + Ord + Hash + Debug + AsRef<[u8]> {
    /// `0.0.0.0` or `::`.
    const UNSPECIFIED: Self;

    /// The address as 32-bit words in memory order, folded into one, for hashing.
    fn fold(&self) -> u32;

    /// Whether no packet on a wire may come from it, so that none may be answered to it: unspecified, loopback and
    /// multicast addresses, for IPv4 the networks 0/8 and 240/4 as well (RFC 1122 section 3.2.1.3, RFC 4291).
    fn is_martian(&self) -> bool;

    /// `127.0.0.0/8` or `::1`: an address that every network namespace has for itself.
    fn is_loopback(&self) -> bool;

    /// The settings that hold the address of this node's processes, and their words as an address.
    const HOST_SOURCE: [Setting; 2];
    /// The same as words.
    fn from_words(words: [u64; 2]) -> Self;
    /// Words for the settings.
    fn to_words(self) -> [u64; 2];
}

impl Addr for [u8; 4] {
    const UNSPECIFIED: Self = [0; 4];

    #[inline(always)]
    fn fold(&self) -> u32 {
        u32::from_ne_bytes(*self)
    }

    #[inline(always)]
    fn is_martian(&self) -> bool {
        let [first, ..] = *self;
        first == 0 || first == 127 || first >= 224
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        let [first, ..] = *self;
        first == 127
    }

    const HOST_SOURCE: [Setting; 2] = [Setting::HostSource4, Setting::HostSource4];

    #[inline(always)]
    fn from_words([word, _]: [u64; 2]) -> Self {
        (word as u32).to_ne_bytes()
    }

    fn to_words(self) -> [u64; 2] {
        [u64::from(u32::from_ne_bytes(self)); 2]
    }
}

impl Addr for [u8; 16] {
    const UNSPECIFIED: Self = [0; 16];

    #[inline(always)]
    fn fold(&self) -> u32 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *self;
        u32::from_ne_bytes([a, b, c, d])
            ^ u32::from_ne_bytes([e, f, g, h]).rotate_left(7)
            ^ u32::from_ne_bytes([i, j, k, l]).rotate_left(14)
            ^ u32::from_ne_bytes([m, n, o, p]).rotate_left(21)
    }

    #[inline(always)]
    fn is_martian(&self) -> bool {
        let [first, .., last] = *self;
        // The last two are `::` and `::1`.
        let rest = self.iter().take(15).fold(0, |all, byte| all | byte);
        first == 0xff || rest == 0 && last <= 1
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        let [.., last] = *self;
        last == 1 && self.iter().take(15).fold(0, |all, byte| all | byte) == 0
    }

    const HOST_SOURCE: [Setting; 2] = [Setting::HostSource6Front, Setting::HostSource6Back];

    #[inline(always)]
    fn from_words([front, back]: [u64; 2]) -> Self {
        let [a, b, c, d, e, f, g, h] = front.to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = back.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    fn to_words(self) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self;
        [[a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]].map(u64::from_ne_bytes)
    }
}

/// Which address of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// How much of what a network header may carry is read.
pub trait Depth: Copy + 'static {
    /// Options, extension headers, fragments and tags in front; else the plain header at its plain place.
    const FULL: bool;

    /// Where the network header begins, of a packet in which it was found at `found`.
    #[inline(always)]
    fn network(found: usize) -> usize {
        // Known when the program is compiled, so that every offset of the fast path is.
        if Self::FULL { found } else { Eth::LENGTH }
    }

    /// The same of the transport header.
    #[inline(always)]
    fn transport<F: Family>(found: usize) -> usize {
        if Self::FULL { found } else { Eth::LENGTH.wrapping_add(size_of::<F::Header>()) }
    }
}

/// What the plain depth says of a header that has to be read in full.
pub const RARE: Counter = Counter::ExtensionHeader;

/// The fast path's depth. What it does not read is an error that tells so.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

/// Everything.
#[derive(Clone, Copy, Debug)]
pub struct Full;

impl Depth for Plain {
    const FULL: bool = false;
}

impl Depth for Full {
    const FULL: bool = true;
}

/// What the network header says, its lengths checked against the frame.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Protocol of the payload.
    pub protocol: Protocol,
    /// Offset of the payload in the frame.
    pub payload: usize,
    /// Bytes of the payload.
    pub payload_length: usize,
    /// Which part of a packet it is; read at [`Full`] depth only.
    pub position: Position,
}

/// An address family: everything that differs between IPv4 and IPv6.
pub trait Family: Copy + 'static {
    /// Its addresses.
    type Addr: Addr;
    /// Its header without options or extensions.
    type Header: Wire;
    /// Whether it is IPv6.
    const IPV6: bool;
    /// ICMP's protocol number.
    const ICMP: u8;
    /// Type and code of "port unreachable".
    const PORT_UNREACHABLE: (u8, u8);

    /// Reads the network header at `at`, every length checked. The error is the reason to pass the packet up.
    fn parse<P: Packet, D: Depth>(packet: &P, at: usize) -> Result<Network, Counter>;

    /// Whether an ICMP type is that of an error, which quotes a packet.
    fn is_icmp_error(kind: u8) -> bool;

    /// Reads the network header of a quoted packet, of which no more than eight bytes need to follow. None: it holds no
    /// transport header.
    fn parse_quoted<P: Packet>(packet: &P, at: usize) -> Option<Network>;

    /// Source and destination of the network header at `at`.
    fn addresses<P: Packet>(packet: &P, at: usize) -> Option<(&Self::Addr, &Self::Addr)>;

    /// Writes an address of the network header at `at`; an IPv4 header checksum follows.
    fn set_address<P: Packet>(packet: &mut P, at: usize, end: End, new: &Self::Addr) -> Option<()>;

    /// A header for a packet of our own, hop limit 64.
    fn header(source: Self::Addr, destination: Self::Addr, protocol: u8, payload: u16) -> Self::Header;

    /// Sum of the pseudo header (RFC 9293, RFC 8200 section 8.1).
    #[inline(always)]
    fn pseudo(source: Self::Addr, destination: Self::Addr, protocol: u8, length: u16) -> Sum {
        Sum::default().add(source.as_ref()).add(destination.as_ref()).add(&[0, protocol]).add(&length.to_be_bytes())
    }
}

/// IPv4, as a type parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

impl Family for V4 {
    type Addr = [u8; 4];
    type Header = Ipv4;
    const IPV6: bool = false;
    const ICMP: u8 = icmp::PROTOCOL_V4;
    const PORT_UNREACHABLE: (u8, u8) = icmp::PORT_UNREACHABLE_V4;

    #[inline(always)]
    fn parse<P: Packet, D: Depth>(packet: &P, at: usize) -> Result<Network, Counter> {
        let ip: &Ipv4 = packet.get(at).ok_or(Counter::Malformed)?;
        if ip.version_ihl >> 4 != 4 {
            return Err(Counter::Malformed);
        }
        // RFC 791: IHL is at least 5.
        let header_length = usize::from(ip.version_ihl & 0xf).wrapping_mul(4);
        if header_length < Ipv4::LENGTH {
            return Err(Counter::Malformed);
        }
        let total = usize::from(u16::from_be_bytes(ip.total_length));
        if total < header_length || !packet.holds(at.wrapping_add(total)) {
            return Err(Counter::Malformed);
        }
        if !D::FULL && header_length > Ipv4::LENGTH {
            return Err(RARE);
        }
        // More fragments, or an offset.
        let fragment = u16::from_be_bytes(ip.fragment) & 0x3fff;
        if !D::FULL && fragment != 0 {
            return Err(RARE);
        }
        let [high, low] = ip.id;
        let position = Position::new((fragment & 0x1fff) << 3, fragment & 0x2000 != 0, [0, 0, high, low]);
        Ok(Network {
            protocol: Protocol(ip.protocol),
            payload: at.wrapping_add(if D::FULL { header_length } else { Ipv4::LENGTH }),
            payload_length: total.wrapping_sub(header_length),
            position,
        })
    }

    /// RFC 792: destination unreachable, source quench, time exceeded, parameter problem.
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 3 | 4 | 11 | 12)
    }

    #[inline(always)]
    fn parse_quoted<P: Packet>(packet: &P, at: usize) -> Option<Network> {
        let ip: &Ipv4 = packet.get(at)?;
        let header_length = usize::from(ip.version_ihl & 0xf).wrapping_mul(4);
        // A later fragment has no ports.
        let later = u16::from_be_bytes(ip.fragment) & 0x1fff != 0;
        if ip.version_ihl >> 4 != 4 || header_length < Ipv4::LENGTH || later {
            return None;
        }
        Some(Network {
            protocol: Protocol(ip.protocol),
            payload: at.wrapping_add(header_length),
            payload_length: usize::from(u16::from_be_bytes(ip.total_length)).wrapping_sub(header_length),
            position: Position::WHOLE,
        })
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P, at: usize) -> Option<(&[u8; 4], &[u8; 4])> {
        packet.get::<Ipv4>(at).map(|ip| (&ip.source, &ip.destination))
    }

    #[inline(always)]
    fn set_address<P: Packet>(packet: &mut P, at: usize, end: End, new: &[u8; 4]) -> Option<()> {
        let ip: &mut Ipv4 = packet.get_mut(at)?;
        let field = match end {
            End::Source => &mut ip.source,
            End::Destination => &mut ip.destination,
        };
        ip.checksum = ip.checksum.replace(Sum::default().remove(field).add(new));
        *field = *new;
        Some(())
    }

    #[inline(always)]
    fn header(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: u16) -> Ipv4 {
        let mut header = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_length: (Ipv4::LENGTH as u16).wrapping_add(payload).to_be_bytes(),
            id: [0; 2],
            // Do not fragment: RFC 6864 then asks nothing of the identification.
            fragment: [0x40, 0],
            ttl: 64,
            protocol,
            checksum: Checksum::ZERO,
            source,
            destination,
        };
        header.checksum = Sum::default().add(header.as_bytes()).checksum();
        header
    }
}

/// IPv6, as a type parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;

impl Family for V6 {
    type Addr = [u8; 16];
    type Header = Ipv6;
    const IPV6: bool = true;
    const ICMP: u8 = icmp::PROTOCOL_V6;
    const PORT_UNREACHABLE: (u8, u8) = icmp::PORT_UNREACHABLE_V6;

    #[inline(always)]
    fn parse<P: Packet, D: Depth>(packet: &P, at: usize) -> Result<Network, Counter> {
        let ip: &Ipv6 = packet.get(at).ok_or(Counter::Malformed)?;
        if ip.version_flow[0] >> 4 != 6 {
            return Err(Counter::Malformed);
        }
        let payload = at.wrapping_add(Ipv6::LENGTH);
        let payload_length = usize::from(u16::from_be_bytes(ip.payload_length));
        if !packet.holds(payload.wrapping_add(payload_length)) {
            return Err(Counter::Malformed);
        }
        let position = Position::WHOLE;
        let network = Network { protocol: Protocol(ip.next_header), payload, payload_length, position };
        match ip.next_header {
            Ipv6::HOP_BY_HOP | Ipv6::ROUTING | Ipv6::FRAGMENT | Ipv6::AUTHENTICATION | Ipv6::DESTINATION => {
                if D::FULL {
                    extensions(packet, network)
                } else {
                    Err(RARE)
                }
            }
            _ => Ok(network),
        }
    }

    /// RFC 4443: destination unreachable, packet too big, time exceeded, parameter problem.
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn parse_quoted<P: Packet>(packet: &P, at: usize) -> Option<Network> {
        let ip: &Ipv6 = packet.get(at)?;
        if ip.version_flow[0] >> 4 != 6 {
            return None;
        }
        let payload_length = usize::from(u16::from_be_bytes(ip.payload_length));
        let network = Network {
            protocol: Protocol(ip.next_header),
            payload: at.wrapping_add(Ipv6::LENGTH),
            payload_length,
            position: Position::WHOLE,
        };
        if ip.next_header != Ipv6::FRAGMENT {
            return Some(network);
        }
        let header: &Extension = packet.get(network.payload)?;
        let [high, low] = header.rest;
        (high == 0 && low & 0xf8 == 0).then_some(Network {
            protocol: Protocol(header.next_header),
            payload: network.payload.wrapping_add(size_of::<Extension>()),
            payload_length: payload_length.wrapping_sub(size_of::<Extension>()),
            position: Position::WHOLE,
        })
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P, at: usize) -> Option<(&[u8; 16], &[u8; 16])> {
        packet.get::<Ipv6>(at).map(|ip| (&ip.source, &ip.destination))
    }

    #[inline(always)]
    fn set_address<P: Packet>(packet: &mut P, at: usize, end: End, new: &[u8; 16]) -> Option<()> {
        let ip: &mut Ipv6 = packet.get_mut(at)?;
        match end {
            End::Source => ip.source = *new,
            End::Destination => ip.destination = *new,
        }
        Some(())
    }

    #[inline(always)]
    fn header(source: [u8; 16], destination: [u8; 16], protocol: u8, payload: u16) -> Ipv6 {
        Ipv6 {
            version_flow: [0x60, 0, 0, 0],
            payload_length: payload.to_be_bytes(),
            next_header: protocol,
            hop_limit: 64,
            source,
            destination,
        }
    }
}
