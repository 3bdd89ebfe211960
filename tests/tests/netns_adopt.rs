//! An agent that starts on what another left, with unchanged documents, writes nothing and detaches nothing.

use std::collections::BTreeMap;

use aya::{maps::MapInfo, programs::loaded_links};
use lb_tests::{Agent, Cluster, Setup, needs_root};

/// Ids of the maps in a bpffs, by name.
fn maps(agent: &Agent, bpffs: &std::path::Path) -> BTreeMap<String, u32> {
    let maps = lb_userspace::bpf::Pins::new(bpffs).maps();
    let status = agent.status().expect("a status");
    let id = |name: &String| MapInfo::from_pin(maps.join(name)).expect("a map").id();
    status.maps.keys().map(|name| (name.clone(), id(name))).collect()
}

/// What `/proc` tells of the programs the agent holds, and the links that carry them.
fn links(pid: u32) -> usize {
    let programs = held(pid);
    loaded_links().filter_map(Result::ok).filter(|link| programs.contains(&link.program_id())).count()
}

fn held(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the agent's descriptors");
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())).collect()
}

#[test]
fn unchanged_documents_take_no_write_after_a_restart() {
    needs_root!();
    for setup in [Setup::tcx(true), Setup::xdp(false)] {
        let mut cluster = Cluster::start(&setup).expect("a cluster");
        let node = cluster.world.node(0);
        let (bpffs, state) = (node.bpffs(), node.state_dir().join("ids.json"));
        let first = cluster.agents[0].stderr();
        assert!(first.contains(" map writes"), "the log tells of writes: {first}");
        let before = maps(&cluster.agents[0], &bpffs);
        let numbers = std::fs::read(&state).expect("the numbers");
        let list = |agent: &Agent| agent.query(&["backend", "list", "-o", "json"]).expect("backends");
        let backends = list(&cluster.agents[0]);
        let carried = links(cluster.agents[0].status().expect("a status").agent_pid.expect("a pid"));
        assert!(carried > 0);
        for kill in [true, false, true] {
            let agent = &mut cluster.agents[0];
            if kill { agent.kill() } else { agent.stop() }.expect("ended");
            agent.launch().expect("launched");
            agent.wait_service("web", 8).expect("the Service");
            let log = agent.stderr();
            assert!(log.contains("ready: ") && !log.contains(" map writes"), "after a kill ({kill}): {log}");
            assert_eq!(maps(agent, &bpffs), before, "the same maps");
            assert_eq!(list(agent), backends, "the same numbers and generations");
            assert_eq!(std::fs::read(&state).expect("the numbers"), numbers);
            assert_eq!(
                links(agent.status().expect("a status").agent_pid.expect("a pid")),
                carried,
                "every link taken over"
            );
        }
    }
}
