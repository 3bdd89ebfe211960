//! The pipeline on frames and tables in memory, every test for IPv4 and IPv6.
//!
//! `segment` builds and reads frames with arithmetic of its own, `node` is a small world of services and backends; the
//! other modules are the tests. Where a rule of the Kubernetes semantics is tested, its number is in the test's name.

#![forbid(unsafe_code)]

/// Turns functions that are generic over [`ip::Ip`] into two tests each.
macro_rules! both {
    ($($test:ident),* $(,)?) => {
        mod v4 {
            $(#[test]
            fn $test() {
                super::$test::<[u8; 4]>();
            })*
        }
        mod v6 {
            $(#[test]
            fn $test() {
                super::$test::<[u8; 16]>();
            })*
        }
    };
}

mod affinity;
mod checksum;
mod flows;
mod fragments;
mod half_open;
mod hash;
mod icmp;
mod ip;
mod lifetime;
mod node;
mod parse;
mod phases;
mod race;
mod rare;
mod refusal;
mod rules;
mod sctp;
mod segment;
mod snat;
mod socket;
mod socket_peers;
mod socket_udp;
mod source_ranges;
