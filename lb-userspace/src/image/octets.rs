//! The tables of one family, chosen by the type of its addresses.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    family::Addr,
    protocol::{self, Port},
    tuple::L4Addr,
};

use super::{Image, Table};
use crate::model::{IpFamily, Protocol};

/// Addresses of a family as they stand in the maps, and that family's tables.
pub(crate) trait Octets: Addr {
    const FAMILY: IpFamily;
    const FRONTENDS: Table;
    const RECORDS: Table;
    const BACKENDS: Table;
    const NEXT_HOPS: Table;
    const VIPS: Table;
    const PREFIXES: Table;
    const SOURCES: Table;

    /// `None` if the address is of the other family.
    fn from_ip(addr: IpAddr) -> Option<Self>;
    fn to_ip(self) -> IpAddr;

    fn l4(addr: IpAddr, port: u16) -> Option<L4Addr<Self>> {
        Some(L4Addr { addr: Self::from_ip(addr)?, port: Port::new(port) })
    }

    fn socket(l4: L4Addr<Self>) -> SocketAddr {
        SocketAddr::new(l4.addr.to_ip(), l4.port.number())
    }
}

impl Octets for [u8; 4] {
    const FAMILY: IpFamily = IpFamily::V4;
    const FRONTENDS: Table = Table::Frontends4;
    const RECORDS: Table = Table::Records4;
    const BACKENDS: Table = Table::Backends4;
    const NEXT_HOPS: Table = Table::NextHops4;
    const VIPS: Table = Table::Vips4;
    const PREFIXES: Table = Table::Prefixes4;
    const SOURCES: Table = Table::Sources4;

    fn from_ip(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(addr) => Some(addr.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }
}

impl Octets for [u8; 16] {
    const FAMILY: IpFamily = IpFamily::V6;
    const FRONTENDS: Table = Table::Frontends6;
    const RECORDS: Table = Table::Records6;
    const BACKENDS: Table = Table::Backends6;
    const NEXT_HOPS: Table = Table::NextHops6;
    const VIPS: Table = Table::Vips6;
    const PREFIXES: Table = Table::Prefixes6;
    const SOURCES: Table = Table::Sources6;

    fn from_ip(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(_) => None,
            IpAddr::V6(addr) => Some(addr.octets()),
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }
}

/// The protocol as a packet says it.
pub(crate) const fn wire_protocol(protocol: Protocol) -> protocol::Protocol {
    match protocol {
        Protocol::Tcp => protocol::Protocol::TCP,
        Protocol::Udp => protocol::Protocol::UDP,
        Protocol::Sctp => protocol::Protocol::SCTP,
    }
}

/// The protocol in the model's words, if it is one that Services know.
pub(crate) const fn model_protocol(protocol: protocol::Protocol) -> Option<Protocol> {
    match protocol {
        protocol::Protocol::TCP => Some(Protocol::Tcp),
        protocol::Protocol::UDP => Some(Protocol::Udp),
        protocol::Protocol::SCTP => Some(Protocol::Sctp),
        _ => None,
    }
}

/// An entry of a dump as typed values; `None` if the sizes are not the expected ones.
pub(crate) fn decode<K: zerocopy::FromBytes, V: zerocopy::FromBytes>((key, value): (&[u8], &[u8])) -> Option<(K, V)> {
    Some((K::read_from_bytes(key).ok()?, V::read_from_bytes(value).ok()?))
}

/// The entries of an array.
pub(crate) fn array<V: zerocopy::FromBytes>(image: &Image, table: Table) -> impl Iterator<Item = (u32, V)> {
    image.table(table).filter_map(decode::<zerocopy::native_endian::U32, V>).map(|(index, value)| (index.get(), value))
}
