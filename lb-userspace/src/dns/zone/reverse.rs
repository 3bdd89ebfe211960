//! Names of addresses (RFC 1035 section 3.5, RFC 3596 section 2.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Zone of IPv4 addresses.
pub(super) const V4: &str = "in-addr.arpa";
/// Zone of IPv6 addresses.
pub(super) const V6: &str = "ip6.arpa";

/// Name of an address.
pub fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.{V4}")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4));
            nibbles.collect::<String>() + V6
        }
    }
}

/// The addresses at or below a name of a zone of addresses; none for what is no part of an address. `labels` is in lower
/// case, without the zone.
pub(super) fn net(labels: &str, v6: bool) -> Option<IpNet> {
    let labels = labels.rsplit('.').filter(|label| !label.is_empty());
    if v6 {
        let (mut bits, mut length) = (0_u128, 0_u8);
        for label in labels {
            let digit = u128::from_str_radix(label, 16).ok().filter(|_| label.len() == 1 && length < 128)?;
            bits |= digit << (124 - length);
            length += 4;
        }
        return Ipv6Net::new(Ipv6Addr::from_bits(bits), length).ok().map(IpNet::V6);
    }
    let (mut bits, mut length) = (0_u32, 0_u8);
    for label in labels {
        let plain = label == "0" || !label.starts_with(['0', '+']);
        let octet: u8 = label.parse().ok().filter(|_| plain && length < 32)?;
        bits |= u32::from(octet) << (24 - length);
        length += 8;
    }
    Ipv4Net::new(Ipv4Addr::from_bits(bits), length).ok().map(IpNet::V4)
}

/// Whether two ranges have an address in common.
pub(super) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &str, v6: bool) -> Option<String> {
        net(labels, v6).map(|net| net.to_string())
    }

    #[test]
    fn names_are_addresses_ranges_or_neither() {
        assert_eq!(of("10.0.96.10", false).as_deref(), Some("10.96.0.10/32"));
        assert_eq!(of("96.10", false).as_deref(), Some("10.96.0.0/16"));
        assert_eq!(of("", false).as_deref(), Some("0.0.0.0/0"));
        assert_eq!(of("0.0.d.f", true).as_deref(), Some("fd00::/16"));
        for (wrong, v6) in [
            ("256.10", false),
            ("01.10", false),
            ("+1.10", false),
            ("1.2.3.4.5", false),
            ("x", false),
            ("10", true),
            ("g", true),
        ] {
            assert_eq!(of(wrong, v6), None, "{wrong}");
        }
        for address in ["10.96.0.10", "fd00::1:2"] {
            let address: IpAddr = address.parse().expect("an address");
            let name = reverse(address);
            let labels = name.trim_end_matches(if address.is_ipv6() { V6 } else { V4 });
            assert_eq!(
                net(labels, address.is_ipv6()).map(|net| (net.addr(), net.max_prefix_len() == net.prefix_len())),
                Some((address, true))
            );
        }
    }
}
