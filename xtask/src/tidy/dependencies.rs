//! The dependency rule: which crate and which module may know what.

use serde_json::Value;

use super::{Finding, Source, code};

/// Crates that only one folder of lb-userspace may name.
const HOMES: &[(&str, &str)] = &[
    ("kube", "lb-userspace/src/k8s/"),
    ("aya", "lb-userspace/src/bpf/"),
    ("rtnetlink", "lb-userspace/src/net/"),
    ("netlink_packet_route", "lb-userspace/src/net/"),
    ("netlink_packet_core", "lb-userspace/src/net/"),
    ("netlink_sys", "lb-userspace/src/net/"),
];

/// Modules of lb-userspace that decide and do nothing else: no clock, no log, no I/O.
const PURE: &[&str] = &["model", "topology", "desired", "ids", "image", "plan"];

/// What a pure module may not name. A `Duration` is a length, not a clock.
const IMPURE: &[&str] = &["std::time", "std::fs", "tokio", "tracing", "async", "await"];
const ALLOWED_OF_IMPURE: &[&str] = &["std::time::Duration"];

/// The rule between crates, from what cargo knows.
pub(super) fn manifests(metadata: &Value) -> Vec<Finding> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let packages = list(metadata, "packages");
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut findings = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        for dependency in list(package, "dependencies") {
            let to = dependency["name"].as_str().unwrap_or_default();
            // A crate's dev-dependency on itself only switches its features on for its tests.
            if to == name {
                continue;
            }
            if let Some(why) = forbidden(name, to, &ours) {
                let place = format!("{name}/Cargo.toml");
                findings.push(Finding::error(&place, 1, format!("{name} may not depend on {to}: {why}")));
            }
        }
    }
    findings
}

fn forbidden(from: &str, to: &str, ours: &[&str]) -> Option<&'static str> {
    match (from, to) {
        (_, "lb-tests" | "xtask") => Some("nothing depends on the tests or on xtask"),
        ("lb-common", to) if ours.contains(&to) => Some("lb-common stands below every crate of ours"),
        ("lb-common", to) if to == "aya" || to.starts_with("aya-") => Some("lb-common knows no kernel"),
        ("lb-ebpf", "lb-userspace") | ("lb-userspace", "lb-ebpf") => Some("the maps are their only contract"),
        _ => None,
    }
}

/// The rule inside crates, from what a file names.
pub(super) fn imports(source: &Source) -> Vec<Finding> {
    let paths = code::paths(without_tests(&source.code));
    let refused = |path: &str| -> Option<String> {
        if source.path.starts_with("lb-ebpf/") && path.split("::").any(|part| part == "wire") {
            return Some("lb-ebpf never reads headers itself: lb_common::wire belongs to the pipeline".to_owned());
        }
        if !source.path.starts_with("lb-userspace/src/") {
            return None;
        }
        let outside =
            HOMES.iter().find(|(name, home)| !source.path.starts_with(home) && path.starts_with(&format!("{name}::")));
        if let Some((name, home)) = outside {
            return Some(format!("`{name}` may be named only under {home}"));
        }
        let impure = is_pure(&source.path)
            && IMPURE.iter().any(|root| path == *root || path.starts_with(&format!("{root}::")))
            && !ALLOWED_OF_IMPURE.contains(&path);
        impure.then(|| format!("`{path}` in a module that decides only: no clock, no log, no I/O, nothing async"))
    };
    paths
        .iter()
        .filter_map(|(line, path)| refused(path).map(|message| Finding::error(&source.path, *line, message)))
        .collect()
}

fn is_pure(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("lb-userspace/src/") else { return false };
    PURE.iter().any(|module| rest.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')))
}

/// The code before the file's test module: a test may read files and the clock.
fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]\nmod ").and_then(|end| code.get(..end)).unwrap_or(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        imports(&Source::new(path, text)).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn kube_aya_and_netlink_have_one_home() {
        assert_eq!(messages("lb-userspace/src/agent.rs", "use kube::Api;").len(), 1);
        assert_eq!(messages("lb-userspace/src/agent.rs", "use aya::{Ebpf, maps::MapData};").len(), 2);
        assert_eq!(messages("lb-userspace/src/gc.rs", "rtnetlink::new_connection()").len(), 1);
        assert!(messages("lb-userspace/src/bpf/maps.rs", "use aya::maps::MapData;").is_empty());
        assert!(messages("lb-userspace/src/k8s/watch.rs", "use kube::Api;").is_empty());
        assert!(messages("lb-userspace/src/file_source/mod.rs", "use k8s_openapi::api;").is_empty());
    }

    #[test]
    fn deciding_modules_have_no_clock_no_log_and_no_io() {
        for text in ["use std::{fs, net};", "use std::time::Instant;", "tracing::info!()", "async fn f() {}"] {
            assert_eq!(messages("lb-userspace/src/model/mod.rs", text).len(), 1, "{text}");
            assert!(messages("lb-userspace/src/agent.rs", text).is_empty(), "{text}");
        }
        assert!(messages("lb-userspace/src/plan.rs", "use std::{net, time::Duration};").is_empty());
        assert!(messages("lb-userspace/src/plan.rs", "#[cfg(test)]\nmod tests { use std::fs; }").is_empty());
        assert!(messages("lb-userspace/src/planning.rs", "use std::fs;").is_empty());
    }

    #[test]
    fn lb_ebpf_reads_no_headers() {
        assert_eq!(messages("lb-ebpf/src/main.rs", "use lb_common::{tuple, wire::ipv4};").len(), 1);
        assert!(messages("lb-ebpf/src/main.rs", "use lb_common::tuple; // wire").is_empty());
    }

    #[test]
    fn crates_stand_in_order() {
        let package = |name: &str, to: &str| serde_json::json!({"name": name, "dependencies": [{"name": to}]});
        let metadata = serde_json::json!({"packages": [
            package("lb-common", "aya"),
            package("lb-userspace", "xtask"),
            package("lb-tests", "lb-userspace"),
            package("lb-common", "lb-common"),
        ]});
        let places: Vec<String> = manifests(&metadata).into_iter().map(|finding| finding.place).collect();
        assert_eq!(places, ["lb-common/Cargo.toml", "lb-userspace/Cargo.toml"]);
    }
}
