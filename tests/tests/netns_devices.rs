//! What the agent does to a node's network and reads of it, on the kernel itself: `ballast0`, its routes, route
//! look-ups, events and reserved ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::Future,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use lb_tests::{Namespace, World, needs_root};
use lb_userspace::{
    image::NextHopInfo,
    net::{
        Netlink, events,
        host_device::{self, HostDevice, Way},
        netns_cookie, next_hops, reserved_ports,
        roles::{self, XdpMode},
    },
};

/// How long anything here may take; an event's own limit is in its test.
const LIMIT: Duration = Duration::from_secs(20);

/// Those of the network a thread is in.
const SYSCTLS: &str = "/proc/sys/net";

/// Runs `body` in `namespace`, as the agent would: one thread, netlink open.
fn inside<T: Send, F: Future<Output = T>>(namespace: &Namespace, body: impl FnOnce(Netlink) -> F + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let netlink = Netlink::open().expect("netlink");
            tokio::time::timeout(LIMIT, body(netlink)).await.expect("in time")
        })
    };
    namespace.run(run).expect("a thread in the namespace")
}

/// Everything `ip` knows of links, addresses and routes, without what changes by itself.
fn network(namespace: &Namespace) -> Vec<String> {
    let mut lines = Vec::new();
    for args in [
        &["-o", "link"][..],
        &["-o", "address"],
        &["-4", "route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
    ] {
        let text = namespace.ip_output(args).expect("ip");
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}

fn ours(namespace: &Namespace) -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        let text = namespace.ip_output(&[family, "route", "show", "dev", "ballast0", "proto", "98"]).expect("ip");
        lines.extend(text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    lines
}

fn wanted(routes: &[(&str, Option<IpAddr>)]) -> BTreeMap<IpNet, Way> {
    let way = |(net, prefsrc): &(&str, Option<IpAddr>)| {
        (net.parse().expect("a prefix"), Way { prefsrc: *prefsrc, mtu: Some(1400) })
    };
    routes.iter().map(way).collect()
}

#[test]
fn the_host_device_and_its_routes_come_change_and_go() {
    needs_root!();
    let world = World::builder().nodes(1).pods(0).uplinks(2).build().expect("a world");
    let node = world.node(0).place().namespace();
    let before = network(node);
    let address = |text: &str| Some(text.parse::<IpAddr>().expect("an address"));
    let (eth0, eth1) = (address("192.168.1.2"), address("192.168.11.2"));
    let first = wanted(&[
        ("10.96.0.0/16", eth0),
        ("203.0.113.7/32", None),
        ("fd00:10:96::/112", address("fd00:192:168:1::2")),
        ("fd00:203:0:113::7/128", None),
    ]);

    let device = inside(node, async |netlink| {
        let device = host_device::ensure(&netlink, Path::new(SYSCTLS)).await.expect("ballast0");
        assert_eq!(host_device::sync_routes(&netlink, device, &first).await.expect("routes"), []);
        device
    });
    let expected = [
        "10.96.0.0/16 scope link src 192.168.1.2 mtu 1400",
        "203.0.113.7 scope link mtu 1400",
        "fd00:10:96::/112 src fd00:192:168:1::2 metric 1024 mtu 1400 pref medium",
        "fd00:203:0:113::7 metric 1024 mtu 1400 pref medium",
    ];
    assert_eq!(ours(node), expected);
    let pair = node.ip_output(&["-o", "address", "show", "dev", "ballast0"]).expect("ip");
    assert_eq!(pair, "", "no address, not even a link-local one");
    for name in ["ballast0", "ballast1"] {
        let line = node.ip_output(&["-o", "link", "show", name]).expect("ip");
        assert!(line.contains("NOARP,UP") && line.contains("mtu 65535"), "{line}");
    }

    // The second time the kernel is told nothing: no route event comes.
    let log = inside(node, async |netlink| {
        let mut events = events::watch().expect("events");
        assert_eq!(host_device::ensure(&netlink, Path::new(SYSCTLS)).await.expect("ballast0"), device);
        assert_eq!(host_device::sync_routes(&netlink, device, &first).await.expect("routes"), []);
        tokio::time::timeout(Duration::from_millis(200), events.recv()).await
    });
    assert!(log.is_err(), "{log:?}");
    assert_eq!(ours(node), expected);

    // Another source, one prefix less; and one that another program has already.
    node.ip("route add 198.51.100.9/32 via 192.168.1.1 dev eth0 proto 77\nroute add blackhole 198.51.100.10/32\n")
        .expect("ip");
    let second = wanted(&[("10.96.0.0/16", eth1), ("198.51.100.9/32", eth0), ("198.51.100.10/32", eth0)]);
    let problems =
        inside(node, async |netlink| host_device::sync_routes(&netlink, device, &second).await.expect("routes"));
    assert_eq!(ours(node), ["10.96.0.0/16 scope link src 192.168.11.2 mtu 1400"]);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[1].object.contains("198.51.100.10/32") && problems[1].cause.contains("blackhole"), "{problems:?}");
    assert!(problems[0].object.contains("198.51.100.9/32") && problems[0].cause.contains("77"), "{problems:?}");
    let foreign = node.ip_output(&["route", "show", "198.51.100.9"]).expect("ip");
    assert!(foreign.contains("via 192.168.1.1 dev eth0"), "{foreign}");
    node.ip("route del 198.51.100.9/32\nroute del blackhole 198.51.100.10/32\n").expect("ip");

    inside(node, async |netlink| {
        assert!(host_device::exists(&netlink).await.expect("a listing"));
        assert!(host_device::remove(&netlink).await.expect("removal"));
        assert!(!host_device::remove(&netlink).await.expect("nothing to remove"));
    });
    assert_eq!(network(node), before);
}

#[test]
fn a_foreign_device_with_our_name_is_left_alone() {
    needs_root!();
    let world = World::builder().nodes(1).pods(0).build().expect("a world");
    let node = world.node(0).place().namespace();
    node.ip("link add ballast1 type veth peer name other0\n").expect("ip");
    let before = network(node);
    let (error, removed) = inside(node, async |netlink| {
        let error = host_device::ensure(&netlink, Path::new(SYSCTLS)).await.expect_err("not ours");
        (error, host_device::remove(&netlink).await.expect("nothing to remove"))
    });
    assert!(error.to_string().contains("ballast1") && !removed, "{error}");
    assert_eq!(network(node), before);
}

#[test]
fn next_hops_tell_device_source_and_what_is_local() {
    needs_root!();
    let world = World::builder().nodes(1).pods(1).uplinks(2).build().expect("a world");
    let (node, pod) = (world.node(0).place().namespace(), world.node(0).pod(0));
    node.ip("route add unreachable 198.51.100.1/32\nroute add prohibit 198.51.100.2/32\nroute add unreachable 2001:db8::1/128\n")
        .expect("ip");
    let client = world.client().ips();
    let nodes = world.node(0).place().ips();
    let unreachable: [IpAddr; 4] =
        ["198.51.100.1", "198.51.100.2", "2001:db8::1", "10.244.1.200"].map(|addr| addr.parse().expect("an address"));
    let mut asked: BTreeSet<IpAddr> = unreachable.into();
    asked.extend(client);
    asked.extend(pod.ips());
    asked.extend(nodes);
    let asked_of = asked.clone();
    let (hops, index) = inside(node, async move |netlink| {
        let links = netlink.links().await.expect("links");
        let index: BTreeMap<String, u32> = links.into_iter().map(|link| (link.name, link.ifindex)).collect();
        let many = next_hops(&asked_of).await.expect("routes");
        for addr in &asked_of {
            let one = next_hops(&[*addr].into()).await.expect("a route");
            assert_eq!(one.get(addr), many.get(addr), "{addr}");
        }
        // More than are asked for together, some without a way in between.
        let thousand: BTreeSet<IpAddr> = (0..1000_u16)
            .map(|it| [10, 200, it.to_be_bytes()[0], it.to_be_bytes()[1]].into())
            .chain(unreachable)
            .collect();
        assert_eq!(next_hops(&thousand).await.expect("routes").len(), 1000);
        (many.into_iter().map(|(addr, way)| (addr, way.info)).collect::<BTreeMap<_, _>>(), index)
    });
    let mut expected = BTreeMap::new();
    for addr in nodes {
        expected.insert(addr, NextHopInfo { ifindex: index["lo"], prefsrc: Some(addr), local: true });
    }
    for (addrs, ifindex) in [(client, index["eth0"]), (pod.ips(), index[pod.interface()])] {
        for addr in addrs {
            // Pods' routes name their source, the client's is the uplink's own address: here it is the same.
            let prefsrc = nodes.into_iter().find(|node| node.is_ipv4() == addr.is_ipv4());
            expected.insert(addr, NextHopInfo { ifindex, prefsrc, local: false });
        }
    }
    assert_eq!(hops, expected);
}

#[test]
fn a_nodes_devices_get_their_roles() {
    needs_root!();
    let world = World::builder().nodes(1).pods(2).uplinks(2).build().expect("a world");
    let node = world.node(0).place().namespace();
    let (devices, problems, multipath) = inside(node, async |netlink| {
        host_device::ensure(&netlink, Path::new(SYSCTLS)).await.expect("ballast0");
        let (links, addresses) = (netlink.links().await.expect("links"), netlink.addresses().await.expect("addresses"));
        let default_routes = netlink.default_route_devices().await.expect("routes");
        let (devices, problems) = roles::classify(&links, &addresses, &default_routes, &[], XdpMode::Auto);
        node.ip("route replace default nexthop via 192.168.1.1 dev eth0 nexthop via 192.168.11.1 dev eth1\n")
            .expect("ip");
        (devices, problems, netlink.default_route_devices().await.expect("routes"))
    });
    let mut lines: Vec<_> = devices.iter().map(|device| (device.role.to_string(), device.xdp)).collect();
    lines.sort();
    let expected = ["ignored", "pod", "pod", "uplink", "uplink"].map(|role| (role.to_owned(), false));
    assert_eq!(lines, expected, "{devices:?}");
    assert_eq!(problems, []);
    let uplinks: BTreeSet<u32> =
        devices.iter().filter(|device| device.name.starts_with("eth")).map(|device| device.ifindex).collect();
    assert_eq!(multipath, uplinks);
}

/// Messages the kernel could not deliver to netlink sockets of this thread's namespace.
fn lost_messages() -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/netlink").expect("procfs");
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    table.lines().filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok()).sum()
}

#[test]
fn a_new_interface_is_told_at_once_and_a_lost_event_too() {
    needs_root!();
    let world = World::builder().nodes(1).pods(0).build().expect("a world");
    let node = world.node(0).place().namespace();
    let elapsed = inside(node, async |netlink| {
        let mut events = events::watch().expect("events");
        let add =
            |name: &str, peer: &str| node.ip(&format!("link add {name} type veth peer name {peer}\n")).expect("ip");
        add("late0", "late1");
        let start = Instant::now();
        while !netlink.links().await.expect("links").iter().any(|link| link.name == "late0") {}
        events.recv().await.expect("an event");
        let elapsed = start.elapsed();
        // Nobody receives while more happens than the channel and the socket's buffer hold.
        let mut batch = String::new();
        for _ in 0..2000 {
            batch.push_str("link set late0 up\nlink set late1 up\nlink set late0 down\nlink set late1 down\n");
        }
        node.ip(&batch).expect("ip");
        assert!(lost_messages() > 0, "the storm must overrun the socket");
        events.recv().await.expect("an event after the storm");
        add("later0", "later1");
        loop {
            events.recv().await.expect("an event");
            if netlink.links().await.expect("links").iter().any(|link| link.name == "later0") {
                return elapsed;
            }
        }
    });
    assert!(elapsed < Duration::from_millis(100), "{elapsed:?}");
}

#[test]
fn reserved_ports_are_merged_and_given_back() {
    needs_root!();
    let world = World::builder().nodes(1).pods(0).build().expect("a world");
    let node = world.node(0).place().namespace();
    let state = tempfile::tempdir().expect("a directory");
    let reserved = || {
        let read = || fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").expect("a sysctl");
        node.run(read).expect("a thread").trim().to_owned()
    };
    let reserve = |range| {
        node.run(|| reserved_ports::reserve(&range, Path::new(SYSCTLS), state.path()))
            .expect("a thread")
            .expect("ports");
    };
    let restore = |dry_run| {
        node.run(|| reserved_ports::restore(Path::new(SYSCTLS), state.path(), dry_run))
            .expect("a thread")
            .expect("ports")
    };
    assert!(!restore(false));

    node.sysctl("ipv4/ip_local_reserved_ports", "80,61000-62005").expect("a sysctl");
    for _ in 0..2 {
        reserve(62000..=63000);
        assert_eq!(reserved(), "80,61000-63000");
    }
    assert!(restore(true));
    assert_eq!(reserved(), "80,61000-63000");
    assert!(restore(false) && !restore(false));
    assert_eq!(reserved(), "80,61000-62005");

    // Back to an empty list, and others' changes meanwhile are kept.
    node.sysctl("ipv4/ip_local_reserved_ports", "\n").expect("a sysctl");
    reserve(62000..=63000);
    assert!(restore(false));
    assert_eq!(reserved(), "");
    reserve(62000..=63000);
    node.sysctl("ipv4/ip_local_reserved_ports", "90,62000-63000").expect("a sysctl");
    assert!(restore(false));
    assert_eq!(reserved(), "90");
    assert_eq!(fs::read_dir(state.path()).expect("a directory").count(), 0);
}

#[test]
fn every_node_has_a_cookie_of_its_own() {
    needs_root!();
    let world = World::builder().nodes(2).pods(0).build().expect("a world");
    let cookies: BTreeSet<u64> = world
        .nodes()
        .iter()
        .map(|node| node.place().namespace().run(netns_cookie).expect("a thread").expect("a cookie"))
        .collect();
    assert_eq!(cookies.len(), 2);
}

#[test]
fn a_host_device_says_its_own_indices_and_mac() {
    needs_root!();
    let world = World::builder().nodes(1).pods(0).build().expect("a world");
    let node = world.node(0).place().namespace();
    let HostDevice { ifindex, mac, peer_ifindex } =
        inside(node, async |netlink| host_device::ensure(&netlink, Path::new(SYSCTLS)).await.expect("ballast0"));
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let line = node.ip_output(&["-o", "link", "show", "ballast0"]).expect("ip");
    assert!(line.starts_with(&format!("{ifindex}: ballast0@ballast1")) && line.contains(&mac), "{line}");
    let line = node.ip_output(&["-o", "link", "show", "ballast1"]).expect("ip");
    assert!(line.starts_with(&format!("{peer_ifindex}: ballast1@")), "{line}");
}
