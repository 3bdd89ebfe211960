//! `--mount-bpffs`, which the flavour `privileged` starts with: a node without a BPF file system gets one.

use std::{fs, path::Path, time::Duration};

use lb_tests::{Node, Process, World, binary, needs_root, wait_until, web::get};

/// An agent in a mount namespace of its own, which ends with it.
fn agent(world: &World, node: &Node, bpffs: &Path, more: &[&str]) -> Process {
    let config = world.directory().join("config.yaml");
    let text = "apiVersion: ballast.dev/v1alpha1\nkind: BallastConfiguration\nsocketHooks: false\n";
    fs::write(&config, text).expect("written");
    let mut command = node.place().command("unshare").expect("a command");
    command.args(["--mount", "--propagation", "private"]).arg(binary("ballast").expect("the agent"));
    command.arg("run").arg("-f").arg(world.manifests()).args(["--hostname-override", node.name()]).args(more);
    command.arg("--allocations").arg(world.directory().join("allocations.json"));
    command.arg("--config").arg(config).arg("--bpffs").arg(bpffs).arg("--state-dir").arg(node.state_dir());
    command.arg("--cgroup").arg(node.cgroup());
    Process::spawn("agent", command).expect("an agent")
}

#[test]
fn a_node_without_a_bpf_file_system_gets_one_where_that_is_asked_for() {
    needs_root!();
    let world = World::builder().nodes(1).build().expect("a world");
    world.apply_nodes().expect("nodes");
    let node = world.node(0);
    let folder = world.directory().join("not-there-yet");
    // It is not mounted unasked.
    let mut process = agent(&world, node, &folder, &[]);
    let ended = process.wait(Duration::from_secs(10)).expect("ended");
    let told = process.stderr();
    assert!(!ended.success() && told.contains(&folder.display().to_string()), "{told}");
    assert!(told.contains("mount -t bpf"), "the mend: {told}");
    assert!(!folder.exists());

    let process = agent(&world, node, &folder, &["--mount-bpffs"]);
    wait_until("an answer of /healthz", Duration::from_secs(30), || {
        match get(node.place(), "127.0.0.1:10256", "/healthz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}: {}", process.stderr())),
        }
    })
    .expect("healthy");
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", process.id())).expect("its mounts");
    let of_folder = format!(" {} ", folder.display());
    let mount = mounts.lines().find(|line| line.contains(&of_folder)).unwrap_or_else(|| panic!("{mounts}"));
    for part in [" - bpf bpf ", "mode=700", "nosuid,nodev,noexec"] {
        assert!(mount.contains(part), "{part}: {mount}");
    }
    let pins = fs::read_dir(format!("/proc/{}/root{}", process.id(), folder.display())).expect("its pins");
    assert!(pins.count() > 0, "nothing is pinned");
    // Nobody else sees it.
    let ours = fs::read_to_string("/proc/self/mountinfo").expect("our mounts");
    assert!(!ours.contains(&of_folder), "{ours}");
}
