//! Answers as text.

use std::collections::BTreeMap;

use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

use super::Output;
use crate::check::{Found, Level};
use crate::report::{
    BackendRow, FlowList, NextHopRow, Problem, ServiceDetail, ServicePortName, ServiceRow, Status, WatchStatus,
};

/// Renders a value in the form that was asked for.
pub(super) fn print<T: Serialize>(
    value: &T,
    output: Output,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<String> {
    Ok(match output {
        Output::Table | Output::Wide => table(value),
        Output::Json => serde_json::to_string_pretty(value)?,
        Output::Yaml => serde_saphyr::to_string(value)?,
    })
}

fn columns<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn list(items: impl IntoIterator<Item = String>) -> String {
    let items: Vec<_> = items.into_iter().collect();
    if items.is_empty() { "<none>".to_owned() } else { items.join(",") }
}

fn problems(text: &mut String, problems: &[Problem]) {
    for problem in problems {
        line(text, &format!("  {}: {}", problem.object, problem.cause));
        line(text, &format!("    {}", problem.fix));
    }
}

fn line(text: &mut String, content: &str) {
    text.push_str(content);
    text.push('\n');
}

/// As kubectl has it: a load balancer without an address waits for one.
fn external_ips(row: &ServiceRow) -> String {
    if row.load_balancer_ips.is_empty() && row.service_type == "LoadBalancer" {
        return "<pending>".to_owned();
    }
    list(row.load_balancer_ips.iter().map(ToString::to_string))
}

/// `ballast service list`.
pub(super) fn services(rows: &[ServiceRow], wide: bool) -> String {
    if rows.is_empty() {
        return "No Services.".to_owned();
    }
    let narrow = |row: &ServiceRow| {
        [
            row.namespace.clone(),
            row.name.clone(),
            row.service_type.clone(),
            list(row.cluster_ips.iter().cloned()),
            external_ips(row),
            list(row.ports.iter().map(|port| match port.node_port {
                Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol),
                None => format!("{}/{}", port.port, port.protocol),
            })),
            row.backends.to_string(),
        ]
    };
    let header = ["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "BACKENDS"];
    if !wide {
        return columns(header, rows.iter().map(narrow));
    }
    let [namespace, name, kind, cluster_ip, external_ip, ports, backends] = header;
    columns(
        [namespace, name, kind, cluster_ip, external_ip, ports, backends, "SELECTOR"],
        rows.iter().map(|row| {
            let [namespace, name, kind, cluster_ip, external_ip, ports, backends] = narrow(row);
            [namespace, name, kind, cluster_ip, external_ip, ports, backends, pairs(row.selector.as_ref())]
        }),
    )
}

/// Labels and the like; `None` where the tables do not tell them.
fn pairs(map: Option<&BTreeMap<String, String>>) -> String {
    map.map_or_else(|| "<unknown>".to_owned(), |map| list(map.iter().map(|(key, value)| format!("{key}={value}"))))
}

fn service(name: &ServicePortName) -> String {
    let ServicePortName { namespace, name, port_name } = name;
    if port_name.is_empty() { format!("{namespace}/{name}") } else { format!("{namespace}/{name}:{port_name}") }
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `ballast backend list`.
pub(super) fn backends(rows: &[BackendRow]) -> String {
    if rows.is_empty() {
        return "No backends.".to_owned();
    }
    columns(
        ["SERVICE", "ADDRESS", "SLOT", "GENERATION", "DEVICE", "SOURCE", "MTU", "NEXT HOP", "CONNECTIONS", "STATE"],
        rows.iter().map(|row| {
            [
                service(&row.service),
                std::net::SocketAddr::new(row.address, row.port).to_string(),
                row.slot.to_string(),
                row.generation.to_string(),
                or_dash(row.device.as_ref()),
                or_dash(row.source),
                or_dash(row.mtu),
                or_dash(row.next_hop.as_ref().map(next_hop)),
                row.connections.to_string(),
                row.state.clone(),
            ]
        }),
    )
}

fn next_hop(hop: &NextHopRow) -> String {
    match &hop.mac {
        Some(mac) => format!("{} ({mac}, {})", hop.address, hop.state),
        None => format!("{} ({})", hop.address, hop.state),
    }
}

/// `ballast conntrack list`.
pub(super) fn flows(list: &FlowList) -> String {
    let mut text = if list.flows.is_empty() && list.left_out == 0 {
        "No flows.\n".to_owned()
    } else {
        columns(
            ["PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "SOURCE", "PHASE", "AGE", "PACKETS", "BYTES", "SERVICE"],
            list.flows.iter().map(|row| {
                [
                    row.protocol.clone(),
                    row.client.to_string(),
                    row.frontend.to_string(),
                    row.backend.to_string(),
                    or_dash(row.source),
                    row.phase.clone(),
                    or_dash(row.age_seconds.map(|seconds| format!("{seconds}s"))),
                    row.packets.to_string(),
                    row.bytes.to_string(),
                    service(&row.service),
                ]
            }),
        )
    };
    if list.left_out > 0 {
        let more = format!("{} more left out: raise --limit, or narrow with --service or --client", list.left_out);
        line(&mut text, &more);
    }
    text
}

/// `ballast check`.
pub(super) fn found(all: &[Found]) -> String {
    let mut text = String::new();
    let mut group = "";
    for found in all {
        if found.group != group {
            group = &found.group;
            line(&mut text, group);
        }
        let level = match found.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        line(&mut text, &format!("  {level:<9}{}: {}", found.object, found.found));
        if let Some(fix) = &found.fix {
            line(&mut text, &format!("           {fix}"));
        }
    }
    let count = |level| all.iter().filter(|found| found.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    line(&mut text, &format!("{} looked at, {problems} problems, {warnings} warnings", all.len()));
    text
}

/// `ballast service describe`.
pub(super) fn detail(detail: &ServiceDetail) -> String {
    let row = &detail.row;
    let mut text = String::new();
    for (name, value) in [
        ("Name", row.name.clone()),
        ("Namespace", row.namespace.clone()),
        ("Labels", pairs(detail.labels.as_ref())),
        ("Annotations", pairs(detail.annotations.as_ref())),
        ("Selector", pairs(row.selector.as_ref())),
        ("Type", row.service_type.clone()),
        ("IP Families", list(detail.ip_families.iter().cloned())),
        ("IPs", list(row.cluster_ips.iter().cloned())),
        ("LoadBalancer IPs", external_ips(row)),
        ("External Traffic Policy", detail.external_traffic_policy.clone()),
        ("Internal Traffic Policy", detail.internal_traffic_policy.clone()),
        ("Session Affinity", detail.session_affinity.clone()),
    ] {
        line(&mut text, &format!("{:<25}{value}", format!("{name}:")));
    }
    if let Some(port) = detail.health_check_node_port {
        line(&mut text, &format!("{:<25}{port}", "HealthCheck NodePort:"));
    }
    line(&mut text, "\nFrontends:");
    text.push_str(&columns(
        ["  KIND", "ADDRESS", "PROTOCOL", "CONNECTIONS", "PACKETS", "BYTES"],
        detail.frontends.iter().map(|frontend| {
            [
                format!("  {}", frontend.kind),
                std::net::SocketAddr::new(frontend.address, frontend.port).to_string(),
                frontend.protocol.to_string(),
                frontend.connections.to_string(),
                or_dash(frontend.packets),
                or_dash(frontend.bytes),
            ]
        }),
    ));
    line(&mut text, "\nEndpoints:");
    text.push_str(&columns(
        ["  PORT", "ADDRESS", "STATE", "NODE", "POD", "LOCAL", "CONNECTIONS"],
        detail.endpoints.iter().map(|endpoint| {
            [
                format!("  {}", if endpoint.port_name.is_empty() { "<unnamed>" } else { &endpoint.port_name }),
                format!("{}/{}", std::net::SocketAddr::new(endpoint.address, endpoint.port), endpoint.protocol),
                endpoint.state.clone(),
                or_dash(endpoint.node.as_ref()),
                or_dash(endpoint.pod.as_ref()),
                match endpoint.local {
                    Some(true) => "yes",
                    Some(false) => "no",
                    None => "-",
                }
                .to_owned(),
                endpoint.connections.to_string(),
            ]
        }),
    ));
    if !detail.problems.is_empty() {
        line(&mut text, "\nProblems:");
        problems(&mut text, &detail.problems);
    }
    text
}

fn watches(watches: &[WatchStatus]) -> String {
    let ago = |seconds: Option<u64>| seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds} s ago"));
    let row = |watch: &WatchStatus| {
        let synced = if watch.synced { "synced" } else { "not synced" };
        let error = watch.last_error.as_ref().map(|error| format!("{}: {error}", ago(watch.last_error_seconds)));
        [
            watch.resource.clone(),
            synced.to_owned(),
            format!("{} s", watch.since_seconds),
            ago(watch.last_event_seconds),
            error.unwrap_or_else(|| "<none>".to_owned()),
        ]
    };
    columns(["WATCH", "STATE", "FOR", "LAST EVENT", "LAST ERROR"], watches.iter().map(row))
}

/// `ballast status`.
pub(super) fn status(status: &Status) -> String {
    let mut text = String::new();
    let hooks = &status.socket_hooks;
    let agent = status.agent_pid.map_or_else(|| "not running".to_owned(), |pid| format!("running, pid {pid}"));
    for (name, value) in [
        ("Version", status.version.clone()),
        ("Node", status.node.clone()),
        ("Agent", agent),
        ("Source", status.source.clone()),
        ("Local pods", status.detector.clone()),
        ("Socket hooks", format!("{}: {}", if hooks.attached { "attached" } else { "not attached" }, hooks.detail)),
        ("Services", status.services.to_string()),
        ("Frontends", status.frontends.to_string()),
        ("Backends", status.backends.to_string()),
        ("Flows", status.flows.to_string()),
        ("BPF memory", format!("{} KiB", status.bpf_memory_bytes / 1024)),
    ] {
        line(&mut text, &format!("{:<14}{value}", format!("{name}:")));
    }
    if let Some(verified) = &status.verified {
        let pass = verified
            .last_pass_seconds
            .map_or_else(|| "no whole pass yet".to_owned(), |seconds| format!("last whole pass {seconds} s ago"));
        let drift: u64 = verified.drift.values().sum();
        line(&mut text, &format!("Maps read back: {pass}; {drift} entries were not as programmed"));
    }
    if let Some(seconds) = status.takeover_seconds {
        line(
            &mut text,
            &format!("Takeover:     for {seconds} s more, TCP without state is left to kube-proxy's rules"),
        );
    }
    if let Some(seconds) = status.stale_seconds {
        line(
            &mut text,
            &format!("Stale:        what is served is of {seconds} s ago, until the API server tells more"),
        );
    }
    if !status.watches.is_empty() {
        text.push('\n');
        text.push_str(&watches(&status.watches));
    }
    text.push('\n');
    text.push_str(&columns(
        ["DEVICE", "ROLE", "HOOKS", "WHY"],
        status.devices.iter().map(|device| {
            let why = match &device.degraded {
                Some(degraded) => format!("{}; DEGRADED: {degraded}", device.why),
                None => device.why.clone(),
            };
            [device.name.clone(), device.role.clone(), device.hooks.clone(), why]
        }),
    ));
    text.push('\n');
    text.push_str(&columns(
        ["MAP", "USED", "CAPACITY"],
        status
            .maps
            .iter()
            .filter(|(_, map)| map.used > 0)
            .map(|(name, map)| [name.clone(), map.used.to_string(), map.capacity.to_string()]),
    ));
    text.push('\n');
    text.push_str(&columns(
        ["COUNTER", "PACKETS"],
        status.counters.iter().map(|(name, count)| [name.clone(), count.to_string()]),
    ));
    for (title, told) in [("Warnings", &status.warnings), ("Problems", &status.problems)] {
        if !told.is_empty() {
            line(&mut text, &format!("\n{title}:"));
            problems(&mut text, told);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_list_of_services_ends_with_their_selectors() {
        let mut row = ServiceRow {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            service_type: "ClusterIP".to_owned(),
            cluster_ips: vec!["10.96.0.7".to_owned()],
            load_balancer_ips: Vec::new(),
            ports: Vec::new(),
            backends: 2,
            selector: Some([("app", "web"), ("tier", "front")].map(|(key, value)| (key.into(), value.into())).into()),
        };
        let last = |row: &ServiceRow, wide| {
            let text = services(std::slice::from_ref(row), wide);
            text.lines().map(|line| line.split_whitespace().last().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(last(&row, true), ["SELECTOR", "app=web,tier=front"]);
        assert_eq!(last(&row, false), ["BACKENDS", "2"]);
        row.selector = Some(BTreeMap::new());
        assert_eq!(last(&row, true), ["SELECTOR", "<none>"]);
        row.selector = None;
        assert_eq!(last(&row, true), ["SELECTOR", "<unknown>"]);
    }
}
