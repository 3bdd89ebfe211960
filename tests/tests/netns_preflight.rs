//! `ballast check` on a node: well when it is, and each thing in the way named; whatever it tried is gone.

use std::{collections::BTreeSet, net::IpAddr, process::Command, time::Duration};

use aya::programs::loaded_programs;
use lb_tests::{
    Fate, ForeignProgram, Matching, Node, Position, TcxHook, World, binary, needs_root, tcx_chain, wait_until,
};
use lb_userspace::check::{Found, Level};

/// Exit code and findings.
fn check(node: &Node) -> (Option<i32>, Vec<Found>) {
    let mut command: Command = node.place().command(binary("ballast").expect("ballast")).expect("a command");
    command.args(["check", "-o", "json", "--bpffs"]).arg(node.bpffs()).arg("--cgroup").arg(node.cgroup());
    let output = command.output().expect("ballast runs");
    let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), found)
}

fn level(found: &[Found], object: &str, part: &str) -> Level {
    let matching = found.iter().find(|row| row.object.contains(object) && row.found.contains(part));
    matching.unwrap_or_else(|| panic!("no {object} with {part:?} in {found:#?}")).level
}

/// Programs called like those of the check. Other tests load and unload theirs meanwhile.
fn probes() -> BTreeSet<u32> {
    let loaded = loaded_programs().filter_map(Result::ok);
    loaded.filter(|program| program.name_as_str() == Some("lb_probe")).map(|program| program.id()).collect()
}

#[test]
fn a_node_that_can_serve_is_well_and_stays_as_it_was() {
    needs_root!();
    let world = World::builder().nodes(1).build().expect("a world");
    let node = world.node(0);
    let namespace = node.place().namespace();
    let listing = || {
        let ip = |arguments: &[&str]| namespace.ip_output(arguments).expect("a listing");
        let links = ip(&["-o", "link"]);
        let pins = std::fs::read_dir(node.bpffs()).expect("the bpffs").count();
        (links, ip(&["route", "show", "table", "all"]), pins, node.state_dir().exists())
    };
    let before = listing();
    let (code, found) = check(node);
    let worst = found.iter().map(|row| row.level).max();
    assert!(worst < Some(Level::Problem), "{found:#?}");
    assert_eq!(code, Some(if worst == Some(Level::Ok) { 0 } else { 3 }));
    for (object, part) in [("tcx", "links"), ("socket hooks", "attached"), ("Ballast's programs", "verifier")] {
        assert_eq!(level(&found, object, part), Level::Ok);
    }
    assert_eq!(level(&found, "device eth0", "uplink"), Level::Ok);
    assert_eq!(listing(), before);
    for hook in [TcxHook::Ingress, TcxHook::Egress] {
        assert!(tcx_chain(namespace, "eth0", hook).expect("a chain").is_empty());
        assert!(tcx_chain(namespace, "lo", hook).expect("a chain").is_empty());
    }
    // A check elsewhere may have some loaded right now; ours, if left, would stay.
    wait_until("the probes are unloaded", Duration::from_secs(10), || match probes() {
        ids if ids.is_empty() => Ok(()),
        ids => Err(format!("{ids:?}")),
    })
    .expect("nothing left");
}

#[test]
fn what_stands_in_the_way_is_named_with_its_mend() {
    needs_root!();
    let world = World::builder().nodes(1).uplinks(2).build().expect("a world");
    let node = world.node(0);
    let namespace = node.place().namespace();
    let address: IpAddr = [192, 0, 2, 1].into();
    let at = (TcxHook::Ingress, Position::First);
    let _foreign = ForeignProgram::attach(namespace, "eth0", at, Matching::Source(address), Fate::Next)
        .expect("a foreign program");
    namespace.ip("link add kube-ipvs0 type veth peer name other\n").expect("a device");
    namespace.nft("add table ip nat\nadd chain ip nat KUBE-SERVICES\nadd table ip6 kube-proxy\nadd chain ip6 kube-proxy services\n").expect("chains");
    namespace.sysctl("ipv4/ip_forward", "0").expect("a setting");
    let (code, found) = check(node);
    assert_eq!(code, Some(1), "{found:#?}");
    for (object, part, expected) in [
        ("device eth0", "tcx programs of others", Level::Warning),
        ("device kube-ipvs0", "IPVS", Level::Problem),
        ("kube-proxy's rules", "2 of its chains", Level::Problem),
        ("net.ipv4.ip_forward", "nothing is forwarded", Level::Problem),
        ("net.ipv4.conf.eth1.rp_filter", "strict", Level::Warning),
    ] {
        assert_eq!(level(&found, object, part), expected);
    }
    for row in found {
        assert!(row.level == Level::Ok || row.fix.is_some_and(|fix| !fix.is_empty()), "{}", row.object);
    }
}
