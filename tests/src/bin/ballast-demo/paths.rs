//! The access paths of every Service: where each begins, and exactly what must come of it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_tests::{Node, Place};
use lb_userspace::model::Protocol;

use crate::{
    stage::Stage,
    targets::{Backend, Port, Target},
};

/// One access path.
pub(crate) struct Path<'a> {
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) from: &'a Place,
    pub(crate) protocol: Protocol,
    pub(crate) to: SocketAddr,
    pub(crate) expect: Expect,
}

/// What must come of a path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Every one of these backends answers sooner or later, nobody else does, and each sees this source.
    Answers(BTreeMap<String, IpAddr>),
    /// No endpoint anywhere: refused at once (semantics.md 2.3.1).
    Refused,
    /// None that policy Local allows: no answer (2.3.2, 2.3.3).
    Silent,
}

/// All paths, in the order of the table.
pub(crate) fn all(stage: &Stage) -> Vec<Path<'_>> {
    let mut paths = Vec::new();
    for target in &stage.targets {
        for port in &target.ports {
            inside(stage, target, port, &mut paths);
            outside(stage, target, port, &mut paths);
        }
    }
    paths
}

/// Pods and processes of nodes to the ClusterIPs.
fn inside<'a>(stage: &'a Stage, target: &Target, port: &Port, paths: &mut Vec<Path<'a>>) {
    for &vip in &target.cluster_ips {
        for (of_pod, node) in
            [true, false].into_iter().flat_map(|pod| stage.world.nodes().iter().map(move |n| (pod, n)))
        {
            let (from, name) = if of_pod {
                let Some(pod) = node.pods().first() else { continue };
                (pod.place(), format!("pod on {} to ClusterIP", node.name()))
            } else {
                (node.place(), format!("{} itself to ClusterIP", node.name()))
            };
            let source = |backend: &Backend| {
                if of_pod { pod_source(stage, node, from, port, backend) } else { node_source(stage, node, backend) }
            };
            let expect = expect(port, vip, target.internal_local.then_some(node), source);
            let to = SocketAddr::new(vip, port.number);
            paths.push(Path { service: target.name.clone(), name, from, protocol: port.protocol, to, expect });
        }
    }
}

/// The source a backend sees of a pod: its own address, but for what is masqueraded on the packet path.
fn pod_source(stage: &Stage, node: &Node, pod: &Place, port: &Port, backend: &Backend) -> IpAddr {
    let own = pod.ip_like(backend.address);
    let by_connect = port.protocol == Protocol::Tcp && stage.has_socket_hooks(node);
    let hairpin = own == backend.address;
    // The detector tells pods by the podCIDRs of the node's document, if it has any (2.4.1).
    let cidrs = stage.pod_cidrs(node);
    let outsider = !cidrs.is_empty() && !cidrs.iter().any(|cidr| cidr.contains(&own));
    if !by_connect && (hairpin || outsider) { node_source(stage, node, backend) } else { own }
}

/// The source a backend sees of what a node sends itself, or masquerades.
fn node_source(stage: &Stage, node: &Node, backend: &Backend) -> IpAddr {
    stage.world.source_towards(node, &backend.name, backend.address)
}

/// The client outside to nodePorts and LoadBalancer addresses.
fn outside<'a>(stage: &'a Stage, target: &Target, port: &Port, paths: &mut Vec<Path<'a>>) {
    let mut ways = Vec::new();
    for (&vip, node_port) in target.cluster_ips.iter().filter_map(|vip| port.exposed.map(|node_port| (vip, node_port)))
    {
        for node in stage.world.nodes() {
            let to = SocketAddr::new(node.ip_like(vip), node_port);
            ways.push((format!("outside to nodePort of {}", node.name()), node, to));
        }
    }
    for &address in &target.load_balancer_ips {
        // Where the router sends it.
        let to = SocketAddr::new(address, port.number);
        ways.push(("outside to LoadBalancer address".to_owned(), stage.world.node(0), to));
    }
    for (name, node, to) in ways {
        // Policy Cluster: the backend sees the node (2.4.2); Local: the client (2.4.3).
        let local = target.external_local.then_some(node);
        let expect = expect(port, to.ip(), local, |backend| match local {
            Some(_) => stage.client().ip_like(to.ip()),
            None => node_source(stage, node, backend),
        });
        let (service, from) = (target.name.clone(), stage.client());
        paths.push(Path { service, name, from, protocol: port.protocol, to, expect });
    }
}

/// `local`: policy Local, seen from this node.
fn expect(port: &Port, like: IpAddr, local: Option<&Node>, source: impl Fn(&Backend) -> IpAddr) -> Expect {
    let all: Vec<_> = port.backends.iter().filter(|backend| backend.address.is_ipv4() == like.is_ipv4()).collect();
    if all.is_empty() {
        return Expect::Refused;
    }
    let chosen: BTreeMap<_, _> = all
        .into_iter()
        .filter(|backend| local.is_none_or(|node| backend.node.as_deref() == Some(node.name())))
        .map(|backend| (backend.name.clone(), source(backend)))
        .collect();
    if chosen.is_empty() { Expect::Silent } else { Expect::Answers(chosen) }
}
