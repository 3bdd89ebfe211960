//! Headers as they stand in a frame.

pub mod eth;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod l4;
