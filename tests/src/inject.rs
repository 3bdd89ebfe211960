//! Packets that nobody's kernel would send: built by hand and put on a wire.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Context;

use crate::{Namespace, sink::sum, sockets::PacketSocket};

/// Flags of a TCP header.
pub const FIN: u8 = 1;
/// See [`FIN`].
pub const SYN: u8 = 2;
/// See [`FIN`].
pub const RST: u8 = 4;
/// See [`FIN`].
pub const ACK: u8 = 16;

/// A device to send by, and who receives at the other end.
#[derive(Debug)]
pub struct Injector {
    socket: PacketSocket,
    from: [u8; 6],
    to: [u8; 6],
}

impl Injector {
    /// Sends by `device` of `namespace` to `peer_device` of `peer`.
    pub fn open(namespace: &Namespace, device: &str, peer: &Namespace, peer_device: &str) -> anyhow::Result<Self> {
        let socket = namespace.run(|| -> anyhow::Result<_> {
            let any = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
            let ifindex = rustix::net::netdevice::name_to_index(&any, device)
                .with_context(|| format!("no interface {device} in {}", namespace.name()))?;
            PacketSocket::open(ifindex, Duration::from_millis(1)).context("cannot open a packet socket")
        })??;
        Ok(Self { socket, from: namespace.mac(device)?, to: peer.mac(peer_device)? })
    }

    /// Sends an IP packet.
    pub fn send(&self, packet: &[u8]) -> anyhow::Result<()> {
        let ethertype: [u8; 2] =
            if packet.first().is_some_and(|first| first >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
        let frame = [&self.to[..], &self.from, &ethertype, packet].concat();
        self.socket.send(&frame).context("cannot send the frame")
    }
}

/// A TCP segment without options or data.
pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8, sequence: u32, acknowledgment: u32) -> Vec<u8> {
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let numbers = [sequence.to_be_bytes(), acknowledgment.to_be_bytes()].concat();
    let segment = [&ports[..], &numbers, &[5 << 4, flags], &1000_u16.to_be_bytes(), &[0; 4]].concat();
    packet(source.ip(), destination.ip(), 6, segment, 16)
}

/// A datagram of eight bytes.
pub fn udp(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let datagram = [&ports[..], &16_u16.to_be_bytes(), &[0; 2], b"datagram"].concat();
    packet(source.ip(), destination.ip(), 17, datagram, 6)
}

/// What a router says of a packet that is larger than `mtu`.
pub fn too_big(router: IpAddr, to: IpAddr, mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let (protocol, head) = if router.is_ipv4() { (1, [3, 4]) } else { (58, [2, 0]) };
    let message = [&head[..], &[0; 4], &mtu.to_be_bytes(), quoted].concat();
    packet(router, to, protocol, message, 2)
}

/// An IP packet whose payload has its checksum at `field`.
fn packet(source: IpAddr, destination: IpAddr, protocol: u8, mut payload: Vec<u8>, field: usize) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let (addresses, mut header) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            let total = (length + 20).to_be_bytes();
            (addresses, vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0])
        }
        (source, destination) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            let [high, low] = length.to_be_bytes();
            ([octets(source), octets(destination)].concat(), vec![0x60, 0, 0, 0, high, low, protocol, 64])
        }
    };
    header.extend(&addresses);
    if source.is_ipv4() {
        let checksum = (!sum(&[&header])).to_be_bytes();
        header.splice(10..12, checksum);
    }
    let [high, low] = length.to_be_bytes();
    let checksum = match protocol {
        // ICMP has no pseudo header.
        1 => !sum(&[&payload]),
        _ => !sum(&[&addresses, &[0, protocol, high, low], &payload]),
    };
    payload.splice(field..field + 2, checksum.to_be_bytes());
    [header, payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_has_right_checksums() {
        for [from, to] in [["10.0.0.1:1", "10.0.0.2:2"], ["[fd00::1]:1", "[fd00::2]:2"]] {
            let [from, to]: [SocketAddr; 2] = [from, to].map(|text| text.parse().expect("an address"));
            let quoted = tcp(from, to, SYN, 7, 0);
            let error = too_big(to.ip(), from.ip(), 1300, &quoted);
            for packet in [quoted, udp(from, to), error] {
                let frame = [&[0; 12][..], if from.is_ipv4() { &[8, 0] } else { &[0x86, 0xdd] }, &packet].concat();
                assert!(crate::sink::is_right(&frame), "{frame:x?}");
            }
        }
    }
}
