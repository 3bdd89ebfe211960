//! R14: neighbours and MTUs of the ways to backends change. The kernel resolves them for our programs; packets follow
//! within a second, and `ballast backend list` and `status` tell what it knows.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Capture, Echo, NODE_PORT, Namespace, Setup, TARGET, World,
    client::{self, Call, Hold, Transport},
    kube::{PodSpec, Service},
    needs_root, scoreboard, wait_until,
};
use lb_userspace::report::{BackendRow, NextHopRow};
use serde_json::json;

/// From the change to what follows from it, as the issue says.
const SOON: Duration = Duration::from_secs(1);

struct Ways {
    agent: Agent,
    _server: Echo,
    world: World,
}

impl Ways {
    /// The backend is the pod of node 2; only node 1 has an agent.
    fn start(setup: &Setup) -> Self {
        let world = World::builder().pods(1).rp_filter(1).drop_invalid(true).build().expect("a world");
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("ethtool");
        }
        world.apply_nodes().expect("nodes");
        let backend = world.node(1).pod(0);
        world.apply_pod(backend, &PodSpec::labelled("app", "web")).expect("a pod");
        let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
        world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
        let server = Echo::start(backend, &[TARGET], &[TARGET]).expect("a server");
        let agent = Agent::start(&world, world.node(0), setup).expect("an agent");
        agent.wait_service("web", 2).expect("the Service");
        Self { agent, _server: server, world }
    }

    fn node(&self) -> &Namespace {
        self.world.node(0).namespace()
    }

    fn node_ports(&self) -> [SocketAddr; 2] {
        self.world.node(0).ips().map(|ip| SocketAddr::new(ip, NODE_PORT))
    }

    fn vips(&self) -> Vec<SocketAddr> {
        let ips = self.agent.cluster_ips("web", 2).expect("cluster IPs");
        ips.into_iter().map(|ip| SocketAddr::new(ip, 80)).collect()
    }

    fn rows(&self) -> Vec<BackendRow> {
        let text = self.agent.query(&["backend", "list", "-o", "json"]).expect("an answer");
        let rows: Vec<BackendRow> = serde_json::from_str(&text).expect("backends");
        assert_eq!(rows.len(), 4, "two families, two protocols: {rows:?}");
        rows
    }

    /// MTUs of the routes into `ballast0`, IPv4 first.
    fn host_mtus(&self) -> Vec<u32> {
        let route = |family| {
            let args = [family, "route", "show", "dev", "ballast0", "proto", "98"];
            let text = self.node().ip_output(&args).expect("ip");
            let mtu = text.split_once(" mtu ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
            mtu.unwrap_or_else(|| panic!("no MTU: {text}"))
        };
        ["-4", "-6"].map(route).into()
    }

    /// That within a second the routes of this node's processes have this MTU; and the list says so.
    fn assert_mtu(&self, what: &str, since: Instant, mtu: u32) -> Duration {
        let elapsed = soon(what, since, || match self.host_mtus() {
            mtus if mtus == [mtu, mtu] => Ok(()),
            mtus => Err(format!("{mtus:?}")),
        });
        let rows = self.rows();
        assert!(rows.iter().all(|row| row.mtu == Some(mtu)), "{what}: {rows:?}");
        elapsed
    }
}

/// What must hold soon after `since`: when it was asked for the last time, however long the answer took. Prints how soon.
fn soon(what: &str, since: Instant, mut condition: impl FnMut() -> Result<(), String>) -> Duration {
    let mut elapsed = Duration::ZERO;
    let asked = || {
        elapsed = since.elapsed();
        condition()
    };
    wait_until(what, Duration::from_secs(10), asked).expect("in the end");
    println!("{what}: {:.0} ms", elapsed.as_secs_f64() * 1e3);
    assert!(elapsed < SOON, "{what}: only after {elapsed:?}");
    elapsed
}

fn a_gateway_moves(setup: &Setup) {
    let ways = Ways::start(setup);
    let (world, router) = (&ways.world, ways.world.router());
    // As a router tells that takes an address over (VRRP): gratuitous ARP, unsolicited advertisements.
    router.sysctls(&[("ipv4/conf/node1/arp_notify", "1"), ("ipv6/conf/node1/ndisc_notify", "1")]).expect("sysctls");
    let connect = || {
        for to in ways.node_ports() {
            for transport in [Transport::Tcp, Transport::Udp] {
                let answer = Call::new(transport, to).timeout(SOON).run_one(world.client()).expect("a run");
                answer.reached().map_err(|error| format!("{transport:?} to {to}: {error}"))?;
            }
        }
        Ok::<(), String>(())
    };
    connect().expect("connections");
    // Slow enough for a capture to end.
    let pause = Duration::from_millis(200);
    let held = ways.node_ports().map(|to| Hold::start_every(world.client(), to, pause).expect("a held connection"));
    let text = |mac: &[u8; 6]| mac.map(|octet| format!("{octet:02x}")).join(":");
    let mut old = router.mac("node1").expect("a MAC");
    let gateways = ["192.168.1.1", "fd00:192:168:1::1"].map(|gateway| gateway.parse::<IpAddr>().expect("an address"));
    for row in ways.rows() {
        let hop = row.next_hop.expect("a next hop");
        assert!(gateways.contains(&hop.address) && hop.address.is_ipv4() == row.address.is_ipv4(), "{hop:?}");
        assert_eq!(hop.mac, Some(text(&old)), "{hop:?}");
    }
    let (mut slowest, mut packets) = (Duration::ZERO, 0);
    for new in [[0x0a, 0x58, 0xc0, 0xa8, 0x01, 0x71], [0x0a, 0x58, 0xc0, 0xa8, 0x01, 0x72]] {
        let new_text = text(&new);
        router.ip(&format!("link set node1 address {new_text}\n")).expect("ip");
        let since = Instant::now();
        let shown =
            |row: &BackendRow| matches!(&row.next_hop, Some(NextHopRow { mac: Some(mac), .. }) if *mac == new_text);
        let took = soon(&format!("XDP {}: the gateway is at {new_text}", setup.xdp), since, connect);
        slowest = slowest.max(took);
        let rows = ways.rows();
        assert!(rows.iter().all(shown), "{rows:?}");
        let capture = Capture::start(router, "node1").expect("a capture");
        (0..3).try_for_each(|_| connect()).expect("connections");
        let seen = capture.stop().expect("a capture");
        let to = |mac| seen.iter().filter(|seen| seen.mac == mac).count();
        assert_eq!(to(old), 0, "packets to the old MAC");
        assert!(to(new) > 20, "{seen:?}");
        packets += to(new);
        old = new;
    }
    for hold in held {
        let report = hold.stop().expect("a report");
        assert!(report.error.is_none() && report.rounds > 0, "{report:?}");
    }
    let ms = slowest.as_millis();
    let words = format!("{packets} packets captured after that, 0 to the old MAC");
    scoreboard(
        "R14",
        &format!("a gateway's MAC changes twice (XDP {}): new connections within {ms} ms, {words}", setup.xdp),
    );
}

#[test]
fn r14_no_packet_goes_to_the_old_mac_of_a_gateway() {
    needs_root!();
    a_gateway_moves(&Setup::tcx(false));
    a_gateway_moves(&Setup::xdp(false));
}

#[test]
fn r14_the_mtu_of_an_uplink_and_of_a_route_changes() {
    needs_root!();
    let ways = Ways::start(&Setup::tcx(false));
    let uplink = |mtu: u32| {
        ways.world.router().ip(&format!("link set node1 mtu {mtu}\n")).expect("ip");
        ways.node().ip(&format!("link set eth0 mtu {mtu}\n")).expect("ip");
    };
    ways.assert_mtu("at first", Instant::now(), 1500);
    let mut slowest = Duration::ZERO;
    for mtu in [1400, 9000, 1500] {
        uplink(mtu);
        slowest = slowest.max(ways.assert_mtu(&format!("the uplink takes {mtu} bytes"), Instant::now(), mtu));
    }
    for (verb, metric, mtu) in [("add", " mtu 1350", 1350), ("del", "", 1500)] {
        let routes = [("10.244.2.0/24", "192.168.1.1"), ("fd00:10:244:2::/64", "fd00:192:168:1::1")];
        let batch = routes.map(|(net, gateway)| format!("route {verb} {net} via {gateway} dev eth0{metric}\n"));
        ways.node().ip(&batch.concat()).expect("ip");
        slowest = slowest.max(ways.assert_mtu(&format!("the route takes {mtu} bytes"), Instant::now(), mtu));
        // A process of the node, by ballast0.
        for vip in ways.vips() {
            let report = client::bulk(ways.world.node(0), vip, 1 << 20, Duration::from_secs(20)).expect("a transfer");
            assert!(report.is_intact(), "{vip}: {report:?}");
        }
    }
    let ms = slowest.as_millis();
    scoreboard("R14", &format!("the MTU of an uplink and of a route changes: known to host processes within {ms} ms"));
}

#[test]
fn r14_a_path_that_becomes_narrow_is_learned() {
    needs_root!();
    for setup in [Setup::tcx(false), Setup::xdp(false), Setup::tcx(true)] {
        let ways = Ways::start(&setup);
        let (world, router) = (&ways.world, ways.world.router());
        // The node first: its address is also the source of what it masquerades, and a backend that learned of the narrow
        // hop on the way back offers smaller segments.
        let from = [(world.node(0).place(), ways.vips()), (world.client(), ways.node_ports().to_vec())];
        let transfers = || {
            for (place, to) in from.iter().flat_map(|(place, to)| to.iter().map(move |to| (*place, *to))) {
                let report = client::bulk(place, to, 256 << 10, Duration::from_secs(20)).expect("a transfer");
                assert!(report.is_intact(), "{} to {to}: {report:?}", place.name());
            }
        };
        transfers();
        router.ip("link set node2 mtu 1300\n").expect("ip");
        world.node(1).namespace().ip("link set eth0 mtu 1300\n").expect("ip");
        let since = Instant::now();
        transfers();
        let elapsed = since.elapsed();
        println!("XDP {}, socket hooks {}: learned with 1 MiB in {elapsed:?}", setup.xdp, setup.socket_hooks);
        assert!(elapsed < Duration::from_secs(5), "retransmissions that time out: {elapsed:?}");
        if setup.socket_hooks {
            // The node's own connections go straight to the backend, so the kernel learned it of that address.
            assert!(ways.rows().iter().all(|row| row.mtu == Some(1300)), "{:?}", ways.rows());
        }
        // What one path takes is no reason to send less on others.
        assert_eq!(ways.host_mtus(), [1500, 1500]);
    }
}

#[test]
fn a_next_hop_that_does_not_answer_is_told() {
    needs_root!();
    let ways = Ways::start(&Setup::tcx(false));
    let told = || {
        let warnings = ways.agent.status().expect("a status").warnings.into_iter();
        let hops = warnings.map(|warning| warning.object).filter(|object| object.starts_with("next hop"));
        let failed = |row: BackendRow| row.next_hop.is_some_and(|hop| hop.state == "failed");
        (hops.collect::<Vec<_>>(), ways.rows().into_iter().filter(|row| failed(row.clone())).count())
    };
    let connect = || {
        for to in ways.node_ports() {
            Call::tcp(to).timeout(Duration::from_millis(100)).run_one(ways.world.client()).expect("a run");
        }
    };
    connect();
    assert_eq!(told(), (vec![], 0));
    ways.node()
        .ip("route add 10.244.2.0/24 via 192.168.1.77 dev eth0\n\
             route add fd00:10:244:2::/64 via fd00:192:168:1::77 dev eth0\n")
        .expect("ip");
    let expected = ["next hop 192.168.1.77 dev eth0", "next hop fd00:192:168:1::77 dev eth0"].map(str::to_owned);
    connect();
    // The kernel asks three times, a second apart.
    wait_until("the silent next hops are told", Duration::from_secs(20), || match told() {
        (hops, 4) if hops == expected => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .expect("warnings");
    let text = ways.agent.query(&["backend", "list"]).expect("an answer");
    assert!(text.contains("192.168.1.77 (failed)") && text.contains("fd00:192:168:1::77 (failed)"), "{text}");
    ways.node().ip("route del 10.244.2.0/24\nroute del fd00:10:244:2::/64\n").expect("ip");
    wait_until("the silent next hops are nobody's any more", Duration::from_secs(10), || match told() {
        (hops, 0) if hops.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .expect("no warnings");
}
