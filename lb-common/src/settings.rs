//! Settings of one node: words in `LB_SETTINGS` (array of u64), each published by one store.

/// Index of a setting.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Setting {
    /// Cookie of the node's network namespace; 0 until known (then nobody is a host process).
    NetnsCookie = 0,
    /// Interface index of `ballast0`; 0 when it does not exist.
    HostDevice = 1,
    /// MAC of `ballast0` in the low 48 bits, first byte lowest.
    HostMac = 2,
    /// SNAT port range: first port in bits 0..16, last in 16..32 (host order). 0: no SNAT.
    SnatPorts = 3,
    /// Seed of the flow hash.
    HashSeed = 4,
    /// Ticks of the jiffies clock in a second (HZ).
    TicksPerSecond = 5,
}

impl Setting {
    /// Entries of `LB_SETTINGS`.
    pub const COUNT: u32 = 16;
}

/// Packs a SNAT port range for [`Setting::SnatPorts`]. Both ends belong to it.
pub const fn snat_ports(first: u16, last: u16) -> u64 {
    first as u64 | (last as u64) << 16
}
