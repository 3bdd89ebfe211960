//! What kube-proxy counts as `no_local_endpoints` (kube-proxy `pkg/proxy/nftables/proxier.go`, `serviceNoLocalEndpointsTotal`).

use std::collections::BTreeMap;

use crate::model::{Endpoint, IpFamily, Model, ObjectName, Service, ServicePort, TrafficPolicy};

/// Ports of Services whose policy is Local and that have endpoints, but none here, by family and policy.
pub type WithoutLocal = BTreeMap<(IpFamily, Local), u64>;

/// Which policy is Local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Local {
    /// internalTrafficPolicy.
    Internal,
    /// externalTrafficPolicy.
    External,
}

impl Local {
    /// Those of a Service.
    fn of(service: &Service) -> impl Iterator<Item = Self> {
        [(service.internal_policy, Self::Internal), (service.external_policy, Self::External)]
            .into_iter()
            .filter_map(|(policy, local)| (policy == TrafficPolicy::Local).then_some(local))
    }
}

/// Counts them for a node. A Service without any endpoint lacks none here.
pub fn without_local(model: &Model, node: &str) -> WithoutLocal {
    let mut counts = WithoutLocal::new();
    for (name, service) in model.services.iter().filter(|(_, it)| !it.headless && !it.foreign_proxy) {
        for local in Local::of(service) {
            for family in &service.ip_families {
                let lacking = service.ports.iter().filter(|port| lacks_local(model, name, *family, port, node)).count();
                if lacking > 0 {
                    *counts.entry((*family, local)).or_default() += lacking as u64;
                }
            }
        }
    }
    counts
}

fn lacks_local(model: &Model, name: &ObjectName, family: IpFamily, port: &ServicePort, node: &str) -> bool {
    let slices = model.slices_of(name).map(|(_, slice)| slice).filter(|slice| {
        let has_port = |it: &crate::model::EndpointPort| it.name == port.name && it.protocol == port.protocol;
        slice.family == family && slice.ports.iter().any(has_port)
    });
    let mut serving = slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.serving).peekable();
    let is_here = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(node);
    serving.peek().is_some() && !serving.any(is_here)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::fixture,
        model::{Protocol, TargetPort},
    };

    #[test]
    fn rule_6_1_6_ports_with_endpoints_elsewhere_alone_are_counted() {
        let (mut model, _) = fixture::web();
        let external = |count| WithoutLocal::from([((IpFamily::V4, Local::External), count)]);
        assert_eq!(without_local(&model, "node1"), WithoutLocal::new(), "one is here");
        assert_eq!(without_local(&model, "node3"), external(1));
        let web = fixture::name("web");
        let service = model.services.get_mut(&web).expect("the Service");
        service.internal_policy = TrafficPolicy::Local;
        let again = ServicePort {
            name: "again".into(),
            protocol: Protocol::Tcp,
            port: fixture::port(81),
            target: TargetPort::Number(fixture::port(8080)),
            node_port: None,
        };
        let second = ServicePort { name: "http".into(), ..again.clone() };
        // One port more with the endpoints of `http`, and one that no slice has.
        service.ports.extend([second, again]);
        assert_eq!(
            without_local(&model, "node3"),
            [Local::Internal, Local::External].map(|local| ((IpFamily::V4, local), 2)).into()
        );
        // Scaled to zero, and a node whose only endpoint is not ready.
        for slice in model.slices.values_mut() {
            slice.endpoints.retain(|endpoint| !endpoint.serving);
        }
        assert_eq!(without_local(&model, "node2"), WithoutLocal::new());
        for slice in model.slices.values_mut() {
            slice.endpoints.push(fixture::endpoint([10, 244, 1, 5], "node1", true));
        }
        assert_eq!(without_local(&model, "node2").values().sum::<u64>(), 4);
        model.services.get_mut(&web).expect("the Service").foreign_proxy = true;
        assert_eq!(without_local(&model, "node2"), WithoutLocal::new());
    }
}
