//! `ballast backend list` and `conntrack list` tell what connections really did; a full table stays readable.

use std::{net::SocketAddr, process::Command};

use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    backend::{BackendId, ServiceId},
    conntrack::{Conntrack, EntryKind, Phase},
    protocol::{Port, Protocol},
    tuple::L4Addr,
};
use lb_tests::{
    Bpffs, Cluster, NODE_PORT, Setup, binary,
    client::{Call, Transport},
    needs_root,
};
use lb_userspace::{
    bpf::{Datapath, MapSizes, Pins},
    report::{BackendRow, FlowList, FlowRow},
};
use zerocopy::{
    IntoBytes as _,
    native_endian::{U32, U64},
};

fn flows(cluster: &Cluster, more: &[&str]) -> FlowList {
    let arguments = [&["conntrack", "list", "-o", "json"][..], more].concat();
    serde_json::from_str(&cluster.agents[0].query(&arguments).expect("an answer")).expect("flows")
}

/// Without what changes by itself: whether a neighbour was seen lately.
fn backends(cluster: &Cluster) -> Vec<BackendRow> {
    let text = cluster.agents[0].query(&["backend", "list", "-o", "json"]).expect("an answer");
    let mut rows: Vec<BackendRow> = serde_json::from_str(&text).expect("backends");
    for row in &mut rows {
        row.next_hop = None;
    }
    rows
}

#[test]
fn lists_tell_what_connections_did() {
    needs_root!();
    let mut cluster = Cluster::start(&Setup::tcx(false)).expect("a cluster");
    let client = cluster.world.client().clone();
    for transport in [Transport::Tcp, Transport::Udp] {
        for (to, port) in cluster.node_ports().into_iter().zip([41_000, 41_001]) {
            let source = SocketAddr::new(client.ip_like(to.ip()), port);
            Call::new(transport, to).source(source).run_one(&client).expect("a run").reached().expect("an answer");
            let all = flows(&cluster, &["--client", &source.ip().to_string()]);
            let name = if transport == Transport::Tcp { "TCP" } else { "UDP" };
            let of_call = |row: &&FlowRow| row.client == source && row.protocol == name;
            let found: Vec<_> = all.flows.iter().filter(of_call).collect();
            let [row] = found[..] else { panic!("{source} {name}: {all:?}") };
            assert_eq!((row.frontend, row.backend.port()), (SocketAddr::new(to.ip(), NODE_PORT), lb_tests::TARGET));
            assert_eq!((&*row.service.namespace, &*row.service.name), ("default", "web"));
            // An outsider's connection to a nodePort is masqueraded: the backend sees the node.
            let seen = row.source.expect("a rewritten source");
            assert!(seen.ip() != source.ip() && seen.is_ipv4() == to.is_ipv4(), "{row:?}");
            assert!(row.age_seconds.is_some_and(|age| age < 60), "{row:?}");
            assert!(row.packets >= 2 && row.bytes > 2 * 28, "both directions: {row:?}");
            assert_ne!(row.phase, "opening", "it was answered: {row:?}");
        }
    }
    let all = flows(&cluster, &[]);
    assert!(all.flows.len() >= 4 && all.left_out == 0, "{all:?}");
    let one = flows(&cluster, &["--limit", "1", "--service", "default/web"]);
    assert_eq!((one.flows.len(), one.left_out), (1, all.flows.len() as u64 - 1));
    let text = cluster.agents[0].query(&["conntrack", "list", "--limit", "1"]).expect("an answer");
    assert!(text.contains("more left out: raise --limit"), "{text}");

    let backends = backends(&cluster);
    // Four pods, two families, two protocols.
    assert_eq!(backends.len(), 16, "{backends:?}");
    assert!(backends.iter().map(|row| row.connections).sum::<u64>() >= 4, "{backends:?}");
    let node = cluster.world.node(0);
    for row in &backends {
        let local = node.pods().iter().any(|pod| pod.ips().contains(&row.address));
        let device = row.device.as_deref().expect("a device");
        assert_eq!((device.starts_with("pod"), device.starts_with("eth")), (local, !local), "{row:?}");
        assert!(row.generation > 0 && row.state == "in use", "{row:?}");
    }
    // The tables are the same without an agent.
    cluster.agents[0].stop().expect("stopped");
    assert_eq!(self::backends(&cluster), backends);
    assert!(flows(&cluster, &[]).flows.len() >= 4);
}

/// The default size.
const FULL: u32 = 262_144;
/// Address space of a `ballast conntrack list` over two full tables, in KiB: it holds what it shows.
const MEMORY: u32 = 96 * 1024;

#[test]
fn full_tables_are_listed_in_bounded_memory() {
    needs_root!();
    let bpffs = Bpffs::new().expect("a bpffs");
    let sizes = MapSizes { services: 16, frontends: 16, backends: 16, rings: 16, conntrack: FULL };
    drop(Datapath::open(bpffs.path(), &sizes).expect("the datapath"));
    let path = Pins::new(bpffs.path()).maps().join("LB4_CONNTRACK");
    let map = Map::HashMap(MapData::from_pin(path).expect("the map"));
    let mut map: HashMap<_, [u8; 16], [u8; 72]> = map.try_into().expect("a hash");
    for number in 0..FULL {
        let [_, high, middle, low] = number.to_be_bytes();
        let at = |addr, port| L4Addr { addr, port: Port::new(port) };
        let entry = Conntrack {
            client: at([10, high, middle, low], 1000),
            frontend: at([10, 96, 0, 1], 80),
            backend: at([10, 244, 0, 1], 80),
            source: L4Addr::NONE,
            service: ServiceId::new(1),
            backend_id: BackendId::new(1),
            generation: U32::new(1),
            stamp: U32::new(0),
            packets: U64::new(1),
            bytes: U64::new(60),
            protocol: Protocol::TCP,
            kind: EntryKind::ORIGINAL,
            phase: Phase::OPEN,
            host: 0,
            device: U32::new(0),
            alias: Port::NONE,
            mark: U32::ZERO,
            reserved: [0; 2],
        };
        let key: [u8; 16] = entry.original_key().0.as_bytes().try_into().expect("16 bytes");
        let value: [u8; 72] = entry.as_bytes().try_into().expect("72 bytes");
        map.insert(key, value, 0).expect("room");
    }
    let state = tempfile::tempdir().expect("a directory");
    let list = |more: &[&str]| {
        let mut command = Command::new("sh");
        let script = format!("ulimit -v {MEMORY}; exec \"$@\"");
        command.args(["-c", &script, "sh"]).arg(binary("ballast").expect("ballast"));
        command.args(["conntrack", "list", "-o", "json", "--bpffs"]).arg(bpffs.path());
        command.arg("--state-dir").arg(state.path()).args(more);
        let output = command.output().expect("ballast runs");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<FlowList>(&output.stdout).expect("flows")
    };
    let some = list(&[]);
    assert_eq!((some.flows.len(), some.left_out), (1000, u64::from(FULL) - 1000));
    let one = list(&["--client", "10.1.2.3"]);
    assert_eq!((one.flows.len(), one.left_out), (1, 0));
    assert_eq!((&*one.flows[0].service.namespace, &*one.flows[0].service.name), ("unknown", "#1"));
}
