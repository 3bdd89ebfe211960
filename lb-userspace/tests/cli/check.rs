//! `ballast check` in a bare network namespace: findings with mends, forms, exit codes, and nothing left.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use crate::{
    agent::Bpffs,
    place::{Answer, Place, is_root, skip},
};

#[test]
fn every_finding_that_is_not_ok_has_a_mend() {
    let place = Place::new();
    // No bpffs: a problem.
    let answer = place.run(&["check", "-o", "json"]);
    answer.expect(1, &[]);
    let found: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON");
    let found = found.as_array().expect("a list");
    for row in found {
        assert!(row["level"] == "ok" || row["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{row}");
        assert!(
            ["rights", "mounts", "kernel", "others", "settings"].contains(&row["group"].as_str().expect("a group"))
        );
    }
    let bpffs = found.iter().find(|row| row["object"] == "bpffs").expect("the bpffs");
    assert!(bpffs["level"] == "problem" && bpffs["fix"].as_str().expect("a mend").contains("mount -t bpf"), "{bpffs}");
    place.run(&["check"]).expect(1, &["PROBLEM", "bpffs", "looked at"]);
    place.run(&["check", "-o", "yaml"]).expect(1, &["level: problem"]);
    place.run(&["check", "--config", "absent.yaml"]).expect_error(1, &["absent.yaml", "--config"]);
    assert!(!place.path("state").exists() && !place.path("bpf").exists(), "looking makes nothing");
}

#[test]
fn settings_that_stand_in_the_way_are_named() {
    if !is_root() {
        return skip("needs root");
    }
    let place = Place::new();
    let config = "apiVersion: ballast.dev/v1alpha1\nkind: BallastConfiguration\nsnatPorts: 1024-65535\n";
    place.file("config.yaml", config);
    let answer = place.run_isolated("state", &["check", "--config", "config.yaml"]);
    answer.expect(1, &["0 ports are left", "snatPorts", "none leads out of this node"]);
}

#[test]
fn without_root_it_says_what_it_could_not_look_at() {
    if !is_root() {
        return skip("needs root");
    }
    let Some(bpffs) = Bpffs::mount() else { return skip("a bpffs cannot be mounted") };
    // Neither the build folder nor the place is open to everyone.
    let program = bpffs.place.path("ballast");
    fs::copy(env!("CARGO_BIN_EXE_ballast"), &program).expect("copied");
    for (path, mode) in [("", 0o777), ("bpf", 0o755)] {
        fs::set_permissions(bpffs.place.path(path), fs::Permissions::from_mode(mode)).expect("opened");
    }
    let check = bpffs.place.command_of(&program, "state", &["check"]);
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(check.get_program()).args(check.get_args());
    nobody.current_dir(bpffs.place.path(""));
    let Ok(output) = nobody.output() else { return skip("setpriv is missing") };
    let answer = Answer::from(output);
    assert!(matches!(answer.code, Some(1 | 3)), "{answer:#?}");
    for part in ["tcx: could not look", "run `ballast check` as root", "CAP_BPF: missing", "bpf\n"] {
        assert!(answer.stdout.contains(part), "{part:?} is not in {answer:#?}");
    }
    // What was not looked at is no problem of the machine.
    assert!(!answer.stdout.contains("PROBLEM  tcx") && !answer.stdout.contains("PROBLEM  CAP_"), "{answer:#?}");
}
