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
#![expect(
    clippy::cast_possible_truncation,
    reason = "words of maps and packets are taken apart by width, and lengths of headers are small constants"
)]
#![expect(clippy::should_implement_trait, reason = "`Sum::add` takes bytes; an operator would hide that")]
#![expect(
    clippy::inline_always,
    reason = "the BPF stack and the verifier decide what may be a call, not the compiler's taste"
)]
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "testing")]
extern crate std;

pub mod affinity;
pub mod backend;
pub mod checksum;
pub mod conntrack;
mod create;
mod egress;
mod extension;
pub mod family;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod half_open;
pub mod hash;
pub mod icmp;
mod insert;
pub mod nat;
pub mod packet;
pub mod pipeline;
pub mod protocol;
mod read;
pub mod reply;
pub mod ring;
mod sctp;
pub mod select;
pub mod settings;
pub mod socket;
pub mod state;
pub mod tables;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tuple;
pub mod udp_socket;
pub mod verdict;
pub mod wire;
