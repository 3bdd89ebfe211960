//! Options, configuration, and a machine that has nothing of ours.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use crate::place::{Place, is_root, skip};

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let place = Place::new();
    for (arguments, parts) in [
        (
            &["--help"][..],
            &[
                "run",
                "status",
                "service",
                "backend",
                "conntrack",
                "cleanup",
                "env",
                "exec",
                "resolv",
                "completion",
                "version",
                "Exit codes",
                "--state-dir",
            ][..],
        ),
        (&["run", "--help"], &["--filename", "--config", "--allocations", "--service-cidr", "--node-port-range"]),
        (&["service", "describe", "--help"], &["NAMESPACE/NAME", "--output"]),
    ] {
        place.run(arguments).expect(0, parts);
    }
}

#[test]
fn the_version_comes_in_every_form() {
    let place = Place::new();
    place.run(&["version"]).expect(0, &[&format!("ballast {}", env!("CARGO_PKG_VERSION"))]);
    place.run(&["version", "-o", "json"]).expect(0, &["\"version\":"]);
    place.run(&["-o", "yaml", "version"]).expect(0, &["version:"]);
}

#[test]
fn wrong_usage_is_told_and_ends_with_2() {
    let place = Place::new();
    for (arguments, part) in [
        (&[][..], "Usage"),
        (&["statsu"], "status"),
        (&["run"], "-f PATH for documents, or for a cluster --kubeconfig FILE"),
        (&["run", "-f", "x", "--kubeconfig", "y"], "cannot be used with"),
        (&["run", "--master", "x", "--node-port-range", "1-2"], "cannot be used with"),
        (&["run", "-f", "x", "--service-cidr", "10.0.0.0"], "--service-cidr"),
        (&["run", "-f", "x", "--service-cidr", "10.0.0.0/16,10.1.0.0/16"], "at most one IPv4 and one IPv6"),
        (&["run", "-f", "x", "--node-port-range", "9-1"], "write two ports"),
        (&["run", "-f", "x", "-o", "json"], "leave it out"),
        (&["status", "-o", "xml"], "table, wide, json, yaml"),
        (&["status", "-o", "wide"], "--output wide is for lists"),
        (&["service", "describe", "web"], "write NAMESPACE/NAME"),
    ] {
        place.run(arguments).expect_error(2, &[part]);
    }
}

#[test]
fn a_configuration_that_cannot_be_used_names_file_line_and_mend() {
    let place = Place::new();
    let kube_proxy = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let own = "apiVersion: ballast.dev/v1alpha1\nkind: BallastConfiguration\n";
    for (text, part) in [
        ("kind: [\n", "config.yaml:1: "),
        ("kind: Config\n", "is no configuration; use kubeproxy.config.k8s.io/v1alpha1"),
        (&format!("{kube_proxy}hostNameOverride: x\n"), "config.yaml:3: hostNameOverride"),
        (&format!("{kube_proxy}nodePortAddresses: [all, primary]\n"), "write all alone"),
        (
            &format!("{own}maps:\n  backend: 9\n"),
            "config.yaml:4: maps.backend: no field of maps; did you mean backends?",
        ),
        (&format!("{own}interfaces: [{{match: e, rol: pod}}]\n"), "did you mean role?"),
    ] {
        place.file("config.yaml", text);
        place.run(&["run", "-f", "docs", "--config", "config.yaml"]).expect_error(1, &[part]);
    }
    let absent = place.run(&["run", "-f", "docs", "--config", "absent.yaml"]);
    absent.expect_error(1, &["absent.yaml", "give --config a readable file"]);
}

#[test]
fn commands_say_where_they_looked_for_an_agent() {
    let place = Place::new();
    for arguments in [&["status"][..], &["service", "list"], &["service", "describe", "default/web"]] {
        place.run(arguments).expect_error(1, &["no agent runs on", "state", "bpf", "--state-dir", "--bpffs"]);
        assert!(!place.path("state").exists(), "asking makes nothing");
    }
}

#[test]
fn without_a_bpffs_the_agent_says_how_to_mount_one() {
    let place = Place::new();
    place.file("docs/empty.yaml", "");
    let bpffs = place.path("bpf").display().to_string();
    let run = || place.run(&["run", "-f", "docs", "--allocations", "allocations.json"]);
    run().expect_error(1, &[&format!("{bpffs} is not a bpffs; mount one"), "--bpffs"]);
    fs::create_dir(&bpffs).expect("a directory");
    run().expect_error(1, &[&format!("{bpffs} is not a bpffs; mount one")]);
    assert_eq!(fs::read_dir(&bpffs).expect("the directory").count(), 0);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let place = Place::new();
    place.file("docs/empty.yaml", "");
    place.file("state", "a file, no directory");
    let run = place.run(&["run", "-f", "docs", "--allocations", "allocations.json"]);
    run.expect_error(1, &["cannot make the state directory", "--state-dir"]);
}

#[test]
fn without_root_the_agent_says_that_it_needs_it() {
    if !is_root() {
        // A bpffs somebody mounted is root's.
        let place = Place::new();
        place.file("docs/empty.yaml", "");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
        command.args(["run", "-f", "docs", "--allocations", "a.json", "--state-dir", "state"]);
        let answer = command.current_dir(place.path("")).output().expect("ballast runs");
        let stderr = String::from_utf8_lossy(&answer.stderr);
        assert!(stderr.contains("root") || stderr.contains("is not a bpffs"), "{stderr}");
        return;
    }
    let Some(bpffs) = crate::agent::Bpffs::mount() else { return skip("a bpffs cannot be mounted") };
    // Neither the build folder nor the place is open to everyone.
    let program = bpffs.place.path("ballast");
    fs::copy(env!("CARGO_BIN_EXE_ballast"), &program).expect("copied");
    bpffs.place.file("docs/empty.yaml", "");
    for (path, mode) in [("", 0o777), ("bpf", 0o755), ("docs", 0o755)] {
        fs::set_permissions(bpffs.place.path(path), fs::Permissions::from_mode(mode)).expect("opened");
    }
    let run = bpffs.place.command_of(&program, "state", &["run", "-f", "docs", "--allocations", "allocations.json"]);
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(run.get_program()).args(run.get_args());
    nobody.current_dir(bpffs.place.path(""));
    let Ok(output) = nobody.output() else { return skip("setpriv is missing") };
    crate::place::Answer::from(output).expect_error(1, &["Permission denied", "root"]);
    assert!(!bpffs.place.path("bpf/ballast").exists());
}
