//! The demo as its user runs it, and the user's second document applied over the first.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use lb_tests::{Agent, Echo, Setup, World, client::Call, needs_root, wait_until};

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ballast-demo"));
    command.env("NO_COLOR", "1");
    command
}

fn namespaces() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_row_of_the_demo_passes_and_nothing_stays() {
    needs_root!();
    let output = demo().arg("--once").output().expect("the demo");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for expected in
        ["my-service ", "service-python ", "service-python-lb ", "LoadBalancer address", "UDP", "[fd00:10:96::"]
    {
        assert!(text.contains(expected), "{expected:?} is missing in\n{text}");
    }
    assert!(text.contains("access paths, 0 failed"), "{text}");
    let stale: Vec<_> = namespaces().into_iter().filter(|name| is_stale(name)).collect();
    assert!(stale.is_empty(), "{stale:?}");
}

/// Whether a namespace belongs to a process that is gone; those of living ones come and go beside us.
fn is_stale(name: &str) -> bool {
    let pid = name.strip_prefix("btw-").and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

#[test]
fn a_folder_of_ones_own_and_a_command_at_the_client() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a folder");
    let demo_folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    for name in ["nodes.yaml", "pods.yaml", "my-service.yaml"] {
        fs::copy(demo_folder.join(name), folder.path().join(name)).expect("copied");
    }
    let output =
        demo().arg("-f").arg(folder.path()).args(["--", "sh", "-c", "hostname -I; exit 7"]).output().expect("the demo");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(7), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("my-service") && !text.contains("service-python"), "{text}");
    assert!(text.contains("192.168.100.2"), "{text}");
}

#[test]
fn a_folder_that_is_not_there_is_an_error_with_its_name() {
    needs_root!();
    let output = demo().args(["--once", "-f", "/nonexistent"]).output().expect("the demo");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/nonexistent"), "{text}");
}

#[test]
fn the_second_document_of_the_user_changes_the_type_in_place() {
    needs_root!();
    let world = World::builder().nodes(2).pods(2).build().expect("a world");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let read = |name: &str| fs::read_to_string(folder.join(name)).expect("a document");
    for name in ["nodes.yaml", "pods.yaml", "service-python.yaml"] {
        world.apply(name, &read(name)).expect("applied");
    }
    let _servers: Vec<Echo> =
        world.pods().map(|pod| Echo::start(pod.place(), &[443], &[]).expect("a server")).collect();
    let agents = Agent::start_all(&world, &Setup::tcx(true)).expect("agents");
    let before = agents[0].cluster_ips("service-python", 2).expect("a cluster IP");
    let node_port = SocketAddr::from(([192, 168, 1, 2], 30080));
    Call::tcp(node_port).run_one(world.client()).expect("a run").reached().expect("an answer");

    let changed = read("service-python.yaml").replace("type: NodePort", "type: LoadBalancer");
    let status = "status: {loadBalancer: {ingress: [{ip: 203.0.113.20}]}}\n";
    world.apply("service-python.yaml", &format!("{changed}{status}")).expect("applied");
    for agent in &agents {
        wait_until("the new type", std::time::Duration::from_secs(5), || {
            let rows = agent.services().map_err(|error| format!("{error:#}"))?;
            let row = rows.into_iter().find(|row| row.name == "service-python").ok_or("not listed")?;
            if row.service_type == "LoadBalancer" { Ok(()) } else { Err(row.service_type) }
        })
        .expect("the change");
    }
    assert_eq!(agents[0].cluster_ips("service-python", 2).expect("a cluster IP"), before, "the address stays");
    for to in [node_port, SocketAddr::from(([203, 0, 113, 20], 3000))] {
        Call::tcp(to).run_one(world.client()).expect("a run").reached().unwrap_or_else(|error| panic!("{to}: {error}"));
    }
}
