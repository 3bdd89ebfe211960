//! Packets of the benchmark's flows, with right checksums.

use lb_common::checksum::Sum;

/// The frontend, which is the backend as well.
pub(crate) const VIP4: [u8; 4] = [10, 96, 0, 1];
/// The same, IPv6.
pub(crate) const VIP6: [u8; 16] = [0xfd, 0, 0, 0x10, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Its port.
pub(crate) const PORT: u16 = 80;
const CLIENT4: [u8; 4] = [192, 0, 2, 9];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
/// Nobody's: no Service has it.
const FOREIGN: [u8; 4] = [198, 51, 100, 1];

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// A protocol over a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    tcp: bool,
    ipv6: bool,
}

impl Kind {
    pub(crate) const TCP4: Self = Self { tcp: true, ipv6: false };
    pub(crate) const UDP4: Self = Self { tcp: false, ipv6: false };
    pub(crate) const TCP6: Self = Self { tcp: true, ipv6: true };
    pub(crate) const UDP6: Self = Self { tcp: false, ipv6: true };
}

/// A client's flow to the frontend.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    kind: Kind,
    client: Vec<u8>,
    server: Vec<u8>,
    port: u16,
}

impl Flow {
    pub(crate) fn new(kind: Kind, port: u16) -> Self {
        let (client, server) =
            if kind.ipv6 { (CLIENT6.to_vec(), VIP6.to_vec()) } else { (CLIENT4.to_vec(), VIP4.to_vec()) };
        Self { kind, client, server, port }
    }

    /// Of many IPv4 flows one, with a client and a port of its own.
    pub(crate) fn numbered(kind: Kind, number: u32) -> Self {
        let [_, b, c, d] = number.to_be_bytes();
        let port = 1024 + u16::from_be_bytes([c, d]) % 50_000;
        Self { client: vec![172, 16 + (b & 15), c, d], ..Self::new(kind, port) }
    }

    /// To an address of no Service.
    pub(crate) fn foreign(port: u16) -> Self {
        Self { server: FOREIGN.to_vec(), ..Self::new(Kind::TCP4, port) }
    }

    /// The first packet.
    pub(crate) fn opening(&self) -> Vec<u8> {
        self.towards_server(SYN)
    }

    /// A later packet.
    pub(crate) fn packet(&self) -> Vec<u8> {
        self.towards_server(ACK)
    }

    /// The server's first packet.
    pub(crate) fn opening_answer(&self) -> Vec<u8> {
        self.towards_client(SYN_ACK)
    }

    /// A later one.
    pub(crate) fn answer(&self) -> Vec<u8> {
        self.towards_client(ACK)
    }

    fn towards_server(&self, flags: u8) -> Vec<u8> {
        frame(self.kind, (&self.client, self.port), (&self.server, PORT), flags)
    }

    fn towards_client(&self, flags: u8) -> Vec<u8> {
        frame(self.kind, (&self.server, PORT), (&self.client, self.port), flags)
    }
}

/// Ethernet, IP, TCP or UDP and six bytes of payload: 64 bytes for TCP over IPv4 with the frame check sequence.
fn frame(kind: Kind, from: (&[u8], u16), to: (&[u8], u16), flags: u8) -> Vec<u8> {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    let (protocol, field) = if kind.tcp {
        segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0x10, 0, 0, 0, 0, 0]);
        (6, 16)
    } else {
        segment.extend([0, 14, 0, 0]);
        (17, 6)
    };
    segment.extend(*b"ballas");
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX).to_be_bytes();
    let sum = Sum::default().add(from.0).add(to.0).add(&[0, protocol]).add(&length).add(&segment).checksum();
    if let Some(bytes) = segment.get_mut(field..field + 2) {
        bytes.copy_from_slice(&sum.0);
    }
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if kind.ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(length);
        frame.extend([protocol, 64]);
    } else {
        let total = u16::from_be_bytes(length).saturating_add(20).to_be_bytes();
        let mut header = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
        let sum = Sum::default().add(&header).add(from.0).add(to.0).checksum();
        header.truncate(10);
        header.extend(sum.0);
        frame.extend([8, 0]);
        frame.extend(header);
    }
    frame.extend(from.0);
    frame.extend(to.0);
    frame.extend(segment);
    frame
}
