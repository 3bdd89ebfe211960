//! A running agent in a network namespace of its own, and what it leaves.

use std::{
    fs,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::place::{Place, is_root, skip};

/// A place with a bpffs, unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Bpffs {
    pub(crate) place: Place,
}

impl Bpffs {
    /// `None` where that is not allowed.
    pub(crate) fn mount() -> Option<Self> {
        let place = Place::new();
        let path = place.path("bpf");
        fs::create_dir(&path).expect("a directory");
        mount("bpf", &path, "bpf", MountFlags::empty(), None).ok()?;
        Some(Self { place })
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.place.path("bpf"), UnmountFlags::DETACH) {
            eprintln!("cannot unmount the bpffs of a test: {error}");
        }
    }
}

/// `ballast run`, killed when dropped.
pub(crate) struct Agent(Child);

impl Agent {
    /// Starts it and waits until it answers; `Err` with a reason where this machine or build has no agent.
    fn start(place: &Place, more: &[&str]) -> Result<Self, &'static str> {
        let arguments = ["run", "-f", "docs", "--node", "node1", "--allocations", "allocations.json"];
        let mut command = place.isolated("state", &[&arguments[..], more].concat());
        let log = fs::File::create(place.path("log")).expect("a log");
        let child = command.stderr(log).stdout(Stdio::null()).spawn().map_err(|_| "unshare is missing")?;
        let mut agent = Self(child);
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let status = place.run(&["status"]);
            if status.stdout.contains("running, pid") {
                return Ok(agent);
            }
            let log = fs::read_to_string(place.path("log")).expect("the log");
            if agent.0.try_wait().expect("its state").is_some() {
                if log.contains("without its BPF object") {
                    return Err("no BPF object: `cargo xtask build` makes it");
                }
                panic!("the agent ended: {log}");
            }
            assert!(Instant::now() < deadline, "the agent does not answer: {status:?}\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("cannot end an agent: {error}");
        }
    }
}

const DOCUMENTS: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec: {type: LoadBalancer, clusterIP: 10.96.0.10, externalTrafficPolicy: Local, ports: [{name: http, port: 80, nodePort: 30080}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.7}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node1}
- {addresses: [10.244.2.5], nodeName: node2}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
";

const CONFIG: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: userspace
clusterCIDR: 10.0.0.0/8
nodePortAddresses: [primary]
oomScoreAdj: 321
---
apiVersion: ballast.dev/v1alpha1
kind: BallastConfiguration
interfaces: [{match: eth9, role: uplink}]
";

/// A place and an agent on it, or a reason to skip.
pub(crate) fn start() -> Result<(Bpffs, Agent), &'static str> {
    if !is_root() {
        return Err("needs root");
    }
    let bpffs = Bpffs::mount().ok_or("a bpffs cannot be mounted")?;
    bpffs.place.file("docs/web.yaml", DOCUMENTS);
    bpffs.place.file("config.yaml", CONFIG);
    fs::create_dir(bpffs.place.path("no-cgroup")).expect("a directory");
    let agent = Agent::start(&bpffs.place, &["--config", "config.yaml"])?;
    Ok((bpffs, agent))
}

#[test]
fn status_names_what_is_not_as_asked() {
    let (bpffs, _agent) = match start() {
        Ok(started) => started,
        Err(reason) => return skip(reason),
    };
    let parts = [
        "Warnings:\n  config config.yaml:3: mode has no effect here: there is one datapath, in eBPF",
        "kind Deployment is not used here",
        "ClusterCIDR 10.",
        "interfaces rule \"eth9\": no interface has such a name",
        "nodePortAddresses: primary: there is no Node node1",
        // No cgroup2, and what follows from that.
        "socket hooks: cannot attach the socket hooks to cgroup",
        "it is no directory of a cgroup2 file system",
        "mount cgroup2, name it with --cgroup",
    ];
    bpffs.place.run(&["status"]).expect(3, &parts);
    let json = bpffs.place.run(&["-o", "json", "status"]);
    let status: lb_userspace::report::Status = serde_json::from_str(&json.stdout).expect("a status");
    assert_eq!((status.warnings.len(), status.services, &*status.node), (2, 1, "node1"));
    let score = format!("/proc/{}/oom_score_adj", status.agent_pid.expect("it runs"));
    assert_eq!(fs::read_to_string(score).expect("its score"), "321\n");
    bpffs.place.run(&["service", "list"]).expect(0, &["LoadBalancer", "10.96.0.10", "80:30080/TCP"]);
    bpffs.place.run(&["service", "list", "-o", "wide"]).expect(0, &["BACKENDS   SELECTOR\n", "   <none>\n"]);
}

#[test]
fn the_tables_tell_what_an_agent_left() {
    let (bpffs, agent) = match start() {
        Ok(started) => started,
        Err(reason) => return skip(reason),
    };
    let place = &bpffs.place;
    drop(agent);
    let before = fs::read(place.path("state/ids.json")).expect("the numbers");

    let parts = ["not running", "the pins in", "LB4_FRONTENDS", "start it with `ballast run`"];
    place.run(&["status"]).expect(3, &parts);
    let list = place.run(&["service", "list"]);
    list.expect(3, &["web", "LoadBalancer", "10.96.0.10", "203.0.113.7", "80/TCP"]);
    assert!(list.stderr.contains("no agent runs on"), "{list:?}");
    place.run(&["service", "list", "-o", "wide"]).expect(3, &["SELECTOR\n", "   <unknown>\n"]);
    let detail = place.run(&["service", "describe", "default/web"]);
    let parts =
        ["ClusterIP", "10.96.0.10:80", "203.0.113.7:80", "10.244.1.5:8080/TCP", "10.244.2.5:8080/TCP", "in use"];
    detail.expect(3, &parts);
    detail.expect(3, &["External Traffic Policy: Local", "Selector:                <unknown>"]);
    place.run(&["service", "describe", "default/absent"]).expect_error(1, &["hold no Service default/absent"]);
    assert_eq!(fs::read(place.path("state/ids.json")).expect("the numbers"), before, "nothing is written");

    // Without its numbers a Service has no name, and that is said.
    fs::write(place.path("state/ids.json"), "{").expect("damaged");
    place.run(&["status"]).expect(3, &["not a saved id state", "does not name the service ports with the numbers 1"]);
    place.run(&["service", "list"]).expect(3, &["unknown", "10.96.0.10"]);

    let pin = format!("bpf/ballast/v{}/maps/LB_RINGS", lb_userspace::bpf::SCHEMA);
    fs::remove_file(place.path(&pin)).expect("a pin");
    place.run(&["status"]).expect_error(1, &["no agent runs on", "LB_RINGS is not pinned any more"]);
}

#[test]
fn pins_belong_to_one_agent_whatever_its_state_directory() {
    let (bpffs, agent) = match start() {
        Ok(started) => started,
        Err(reason) => return skip(reason),
    };
    let place = &bpffs.place;
    let pid = format!("pid {}", agent.0.id());
    for arguments in [&["run", "-f", "docs", "--allocations", "allocations.json"][..], &["cleanup"]] {
        place.run_isolated("state", arguments).expect_error(1, &["runs on", &pid]);
        place.run_isolated("other", arguments).expect_error(1, &["uses the pins in", &pid]);
    }
    drop(agent);
    place.run_isolated("state", &["cleanup"]).expect(0, &["removed"]);
    place.run_isolated("state", &["cleanup"]).expect(0, &["nothing of Ballast is here"]);
    place.run(&["status"]).expect_error(1, &["nothing of Ballast is pinned in"]);
}

#[test]
fn an_agent_whose_allocation_file_is_locked_goes_on() {
    let (bpffs, _agent) = match start() {
        Ok(started) => started,
        Err(reason) => return skip(reason),
    };
    let place = &bpffs.place;
    let lock = fs::File::create(place.path("allocations.json.lock")).expect("the lock file");
    lock.lock().expect("the lock");
    let more =
        DOCUMENTS.replace("web", "more").replace(".10,", ".11,").replace("30080", "30081").replace("113.7", "113.8");
    place.file("docs/more.yaml", &more);
    // Long enough for the change to be seen, far too short for the lock to be given up.
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let start = Instant::now();
        let list = place.run(&["service", "list"]);
        list.expect(0, &["web"]);
        assert!(!list.stdout.contains("more") && start.elapsed() < Duration::from_secs(5), "{list:?}");
    }
    drop(lock);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !place.run(&["service", "list"]).stdout.contains("more") {
        assert!(Instant::now() < deadline, "the change is lost");
    }
}
