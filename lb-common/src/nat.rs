//! Rewriting one end of a packet.

use crate::{
    checksum::Sum,
    family::{Addr, Depth, End, Family},
    flow::Flow,
    fragment::Part,
    packet::{L4Change, Packet},
    protocol::Protocol,
    tuple::L4Addr,
    wire::l4::{Ports, Tcp, Udp},
};

/// Gives one end of the packet a new address and port; all checksums follow. `None`: the frame is shorter than its
/// parsed headers say, which only a change behind our back can cause.
#[inline(always)]
pub fn rewrite<F: Family, P: Packet, D: Depth>(
    packet: &mut P,
    flow: &Flow<F::Addr>,
    end: End,
    new: &L4Addr<F::Addr>,
) -> Option<()> {
    let key = &flow.key.0;
    let (old, old_port) = match end {
        End::Source => (&key.source, key.source_port),
        End::Destination => (&key.destination, key.destination_port),
    };
    let (l3, l4) = (D::network(flow.l3()), D::transport::<F>(flow.l4()));
    F::set_address(packet, l3, end, &new.addr)?;
    if D::FULL && flow.part() == Part::LATER {
        if F::IPV6 {
            // An IPv4 header's own checksum balances it.
            packet.addresses_changed(difference(old, &new.addr));
        }
        return Some(());
    }
    let ports: &mut Ports = packet.get_mut(l4)?;
    match end {
        End::Source => ports.source = new.port,
        End::Destination => ports.destination = new.port,
    }
    if D::FULL && flow.protocol() == Protocol::SCTP {
        // Its checksum follows when all is done (`sctp`), and covers no address.
        if F::IPV6 {
            packet.addresses_changed(difference(old, &new.addr));
        }
        return Some(());
    }
    packet.replace_l4(L4Change {
        field: l4.wrapping_add(if flow.protocol() == Protocol::TCP { Tcp::CHECKSUM } else { Udp::CHECKSUM }),
        zero_is_none: flow.protocol() == Protocol::UDP,
        ipv6: F::IPV6,
        addresses: difference(old, &new.addr),
        ports: (old_port, new.port),
    })
}

#[inline(always)]
fn difference<A: Addr>(old: &A, new: &A) -> Sum {
    Sum::default().remove(old.as_ref()).add(new.as_ref())
}
