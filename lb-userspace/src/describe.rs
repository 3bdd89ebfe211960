//! Services in the words of `ballast service list` and `service describe`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    desired::{BackendAddr, Desired, ServiceKey},
    model::{EndpointSlice, IpFamily, Model, ObjectName, Service, ServiceType, TrafficPolicy},
    report::{EndpointRow, FrontendRow, PortRow, Problem, ServiceDetail, ServiceRow},
    topology::{self, EndpointState},
};

/// What the kernel side counted for a service port of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceNumbers {
    /// New connections.
    pub connections: u64,
    /// Packets of packet-path flows; `None` where only socket-path connections were seen.
    pub packets: Option<u64>,
    /// Bytes of packet-path flows.
    pub bytes: Option<u64>,
    /// New connections by backend.
    pub backends: BTreeMap<BackendAddr, u64>,
}

/// The rows of `service list`, in the order of namespace and name.
pub fn service_rows(model: &Model, desired: &Desired) -> Vec<ServiceRow> {
    let slices = slices_by_service(model);
    model
        .services
        .iter()
        .map(|(name, service)| {
            let of_service = slices.get(&(&*name.namespace, &*name.name)).map_or(&[][..], Vec::as_slice);
            row(name, service, of_service, desired)
        })
        .collect()
}

/// A Service in full; `None` when there is no such Service. `node` is our node's name, `numbers` tells what the kernel
/// side counted.
pub fn service_detail(
    model: &Model,
    desired: &Desired,
    name: &ObjectName,
    node: &str,
    numbers: &dyn Fn(&ServiceKey) -> ServiceNumbers,
) -> Option<ServiceDetail> {
    let service = model.services.get(name)?;
    let slices = slices_by_service(model);
    let slices = slices.get(&(&*name.namespace, &*name.name)).map_or(&[][..], Vec::as_slice);
    let mut frontends = Vec::new();
    for (key, port) in desired.services.iter().filter(|(key, _)| key.service == *name) {
        let numbers = numbers(key);
        frontends.extend(port.frontends.iter().map(|frontend| FrontendRow {
            kind: frontend.kind.to_string(),
            address: frontend.addr,
            port: frontend.port.get(),
            protocol: key.protocol,
            connections: numbers.connections,
            packets: numbers.packets,
            bytes: numbers.bytes,
        }));
    }
    let object = format!("Service {name}");
    let refused = service.balancer.as_ref().and_then(|balancer| balancer.condition.as_ref());
    let refused = refused.filter(|condition| !condition.is_true).map(|condition| Problem {
        object: object.clone(),
        cause: condition.message.clone(),
        fix: "see the controller's Events".to_owned(),
    });
    let affinity = service.affinity_seconds.map(|seconds| format!("ClientIP, {seconds} s"));
    Some(ServiceDetail {
        row: row(name, service, slices, desired),
        labels: Some(service.labels.clone()),
        annotations: Some(service.annotations.clone()),
        ip_families: service.ip_families.iter().map(ToString::to_string).collect(),
        external_traffic_policy: policy(service.external_policy).to_owned(),
        internal_traffic_policy: policy(service.internal_policy).to_owned(),
        session_affinity: affinity.unwrap_or_else(|| "None".to_owned()),
        health_check_node_port: service.health_check_port().map(Into::into),
        frontends,
        endpoints: endpoints(name, service, slices, node, numbers),
        problems: desired.problems.iter().filter(|problem| problem.object == object).cloned().chain(refused).collect(),
    })
}

type Slices<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>;

fn slices_by_service(model: &Model) -> Slices<'_> {
    let mut slices = Slices::new();
    for (name, slice) in &model.slices {
        slices.entry((&name.namespace, &slice.service)).or_default().push(slice);
    }
    slices
}

fn row(name: &ObjectName, service: &Service, slices: &[&EndpointSlice], desired: &Desired) -> ServiceRow {
    let cluster_ips = match service.service_type {
        ServiceType::ExternalName => Vec::new(),
        _ if service.headless => vec!["None".to_owned()],
        _ => service.cluster_ips.iter().map(ToString::to_string).collect(),
    };
    ServiceRow {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        service_type: service.service_type.to_string(),
        cluster_ips,
        load_balancer_ips: service.load_balancer_ips.clone(),
        ports: service
            .ports
            .iter()
            .map(|port| PortRow {
                name: port.name.clone(),
                protocol: port.protocol,
                port: port.port.get(),
                node_port: port.node_port.map(Into::into),
            })
            .collect(),
        backends: usable_addresses(name, service, slices, desired).len() as u64,
        selector: Some(service.selector.clone()),
    }
}

/// Addresses that can serve: those in the maps, or, where a Service has no datapath, those its slices name.
fn usable_addresses(
    name: &ObjectName,
    service: &Service,
    slices: &[&EndpointSlice],
    desired: &Desired,
) -> BTreeSet<IpAddr> {
    if !service.headless {
        let ports = desired.services.iter().filter(|(key, _)| key.service == *name);
        return ports.flat_map(|(_, port)| &port.backends).map(|backend| backend.addr).collect();
    }
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let usable = endpoints.filter(|endpoint| EndpointState::of(endpoint) > EndpointState::NotReady);
    usable.map(|endpoint| endpoint.address).collect()
}

/// Every endpoint of every port, the ones that are not ready too.
fn endpoints(
    name: &ObjectName,
    service: &Service,
    slices: &[&EndpointSlice],
    node: &str,
    numbers: &dyn Fn(&ServiceKey) -> ServiceNumbers,
) -> Vec<EndpointRow> {
    let mut rows = Vec::new();
    for port in &service.ports {
        for family in [IpFamily::V4, IpFamily::V6] {
            let union = topology::port_endpoints(slices, &port.name, port.protocol, family, node);
            if union.is_empty() {
                continue;
            }
            let numbers = numbers(&ServiceKey {
                service: name.clone(),
                port_name: port.name.clone(),
                protocol: port.protocol,
                family,
            });
            rows.extend(union.into_iter().map(|(backend, endpoint)| EndpointRow {
                port_name: port.name.clone(),
                protocol: port.protocol,
                address: backend.addr,
                port: backend.port.get(),
                node: endpoint.node,
                pod: endpoint.pod,
                state: endpoint.state.words().to_owned(),
                local: Some(endpoint.local),
                connections: numbers.backends.get(&backend).copied().unwrap_or(0),
            }));
        }
    }
    rows
}

const fn policy(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{desired, fixture};

    #[test]
    fn a_row_tells_what_kubectl_would() {
        let (model, node) = fixture::web();
        let rows = service_rows(&model, &desired(&model, &node));
        let json = serde_json::to_value(&rows).expect("serialises");
        let expected = serde_json::json!([{
            "namespace": "default", "name": "web", "type": "LoadBalancer", "clusterIPs": ["10.96.0.10"],
            "loadBalancerIPs": ["203.0.113.7"],
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080 }],
            "selector": { "app": "web" }, "backends": 2
        }]);
        assert_eq!(json, expected);
    }

    #[test]
    fn the_detail_lists_every_endpoint_with_its_state_and_numbers() {
        let (model, node) = fixture::web();
        let desired = desired(&model, &node);
        let name = ObjectName { namespace: "default".into(), name: "web".into() };
        let numbers = |key: &ServiceKey| ServiceNumbers {
            connections: 5,
            packets: Some(50),
            bytes: None,
            backends: desired.services[key].backends.iter().map(|backend| (*backend, 3)).collect(),
        };
        let detail = service_detail(&model, &desired, &name, "node1", &numbers).expect("exists");
        let states: Vec<_> = detail.endpoints.iter().map(|row| (&*row.state, row.local, row.connections)).collect();
        assert_eq!(states, [("ready", Some(true), 3), ("ready", Some(false), 3), ("not ready", Some(false), 0)]);
        let kinds: Vec<_> = detail.frontends.iter().map(|row| (&*row.kind, row.port, row.connections)).collect();
        assert_eq!(kinds, [("ClusterIP", 80, 5), ("NodePort", 30080, 5), ("LoadBalancer", 80, 5)]);
        assert_eq!((&*detail.external_traffic_policy, &*detail.session_affinity), ("Local", "None"));
        let absent = ObjectName { namespace: "default".into(), name: "absent".into() };
        assert_eq!(service_detail(&model, &desired, &absent, "node1", &|_| ServiceNumbers::default()), None);
    }
}
