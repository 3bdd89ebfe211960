//! Endpoints that are not where pods are: whoever may write `EndpointSlice`s leads a Service's traffic there
//! (reliability.md section 7, CVE-2021-25740). They are served, as with kube-proxy, and told.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    model::{Endpoint, Model, Node, ObjectName},
    report::Problem,
};

/// So many are named.
const NAMED: usize = 5;

/// Endpoints outside of the pod ranges and addresses of the node they name; with `all_nodes`, that is where the model has
/// every Node, also those that name none and are on no node at all.
pub fn foreign(model: &Model, all_nodes: bool) -> Option<Problem> {
    let known: Vec<&Node> = model.nodes.values().filter(|node| !node.pod_cidrs.is_empty()).collect();
    let is_foreign = |endpoint: &Endpoint| match &endpoint.node {
        Some(name) => {
            let node = model.nodes.get(name).filter(|node| !node.pod_cidrs.is_empty());
            node.is_some_and(|node| !has(node, endpoint.address))
        }
        None => all_nodes && !known.is_empty() && !known.iter().any(|node| has(node, endpoint.address)),
    };
    let mut found: BTreeSet<(&ObjectName, IpAddr)> = BTreeSet::new();
    for (name, slice) in &model.slices {
        // The API server's own, which may run anywhere.
        if name.namespace == "default" && slice.service == "kubernetes" {
            continue;
        }
        let foreign = slice.endpoints.iter().filter(|endpoint| is_foreign(endpoint));
        found.extend(foreign.map(|endpoint| (name, endpoint.address)));
    }
    if found.is_empty() {
        return None;
    }
    let mut words: Vec<String> = found.iter().take(NAMED).map(|(name, at)| format!("{at} of {name}")).collect();
    if found.len() > NAMED {
        words.push(format!("and {} more", found.len() - NAMED));
    }
    Some(Problem {
        object: "EndpointSlices".to_owned(),
        cause: format!("endpoints outside of the pod ranges and addresses of their nodes: {}", words.join(", ")),
        fix: "see who wrote them: whoever may write EndpointSlices leads the traffic of Services there; nothing, where the \
              CNI gives pods other addresses than spec.podCIDRs says"
            .to_owned(),
    })
}

fn has(node: &Node, addr: IpAddr) -> bool {
    // A family of which nothing is known tells nothing.
    let told = node.pod_cidrs.iter().any(|net| net.addr().is_ipv4() == addr.is_ipv4());
    !told || node.pod_cidrs.iter().any(|net| net.contains(&addr)) || node.internal_ips.contains(&addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndpointSlice, IpFamily};

    fn model(endpoints: &[(&str, Option<&str>)]) -> Model {
        let endpoint = |(address, node): &(&str, Option<&str>)| Endpoint {
            address: address.parse().expect("an address"),
            ready: true,
            serving: true,
            terminating: false,
            node: node.map(str::to_owned),
            pod: None,
            hostname: None,
        };
        let slice = EndpointSlice {
            service: "web".to_owned(),
            family: IpFamily::V4,
            ports: Vec::new(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            triggered: None,
        };
        let name = ObjectName { namespace: "default".to_owned(), name: "web-1".to_owned() };
        let node = Node {
            pod_cidrs: vec!["10.244.1.0/24".parse().expect("a range")],
            internal_ips: vec!["192.0.2.1".parse().expect("an address")],
            ..Node::default()
        };
        Model { slices: [(name, slice)].into(), nodes: [("n1".to_owned(), node)].into(), ..Model::default() }
    }

    #[test]
    fn r22_endpoints_outside_the_pod_ranges_are_flagged() {
        for (endpoint, all_nodes, flagged) in [
            (("10.244.1.7", Some("n1")), false, false),
            // Its node's own address: a pod of the host network.
            (("192.0.2.1", Some("n1")), false, false),
            (("10.0.0.7", Some("n1")), false, true),
            (("192.0.2.2", Some("n1")), false, true),
            // Of other nodes nothing is known.
            (("10.0.0.7", Some("n2")), false, false),
            (("10.0.0.7", None), false, false),
            (("10.0.0.7", None), true, true),
            (("10.244.1.7", None), true, false),
            (("192.0.2.1", None), true, false),
            // No range of its family is known.
            (("fd00::7", Some("n1")), true, false),
        ] {
            let found = foreign(&model(&[endpoint]), all_nodes);
            assert_eq!(found.is_some(), flagged, "{endpoint:?} {all_nodes}: {found:?}");
        }
        let many: Vec<String> = (1..=9).map(|host| format!("10.0.0.{host}")).collect();
        let many: Vec<(&str, Option<&str>)> = many.iter().map(|address| (&**address, Some("n1"))).collect();
        let told = foreign(&model(&many), false).expect("told");
        assert!(told.cause.contains("10.0.0.1 of default/web-1, ") && told.cause.ends_with(", and 4 more"), "{told:?}");
    }

    #[test]
    fn the_api_servers_own_slice_is_where_it_is() {
        let mut model = model(&[("10.0.0.7", None)]);
        for slice in model.slices.values_mut() {
            slice.service = "kubernetes".to_owned();
        }
        assert_eq!(foreign(&model, true), None);
    }
}
