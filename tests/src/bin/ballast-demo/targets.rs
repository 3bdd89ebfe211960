//! Services as the table needs them: who is behind each port, by what the documents say and not by what the agent does.

use std::net::IpAddr;

use lb_userspace::model::{EndpointSlice, Model, ObjectName, Protocol, Service, ServicePort, TrafficPolicy};

use crate::cast::{Cast, short};

/// A Service.
pub(crate) struct Target {
    pub(crate) object: ObjectName,
    pub(crate) name: String,
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) load_balancer_ips: Vec<IpAddr>,
    pub(crate) external_local: bool,
    pub(crate) internal_local: bool,
    pub(crate) ports: Vec<Port>,
    /// What of it cannot be tried here, and why.
    pub(crate) left_out: Vec<String>,
}

/// A port of a Service.
pub(crate) struct Port {
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
    /// It is the first one of the Service: that of its variables.
    pub(crate) is_first: bool,
    /// Its nodePort.
    pub(crate) exposed: Option<u16>,
    pub(crate) backends: Vec<Backend>,
}

/// A Pod behind a port.
pub(crate) struct Backend {
    pub(crate) address: IpAddr,
    /// Its name in the world.
    pub(crate) name: String,
    /// The name of its node.
    pub(crate) node: Option<String>,
}

/// All Services with an address.
pub(crate) fn targets(model: &Model, cast: &Cast) -> Vec<Target> {
    let with_address = model.services.iter().filter(|(_, service)| !service.cluster_ips.is_empty());
    with_address.map(|(object, service)| target(model, cast, object, service)).collect()
}

fn target(model: &Model, cast: &Cast, object: &ObjectName, service: &Service) -> Target {
    let mut target = Target {
        object: object.clone(),
        name: short(object),
        cluster_ips: service.cluster_ips.clone(),
        load_balancer_ips: service.load_balancer_ips.clone(),
        external_local: service.external_policy == TrafficPolicy::Local,
        internal_local: service.internal_policy == TrafficPolicy::Local,
        ports: Vec::new(),
        left_out: Vec::new(),
    };
    if service.foreign_proxy {
        target.left_out.push("another proxy's (label service.kubernetes.io/service-proxy-name)".to_owned());
        return target;
    }
    if !service.source_ranges.is_empty() && !target.load_balancer_ips.is_empty() {
        target
            .left_out
            .push("LoadBalancer address: not tried, loadBalancerSourceRanges may leave out who tries".to_owned());
        target.load_balancer_ips.clear();
    }
    let slices: Vec<&EndpointSlice> = model
        .slices
        .iter()
        .filter(|(name, slice)| name.namespace == object.namespace && slice.service == object.name)
        .map(|(_, slice)| slice)
        .collect();
    for (index, port) in service.ports.iter().enumerate() {
        if port.protocol == Protocol::Sctp {
            target.left_out.push(format!("port {}/SCTP: served, but there is no echo server for it", port.port));
            continue;
        }
        match backends(cast, &slices, port) {
            Ok(backends) => target.ports.push(Port {
                protocol: port.protocol,
                number: port.port.get(),
                is_first: index == 0,
                exposed: port.node_port.map(std::num::NonZero::get),
                backends,
            }),
            Err(address) => target.left_out.push(format!(
                "port {}/{}: its endpoint {address} is no Pod that was placed",
                port.port, port.protocol
            )),
        }
    }
    target
}

/// The usable endpoints of a port (semantics.md 2.2.3); the error is one that nobody plays.
fn backends(cast: &Cast, slices: &[&EndpointSlice], port: &ServicePort) -> Result<Vec<Backend>, IpAddr> {
    let fits =
        |slice: &&&EndpointSlice| slice.ports.iter().any(|of| of.name == port.name && of.protocol == port.protocol);
    let all: Vec<_> = slices.iter().filter(fits).flat_map(|slice| &slice.endpoints).collect();
    let mut usable: Vec<_> = all.iter().filter(|endpoint| endpoint.ready).collect();
    if usable.is_empty() {
        usable = all.iter().filter(|endpoint| endpoint.serving && endpoint.terminating).collect();
    }
    let backend = |address: IpAddr, node: &Option<String>| {
        let name = cast.at(address).ok_or(address)?.to_owned();
        Ok(Backend { address, name, node: node.clone() })
    };
    usable.into_iter().map(|endpoint| backend(endpoint.address, &endpoint.node)).collect()
}
