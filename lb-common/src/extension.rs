//! IPv6 extension headers (RFC 8200 section 4): walked over, a bounded number of them.

use crate::{
    family::Network,
    fragment::{Part, Position},
    packet::{LAST_HEADER, Packet},
    protocol::Protocol,
    verdict::Counter,
    wire::ipv6::{Extension, Ipv6},
};

/// Extension headers that are read (RFC 8200 section 4.1 asks for no more than one of each but two of one kind).
const EXTENSIONS: u32 = 6;

/// Walks over extension headers: `network` becomes what is behind them.
#[inline(always)]
pub(crate) fn extensions<P: Packet>(packet: &P, mut network: Network) -> Result<Network, Counter> {
    let mut step = 0;
    while step <= EXTENSIONS {
        let kind = network.protocol.0;
        let extension = matches!(
            kind,
            Ipv6::HOP_BY_HOP | Ipv6::ROUTING | Ipv6::FRAGMENT | Ipv6::AUTHENTICATION | Ipv6::DESTINATION
        );
        if !extension {
            return if network.payload > LAST_HEADER { Err(Counter::ExtensionHeader) } else { Ok(network) };
        }
        if step == EXTENSIONS || network.payload > LAST_HEADER {
            break;
        }
        let header: &Extension = packet.get(network.payload).ok_or(Counter::Malformed)?;
        // Not to be rewritten: the destination in the header is not where it goes (RFC 8200 section 4.4).
        if kind == Ipv6::ROUTING && header.rest[1] != 0 {
            return Err(Counter::ExtensionHeader);
        }
        let length = usize::from(header.length);
        let length = if kind == Ipv6::FRAGMENT {
            let [high, low] = header.rest;
            let word = u16::from_be_bytes([high, low]);
            network.position = Position::new(word & 0xfff8, word & 1 != 0, header.id);
            8
        } else if kind == Ipv6::AUTHENTICATION {
            // RFC 4302 section 2.2. What it protects includes the addresses: it fails at the receiver, as it would
            // behind any NAT.
            length.wrapping_add(2).wrapping_mul(4)
        } else {
            length.wrapping_add(1).wrapping_mul(8)
        };
        if length > network.payload_length {
            return Err(Counter::Malformed);
        }
        network = Network {
            protocol: Protocol(header.next_header),
            payload: network.payload.wrapping_add(length),
            payload_length: network.payload_length.wrapping_sub(length),
            position: network.position,
        };
        // Behind the header of a later fragment is the middle of something.
        if network.position.part == Part::LATER {
            return Ok(network);
        }
        step = step.wrapping_add(1);
    }
    Err(Counter::ExtensionHeader)
}
