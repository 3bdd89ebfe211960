//! `cargo xtask run --host -f PATH` is `ballast run -f PATH` with a machine's own places: the default state folder and
//! /sys/fs/bpf. Here the machine is a node whose process has mounts of its own over them.

use std::{net::SocketAddr, time::Duration};

use lb_tests::{
    Echo, NODE_PORT, Process, TARGET, TcxHook, World, binary,
    client::{Call, Transport},
    kube::{PodSpec, Service},
    needs_root, tcx_chain, wait_until,
};
use lb_userspace::report::Status;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// `$1` is ballast, `$2` the documents, `$3` the cgroup: the root of the mount would be everybody's here. What stays is the
/// allocation file, which other nodes may share, and what every bpffs holds.
const MACHINE: &str = r#"
mount -t bpf none /sys/fs/bpf && mount -t tmpfs none /var/lib || exit
"$1" run -f "$2" --cgroup "$3" || exit
find /sys/fs/bpf /var/lib -mindepth 1 | grep -c .
"$1" cleanup --cgroup "$3"
find /sys/fs/bpf /var/lib/ballast -mindepth 1 -not -path '*/allocations*' -not -name '*.debug'
echo end
"#;

#[test]
fn the_defaults_of_a_machine_serve_it_and_cleanup_finds_them() {
    needs_root!();
    let world = World::builder().nodes(1).pods(1).build().expect("a world");
    let (node, pod) = (world.node(0), world.node(0).pod(0));
    world.apply_pod(pod, &PodSpec::labelled("app", "web")).expect("a pod");
    let service = Service::new("web", "app", "web").port(80, TARGET, Some(NODE_PORT));
    world
        .apply_service(&service.fields(json!({"type": "NodePort", "clusterIPs": ["10.96.0.80", "fd00:10:96::80"]})))
        .expect("a Service");
    let _server = Echo::start(pod, &[TARGET], &[TARGET]).expect("a server");

    let ballast = binary("ballast").expect("ballast");
    let mut command = node.command("unshare").expect("a command");
    command.args(["--mount", "--propagation", "private", "sh", "-c", MACHINE, "sh"]);
    command.arg(&ballast).arg(world.manifests()).arg(node.cgroup());
    let mut machine = Process::spawn("the machine", command).expect("a machine");
    let status: Status = wait_until("a status by the default places", Duration::from_secs(30), || {
        // unshare has become the shell: same pid, and the mounts are its own.
        let mut ask = node.command("nsenter").map_err(|error| format!("{error:#}"))?;
        ask.args(["--mount", "--target", &machine.id().to_string()]).arg(&ballast).args(["status", "-o", "json"]);
        let output = ask.output().map_err(|error| error.to_string())?;
        let status: Option<Status> = serde_json::from_slice(&output.stdout).ok();
        let running = machine.is_running();
        let said = || format!("running: {running}; {}{}", String::from_utf8_lossy(&output.stderr), machine.stderr());
        status.filter(|status| status.agent_pid.is_some() && status.backends > 0).ok_or_else(said)
    })
    .expect("a status");
    assert_eq!(status.node, rustix::system::uname().nodename().to_string_lossy());
    assert!(status.socket_hooks.attached, "{:?}", status.socket_hooks);
    for transport in [Transport::Tcp, Transport::Udp] {
        let outside = node.ips().map(|ip| (world.client(), SocketAddr::new(ip, NODE_PORT)));
        let inside = ["10.96.0.80:80", "[fd00:10:96::80]:80"].map(|to| (node.place(), to.parse().expect("an address")));
        for (from, to) in outside.into_iter().chain(inside) {
            let answer = Call::new(transport, to).run_one(from).expect("a run");
            assert_eq!(answer.reached().unwrap_or_else(|error| panic!("{to}: {error}")).0, pod.name());
        }
    }
    assert_eq!(tcx_chain(node.namespace(), "eth0", TcxHook::Ingress).expect("a chain"), ["lb_ingress"]);

    let agent = i32::try_from(status.agent_pid.expect("a pid")).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(agent, Signal::TERM).expect("a signal");
    assert!(machine.wait(Duration::from_secs(20)).expect("its end").success(), "{}", machine.stderr());
    let said = machine.stdout();
    let left: Vec<&str> = said.lines().skip_while(|line| !line.starts_with("removed")).collect();
    assert!(said.lines().next().is_some_and(|count| count.parse::<u32>().is_ok_and(|count| count > 20)), "{said}");
    assert!(left.len() > 1 && left[..left.len() - 1].iter().all(|line| line.starts_with("removed")), "{said}");
    assert_eq!(tcx_chain(node.namespace(), "eth0", TcxHook::Ingress).expect("a chain"), Vec::<String>::new());
}
