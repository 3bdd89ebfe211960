//! A Service object into a Service: checked and defaulted as the API server does it, addresses not yet allocated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
};

use ipnet::IpNet;

use super::{
    Origin,
    addresses::{is_label, is_port_name, is_subdomain, net, port, protocol, usable_address},
    families,
    issue::Issue,
};
use crate::{
    k8s::{self, CONDITION_ADDRESSES, IntOrString, LABEL_PROXY_NAME},
    model::{
        Balancer, BalancerCondition, IpFamily, Protocol, Service, ServicePort, ServiceType, TargetPort, TrafficPolicy,
    },
};

/// A Service whose written addresses are in place and whose missing ones are still to be allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    /// `cluster_ips` holds the written ones only.
    pub(crate) service: Service,
    /// False for a load balancer with allocateLoadBalancerNodePorts: false.
    pub(crate) allocate_node_ports: bool,
}

impl Draft {
    pub(crate) fn needs_cluster_ips(&self) -> bool {
        !self.service.headless && self.service.service_type != ServiceType::ExternalName
    }

    pub(crate) fn needs_node_ports(&self) -> bool {
        match self.service.service_type {
            ServiceType::NodePort => true,
            ServiceType::LoadBalancer => self.allocate_node_ports,
            ServiceType::ClusterIp | ServiceType::ExternalName => false,
        }
    }
}

/// Checks a Service; the issues of a refused one hold at least one error, those of an accepted one only warnings and
/// single entries that were left out.
pub(crate) fn service(raw: &k8s::Service, origin: Origin<'_>) -> Result<(Draft, Vec<Issue>), Issue> {
    let spec = &raw.spec;
    let mut issues = Vec::new();
    if !is_label(&raw.metadata.name) {
        return Err(Issue::error(
            "metadata.name",
            format!("{:?} is no Service name", raw.metadata.name),
            "use at most 63 lower-case letters, digits and -, with no - at either end",
        ));
    }
    let service_type = match spec.service_type.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            return Err(Issue::error(
                "spec.type",
                format!("unknown type {other:?}"),
                "write ClusterIP, NodePort, LoadBalancer or ExternalName",
            ));
        }
    };
    let exposed = matches!(service_type, ServiceType::NodePort | ServiceType::LoadBalancer);
    let headless =
        spec.cluster_ip.as_deref() == Some("None") || spec.cluster_ips.first().is_some_and(|first| first == "None");
    if headless && exposed {
        return Err(Issue::error(
            "spec.clusterIP",
            format!("None cannot be used with type {service_type}"),
            "leave clusterIP out, or use type ClusterIP",
        ));
    }
    let external_name = external_name(spec, service_type)?;
    let ports = ports(spec, service_type)?;
    if ports.is_empty() && !headless && service_type != ServiceType::ExternalName {
        return Err(Issue::error("spec.ports", "a Service needs a port", "add a port, or write clusterIP: None"));
    }
    let families = families::resolve(spec, service_type, headless, origin)?;
    let external_ips = addresses("spec.externalIPs", &spec.external_ips)?;
    let externally = exposed || !external_ips.is_empty();
    let external_policy = policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?;
    if spec.external_traffic_policy.is_some() && !externally {
        return Err(Issue::error(
            "spec.externalTrafficPolicy",
            "only Services reachable from outside have an external policy",
            "leave it out, or use type NodePort or LoadBalancer",
        ));
    }
    let source_ranges = source_ranges(spec, service_type)?;
    let load_balancer_ips = if service_type == ServiceType::LoadBalancer {
        ingress(raw, &families.families, &mut issues)
    } else {
        Vec::new()
    };
    let service = Service {
        service_type,
        headless,
        cluster_ips: families.cluster_ips,
        ip_families: families.families,
        ports,
        selector: if service_type == ServiceType::ExternalName { BTreeMap::new() } else { spec.selector.clone() },
        external_policy,
        internal_policy: policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref())?,
        load_balancer_ips,
        external_ips,
        source_ranges,
        affinity_seconds: affinity(spec)?,
        external_name,
        publish_not_ready: spec.publish_not_ready_addresses,
        health_check_node_port: None,
        labels: raw.metadata.labels.clone(),
        annotations: raw.metadata.annotations.clone(),
        foreign_proxy: raw.metadata.labels.contains_key(LABEL_PROXY_NAME),
        balancer: balancer(raw),
    };
    let service = Service { health_check_node_port: health_check_node_port(spec, &service)?, ..service };
    let draft = Draft { service, allocate_node_ports: spec.allocate_load_balancer_node_ports.unwrap_or(true) };
    Ok((draft, issues))
}

fn health_check_node_port(spec: &k8s::ServiceSpec, service: &Service) -> Result<Option<NonZeroU16>, Issue> {
    const FIELD: &str = "spec.healthCheckNodePort";
    let Some(written) = spec.health_check_node_port.filter(|number| *number != 0) else { return Ok(None) };
    if !service.is_probed() {
        return Err(Issue::error(
            FIELD,
            "only type LoadBalancer with externalTrafficPolicy: Local is probed on each node",
            "remove it, or write both",
        ));
    }
    let number = port(FIELD, Some(written))?;
    let twin = service.ports.iter().find(|port| (port.protocol, port.node_port) == (Protocol::Tcp, Some(number)));
    match twin {
        Some(port) => Err(Issue::error(
            FIELD,
            format!("{number} is the nodePort of port {} too", port.port),
            "write another number, or leave it out",
        )),
        None => Ok(Some(number)),
    }
}

fn external_name(spec: &k8s::ServiceSpec, service_type: ServiceType) -> Result<Option<String>, Issue> {
    if service_type != ServiceType::ExternalName {
        return Ok(None);
    }
    let name = spec.external_name.as_deref().unwrap_or_default();
    if !is_subdomain(name.trim_end_matches('.').to_ascii_lowercase().as_str()) {
        return Err(Issue::error(
            "spec.externalName",
            format!("type ExternalName needs a DNS name, found {name:?}"),
            "write the name that the Service is an alias of",
        ));
    }
    Ok(Some(name.to_owned()))
}

fn ports(spec: &k8s::ServiceSpec, service_type: ServiceType) -> Result<Vec<ServicePort>, Issue> {
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::with_capacity(spec.ports.len());
    for (index, raw) in spec.ports.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        let number = port(&at("port"), raw.port)?;
        let protocol = protocol(&at("protocol"), raw.protocol.as_deref())?;
        if raw.name.is_empty() && spec.ports.len() > 1 {
            return Err(Issue::error(at("name"), "a name is needed when there are several ports", "name every port"));
        }
        if !raw.name.is_empty() && !is_label(&raw.name) {
            return Err(Issue::error(
                at("name"),
                format!("{:?} is no port name", raw.name),
                "use at most 63 lower-case letters, digits and -",
            ));
        }
        if !names.insert(&raw.name) {
            return Err(Issue::error(at("name"), format!("the name {:?} is used twice", raw.name), "rename one port"));
        }
        if !numbers.insert((protocol, number)) {
            return Err(Issue::error(at("port"), format!("port {number}/{protocol} is there twice"), "remove one"));
        }
        let written = raw.target_port.as_ref().filter(|target| **target != IntOrString::String(String::new()));
        let target = match written {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::Int(target)) => TargetPort::Number(port(&at("targetPort"), Some(*target))?),
            Some(IntOrString::String(name)) if is_port_name(name) => TargetPort::Name(name.clone()),
            Some(IntOrString::String(name)) => {
                return Err(Issue::error(
                    at("targetPort"),
                    format!("{name:?} is neither a number nor a port name"),
                    "write a number without quotes, or the name of a container port (at most 15 characters)",
                ));
            }
        };
        let node_port = match raw.node_port {
            None | Some(0) => None,
            Some(_) if !matches!(service_type, ServiceType::NodePort | ServiceType::LoadBalancer) => {
                return Err(Issue::error(
                    at("nodePort"),
                    format!("type {service_type} has no nodePort"),
                    "remove nodePort, or use type NodePort or LoadBalancer",
                ));
            }
            Some(written) => Some(port(&at("nodePort"), Some(written))?),
        };
        if let Some(node_port) = node_port
            && !node_ports.insert((protocol, node_port))
        {
            return Err(Issue::error(
                at("nodePort"),
                format!("nodePort {node_port}/{protocol} is there twice"),
                "use another number",
            ));
        }
        ports.push(ServicePort { name: raw.name.clone(), protocol, port: number, target, node_port });
    }
    Ok(ports)
}

fn policy(field: &str, text: Option<&str>) -> Result<TrafficPolicy, Issue> {
    match text {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(Issue::error(field, format!("unknown policy {other:?}"), "write Cluster or Local")),
    }
}

fn affinity(spec: &k8s::ServiceSpec) -> Result<Option<u32>, Issue> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Ok(None),
        Some("ClientIP") => {
            let written = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let seconds = written.and_then(|config| config.timeout_seconds).unwrap_or(10_800);
            u32::try_from(seconds).ok().filter(|seconds| (1..=86_400).contains(seconds)).map(Some).ok_or_else(|| {
                Issue::error(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    format!("{seconds} is out of range"),
                    "write a number from 1 to 86400",
                )
            })
        }
        Some(other) => {
            Err(Issue::error("spec.sessionAffinity", format!("unknown affinity {other:?}"), "write None or ClientIP"))
        }
    }
}

fn addresses(field: &str, written: &[String]) -> Result<Vec<IpAddr>, Issue> {
    written.iter().enumerate().map(|(index, text)| usable_address(&format!("{field}[{index}]"), text)).collect()
}

/// Blanks around a range are legal (semantics.md 2.1.3).
fn source_ranges(spec: &k8s::ServiceSpec, service_type: ServiceType) -> Result<Vec<IpNet>, Issue> {
    if service_type != ServiceType::LoadBalancer && !spec.load_balancer_source_ranges.is_empty() {
        return Err(Issue::error(
            "spec.loadBalancerSourceRanges",
            format!("type {service_type} has no source ranges"),
            "remove them, or use type LoadBalancer",
        ));
    }
    let parse = |(index, text): (usize, &String)| {
        net(text.trim()).map(|net| net.trunc()).ok_or_else(|| {
            Issue::error(
                format!("spec.loadBalancerSourceRanges[{index}]"),
                format!("{text:?} is no address range"),
                "write a range such as 192.0.2.0/24",
            )
        })
    };
    spec.load_balancer_source_ranges.iter().enumerate().map(parse).collect()
}

/// Nothing for the Services that say nothing, which are most.
fn balancer(raw: &k8s::Service) -> Option<Box<Balancer>> {
    let written = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let conditions = &raw.status.conditions;
    let condition = conditions.iter().find(|condition| condition.condition_type == CONDITION_ADDRESSES);
    let is_other = |entry: &k8s::LoadBalancerIngress| {
        entry.ip.as_deref().unwrap_or_default().is_empty() || entry.ip_mode.as_deref() == Some("Proxy")
    };
    let found = Balancer {
        class: written(&raw.spec.load_balancer_class),
        ip: written(&raw.spec.load_balancer_ip),
        both_families: raw.spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
        other_ingress: raw.status.load_balancer.ingress.iter().any(is_other),
        condition: condition.map(|condition| BalancerCondition {
            is_true: condition.status == "True",
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        }),
    };
    (found != Balancer::default()).then(|| Box::new(found))
}

/// Ingress entries without ip or with ipMode Proxy are left alone (semantics.md 2.1.3); a bad one loses only itself.
fn ingress(raw: &k8s::Service, families: &[IpFamily], issues: &mut Vec<Issue>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (index, entry) in raw.status.load_balancer.ingress.iter().enumerate() {
        let Some(text) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        if entry.ip_mode.as_deref() == Some("Proxy") {
            continue;
        }
        let field = format!("status.loadBalancer.ingress[{index}].ip");
        match usable_address(&field, text) {
            Ok(address) if !families.contains(&IpFamily::of(&address)) => issues.push(Issue::warning(
                field,
                format!("{address} is of no family of this Service: not used"),
                "add the family to spec.ipFamilies",
            )),
            Ok(address) if found.contains(&address) => {}
            Ok(address) => found.push(address),
            Err(issue) => issues.push(issue),
        }
    }
    found
}
