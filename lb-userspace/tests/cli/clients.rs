//! `env`, `exec`, `resolv` and `completion`: what clients of Services need, without root and without an agent.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use crate::place::{Answer, Place, skip};

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: my-service}
spec: {clusterIP: 10.96.0.11, ports: [{name: redis, port: 6379}]}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.53, ports: [{name: dns, port: 53, protocol: UDP}]}
";

const KUBERNETES: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: kubernetes}
spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443}]}
";

const UNALLOCATED: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {ports: [{port: 80}]}
";

/// Everything after `--` is the command's, so options of every command come first.
fn exec(place: &Place, caller: &[(&str, &str)], command: &[&str]) -> Answer {
    let mut ballast = place.command(&[]);
    ballast.args(["exec", "default", "-f", "docs", "--allocations", "allocations.json", "--"]).args(command);
    ballast.envs(caller.iter().copied());
    ballast.output().expect("ballast runs").into()
}

fn env(place: &Place, arguments: &[&str]) -> Answer {
    place.run(&[&["env", "-f", "docs", "--allocations", "allocations.json"], arguments].concat())
}

#[test]
fn variables_are_printed_as_lines_and_as_one_flat_object() {
    let place = Place::new();
    place.file("docs/all.yaml", SERVICES);
    let lines = "\
MY_SERVICE_PORT=tcp://10.96.0.11:6379
MY_SERVICE_PORT_6379_TCP=tcp://10.96.0.11:6379
MY_SERVICE_PORT_6379_TCP_ADDR=10.96.0.11
MY_SERVICE_PORT_6379_TCP_PORT=6379
MY_SERVICE_PORT_6379_TCP_PROTO=tcp
MY_SERVICE_SERVICE_HOST=10.96.0.11
MY_SERVICE_SERVICE_PORT=6379
MY_SERVICE_SERVICE_PORT_REDIS=6379
";
    let answer = env(&place, &["default"]);
    answer.expect(0, &[]);
    assert_eq!((answer.stdout.as_str(), answer.stderr.as_str()), (lines, ""));
    let json: serde_json::Value = serde_json::from_str(&env(&place, &["default", "-o", "json"]).stdout).expect("JSON");
    let object: serde_json::Map<_, _> = lines
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    assert_eq!(json, serde_json::Value::Object(object));
}

#[test]
fn a_namespace_without_services_has_kubernetes_only_if_the_source_has_it() {
    let place = Place::new();
    place.file("docs/all.yaml", SERVICES);
    let answer = env(&place, &["empty"]);
    answer.expect(0, &[]);
    assert_eq!(answer.stdout, "");
    assert_eq!(env(&place, &["empty", "-o", "json"]).stdout.trim(), "{}");
    place.file("docs/kubernetes.yaml", KUBERNETES);
    env(&place, &["empty"]).expect(0, &["KUBERNETES_SERVICE_HOST=10.96.0.1\n", "KUBERNETES_SERVICE_PORT_HTTPS=443\n"]);
    let without_links = env(&place, &["default", "--no-service-links"]);
    without_links.expect(0, &["KUBERNETES_PORT=tcp://10.96.0.1:443\n"]);
    assert!(!without_links.stdout.contains("MY_SERVICE"), "{without_links:?}");
}

#[test]
fn a_service_without_an_address_is_told_in_one_line_and_has_one_when_it_is_allocated() {
    let place = Place::new();
    place.file("docs/all.yaml", &format!("{SERVICES}{UNALLOCATED}"));
    let answer = env(&place, &["default"]);
    answer.expect_error(0, &["Service default/late: no cluster IP yet"]);
    assert_eq!(answer.stderr.lines().count(), 1, "{answer:?}");
    assert!(!answer.stdout.contains("LATE"), "{answer:?}");
    assert!(!place.path("allocations.json").exists(), "reading allocates nothing");
    assert_eq!(env(&place, &["kube-system"]).stderr, "", "it is of another namespace");

    // Allocates, then ends for want of a bpffs.
    place.run(&["run", "-f", "docs", "--node", "n", "--allocations", "allocations.json"]).expect_error(1, &["bpffs"]);
    let answer = env(&place, &["default"]);
    answer.expect(0, &["LATE_SERVICE_HOST=10.96."]);
    assert_eq!(answer.stderr, "");
}

#[test]
fn a_command_gets_the_variables_and_the_callers_own_win() {
    let place = Place::new();
    place.file("docs/all.yaml", SERVICES);
    let caller = [("MY_SERVICE_SERVICE_PORT", "mine"), ("MY_SERVICE_PORT", ""), ("OTHER", "kept")];
    let script = "echo \"$MY_SERVICE_SERVICE_HOST,$MY_SERVICE_SERVICE_PORT,$MY_SERVICE_PORT,$OTHER,$1\"; exit 7";
    let answer = exec(&place, &caller, &["/bin/sh", "-c", script, "sh", "--state-dir"]);
    answer.expect(7, &[]);
    assert_eq!(answer.stdout, "10.96.0.11,mine,,kept,--state-dir\n");
    exec(&place, &[], &["/absent"]).expect_error(127, &["/absent: No such file"]);
    exec(&place, &[], &["/"]).expect_error(126, &["/: Permission denied"]);
}

#[test]
fn e10_variables_stand_in_the_command_as_in_a_pods() {
    let place = Place::new();
    place.file("docs/all.yaml", SERVICES);
    let caller = [("MY_SERVICE_SERVICE_PORT", "mine"), ("OTHER", "kept")];
    let words = ["$(MY_SERVICE_SERVICE_HOST):$(MY_SERVICE_SERVICE_PORT)", "$(OTHER) $(ABSENT) $$(OTHER) $OTHER"];
    let answer = exec(&place, &caller, &["printf", "%s\\n", words[0], words[1]]);
    answer.expect(0, &[]);
    assert_eq!(answer.stdout, "10.96.0.11:mine\nkept $(ABSENT) $(OTHER) $OTHER\n");
    let program = exec(&place, &[("PROGRAM", "printf")], &["$(PROGRAM)", "$(MY_SERVICE_PORT)"]);
    program.expect(0, &["tcp://10.96.0.11:6379"]);
}

#[test]
fn e9_variables_are_those_of_the_start() {
    let place = Place::new();
    place.file("docs/all.yaml", SERVICES);
    let script = "read -r go; echo \"$MY_SERVICE_SERVICE_HOST,$KUBERNETES_SERVICE_HOST\"";
    let mut ballast = place.command(&[]);
    ballast.args(["exec", "default", "-f", "docs", "--allocations", "allocations.json", "--", "sh", "-c"]);
    ballast.arg(format!("echo started; {script}; {script}"));
    ballast.env_remove("KUBERNETES_SERVICE_HOST").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = ballast.spawn().expect("ballast runs");
    let (mut input, output) = (running.stdin.take().expect("a pipe"), running.stdout.take().expect("a pipe"));
    let mut lines = BufReader::new(output).lines();
    let mut line = || lines.next().expect("a line").expect("text");
    assert_eq!(line(), "started");
    place.file("docs/kubernetes.yaml", KUBERNETES);
    writeln!(input).expect("written");
    assert_eq!(line(), "10.96.0.11,", "a Service that came later is absent");
    // Without my-service.
    place.file("docs/all.yaml", SERVICES.split_once("---\n").expect("two documents").1);
    writeln!(input).expect("written");
    assert_eq!(line(), "10.96.0.11,", "one that went is still there");
    assert!(running.wait().expect("its end").success());
    let again = exec(&place, &[], &["sh", "-c", "echo \"$MY_SERVICE_SERVICE_HOST,$KUBERNETES_SERVICE_HOST\""]);
    assert_eq!(again.stdout, ",10.96.0.1\n", "the next start has what is there then");
}

#[test]
fn wrong_input_names_its_mend() {
    let place = Place::new();
    for (arguments, part) in [
        (&["env", "default"][..], "--filename"),
        (&["env", "Default", "-f", "docs"], "write a namespace"),
        (&["exec", "default", "-f", "docs"], "COMMAND"),
        (&["resolv", "default", "--zone", "a..b"], "write a DNS name"),
        (&["resolv", "default", "--allocations", "a"], "--filename"),
        (&["resolv", "default", "-o", "json"], "leave it out"),
        (&["completion", "tcsh"], "bash, zsh, fish"),
    ] {
        place.run(arguments).expect_error(2, &[part]);
    }
    env(&place, &["default"]).expect_error(1, &["docs: No such file", "give a file or folder"]);
    place.run(&["resolv", "default", "-f", "docs"]).expect_error(1, &["docs: No such file"]);
}

#[test]
fn a_resolver_file_names_the_name_service_and_the_search_list() {
    let place = Place::new();
    place.file("docs/all.yaml", SERVICES);
    for (arguments, search, nameserver) in [
        (&[][..], "shop.svc.cluster.local svc.cluster.local cluster.local", "10.96.0.10"),
        (&["-f", "docs"], "shop.svc.cluster.local svc.cluster.local cluster.local", "10.96.0.53"),
        (&["--zone", "K8s.test.", "--nameserver", "fd00::a"], "shop.svc.k8s.test svc.k8s.test k8s.test", "fd00::a"),
    ] {
        let answer = place.run(&[&["resolv", "shop"], arguments].concat());
        answer.expect(0, &[]);
        assert_eq!(answer.stdout, format!("search {search}\nnameserver {nameserver}\noptions ndots:5\n"));
        assert_eq!(answer.stderr, "", "{arguments:?}");
    }
}

#[test]
fn a_name_service_that_is_only_supposed_is_told() {
    let place = Place::new();
    let text =
        "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
    let unallocated = UNALLOCATED.replace("{name: late}", "{name: kube-dns, namespace: kube-system}");
    for (documents, why) in [
        (KUBERNETES.to_owned(), "the documents have no Service kube-system/kube-dns"),
        (format!("{KUBERNETES}{unallocated}"), "Service kube-system/kube-dns has no cluster IP"),
    ] {
        place.file("docs/all.yaml", &documents);
        let answer = place.run(&["resolv", "shop", "-f", "docs", "--allocations", "allocations.json"]);
        answer.expect(0, &[]);
        assert_eq!(answer.stdout, text);
        assert_eq!(answer.stderr, format!("{why}: 10.96.0.10 is taken (give --nameserver IP for another one)\n"));
        let given = ["resolv", "shop", "-f", "docs", "--nameserver", "10.96.0.10"];
        assert_eq!((place.run(&given).stdout.as_str(), place.run(&given).stderr.as_str()), (text, ""));
    }
}

#[test]
fn a_shell_completes_commands_and_options() {
    let place = Place::new();
    place.run(&["completion", "zsh"]).expect(0, &["#compdef ballast", "--no-service-links"]);
    place.run(&["completion", "fish"]).expect(0, &["complete -c ballast", "conntrack"]);
    let script = place.run(&["completion", "bash"]);
    script.expect(0, &["_ballast()"]);
    place.file("ballast.bash", &script.stdout);
    let ask = "\
. ./ballast.bash
complete() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _ballast ballast \"${!#}\" \"\"; echo \"${COMPREPLY[*]}\"; }
complete ballast conn
complete ballast env --no-s
complete ballast service l
";
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", ask]).current_dir(place.path(""));
    let Ok(output) = bash.output() else { return skip("bash is missing") };
    let answer = Answer::from(output);
    answer.expect(0, &[]);
    assert_eq!(answer.stdout, "conntrack\n--no-service-links\nlist\n", "{answer:?}");
}
