//! Endpoint slices made from Pods and Endpoints, as the control plane's controllers make them.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    Endpoint, EndpointPort, EndpointSlice, IpFamily, Model, ObjectName, Pod, Service, ServiceType, TargetPort,
};

type NamedPod<'a> = (&'a str, &'a Pod);

/// Adds the missing slices. `written` are the Services with slices of their own in the documents.
pub(super) fn add_slices(
    model: &mut Model,
    written: &BTreeSet<ObjectName>,
    endpoints: &BTreeMap<ObjectName, Vec<EndpointSlice>>,
) {
    let mut by_label: BTreeMap<(&str, &str, &str), Vec<NamedPod<'_>>> = BTreeMap::new();
    for (name, pod) in &model.pods {
        for (key, value) in &pod.labels {
            by_label.entry((&name.namespace, key, value)).or_default().push((&name.name, pod));
        }
    }
    let mut made = Vec::new();
    for (name, service) in &model.services {
        if written.contains(name) || service.service_type == ServiceType::ExternalName {
            continue;
        }
        let Some((key, value)) = service.selector.first_key_value() else {
            made.extend(endpoints.get(name).into_iter().flatten().map(|slice| (name.clone(), slice.clone())));
            continue;
        };
        let candidates = by_label.get(&(&*name.namespace, &**key, &**value)).map(Vec::as_slice).unwrap_or_default();
        let selected = candidates
            .iter()
            .filter(|(_, pod)| service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)));
        let selected: Vec<_> = selected.copied().collect();
        for family in &service.ip_families {
            made.extend(from_pods(name, service, *family, &selected).into_iter().map(|slice| (name.clone(), slice)));
        }
    }
    for (number, (service, slice)) in made.into_iter().enumerate() {
        // `~` cannot stand in the name of a written slice, so the two never meet.
        let name = format!("{}~{number}", service.name);
        model.slices.insert(ObjectName { namespace: service.namespace, name }, slice);
    }
}

/// One slice for each set of port numbers that the Pods resolve the target ports to.
fn from_pods(name: &ObjectName, service: &Service, family: IpFamily, pods: &[NamedPod<'_>]) -> Vec<EndpointSlice> {
    let mut by_ports: BTreeMap<Vec<(String, crate::model::Protocol, std::num::NonZeroU16)>, Vec<Endpoint>> =
        BTreeMap::new();
    for (pod_name, pod) in pods {
        if pod.finished {
            continue;
        }
        let Some(address) = pod.ips.iter().find(|ip| IpFamily::of(ip) == family) else { continue };
        let ports = service.ports.iter().filter_map(|port| {
            let number = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(target) => pod
                    .ports
                    .iter()
                    .find(|(name, protocol, _)| name == target && *protocol == port.protocol)
                    .map(|(_, _, number)| *number),
            };
            number.map(|number| (port.name.clone(), port.protocol, number))
        });
        let subdomain_matches = pod.subdomain.as_deref() == Some(name.name.as_str());
        by_ports.entry(ports.collect()).or_default().push(Endpoint {
            address: *address,
            // publishNotReadyAddresses makes even a terminating Pod ready.
            ready: service.publish_not_ready || (pod.ready && !pod.terminating),
            serving: pod.ready,
            terminating: pod.terminating,
            node: pod.node.clone(),
            pod: Some((*pod_name).to_owned()),
            hostname: pod.hostname.clone().filter(|_| subdomain_matches),
        });
    }
    by_ports
        .into_iter()
        .map(|(ports, endpoints)| EndpointSlice {
            triggered: None,
            of_controller: true,
            service: name.name.clone(),
            family,
            ports: ports.into_iter().map(|(name, protocol, port)| EndpointPort { name, protocol, port }).collect(),
            endpoints,
        })
        .collect()
}
