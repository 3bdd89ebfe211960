//! Pods, Nodes, endpoint slices, Endpoints and ServiceCIDRs into model values.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16};

use ipnet::IpNet;

use super::{
    addresses::{ip, is_subdomain, net, port, protocol, usable_address},
    issue::Issue,
};
use crate::{
    k8s::{
        self, ANNOTATION_LEADER, ANNOTATION_TRIGGER, ENDPOINT_SLICE_CONTROLLER, LABEL_MANAGED_BY, LABEL_SERVICE_NAME,
        LABEL_SKIP_MIRROR, TAINT_TO_BE_DELETED,
    },
    model::{Endpoint, EndpointPort, EndpointSlice, IpFamily, Node, Pod},
};

fn name(meta: &k8s::ObjectMeta) -> Result<(), Issue> {
    if is_subdomain(&meta.name) {
        return Ok(());
    }
    Err(Issue::error(
        "metadata.name",
        format!("{:?} is no object name", meta.name),
        "use lower-case letters, digits, - and .",
    ))
}

pub(crate) fn node(raw: &k8s::Node) -> Result<Node, Issue> {
    name(&raw.metadata)?;
    let mut pod_cidrs = Vec::new();
    let single = raw.spec.pod_cidr.iter().filter(|_| raw.spec.pod_cidrs.is_empty());
    for (index, text) in raw.spec.pod_cidrs.iter().chain(single).enumerate() {
        pod_cidrs.push(net(text).ok_or_else(|| {
            Issue::error(
                format!("spec.podCIDRs[{index}]"),
                format!("{text:?} is no address range"),
                "write a range such as 10.244.1.0/24",
            )
        })?);
    }
    let internal = raw.status.addresses.iter().filter(|address| address.address_type == "InternalIP");
    let internal_ips = internal.filter_map(|address| ip(&address.address)).collect();
    let going = raw.metadata.deletion_timestamp.is_some()
        || raw.spec.taints.iter().any(|taint| taint.key == TAINT_TO_BE_DELETED);
    Ok(Node { pod_cidrs, internal_ips, going, labels: raw.metadata.labels.clone() })
}

pub(crate) fn service_cidr(raw: &k8s::ServiceCidr) -> Result<Vec<IpNet>, Issue> {
    name(&raw.metadata)?;
    let parse = |(index, text): (usize, &String)| {
        net(text).map(|net| net.trunc()).ok_or_else(|| {
            Issue::error(
                format!("spec.cidrs[{index}]"),
                format!("{text:?} is no address range"),
                "write a range such as 10.96.0.0/16",
            )
        })
    };
    raw.spec.cidrs.iter().enumerate().map(parse).collect()
}

pub(crate) fn pod(raw: &k8s::Pod) -> Result<(Pod, Vec<Issue>), Issue> {
    name(&raw.metadata)?;
    let mut issues = Vec::new();
    let mut ports = Vec::new();
    let sidecars = raw.spec.init_containers.iter().enumerate().map(|at| ("initContainers", at));
    let sidecars = sidecars.filter(|(_, (_, container))| container.restart_policy.as_deref() == Some("Always"));
    let containers = raw.spec.containers.iter().enumerate().map(|at| ("containers", at)).chain(sidecars);
    for (list, (index, container)) in containers {
        for (place, raw) in container.ports.iter().enumerate() {
            let at = |field: &str| format!("spec.{list}[{index}].ports[{place}].{field}");
            let number = port(&at("containerPort"), raw.container_port)?;
            ports.push((raw.name.clone(), protocol(&at("protocol"), raw.protocol.as_deref())?, number));
        }
    }
    let status = raw.status.clone().unwrap_or_default();
    if raw.status.is_none() {
        issues.push(Issue::warning(
            "status",
            "the Pod has no status and so no address: no Service sends traffic to it",
            "add status.podIPs, or take the document from kubectl get -o yaml",
        ));
    }
    let mut ips: Vec<IpAddr> = Vec::new();
    let single = status.pod_ip.iter().filter(|_| status.pod_ips.is_empty()).map(String::as_str);
    let texts = status.pod_ips.iter().map(|ip| ip.ip.as_str()).chain(single).filter(|text| !text.is_empty());
    for (index, text) in texts.enumerate() {
        match usable_address(&format!("status.podIPs[{index}].ip"), text) {
            Ok(address) if !ips.contains(&address) => ips.push(address),
            Ok(_) => {}
            Err(issue) => issues.push(issue),
        }
    }
    let phase = status.phase.as_deref();
    let ready = match &status.conditions {
        Some(conditions) => conditions.iter().any(|one| one.condition_type == "Ready" && one.status == "True"),
        None => matches!(phase, None | Some("Running")),
    };
    let pod = Pod {
        node: raw.spec.node_name.clone().filter(|name| !name.is_empty()),
        ips,
        host_network: raw.spec.host_network,
        ports,
        labels: raw.metadata.labels.clone(),
        ready,
        terminating: raw.metadata.deletion_timestamp.is_some(),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        hostname: raw.spec.hostname.clone().filter(|name| !name.is_empty()),
        subdomain: raw.spec.subdomain.clone().filter(|name| !name.is_empty()),
    };
    Ok((pod, issues))
}

/// `None` for a slice that is valid but not ours to use: FQDN, or of no Service.
pub(crate) fn slice(raw: &k8s::EndpointSlice) -> Result<(Option<EndpointSlice>, Vec<Issue>), Issue> {
    name(&raw.metadata)?;
    let mut issues = Vec::new();
    let family = match raw.address_type.as_deref() {
        Some("IPv4") => IpFamily::V4,
        Some("IPv6") => IpFamily::V6,
        Some("FQDN") => return Ok((None, issues)),
        other => {
            return Err(Issue::error(
                "addressType",
                format!("unknown address type {:?}", other.unwrap_or_default()),
                "write IPv4, IPv6 or FQDN",
            ));
        }
    };
    let Some(service) = raw.metadata.labels.get(LABEL_SERVICE_NAME).filter(|name| !name.is_empty()) else {
        issues.push(Issue::warning(
            "metadata.labels",
            "the slice belongs to no Service",
            format!("add the label {LABEL_SERVICE_NAME} with the Service's name"),
        ));
        return Ok((None, issues));
    };
    let mut ports = Vec::new();
    for (index, raw) in raw.ports.iter().enumerate() {
        // 2.1.4: without a number the port means "all ports", which no Service port can use.
        let Some(number) = raw.port.filter(|number| *number != 0) else { continue };
        ports.push(EndpointPort {
            name: raw.name.clone().unwrap_or_default(),
            protocol: protocol(&format!("ports[{index}].protocol"), raw.protocol.as_deref())?,
            port: port(&format!("ports[{index}].port"), Some(number))?,
        });
    }
    // There may be a hundred thousand: not one more than needed.
    let mut endpoints = Vec::with_capacity(raw.endpoints.len());
    for (index, raw) in raw.endpoints.iter().enumerate() {
        let field = format!("endpoints[{index}].addresses[0]");
        // 2.1.4: only the first address is used.
        let address = match usable_address(&field, raw.addresses.first().map(String::as_str).unwrap_or_default()) {
            Ok(address) if IpFamily::of(&address) == family => address,
            Ok(address) => {
                issues.push(Issue::error(
                    field,
                    format!("{address} is not an {family} address, as addressType says: endpoint refused"),
                    "move it to a slice of its family",
                ));
                continue;
            }
            Err(issue) => {
                issues.push(issue);
                continue;
            }
        };
        endpoints.push(Endpoint {
            address,
            ready: raw.conditions.ready.unwrap_or(true),
            serving: raw.conditions.serving.unwrap_or(true),
            terminating: raw.conditions.terminating.unwrap_or(false),
            node: raw.node_name.clone(),
            pod: pod_name(raw.target_ref.as_ref()),
            hostname: raw.hostname.clone(),
        });
    }
    let triggered = raw.metadata.annotations.get(ANNOTATION_TRIGGER).and_then(|text| micros(text));
    let of_controller = raw.metadata.labels.get(LABEL_MANAGED_BY).is_some_and(|who| who == ENDPOINT_SLICE_CONTROLLER);
    let slice = EndpointSlice { service: service.clone(), family, ports, endpoints, triggered, of_controller };
    Ok((Some(slice), issues))
}

/// RFC 3339 as microseconds since 1970. What is no time only tells nothing.
fn micros(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_microsecond)
}

fn pod_name(reference: Option<&k8s::AddressRef>) -> Option<String> {
    reference.filter(|reference| reference.kind == "Pod").map(|reference| reference.name.clone())
}

/// The slices the mirroring controller would make: one per subset and family.
pub(crate) fn mirrored(raw: &k8s::Endpoints) -> Result<(Vec<EndpointSlice>, Vec<Issue>), Issue> {
    name(&raw.metadata)?;
    let (mut slices, mut issues) = (Vec::new(), Vec::new());
    if raw.metadata.labels.get(LABEL_SKIP_MIRROR).is_some_and(|skip| skip == "true")
        || raw.metadata.annotations.contains_key(ANNOTATION_LEADER)
    {
        return Ok((slices, issues));
    }
    for (index, subset) in raw.subsets.iter().enumerate() {
        let mut ports = Vec::new();
        for (place, raw) in subset.ports.iter().enumerate() {
            let at = |field: &str| format!("subsets[{index}].ports[{place}].{field}");
            let number: NonZeroU16 = port(&at("port"), raw.port)?;
            let protocol = protocol(&at("protocol"), raw.protocol.as_deref())?;
            ports.push(EndpointPort { name: raw.name.clone(), protocol, port: number });
        }
        let mut by_family: BTreeMap<IpFamily, Vec<Endpoint>> = BTreeMap::new();
        let ready = subset.addresses.iter().enumerate().map(|at| ("addresses", true, at));
        let not_ready = subset.not_ready_addresses.iter().enumerate().map(|at| ("notReadyAddresses", false, at));
        for (list, ready, (place, raw)) in ready.chain(not_ready) {
            match usable_address(&format!("subsets[{index}].{list}[{place}].ip"), &raw.ip) {
                Ok(address) => by_family.entry(IpFamily::of(&address)).or_default().push(Endpoint {
                    address,
                    ready,
                    serving: ready,
                    terminating: false,
                    node: raw.node_name.clone(),
                    pod: pod_name(raw.target_ref.as_ref()),
                    hostname: raw.hostname.clone(),
                }),
                Err(issue) => issues.push(issue),
            }
        }
        slices.extend(by_family.into_iter().map(|(family, endpoints)| EndpointSlice {
            triggered: None,
            of_controller: false,
            service: raw.metadata.name.clone(),
            family,
            ports: ports.clone(),
            endpoints,
        }));
    }
    Ok((slices, issues))
}
