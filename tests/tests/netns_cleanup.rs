//! R21: `ballast cleanup` leaves the listings of a node as they were before an agent ever ran.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    str::FromStr,
    time::Duration,
};

use aya::{
    maps::loaded_maps,
    programs::{links::PinnedLink, loaded_links, loaded_programs},
};
use lb_tests::{
    Agent, Echo, NODE_PORT, Node, Setup, TARGET, World,
    client::Call,
    kube::{PodSpec, Service},
    needs_root, scoreboard, wait_until,
};
use serde_json::json;

/// Everything an agent could have changed, by what shows it.
fn listing(node: &Node) -> BTreeMap<String, String> {
    let namespace = node.place().namespace();
    let mut all = BTreeMap::new();
    for arguments in [
        &["-d", "-o", "link"][..],
        &["-o", "address"],
        &["route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["rule"],
        &["-6", "rule"],
    ] {
        all.insert(format!("ip {}", arguments.join(" ")), namespace.ip_output(arguments).expect("ip"));
    }
    for command in [
        &["tc", "qdisc", "show"][..],
        &["nft", "list", "ruleset"],
        &["ethtool", "-k", "eth0"],
        &["ethtool", "-k", "pod1"],
    ] {
        let output = node.place().command(command[0]).expect("a command").args(&command[1..]).output();
        let text = String::from_utf8_lossy(&output.expect("runs").stdout).into_owned();
        all.insert(command.join(" "), text);
    }
    namespace.run(|| settings(Path::new("/proc/sys/net"), &mut all)).expect("settings");
    let folder = node.bpffs().parent().expect("the node's folder").to_owned();
    files(&folder, &mut all);
    all
}

fn settings(directory: &Path, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if entry.file_type().expect("a type").is_dir() {
            settings(&path, all);
        } else if let Ok(text) = fs::read_to_string(&path)
            // What the kernel counts is no setting.
            && !path.ends_with("nf_conntrack_count")
        {
            all.insert(path.display().to_string(), text);
        }
    }
}

fn files(directory: &Path, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        all.insert(path.display().to_string(), format!("{:?}", entry.file_type().expect("a type")));
        if path.is_dir() {
            files(&path, all);
        }
    }
}

fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differs = |key: &&String| before.get(*key) != after.get(*key);
    keys.into_iter()
        .filter(differs)
        .map(|key| format!("{key}: {:?} became {:?}", before.get(key), after.get(key)))
        .collect()
}

/// A number in what the kernel tells of a descriptor.
fn field<T: FromStr>(text: &str, name: &str) -> Option<T> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Ids of kernel objects.
#[derive(Debug, Default)]
struct Objects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Objects {
    /// What a process holds, and the links that carry its programs. Other tests have objects of the same names.
    fn of(pid: u32) -> Self {
        let mut objects = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("descriptors").flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            objects.programs.extend(field::<u32>(&text, "prog_id:").filter(|_| !text.contains("link_id:")));
            objects.maps.extend(field::<u32>(&text, "map_id:"));
        }
        let links = loaded_links().filter_map(Result::ok);
        objects.links.extend(links.filter(|link| objects.programs.contains(&link.program_id())).map(|link| link.id()));
        objects
    }

    /// Those that are still loaded.
    fn left(&self) -> Vec<String> {
        let programs =
            loaded_programs().filter_map(Result::ok).map(|it| it.id()).filter(|id| self.programs.contains(id));
        let mut left: Vec<String> = programs.map(|id| format!("program {id}")).collect();
        let maps = loaded_maps().filter_map(Result::ok).map(|it| it.id()).filter(|id| self.maps.contains(id));
        left.extend(maps.map(|id| format!("map {id}")));
        let links = loaded_links().filter_map(Result::ok).map(|it| it.id()).filter(|id| self.links.contains(id));
        left.extend(links.map(|id| format!("link {id}")));
        left
    }
}

#[test]
fn r21_cleanup_exact() {
    needs_root!();
    // An agent that was stopped, and one that was killed; one on a node whose administrator had reserved ports.
    for (setup, kill, reserved) in [(Setup::tcx(true), false, "4000,50000-50002"), (Setup::xdp(true), true, "")] {
        let world = World::builder().nodes(1).pods(1).drop_invalid(false).build().expect("a world");
        let (node, pod) = (world.node(0), world.node(0).pod(0));
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("offloads");
        }
        node.place().namespace().sysctl("ipv4/ip_local_reserved_ports", &format!("{reserved}\n")).expect("a setting");
        world.apply_nodes().expect("nodes");
        world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
        let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
        world.apply_service(&service.fields(json!({"type": "NodePort"}))).expect("a Service");
        let _server = Echo::start(pod, &[TARGET], &[TARGET]).expect("a server");
        // Neighbours and what else the first packets make.
        for ip in node.ips() {
            let answer = Call::tcp((ip, TARGET)).run_one(world.client()).expect("a run");
            assert!(answer.error.is_some(), "{answer:?}");
        }
        let before = listing(node);

        let mut agent = Agent::start(&world, node, &setup).expect("an agent");
        agent.wait_service("web", 2).expect("the Service");
        for ip in node.ips() {
            Call::tcp((ip, NODE_PORT)).run_one(world.client()).expect("a run").reached().expect("an answer");
        }
        let objects = Objects::of(agent.status().expect("a status").agent_pid.expect("a pid"));
        let counts = (objects.programs.len(), objects.maps.len(), objects.links.len());
        assert!(counts.0 >= 9 && counts.1 >= 23 && counts.2 >= 5, "{counts:?}");
        let during = differences(&before, &listing(node)).join("\n");
        for part in ["ip -d -o link", "route show table all", "ip_local_reserved_ports", "LB4_FRONTENDS", "ids.json"] {
            assert!(during.contains(part), "{part} does not show in what an agent changes: {during}");
        }
        if kill { agent.kill() } else { agent.stop() }.expect("ended");
        agent.cleanup().expect("a cleanup");
        // The kernel frees after a grace period.
        wait_until("programs, maps and links are gone", Duration::from_secs(10), || match objects.left() {
            left if left.is_empty() => Ok(()),
            left => Err(left.join(", ")),
        })
        .expect("gone");
        let left = differences(&before, &listing(node));
        assert!(left.is_empty(), "{setup:?}:\n{}", left.join("\n"));
        scoreboard(
            "R21",
            &format!(
                "cleanup_exact ({}, agent {}): {} programs, {} maps and {} links gone; {} lines of links, qdiscs, routes, \
                 rules, sysctls and files as before",
                if setup.xdp == "on" { "XDP" } else { "tcx" },
                if kill { "killed" } else { "stopped" },
                counts.0,
                counts.1,
                counts.2,
                before.values().map(|text| text.lines().count()).sum::<usize>(),
            ),
        );
    }
}

#[test]
fn r21_cleanup_detaches_what_others_hold() {
    needs_root!();
    for setup in [Setup::tcx(true), Setup::xdp(true)] {
        let world = World::builder().nodes(1).pods(1).build().expect("a world");
        if setup.xdp == "on" {
            world.set_tx_checksum(false).expect("offloads");
        }
        let mut agent = Agent::start(&world, world.node(0), &setup).expect("an agent");
        let objects = Objects::of(agent.status().expect("a status").agent_pid.expect("a pid"));
        let pins = fs::read_dir(world.node(0).bpffs().join(format!("ballast/v{}/links", lb_userspace::bpf::SCHEMA)));
        let held: Vec<PinnedLink> = pins
            .expect("the pins")
            .map(|pin| PinnedLink::from_pin(pin.expect("a pin").path()).expect("a link"))
            .collect();
        assert_eq!(held.len(), objects.links.len());
        agent.stop().expect("ended");
        agent.cleanup().expect("a cleanup");

        let mut seen = 0;
        for entry in fs::read_dir("/proc/self/fdinfo").expect("descriptors").flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            if field(&text, "link_id:").is_some_and(|id| objects.links.contains(&id)) {
                seen += 1;
                let place = field::<u64>(&text, "ifindex:").or_else(|| field(&text, "cgroup_id:"));
                assert_eq!(place, Some(0), "{setup:?}: attached: {text}");
            }
        }
        assert_eq!(seen, held.len());
    }
}
