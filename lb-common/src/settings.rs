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
    /// Slots of the half-open tables in use, at most [`crate::half_open::HALF_OPEN_SLOTS`]. 0: half-open flows are not
    /// limited.
    HalfOpenSlots = 6,
    /// [`takeover`]: TCP without state passes while it lasts. 0: it is refused.
    Takeover = 7,
    /// Interface indexes of uplinks and overlays, two a word (low half first); no pod of this node sends from there.
    Uplinks0 = 8,
    /// The same.
    Uplinks1 = 9,
    /// The same.
    Uplinks2 = 10,
    /// The same.
    Uplinks3 = 11,
    /// The IPv4 address that this node's processes have towards Services, as it stands in a packet; 0: none.
    HostSource4 = 12,
    /// The first half of the same for IPv6.
    HostSource6Front = 13,
    /// Its second half.
    HostSource6Back = 14,
    /// [`crate::state::Timeouts`]; 0: the defaults.
    Timeouts = 15,
}

impl Setting {
    /// Entries of `LB_SETTINGS`.
    pub const COUNT: u32 = 16;

    /// The words that name uplinks.
    pub const UPLINKS: [Self; 4] = [Self::Uplinks0, Self::Uplinks1, Self::Uplinks2, Self::Uplinks3];
}

/// Packs a SNAT port range for [`Setting::SnatPorts`]. Both ends belong to it.
pub const fn snat_ports(first: u16, last: u16) -> u64 {
    first as u64 | (last as u64) << 16
}

/// Packs the takeover for [`Setting::Takeover`]: from `start` (low 32 bits of jiffies) on, for `ticks`.
pub const fn takeover(start: u32, ticks: u32) -> u64 {
    start as u64 | (ticks as u64) << 32
}

/// Ticks that a takeover still lasts.
#[inline(always)]
pub const fn takeover_left(word: u64, now: u32) -> u32 {
    let ticks = (word >> 32) as u32;
    ticks.saturating_sub(now.wrapping_sub(word as u32))
}
