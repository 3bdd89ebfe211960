//! Every decision of the Ballast datapath, and the types that cross the BPF maps.
//!
//! ```text
//! frame -> parse (Flow) -> classify -> look up -> select -> rewrite -> Verdict
//! ```
//! The same code runs inside the XDP and tc programs (`lb-ebpf`), on the host in tests, and in every tool that wants to
//! know what the kernel would do. It is generic over the packet ([`packet::Packet`]), the address family
//! ([`family::Family`]) and the tables ([`tables::Tables`]), so there is one path for IPv4 and IPv6, TCP and UDP.
//!
//! Wire values (addresses, ports, checksums) are byte arrays as they stand in the packet; a host number exists only
//! inside a function.
#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "testing")]
extern crate std;

pub mod backend;
pub mod checksum;
pub mod conntrack;
pub mod family;
pub mod frontend;
pub mod packet;
pub mod protocol;
pub mod ring;
pub mod settings;
pub mod tables;
pub mod tuple;
pub mod verdict;
pub mod wire;
