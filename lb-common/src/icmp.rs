//! ICMP errors about packets of Service flows (RFC 5508 asks a NAT for both directions).
//!
//! An error quotes the packet it is about, and goes back to that packet's sender: its tuple turned round is one that this
//! side would meet, and the entry it finds says what becomes of one end. The error gets the same on the outside, and what
//! it quotes on the other end, so that the receiver finds the packet it sent. Nothing else changes: a forged error moves no
//! flow to another phase and keeps none alive.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, native_endian::U16};

use crate::{
    checksum::{Checksum, Sum},
    conntrack::{Conntrack, EntryKind},
    family::{End, Family},
    flow::Parked,
    packet::Packet,
    pipeline::{self, Hook},
    protocol::Protocol,
    tables::{Scratch, Tables},
    tuple::{FlowKey, L4Addr, Side},
    verdict::{Counter, Verdict},
    wire::{
        icmp::Message,
        l4::{Ports, Tcp, Udp},
    },
};

/// An error about a packet that Services may know. In scratch memory, as [`Parked`] is.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Fault<A> {
    /// The error's own addresses.
    source: A,
    destination: A,
    /// The source of the quoted packet.
    quoted_source: L4Addr<A>,
    /// Its destination.
    quoted_destination: L4Addr<A>,
    /// Offset of the error's network header.
    l3: U16,
    /// Offset of the message.
    message: U16,
    /// Offset of the quoted network header.
    quoted_l3: U16,
    /// Offset of the quoted transport header.
    quoted_l4: U16,
    /// Offset of its checksum; zero where that is not quoted.
    checksum: U16,
    protocol: Protocol,
    reserved: u8,
}

/// Translates the parked packet, which is ICMP. `hook`: where it is met at ingress; none at egress.
#[inline(never)]
pub(crate) fn translate<F: Family, P: Packet, W: Tables<F::Addr>>(
    packet: &mut P,
    world: &W,
    hook: Option<Hook>,
) -> Verdict {
    let verdict = world.scratch(|Scratch { flow, fault, .. }| {
        if read::<F, P>(packet, flow, fault).is_none() {
            return Verdict::pass(Counter::Icmp);
        }
        let side = if hook.is_some() { Side::INGRESS } else { Side::EGRESS };
        let key = FlowKey::new(side, fault.protocol, fault.quoted_destination, fault.quoted_source);
        let translated = world.conntrack(&key, |entry| {
            let to_host = entry.kind == EntryKind::RETURN && entry.host != 0;
            if to_host && hook == Some(Hook::Xdp) {
                return Verdict::pass(Counter::Deferred);
            }
            match apply::<F, P>(packet, fault, entry) {
                None => Verdict::drop(Counter::Malformed),
                Some(()) if to_host => match pipeline::address_host(packet, world) {
                    Some(()) => Verdict::to_host(Counter::IcmpError),
                    None => Verdict::drop(Counter::Malformed),
                },
                Some(()) if hook == Some(Hook::Host) => Verdict::forward(Counter::IcmpError, entry.device.get()),
                Some(()) => Verdict::pass(Counter::IcmpError),
            }
        });
        translated.unwrap_or(Verdict::pass(Counter::Icmp))
    });
    verdict.unwrap_or(Verdict::drop(Counter::Inconsistent))
}

/// Reads the parked packet. None: no error, or about nothing that Services know.
#[inline(never)]
fn read<F: Family, P: Packet>(packet: &mut P, parked: &Parked<F::Addr>, fault: &mut Fault<F::Addr>) -> Option<()> {
    let flow = parked.get();
    let (message, length) = (flow.l4(), flow.l4_length());
    if !F::is_icmp_error(packet.get::<Message>(message)?.kind) {
        return None;
    }
    let quoted = message.wrapping_add(size_of::<Message>());
    let network = F::parse_quoted(packet, quoted)?;
    let l4 = network.payload;
    // RFC 792: eight bytes are always there.
    let end = message.wrapping_add(length);
    if l4.wrapping_add(8) > end {
        return None;
    }
    let checksum = match network.protocol {
        Protocol::TCP => l4.wrapping_add(Tcp::CHECKSUM),
        Protocol::UDP => l4.wrapping_add(Udp::CHECKSUM),
        Protocol::SCTP => end,
        _ => return None,
    };
    let ports: Ports = *packet.get(l4)?;
    let (source, destination) = F::addresses(packet, quoted)?;
    // An error goes to whom it is about.
    if *source != flow.key.0.destination {
        return None;
    }
    fault.source = flow.key.0.source;
    fault.destination = flow.key.0.destination;
    fault.l3.set(flow.l3() as u16);
    fault.message.set(message as u16);
    fault.quoted_source = L4Addr { addr: *source, port: ports.source };
    fault.quoted_destination = L4Addr { addr: *destination, port: ports.destination };
    fault.protocol = network.protocol;
    fault.quoted_l3.set(quoted as u16);
    fault.quoted_l4.set(l4 as u16);
    fault.checksum.set(if checksum.wrapping_add(size_of::<Checksum>()) <= end { checksum as u16 } else { 0 });
    fault.reserved = 0;
    Some(())
}

/// Does to an error what the entry does to a packet.
#[inline(always)]
fn apply<F: Family, P: Packet>(packet: &mut P, fault: &Fault<F::Addr>, entry: &Conntrack<F::Addr>) -> Option<()> {
    let inner = entry.inner_client();
    match entry.kind {
        EntryKind::ORIGINAL => {
            swap::<F, P>(packet, fault, End::Destination, &entry.backend)?;
            // The port alone: the outside of the error is addressed already.
            quote::<F, P>(packet, fault, End::Destination, &inner)
        }
        EntryKind::SOURCE => swap::<F, P>(packet, fault, End::Source, &entry.source),
        EntryKind::REPLY => {
            swap::<F, P>(packet, fault, End::Source, &entry.frontend)?;
            quote::<F, P>(packet, fault, End::Source, &entry.client)
        }
        _ if entry.host != 0 => {
            swap::<F, P>(packet, fault, End::Source, &entry.frontend)?;
            swap::<F, P>(packet, fault, End::Destination, &entry.client)
        }
        _ => swap::<F, P>(packet, fault, End::Destination, &inner),
    }
}

/// Gives the error's `end` the address of `new`, and the other end of what it quotes address and port.
#[inline(never)]
fn swap<F: Family, P: Packet>(packet: &mut P, fault: &Fault<F::Addr>, end: End, new: &L4Addr<F::Addr>) -> Option<()> {
    let (old, other) = match end {
        End::Source => (&fault.source, End::Destination),
        End::Destination => (&fault.destination, End::Source),
    };
    F::set_address(packet, usize::from(fault.l3.get()), end, &new.addr)?;
    if F::IPV6 {
        // The pseudo header (RFC 4443 section 2.3).
        let message: &mut Message = packet.get_mut(usize::from(fault.message.get()))?;
        let difference = Sum::default().remove(old.as_ref()).add(new.addr.as_ref());
        message.checksum = message.checksum.replace(difference);
    }
    quote::<F, P>(packet, fault, other, new)
}

/// Changes one end of the quoted packet; its checksums and the error's follow.
#[inline(never)]
fn quote<F: Family, P: Packet>(packet: &mut P, fault: &Fault<F::Addr>, end: End, new: &L4Addr<F::Addr>) -> Option<()> {
    F::set_address(packet, usize::from(fault.quoted_l3.get()), end, &new.addr)?;
    let ports: &mut Ports = packet.get_mut(usize::from(fault.quoted_l4.get()))?;
    let old = match end {
        End::Source => {
            ports.source = new.port;
            &fault.quoted_source
        }
        End::Destination => {
            ports.destination = new.port;
            &fault.quoted_destination
        }
    };
    let addresses = Sum::default().remove(old.addr.as_ref()).add(new.addr.as_ref());
    let mut difference = Sum::default().remove(&old.port.0).add(&new.port.0);
    let whole = addresses.plus(difference);
    if F::IPV6 {
        // An IPv4 header's own checksum balances the change of its addresses.
        difference = whole;
    }
    if fault.checksum.get() != 0 {
        let udp = fault.protocol == Protocol::UDP;
        let field: &mut Checksum = packet.get_mut(usize::from(fault.checksum.get()))?;
        if !(udp && *field == Checksum::ZERO) {
            let before = *field;
            let after = before.replace(whole);
            *field = if udp && after == Checksum::ZERO { Checksum::ALL_ONES } else { after };
            difference = difference.remove(&before.0).add(&field.0);
        }
    }
    let message: &mut Message = packet.get_mut(usize::from(fault.message.get()))?;
    message.checksum = message.checksum.replace(difference);
    Some(())
}
