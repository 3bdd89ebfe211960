//! Why a Service has no address, or not the one it asks for.

use std::fmt;

/// The kind of a refusal, as Events call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// What it asks for cannot be understood, or not be at all.
    InvalidRequest,
    /// No pool has the address it asks for, or gives it.
    OutsidePools,
    /// The pool that has the address is not for this Service.
    NotSelected,
    /// Another Service has the address.
    AddressTaken,
    /// No pool for this Service has addresses of the family.
    NoPool,
    /// The pools for this Service have no address left.
    PoolsExhausted,
    /// It needs both families and can have one.
    BothFamilies,
    /// The pools are wrong, or cannot be read.
    InvalidPools,
}

impl Reason {
    /// As Events and conditions say it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::InvalidRequest => "InvalidLoadBalancerIP",
            Self::OutsidePools => "LoadBalancerIPOutsidePools",
            Self::NotSelected => "PoolDoesNotSelectService",
            Self::AddressTaken => "LoadBalancerIPTaken",
            Self::NoPool => "NoAddressPool",
            Self::PoolsExhausted => "AddressPoolsExhausted",
            Self::BothFamilies => "RequireDualStack",
            Self::InvalidPools => "InvalidAddressPools",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A refusal, said so that it can be mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Kind.
    pub reason: Reason,
    /// The field that asks for it; for what no field asks, `spec.type`.
    pub field: String,
    /// What is refused and why: names the pool, and the owner where there is one.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.cause, self.fix)
    }
}
