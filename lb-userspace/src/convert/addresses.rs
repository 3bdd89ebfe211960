//! Addresses, names and protocols as the API server accepts them.

use std::{net::IpAddr, num::NonZeroU16};

use ipnet::IpNet;

use super::issue::Issue;
use crate::model::Protocol;

/// An address that traffic may be sent to: CVE-2021-25737 is about the others.
pub(crate) fn usable_address(field: &str, text: &str) -> Result<IpAddr, Issue> {
    let address = ip(text).ok_or_else(|| {
        Issue::error(field, format!("{text:?} is not an IP address"), "write an IPv4 or IPv6 address")
    })?;
    let special = if address.is_unspecified() {
        "unspecified"
    } else if address.is_loopback() {
        "loopback"
    } else if address.is_multicast() {
        "multicast"
    } else if match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    } {
        "link-local"
    } else if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        "IPv4-mapped"
    } else {
        return Ok(address);
    };
    Err(Issue::error(
        field,
        format!("{address} is a {special} address, which traffic must not be sent to"),
        "write a unicast address",
    ))
}

/// An address as kube-proxy reads it: objects that were stored long ago may have numbers with leading zeros, which are
/// decimal all the same.
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| {
        let mut numbers = text.split('.').map(decimal);
        let mut next = || numbers.next().flatten();
        let octets = [next()?, next()?, next()?, next()?];
        numbers.next().is_none().then(|| octets.into())
    })
}

/// A range whose address is as [`ip`] has it.
pub(crate) fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| {
        let (address, length) = text.split_once('/')?;
        IpNet::new(ip(address)?, decimal(length)?).ok()
    })
}

fn decimal(digits: &str) -> Option<u8> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

pub(crate) fn protocol(field: &str, text: Option<&str>) -> Result<Protocol, Issue> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(Issue::error(field, format!("unknown protocol {other:?}"), "write TCP, UDP or SCTP")),
    }
}

pub(crate) fn port(field: &str, number: Option<i64>) -> Result<NonZeroU16, Issue> {
    number.and_then(|number| u16::try_from(number).ok()).and_then(NonZeroU16::new).ok_or_else(|| {
        let found = number.map_or_else(|| "no port number".to_owned(), |number| format!("{number} is no port number"));
        Issue::error(field, found, "write a number from 1 to 65535")
    })
}

fn label_bytes(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// RFC 1123 label: what a namespace may be called, and a Service, which may begin with a digit (`RelaxedServiceNameValidation`
/// of Kubernetes 1.34).
pub(crate) fn is_label(text: &str) -> bool {
    !text.is_empty() && text.len() <= 63 && label_bytes(text)
}

/// RFC 1123 subdomain.
pub(crate) fn is_subdomain(text: &str) -> bool {
    !text.is_empty() && text.len() <= 253 && text.split('.').all(|part| !part.is_empty() && label_bytes(part))
}

/// RFC 6335 service name: what a container port may be called.
pub(crate) fn is_port_name(text: &str) -> bool {
    is_label(text) && text.len() <= 15 && text.bytes().any(|byte| byte.is_ascii_lowercase()) && !text.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_refused() {
        for bad in ["127.0.0.1", "169.254.0.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "ff02::1", "::", "010.0.0"] {
            assert!(usable_address("f", bad).is_err(), "{bad}");
        }
        assert!(usable_address("f", "10.0.0.1").is_ok());
        assert!(usable_address("f", "fd00::1").is_ok());
    }

    #[test]
    fn leading_zeros_are_decimal() {
        let address = |text: &str| ip(text).map(|ip| ip.to_string());
        assert_eq!(address("192.168.001.1"), Some("192.168.1.1".to_owned()));
        assert_eq!(address("010.0.0.09"), Some("10.0.0.9".to_owned()));
        for bad in ["", "010", "01.2.3", "01.2.3.4.5", "0256.0.0.1", "01.2.3.+4", "01..2.3", "0x1.2.3.4", "01.2.3.4 "] {
            assert_eq!(ip(bad), None, "{bad}");
        }
        let range = |text: &str| net(text).map(|net| net.to_string());
        assert_eq!(range("010.0.0.0/08"), Some("10.0.0.0/8".to_owned()));
        assert_eq!(range("fd00::/8"), Some("fd00::/8".to_owned()));
        for bad in ["010.0.0.0", "010.0.0.0/", "010.0.0.0/33", "010.0.0.0/+8", "/8"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_as_the_api_server_takes_them() {
        assert!(is_label("my-service") && is_label("1web") && !is_label("Web") && !is_label("-web"));
        assert!(is_port_name("http") && !is_port_name("80") && !is_port_name("a--b"));
        assert!(is_subdomain("a.b-c.d") && !is_subdomain("a..b"));
    }
}
