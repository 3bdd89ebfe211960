//! The Internet checksum: RFC 1071, RFC 1624, and UDP's rule about zero.

use lb_common::{
    checksum::{Checksum, Sum},
    family::{End, Family, V4, V6},
    packet::{L4Change, Packet, replace_inline},
    protocol::Port,
    testing::Buffer,
    wire::ipv4::Ipv4,
};
use proptest::prelude::*;

use crate::segment;

fn checksum(bytes: &[u8]) -> [u8; 2] {
    Sum::default().add(bytes).checksum().0
}

#[test]
fn rfc_1071_example_of_section_3() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(Sum::default().add(&bytes).partial().0, [0xdd, 0xf2]);
    assert_eq!(checksum(&bytes), [0x22, 0x0d]);
}

#[test]
fn rfc_1071_an_odd_last_byte_counts_as_if_a_zero_followed() {
    assert_eq!(checksum(&[0x12, 0x34, 0x56]), checksum(&[0x12, 0x34, 0x56, 0]));
    assert_eq!(checksum(&[0x12, 0x34, 0x56]), (!0x6834_u16).to_be_bytes());
}

#[test]
fn nothing_has_the_checksum_of_zero() {
    assert_eq!(checksum(&[]), [0xff, 0xff]);
}

/// The example of RFC 1624 section 4: equation 2 gives 0xffff here, equation 3 zero.
#[test]
fn rfc_1624_example_of_section_4() {
    let difference = Sum::default().remove(&[0x55, 0x55]).add(&[0x32, 0x85]);
    assert_eq!(Checksum([0xdd, 0x2f]).replace(difference), Checksum::ZERO);
}

#[test]
fn a_header_from_the_wire() {
    // The textbook IPv4 header: 192.168.0.1 to 192.168.0.199, UDP.
    let header = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
        0x00, 0xc7,
    ];
    assert_eq!(checksum(&header), [0xb8, 0x61]);
}

/// A buffer that is nothing but a checksum field.
fn follow(field: [u8; 2], change: L4Change) -> [u8; 2] {
    let mut packet = Buffer(field.to_vec());
    replace_inline(&mut packet, change).expect("the field is there");
    [packet.0[0], packet.0[1]]
}

fn change(zero_is_none: bool, old: Port, new: Port) -> L4Change {
    L4Change { field: 0, zero_is_none, ipv6: false, addresses: Sum::default(), ports: (old, new) }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    assert_eq!(follow([0, 0], change(true, Port::new(1), Port::new(2))), [0, 0]);
    // For TCP a zero is a value as any other: the sum was 0xffff, and grows by one.
    assert_eq!(follow([0, 0], change(false, Port::new(1), Port::new(2))), [0xff, 0xfe]);
}

#[test]
fn udp_sends_a_computed_zero_as_all_ones() {
    // 0x0001 covers a sum of 0xfffe; with one more it is 0xffff, whose complement is zero.
    assert_eq!(follow([0, 1], change(true, Port::new(1), Port::new(2))), [0xff, 0xff]);
    assert_eq!(follow([0, 1], change(false, Port::new(1), Port::new(2))), [0, 0]);
}

#[test]
fn a_field_outside_the_frame_is_no_change() {
    let mut packet = Buffer(vec![1]);
    assert_eq!(replace_inline(&mut packet, change(true, Port::new(1), Port::new(2))), None);
    assert_eq!(packet.0, [1]);
}

/// A pseudo header with a message that begins with its ports, changed as NAT changes it: what the field becomes, and what
/// it would be if it were computed anew.
fn updated_and_computed<A: AsRef<[u8]>>(old: (&A, Port), new: (&A, Port), rest: &[u8], udp: bool) -> ([u8; 2], u16) {
    let whole = |(addr, port): (&A, Port)| !segment::sum(&[addr.as_ref(), &port.0, rest]);
    let field = whole(old);
    let field = if udp && field == 0 { 0xffff } else { field };
    let change = L4Change {
        field: 0,
        zero_is_none: udp,
        ipv6: size_of::<A>() == 16,
        addresses: Sum::default().remove(old.0.as_ref()).add(new.0.as_ref()),
        ports: (old.1, new.1),
    };
    let computed = whole(new);
    (follow(field.to_be_bytes(), change), if udp && computed == 0 { 0xffff } else { computed })
}

proptest! {
    #[test]
    fn sums_are_those_of_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert_eq!(checksum(&bytes), (!segment::sum(&[&bytes])).to_be_bytes());
    }

    #[test]
    fn the_largest_packet_does_not_overflow(byte: u8) {
        let bytes = vec![byte; 65_536];
        prop_assert_eq!(checksum(&bytes), (!segment::sum(&[&bytes])).to_be_bytes());
    }

    #[test]
    fn rfc_1624_update_equals_full_computation(
        before: [u8; 8],
        after: [u8; 8],
        rest in proptest::collection::vec(any::<u8>(), 1..64),
    ) {
        // A header of nothing but zeros has no update that equals its computation; no header is.
        prop_assume!(rest.iter().any(|byte| *byte != 0));
        let field = Checksum((!segment::sum(&[&before, &rest])).to_be_bytes());
        let updated = field.replace(Sum::default().remove(&before).add(&after));
        prop_assert_eq!(updated.0, (!segment::sum(&[&after, &rest])).to_be_bytes());
    }

    #[test]
    fn v4_l4_update_equals_full_computation(
        old: [u8; 4], new: [u8; 4], ports: ([u8; 2], [u8; 2]), rest: [u8; 32], udp: bool,
    ) {
        prop_assume!(rest != [0; 32]);
        let (updated, computed) = updated_and_computed((&old, Port(ports.0)), (&new, Port(ports.1)), &rest, udp);
        prop_assert_eq!(updated, computed.to_be_bytes());
    }

    #[test]
    fn v6_l4_update_equals_full_computation(
        old: [u8; 16], new: [u8; 16], ports: ([u8; 2], [u8; 2]), rest: [u8; 32], udp: bool,
    ) {
        prop_assume!(rest != [0; 32]);
        let (updated, computed) = updated_and_computed((&old, Port(ports.0)), (&new, Port(ports.1)), &rest, udp);
        prop_assert_eq!(updated, computed.to_be_bytes());
    }

    /// Few values, so that sums of zero and all ones come up often.
    #[test]
    fn udp_never_updates_a_checksum_to_none(old in 0_u16..4, new in 0_u16..4, field in prop_oneof![1_u16..8, 0xfff8_u16..=0xffff]) {
        let updated = follow(field.to_be_bytes(), change(true, Port::new(old), Port::new(new)));
        prop_assert_ne!(updated, [0, 0]);
    }

    #[test]
    fn the_ipv4_header_checksum_follows_an_address(source: [u8; 4], destination: [u8; 4], new: [u8; 4], at_source: bool) {
        let mut packet = Buffer(segment::network(&source, &destination, 17, &[]));
        let end = if at_source { End::Source } else { End::Destination };
        V4::set_address(&mut packet, 14, end, &new).expect("a whole header");
        prop_assert_eq!(segment::sum(&[&packet.0[14..34]]), 0xffff);
        let header: Ipv4 = *packet.get(14).expect("a whole header");
        let expected = if at_source { (new, destination) } else { (source, new) };
        prop_assert_eq!((header.source, header.destination), expected);
    }

    #[test]
    fn built_headers_are_valid(v4: ([u8; 4], [u8; 4]), v6: ([u8; 16], [u8; 16]), protocol: u8, length in 0_u16..1400) {
        use zerocopy::IntoBytes;
        let header = V4::header(v4.0, v4.1, protocol, length);
        prop_assert_eq!(segment::sum(&[header.as_bytes()]), 0xffff);
        prop_assert_eq!(header.total_length, (length + 20).to_be_bytes());
        let header = V6::header(v6.0, v6.1, protocol, length);
        prop_assert_eq!(header.payload_length, length.to_be_bytes());
        prop_assert_eq!((header.source, header.destination, header.next_header), (v6.0, v6.1, protocol));
    }
}
