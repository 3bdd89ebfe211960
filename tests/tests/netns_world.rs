//! The world itself: its wires carry both families, its processes are where they should be, and it leaves nothing.

use std::{fs, net::SocketAddr, time::Duration};

use lb_tests::{
    ChecksumSink, Echo, Place, World,
    client::{self, Call, Hold, Transport},
    needs_root, traces,
};

const PORT: u16 = 7000;

/// Every kind of call from `from` to `to` arrives there and shows the caller's own address.
fn assert_reaches(from: &Place, to: &Place) {
    for ip in to.ips() {
        for transport in [Transport::Tcp, Transport::Udp, Transport::UdpUnconnected] {
            let row = format!("{} -> {} {ip} {transport:?}", from.name(), to.name());
            let answer = Call::new(transport, SocketAddr::new(ip, PORT)).run_one(from).expect(&row);
            assert_eq!(answer.reached().expect(&row), (to.name(), from.ip_like(ip)), "{row}");
        }
    }
}

#[test]
fn pods_nodes_and_the_client_reach_each_other() {
    needs_root!();
    let world = World::new().expect("a world");
    let places =
        [world.node(0).place(), world.node(1).place()].into_iter().chain(world.pods().map(lb_tests::Pod::place));
    let _servers: Vec<_> = places.map(|place| Echo::start(place, &[PORT], &[PORT]).expect("a server")).collect();
    let (pod, same_node, other_node) = (world.node(0).pod(0), world.node(0).pod(1), world.node(1).pod(0));
    assert_reaches(pod, same_node);
    assert_reaches(pod, other_node);
    assert_reaches(pod, world.node(1));
    assert_reaches(world.node(0), pod);
    assert_reaches(world.node(0), other_node);
    for node in world.nodes() {
        assert_reaches(world.client(), node);
    }
    for node in world.nodes() {
        assert_eq!(node.invalid_packets().expect("nft"), 0, "INVALID packets on {}", node.name());
    }
}

#[test]
fn errors_have_names_and_come_at_once() {
    needs_root!();
    let world = World::builder().nodes(1).pods(1).build().expect("a world");
    for ip in world.node(0).pod(0).ips() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let answer = Call::new(transport, SocketAddr::new(ip, 9)).run_one(world.client()).expect("a run");
            assert_eq!(answer.error.as_deref(), Some("ECONNREFUSED"), "{answer:?}");
            assert!(answer.elapsed_ms < 100.0, "{answer:?}");
        }
    }
    let call = Call::tcp(SocketAddr::from(([10, 244, 1, 200], 9))).timeout(Duration::from_millis(100));
    let answer = call.run_one(world.node(0).pod(0)).expect("a run");
    assert!(answer.error.is_some(), "a pod that is not there: {answer:?}");
}

#[test]
fn bulk_data_and_held_connections_are_checked() {
    needs_root!();
    let world = World::builder().pods(1).build().expect("a world");
    world.set_tx_checksum(false).expect("ethtool");
    let server = world.node(1).pod(0);
    let _server = Echo::start(server, &[PORT], &[]).expect("a server");
    let to = SocketAddr::new(server.ipv6().into(), PORT);
    let hold = Hold::start(world.node(0).pod(0), to).expect("a held connection");
    let report = client::bulk(world.client(), to, 20 << 20, Duration::from_mins(1)).expect("a transfer");
    assert!(report.is_intact() && report.sent == 20 << 20, "{report:?}");
    let report = hold.stop().expect("a report");
    assert!(report.error.is_none() && report.rounds > 0, "{report:?}");
}

#[test]
fn the_sink_tells_whole_partial_and_wrong_checksums_apart() {
    needs_root!();
    // conntrack calls a wrong checksum INVALID.
    let world = World::builder().nodes(1).pods(1).drop_invalid(false).build().expect("a world");
    let pod = world.node(0).pod(0);
    let _server = Echo::start(pod, &[PORT], &[PORT]).expect("a server");
    let mut reports = Vec::new();
    for offload in [true, false] {
        world.set_tx_checksum(offload).expect("ethtool");
        let sink = ChecksumSink::start(world.router(), "node1").expect("a sink");
        for ip in pod.ips() {
            for transport in [Transport::Tcp, Transport::Udp] {
                let answer = Call::new(transport, SocketAddr::new(ip, PORT)).run_one(world.client()).expect("a run");
                answer.reached().expect("an answer");
            }
            let refused = Call::udp(SocketAddr::new(ip, 9)).run_one(world.client()).expect("a run");
            assert_eq!(refused.error.as_deref(), Some("ECONNREFUSED"));
        }
        let report = sink.stop().expect("a report");
        assert_eq!(report.wrong, 0, "{report:?}");
        assert!(report.verified > 0, "ICMP at least: {report:?}");
        reports.push(report);
    }
    assert!(reports[0].partial > 0 && reports[1].partial == 0, "{reports:?}");
    assert!(reports[1].verified >= 10, "{reports:?}");

    // 10.244.1.11 -> 192.168.100.2, UDP 1 -> 2, with the checksum 1.
    let sink = ChecksumSink::start(world.router(), "node1").expect("a sink");
    pod.namespace()
        .run(|| {
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::RAW,
                rustix::net::Protocol::from_raw(std::num::NonZero::new(17).expect("UDP")).into(),
            );
            let to = SocketAddr::new(world.client().ipv4().into(), 0);
            let datagram = [0, 1, 0, 2, 0, 8, 0, 1];
            rustix::net::sendto(socket.expect("a raw socket"), &datagram, rustix::net::SendFlags::empty(), &to)
        })
        .expect("a thread")
        .expect("a datagram");
    let report = sink.stop().expect("a report");
    assert_eq!(report.wrong, 1, "{report:?}");
    assert!(report.examples[0].starts_with("UDP checksum"), "{report:?}");
}

#[test]
fn several_uplinks_have_symmetric_paths() {
    needs_root!();
    let world = World::builder().nodes(1).pods(0).uplinks(2).build().expect("a world");
    let node = world.node(0);
    let _server = Echo::start(node, &[PORT], &[PORT]).expect("a server");
    assert_eq!(node.addresses().len(), 4);
    for ip in node.addresses() {
        let uplink = i32::from(ip.to_string().contains("168.11") || ip.to_string().contains("168:11"));
        let source = match (ip.is_ipv4(), uplink) {
            (true, uplink) => format!("192.168.{}.2:0", 100 + uplink),
            (false, uplink) => format!("[fd00:192:168:{}::2]:0", 100 + uplink),
        };
        let call = Call::tcp(SocketAddr::new(ip, PORT)).source(source.parse().expect("an address"));
        call.run_one(world.client()).expect("a run").reached().unwrap_or_else(|error| panic!("{ip}: {error}"));
    }
}

#[test]
fn a_nodes_and_its_pods_processes_are_in_its_cgroup() {
    needs_root!();
    let world = World::builder().pods(1).build().expect("a world");
    for node in world.nodes() {
        for place in [node.place(), node.pod(0).place()] {
            let mut command = place.command("cat").expect("a command");
            command.arg("/proc/self/cgroup");
            let output = command.output().expect("cat");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let wanted = format!("{}/{}", world.id(), node.name());
            assert!(text.lines().any(|line| line.starts_with("0::") && line.ends_with(&wanted)), "{text}");
        }
    }
}

#[test]
fn a_world_leaves_nothing_behind_even_when_the_test_panics() {
    needs_root!();
    let (send, receive) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let world = World::builder().pods(1).build().expect("a world");
        // A process nobody waits for any more.
        std::mem::forget(Echo::start(world.node(0).pod(0), &[PORT], &[]).expect("a server"));
        send.send((world.id().to_owned(), traces(world.id()))).expect("a receiver");
        panic!("as a failing test does (this one is meant to)");
    });
    let (id, before) = receive.recv().expect("a world");
    assert!(test.join().is_err());
    assert!(before.len() > 8, "{before:?}");
    assert_eq!(traces(&id), Vec::<String>::new());
}

#[test]
fn what_a_dead_owner_left_is_swept() {
    needs_root!();
    // The start time 1 is init's at most: an owner with this pid and that start time does not exist.
    let id = format!("btw-{}-1-0badcafe", std::process::id());
    let made = std::process::Command::new("ip").args(["netns", "add", &id]).status().expect("ip");
    assert!(made.success());
    let directory = std::env::temp_dir().join(&id);
    fs::create_dir_all(directory.join("manifests")).expect("a directory");
    // A process sweeps once, at its first world: another process does it here, being this test run again.
    let again = std::env::current_exe().expect("this test");
    let status = std::process::Command::new(again).args(["--exact", "errors_have_names_and_come_at_once"]).output();
    assert!(status.expect("a run").status.success());
    assert_eq!(traces(&id), Vec::<String>::new());
}
