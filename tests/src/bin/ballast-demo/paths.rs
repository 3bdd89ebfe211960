//! The access paths of every Service, tried with real sockets.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use comfy_table::{Table, presets::NOTHING};
use lb_tests::{
    Place,
    client::{Call, Transport},
};
use lb_userspace::model::Protocol;

use crate::stage::{PATIENCE, Stage, Target};

/// Connections for a row.
const TRIES: u32 = 6;

/// One access path.
pub(crate) struct Row {
    service: String,
    path: String,
    to: SocketAddr,
    protocol: Protocol,
    /// Backends reached and sources they saw; or what went wrong.
    pub(crate) result: Result<(BTreeSet<String>, BTreeSet<IpAddr>), String>,
}

/// Where a path begins, and which sources a backend may see.
struct Path<'a> {
    name: String,
    from: &'a Place,
    to: SocketAddr,
    sources: Vec<IpAddr>,
}

/// Tries every path of every Service.
pub(crate) fn try_all(stage: &Stage) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for target in &stage.targets {
        for &(protocol, port, node_port) in &target.ports {
            let Some(transport) = (match protocol {
                Protocol::Tcp => Some(Transport::Tcp),
                Protocol::Udp => Some(Transport::Udp),
                Protocol::Sctp => None,
            }) else {
                continue;
            };
            for path in paths(stage, target, port, node_port) {
                let answers = Call::new(transport, path.to).count(TRIES).timeout(PATIENCE).run(path.from)?;
                let result = judge(target, &path, &answers);
                rows.push(Row { service: target.name.clone(), path: path.name, to: path.to, protocol, result });
            }
        }
    }
    Ok(rows)
}

fn paths<'a>(stage: &'a Stage, target: &Target, port: u16, node_port: Option<u16>) -> Vec<Path<'a>> {
    let mut paths = Vec::new();
    let nodes = stage.world.nodes();
    let node_ips = |like: IpAddr| nodes.iter().map(move |node| node.place().ip_like(like));
    for &vip in &target.cluster_ips {
        let to = SocketAddr::new(vip, port);
        for node in nodes {
            if let Some(pod) = node.pods().first() {
                // A pod that reaches itself is masqueraded on the packet path (semantics.md 2.4.4).
                let sources = vec![pod.place().ip_like(vip), node.place().ip_like(vip)];
                let name = format!("pod on {} to ClusterIP", node.place().name());
                paths.push(Path { name, from: pod.place(), to, sources });
            }
        }
        for node in nodes {
            let name = format!("{} itself to ClusterIP", node.place().name());
            paths.push(Path { name, from: node.place(), to, sources: vec![node.place().ip_like(vip)] });
        }
    }
    // Policy Cluster: the backend sees a node (semantics.md 2.4.2); Local: the client (2.4.3).
    let outside = |like: IpAddr| {
        if target.external_local { vec![stage.client().ip_like(like)] } else { node_ips(like).collect() }
    };
    if let Some(node_port) = node_port {
        for (&family, node) in target.cluster_ips.iter().flat_map(|vip| nodes.iter().map(move |node| (vip, node))) {
            let to = SocketAddr::new(node.place().ip_like(family), node_port);
            let name = format!("outside to nodePort of {}", node.place().name());
            paths.push(Path { name, from: stage.client(), to, sources: outside(family) });
        }
    }
    for &address in &target.load_balancer_ips {
        let to = SocketAddr::new(address, port);
        let name = "outside to LoadBalancer address".to_owned();
        paths.push(Path { name, from: stage.client(), to, sources: outside(address) });
    }
    paths
}

fn judge(
    target: &Target,
    path: &Path<'_>,
    answers: &[lb_tests::client::Answer],
) -> Result<(BTreeSet<String>, BTreeSet<IpAddr>), String> {
    let (mut backends, mut sources) = (BTreeSet::new(), BTreeSet::new());
    for answer in answers {
        let (backend, source) = answer.reached().map_err(|error| error.to_string())?;
        if !target.backends.iter().any(|known| known == backend) {
            return Err(format!("{backend} answered, which is no backend"));
        }
        if !path.sources.contains(&source) {
            return Err(format!("{backend} saw {source} as the client"));
        }
        backends.insert(backend.to_owned());
        sources.insert(source);
    }
    if backends.is_empty() { Err("nobody answered".to_owned()) } else { Ok((backends, sources)) }
}

/// The rows as people read them.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "SERVICE",
        "PATH",
        "PROTOCOL",
        "ADDRESS",
        "RESULT",
        "BACKENDS",
        "SOURCE SEEN",
    ]);
    for row in rows {
        let (result, backends, sources) = match &row.result {
            Ok((backends, sources)) => (
                "ok".to_owned(),
                backends.iter().cloned().collect::<Vec<_>>().join(","),
                sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            ),
            Err(error) => (format!("FAILED: {error}"), String::new(), String::new()),
        };
        let (protocol, to) = (row.protocol.to_string(), row.to.to_string());
        table.add_row([row.service.clone(), row.path.clone(), protocol, to, result, backends, sources]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
