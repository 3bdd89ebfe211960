//! The test world of Ballast: a small routed cluster of network namespaces with real sockets in it, as a library.
//!
//! ```text
//! client (outside) --- router ---+--- node1 --- its pods      every line is a veth pair, every hop is routed
//!                                +--- node2 --- its pods      ([`Network`] has others)
//! ```
//! * [`World`] builds it, and removes it when dropped, also when the test panics;
//! * [`Place`] is where a process can run: the client, a node (its host namespace) or a pod. A place's command runs in
//!   its namespace *and* in its node's own cgroup, since socket hooks look at the cgroup and not at the namespace;
//! * [`client`] opens connections from a place and tells what they saw; [`Echo`] is the server behind a pod;
//! * [`kube`] writes the folder of Kubernetes documents the agents read; [`Agent`] is a running `ballast run`;
//! * [`api_server`] is a Kubernetes API server that lists and watches, and misbehaves on request;
//! * [`inject`] puts packets on a wire that no kernel would send;
//! * [`ControlPlane`] is a real etcd, kube-apiserver and kube-controller-manager in the world;
//! * [`Manifest`] is what deploy/ installs; [`Agent::start_in_pod`] runs its container, [`Machine`] its systemd unit;
//! * [`Cluster`] is all of this with a Service over four pods;
//! * [`ChecksumSink`] verifies every checksum of what an interface receives, [`Capture`] remembers its addresses and hop
//!   limits; [`LossyHop`] loses, repeats and reorders what the router forwards; [`ForeignProgram`] stands in a tcx chain beside ours; [`wait_until`] waits without sleeping.
//!
//! Everything needs root; a test starts with [`needs_root!`](crate::needs_root).

mod agent;
pub mod api_server;
mod bpffs;
mod builder;
mod cgroup;
pub mod client;
mod cluster;
mod container;
mod control_plane;
pub mod fuzz;
pub mod inject;
pub mod kube;
mod leftovers;
mod listen;
mod lossy;
mod manifest;
mod netns;
mod network;
mod node;
mod pki;
mod place;
mod process;
mod rows;
pub mod scenario;
mod signals;
mod sink;
mod sockets;
mod sys;
mod systemd;
pub mod talk;
mod tcx;
mod tool;
mod tun;
mod wait;
pub mod web;
mod wiring;
mod world;
mod xdp;

pub use agent::{Agent, Setup};
pub use bpffs::Bpffs;
pub use builder::{Options, WorldBuilder};
pub use cluster::{Cluster, NODE_PORT, TARGET};
pub use container::PodSetup;
pub use control_plane::{ControlPlane, Endpoint, program};
pub use leftovers::{sweep_leftovers, traces};
pub use listen::{Capture, Seen};
pub use lossy::{Damage, LossyHop};
pub use manifest::{HostMount, Manifest};
pub use netns::Namespace;
pub use network::Network;
pub use node::{Node, Pod};
pub use pki::{Identity, Pki};
pub use place::Place;
pub use process::{Echo, Process, binary};
pub use rows::{Expect, Rows};
pub use signals::Interrupter;
pub use sink::{ChecksumSink, SinkReport};
pub use sys::owner;
pub use systemd::{Machine, UnitSetup};
pub use tcx::{Fate, ForeignProgram, Matching, Position, TcxHook, freeze, tcx_chain, tcx_chain_here};
pub use wait::wait_until;
pub use world::World;
pub use xdp::ForeignXdp;

/// Tells what a test showed of a row of the reliability scoreboard; `cargo xtask test --scoreboard` makes
/// docs/reliability.md of it.
pub fn scoreboard(row: &str, shown: &str) {
    println!("SCOREBOARD {row} {shown}");
}

/// Whether this process may build a [`World`].
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns from the calling test, saying so, when it does not run as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !$crate::is_root() {
            println!("SKIP {}: needs root", ::std::thread::current().name().unwrap_or("test"));
            return;
        }
    };
}

/// Returns from the calling test, saying so, when the programs of a control plane are not built; also without root.
#[macro_export]
macro_rules! needs_control_plane {
    () => {
        $crate::needs_root!();
        if let Err(missing) = $crate::ControlPlane::programs() {
            println!("SKIP {}: {missing}", ::std::thread::current().name().unwrap_or("test"));
            return;
        }
    };
}
