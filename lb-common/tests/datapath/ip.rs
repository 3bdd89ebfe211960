//! What the tests need of an address family beyond [`Addr`].

use lb_common::{
    family::{Addr, Family, V4, V6},
    protocol::Port,
    tables::Tables,
    testing::{FamilyTables, Memory},
    tuple::L4Addr,
};

/// Networks of the test world, see [`Ip::at`].
pub(crate) mod net {
    /// This node's pods.
    pub(crate) const PODS: u8 = 1;
    /// Another node's pods.
    pub(crate) const REMOTE: u8 = 2;
    /// The nodes.
    pub(crate) const NODES: u8 = 50;
    /// Load balancer addresses: ours, in no Service CIDR.
    pub(crate) const BALANCER: u8 = 77;
    /// The Service CIDR.
    pub(crate) const SERVICES: u8 = 96;
    /// Everyone else.
    pub(crate) const WORLD: u8 = 99;
}

/// An address family, named by its address type.
pub(crate) trait Ip: Addr {
    type Family: Family<Addr = Self>;

    /// Bits of the prefix that all addresses of one [`net`] share.
    const NET_BITS: u32;

    /// Host `host` of network `net`.
    fn host(net: u8, host: u8) -> Self;

    fn tables(memory: &Memory) -> &FamilyTables<Self>;

    fn tables_mut(memory: &mut Memory) -> &mut FamilyTables<Self>;

    /// The same as the pipeline sees it.
    fn world(memory: &Memory) -> &impl Tables<Self>;

    /// An address with a port.
    fn at(net: u8, host: u8, port: u16) -> L4Addr<Self> {
        L4Addr { addr: Self::host(net, host), port: Port::new(port) }
    }

    /// The loopback address.
    fn loopback(port: u16) -> L4Addr<Self>;

    fn is_v6() -> bool {
        Self::Family::IPV6
    }
}

impl Ip for [u8; 4] {
    type Family = V4;
    const NET_BITS: u32 = 16;

    fn host(net: u8, host: u8) -> Self {
        [10, net, 0, host]
    }

    fn loopback(port: u16) -> L4Addr<Self> {
        L4Addr { addr: [127, 0, 0, 1], port: Port::new(port) }
    }

    fn tables(memory: &Memory) -> &FamilyTables<Self> {
        &memory.v4
    }

    fn tables_mut(memory: &mut Memory) -> &mut FamilyTables<Self> {
        &mut memory.v4
    }

    fn world(memory: &Memory) -> &impl Tables<Self> {
        memory
    }
}

impl Ip for [u8; 16] {
    type Family = V6;
    const NET_BITS: u32 = 32;

    fn host(net: u8, host: u8) -> Self {
        [0xfd, 0, 0, net, 0, 0, 0, 0, 0, 0, 0xab, 0xcd, 0, 0, 0, host]
    }

    fn loopback(port: u16) -> L4Addr<Self> {
        let mut addr = [0; 16];
        addr[15] = 1;
        L4Addr { addr, port: Port::new(port) }
    }

    fn tables(memory: &Memory) -> &FamilyTables<Self> {
        &memory.v6
    }

    fn tables_mut(memory: &mut Memory) -> &mut FamilyTables<Self> {
        &mut memory.v6
    }

    fn world(memory: &Memory) -> &impl Tables<Self> {
        memory
    }
}
