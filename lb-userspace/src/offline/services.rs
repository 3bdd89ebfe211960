//! Services as the tables hold them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::frontend::Scope;

use super::{Left, UNKNOWN};
use crate::{
    desired::FrontendKind,
    gc::Survey,
    image::{Programmed, ProgrammedFrontend},
    model::ObjectName,
    numbers,
    report::{EndpointRow, FrontendRow, PortRow, ServiceDetail, ServiceRow},
};

/// A service port with what names it.
struct Port<'a> {
    id: u32,
    /// Empty for an unnamed port; `None` if nothing names it.
    name: Option<&'a str>,
    programmed: &'a Programmed,
}

impl Left<'_> {
    pub(super) fn rows(&self) -> Vec<ServiceRow> {
        self.by_service().iter().map(|(name, ports)| row(name, ports)).collect()
    }

    pub(super) fn detail(&self, namespace: &str, name: &str) -> Option<ServiceDetail> {
        let name = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
        let ports = self.by_service().remove(&name)?;
        let surveys = numbers::surveys(&self.maps);
        let mut frontends = Vec::new();
        let mut endpoints = Vec::new();
        for port in &ports {
            self.add_port(port, &surveys, &mut frontends, &mut endpoints);
        }
        let families: BTreeSet<_> = ports.iter().map(|port| port.programmed.family).collect();
        let policy = |wanted: fn(FrontendKind) -> bool| {
            let all = ports.iter().flat_map(|port| &port.programmed.frontends);
            let found =
                all.filter(|frontend| frontend.kind.is_some_and(wanted)).map(|frontend| frontend.outside).next();
            match found {
                Some(Scope::Cluster) => "Cluster",
                Some(Scope::Local) => "Local",
                None => UNKNOWN,
            }
            .to_owned()
        };
        Some(ServiceDetail {
            row: row(&name, &ports),
            labels: None,
            annotations: None,
            ip_families: families.iter().map(ToString::to_string).collect(),
            external_traffic_policy: policy(|kind| kind != FrontendKind::ClusterIp),
            internal_traffic_policy: policy(|kind| kind == FrontendKind::ClusterIp),
            session_affinity: UNKNOWN.to_owned(),
            health_check_node_port: None,
            frontends,
            endpoints,
            problems: self.problems.clone(),
        })
    }

    fn add_port(
        &self,
        Port { id, name, programmed }: &Port<'_>,
        surveys: &[Survey],
        frontends: &mut Vec<FrontendRow>,
        endpoints: &mut Vec<EndpointRow>,
    ) {
        let backends = programmed.backends.iter().map(|(at, backend)| (*at, backend.id));
        let numbers = numbers::of_service(&self.maps, *id, programmed.family, backends, surveys);
        frontends.extend(programmed.frontends.iter().map(|frontend| FrontendRow {
            kind: frontend.kind.map_or_else(|| UNKNOWN.to_owned(), |kind| kind.to_string()),
            address: frontend.addr,
            port: frontend.port.get(),
            protocol: frontend.protocol,
            connections: numbers.connections,
            packets: numbers.packets,
            bytes: numbers.bytes,
        }));
        // All frontends of a service port have its protocol.
        let Some(protocol) = programmed.frontends.first().map(|frontend| frontend.protocol) else { return };
        endpoints.extend(programmed.backends.iter().map(|(at, backend)| EndpointRow {
            port_name: name.unwrap_or(UNKNOWN).to_owned(),
            protocol,
            address: at.addr,
            port: at.port.get(),
            node: None,
            pod: None,
            state: if backend.is_chosen { "in use" } else { "no new connections" }.to_owned(),
            local: backend.is_local.then_some(true),
            connections: numbers.backends.get(at).copied().unwrap_or(0),
        }));
    }

    /// A service port nobody names stands as a Service of its own.
    fn by_service(&self) -> BTreeMap<ObjectName, Vec<Port<'_>>> {
        let names = self.names();
        let mut found: BTreeMap<ObjectName, Vec<Port<'_>>> = BTreeMap::new();
        for (id, programmed) in &self.services {
            let key = names.get(id);
            let nameless = || ObjectName { namespace: UNKNOWN.to_owned(), name: format!("#{id}") };
            let name = key.map_or_else(nameless, |key| key.service.clone());
            let port = Port { id: *id, name: key.map(|key| &*key.port_name), programmed };
            found.entry(name).or_default().push(port);
        }
        found
    }
}

fn row(name: &ObjectName, ports: &[Port<'_>]) -> ServiceRow {
    let addresses = |kind: FrontendKind| -> BTreeSet<IpAddr> {
        let all = ports.iter().flat_map(|port| &port.programmed.frontends);
        all.filter(|frontend| frontend.kind == Some(kind)).map(|frontend| frontend.addr).collect()
    };
    let balancers = addresses(FrontendKind::LoadBalancer);
    let backends: BTreeSet<IpAddr> =
        ports.iter().flat_map(|port| port.programmed.backends.keys()).map(|at| at.addr).collect();
    ServiceRow {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        // A Service of type LoadBalancer may be without an address yet.
        service_type: if balancers.is_empty() { UNKNOWN.to_owned() } else { FrontendKind::LoadBalancer.to_string() },
        cluster_ips: addresses(FrontendKind::ClusterIp).iter().map(ToString::to_string).collect(),
        load_balancer_ips: balancers.into_iter().collect(),
        ports: port_rows(ports),
        backends: backends.len() as u64,
        selector: None,
    }
}

/// One row for each port: the families of a Service share it.
fn port_rows(ports: &[Port<'_>]) -> Vec<PortRow> {
    let mut rows: Vec<PortRow> = Vec::new();
    for Port { name, programmed, .. } in ports {
        let Some(port) = programmed.service_port() else { continue };
        let Some(protocol) = programmed.frontends.first().map(|frontend| frontend.protocol) else { continue };
        let node_port = |frontend: &&ProgrammedFrontend| frontend.kind == Some(FrontendKind::NodePort);
        let row = PortRow {
            name: name.unwrap_or(UNKNOWN).to_owned(),
            protocol,
            port: port.get(),
            node_port: programmed.frontends.iter().find(node_port).map(|frontend| frontend.port.get()),
        };
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows.sort_by(|one, other| (one.port, &one.name).cmp(&(other.port, &other.name)));
    rows
}
