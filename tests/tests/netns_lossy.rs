//! Services over a hop that loses, repeats and reorders packets: what TCP and UDP make of that does not concern us, and
//! nothing of it is malformed.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use lb_common::verdict::Counter;
use lb_tests::{
    Agent, Cluster, LossyHop, Place, Setup,
    client::{self, Call, Transport},
    needs_root,
};

const BYTES: u64 = 4 << 20;
const DATAGRAMS: u32 = 100;
/// What would mean that a packet was taken for something it is not.
const WRONG: [Counter; 11] = [
    Counter::Malformed,
    Counter::ExtensionHeader,
    Counter::Fragment,
    Counter::OtherProtocol,
    Counter::NoSuchPort,
    Counter::Unallocated,
    Counter::Martian,
    Counter::SpoofedSource,
    Counter::TupleTaken,
    Counter::Inconsistent,
    Counter::ReplyFailed,
];

fn counters(agents: &[Agent]) -> BTreeMap<String, u64> {
    let mut sum = BTreeMap::new();
    for (name, count) in agents.iter().flat_map(|agent| agent.status().expect("a status").counters) {
        *sum.entry(name).or_default() += count;
    }
    sum
}

fn assert_works(from: &Place, to: SocketAddr) {
    let row = format!("{} to {to}", from.name());
    let report = client::bulk(from, to, BYTES, Duration::from_mins(1)).expect(&row);
    assert!(report.is_intact() && report.sent == BYTES, "{row}: {report:?}");
    println!("{row}: {:.0} ms", report.elapsed_ms);
    // The handshake's packets are lost as well.
    for answer in Call::tcp(to).count(20).timeout(Duration::from_secs(10)).run(from).expect(&row) {
        answer.reached().unwrap_or_else(|error| panic!("{row}: {error}"));
    }
    let call = Call::new(Transport::Udp, to).count(DATAGRAMS).timeout(Duration::from_millis(200));
    let answers = call.run(from).expect(&row);
    let (answered, others): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.error.is_none());
    assert!(answered.iter().all(|answer| answer.reached().is_ok()), "{row}: {answered:?}");
    assert!(others.iter().all(|answer| answer.error.as_deref() == Some("ETIMEDOUT")), "{row}: {others:?}");
    // The hop is passed four times at most, and each time two of a hundred are lost, or late with nobody behind them.
    assert!(others.len() <= 20, "{row}: {} of {DATAGRAMS} datagrams unanswered", others.len());
}

fn over_a_lossy_hop(setup: &Setup, seed: u64) {
    let cluster = Cluster::start(setup).expect("a cluster");
    let world = &cluster.world;
    let vips = cluster.vips(8).expect("cluster IPs");
    let before = counters(&cluster.agents);
    let hop = LossyHop::start(world, seed).expect("a hop");
    for (vip, node_port) in vips.into_iter().zip(cluster.node_ports()) {
        assert_works(world.client(), node_port);
        assert_works(world.client(), vip);
        assert_works(world.node(0).pod(0), vip);
        assert_works(world.node(0), vip);
    }
    let damage = hop.stop().expect("a hop");
    println!("{setup:?}: {damage:?}");
    assert!(damage.lost > 100 && damage.repeated > 100 && damage.late > 200, "the hop does nothing: {damage:?}");
    let after = counters(&cluster.agents);
    for counter in WRONG.map(|counter| format!("{counter:?}")) {
        assert_eq!(after.get(&counter), before.get(&counter), "{counter}: {after:?}");
    }
}

#[test]
fn tcx_over_a_lossy_hop() {
    needs_root!();
    over_a_lossy_hop(&Setup::tcx(false), 1);
}

#[test]
fn xdp_over_a_lossy_hop() {
    needs_root!();
    over_a_lossy_hop(&Setup::xdp(true), 2);
}
