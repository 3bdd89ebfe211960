//! Endpoints that are not where pods are: whoever may write `EndpointSlice`s leads a Service's traffic there
//! (reliability.md section 7, CVE-2021-25740). They are served, as with kube-proxy, and told.
//!
//! Slices that the endpoint slice controller makes of a Service's pods are pods by definition. A slice that only says it is
//! the controller's does not stay: where a Service has a selector the controller deletes it, and where it has none, the
//! controller makes none.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    model::{Endpoint, EndpointSlice, Model, Node, ObjectName, Touched},
    report::Problem,
};

/// So many addresses of a slice are named.
const NAMED: usize = 5;
/// So many slices are named in a status.
const TOLD: usize = 20;

/// What is known of the network of pods beside the Nodes of the model.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The model has every Node; else the own one alone, and another is known by the pods that controllers found there: it
    /// has an agent of its own, which looks at what is said to be there.
    pub all_nodes: bool,
    /// The ranges of all pods, where they were given.
    pub cluster: &'a [IpNet],
}

/// Slices with such endpoints.
#[derive(Debug, Default)]
pub struct Foreign {
    found: BTreeMap<ObjectName, Found>,
}

#[derive(Debug)]
struct Found {
    service: ObjectName,
    addrs: BTreeSet<IpAddr>,
}

impl Foreign {
    /// Looks again, where no more than `touched` is another one than last time.
    pub fn look(&mut self, model: &Model, known: Known<'_>, touched: &Touched) {
        let look = Look { model, known, pods: OnceCell::new() };
        match touched {
            Touched::All => {
                self.found = model.slices.iter().filter_map(|(name, slice)| look.slice(name, slice)).collect();
            }
            Touched::Endpoints(services) => {
                self.found.retain(|_, found| !services.contains(&found.service));
                let slices = services.iter().flat_map(|service| model.slices_of(service));
                self.found.extend(slices.filter_map(|(name, slice)| look.slice(name, slice)));
            }
        }
    }

    /// What is to be told, by slice, in the order of their names.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        self.found.iter().map(|(name, found)| found.problem(name))
    }

    /// The same for people: the first of them, and how many more there are.
    pub fn warnings(&self) -> Vec<Problem> {
        let mut told: Vec<Problem> = self.problems().take(TOLD).collect();
        if let Some(more) = self.found.len().checked_sub(TOLD).filter(|more| *more > 0) {
            told.push(Problem {
                object: "EndpointSlices".to_owned(),
                cause: format!("{more} more have endpoints where no pods are known to be"),
                fix: "see the Events of EndpointSlices, of which the first ones by name have one".to_owned(),
            });
        }
        told
    }
}

impl Found {
    fn problem(&self, name: &ObjectName) -> Problem {
        let mut words: Vec<String> = self.addrs.iter().take(NAMED).map(ToString::to_string).collect();
        if let Some(more) = self.addrs.len().checked_sub(NAMED).filter(|more| *more > 0) {
            words.push(format!("and {more} more"));
        }
        Problem {
            object: format!("EndpointSlice {name}"),
            cause: format!("endpoints where no pods are known to be: {}", words.join(", ")),
            fix: format!(
                "see who wrote it, for it leads the traffic of Service {} there; nothing, where that is meant",
                self.service
            ),
        }
    }
}

/// A look at a model.
struct Look<'a> {
    model: &'a Model,
    known: Known<'a>,
    /// Asked for where something is in doubt, which is seldom.
    pods: OnceCell<Pods<'a>>,
}

/// What controllers tell of pods.
#[derive(Default)]
struct Pods<'a> {
    addrs: BTreeSet<IpAddr>,
    nodes: BTreeSet<&'a str>,
}

impl<'a> Look<'a> {
    fn slice(&self, name: &ObjectName, slice: &EndpointSlice) -> Option<(ObjectName, Found)> {
        // The API server's own, which may run anywhere.
        let is_api = name.namespace == "default" && slice.service == "kubernetes";
        if is_api || self.is_made_of_pods(name, slice) {
            return None;
        }
        let addrs =
            slice.endpoints.iter().filter(|endpoint| self.is_foreign(endpoint)).map(|endpoint| endpoint.address);
        let addrs: BTreeSet<IpAddr> = addrs.collect();
        (!addrs.is_empty()).then(|| (name.clone(), Found { service: slice.of(name), addrs }))
    }

    fn is_made_of_pods(&self, name: &ObjectName, slice: &EndpointSlice) -> bool {
        let service = self.model.services.get(&slice.of(name));
        slice.of_controller && service.is_some_and(|service| !service.selector.is_empty())
    }

    fn is_foreign(&self, endpoint: &Endpoint) -> bool {
        let outside = match &endpoint.node {
            Some(name) => match self.model.nodes.get(name) {
                Some(node) => !node.pod_cidrs.is_empty() && !has(node, endpoint.address),
                None if self.known.all_nodes || self.pods().nodes.contains(name.as_str()) => false,
                None => self.is_nowhere(endpoint.address),
            },
            None => self.is_nowhere(endpoint.address),
        };
        outside && !self.pods().addrs.contains(&endpoint.address)
    }

    /// In no range of pods and on no Node that is known.
    fn is_nowhere(&self, addr: IpAddr) -> bool {
        let mut nodes = self.model.nodes.values();
        let mut ranges = self.known.cluster.iter().filter(|net| net.addr().is_ipv4() == addr.is_ipv4()).peekable();
        if ranges.peek().is_some() {
            return !ranges.any(|net| net.contains(&addr)) && !nodes.any(|node| node.internal_ips.contains(&addr));
        }
        let mut nodes = nodes.filter(|node| !node.pod_cidrs.is_empty()).peekable();
        nodes.peek().is_some() && !nodes.any(|node| has(node, addr))
    }

    fn pods(&self) -> &Pods<'a> {
        self.pods.get_or_init(|| {
            let mut pods = Pods::default();
            let model = self.model;
            let slices = model.slices.iter().filter(|(name, slice)| self.is_made_of_pods(name, slice));
            for endpoint in slices.flat_map(|(_, slice)| &slice.endpoints) {
                pods.addrs.insert(endpoint.address);
                pods.nodes.extend(endpoint.node.as_deref());
            }
            pods
        })
    }
}

fn has(node: &Node, addr: IpAddr) -> bool {
    // A family of which nothing is known tells nothing.
    let told = node.pod_cidrs.iter().any(|net| net.addr().is_ipv4() == addr.is_ipv4());
    !told || node.pod_cidrs.iter().any(|net| net.contains(&addr)) || node.internal_ips.contains(&addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::fixture, model::IpFamily};

    fn slice(service: &str, of_controller: bool, endpoints: &[(&str, Option<&str>)]) -> EndpointSlice {
        let endpoint = |(address, node): &(&str, Option<&str>)| Endpoint {
            address: address.parse().expect("an address"),
            ready: true,
            serving: true,
            terminating: false,
            node: node.map(str::to_owned),
            pod: None,
            hostname: None,
        };
        EndpointSlice {
            service: service.to_owned(),
            family: IpFamily::V4,
            ports: Vec::new(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            triggered: None,
            of_controller,
        }
    }

    /// Node n1 is known, and by pods of Service `app` so is n3.
    fn model(endpoints: &[(&str, Option<&str>)]) -> Model {
        let node = Node {
            pod_cidrs: vec!["10.244.1.0/24".parse().expect("a range")],
            internal_ips: vec!["192.0.2.1".parse().expect("an address")],
            ..Node::default()
        };
        let slices = [
            (fixture::name("web-1"), slice("web", false, endpoints)),
            (fixture::name("app-1"), slice("app", true, &[("10.244.3.3", Some("n3"))])),
        ];
        Model {
            services: [(fixture::name("app"), fixture::service())].into(),
            slices: slices.into(),
            nodes: [("n1".to_owned(), node)].into(),
            ..Model::default()
        }
    }

    fn found(model: &Model, all_nodes: bool, cluster: &[&str]) -> Vec<Problem> {
        let cluster: Vec<IpNet> = cluster.iter().map(|net| net.parse().expect("a range")).collect();
        let mut foreign = Foreign::default();
        foreign.look(model, Known { all_nodes, cluster: &cluster }, &Touched::All);
        foreign.warnings()
    }

    #[test]
    fn r22_endpoints_outside_the_pod_ranges_are_flagged() {
        const CLUSTER: &str = "10.244.0.0/16";
        // Where all Nodes are known, where one is, and where the ranges of the cluster are known too.
        for (endpoint, flagged) in [
            (("10.244.1.7", Some("n1")), [false, false, false]),
            // Its node's own address: a pod of the host network.
            (("192.0.2.1", Some("n1")), [false, false, false]),
            (("10.0.0.7", Some("n1")), [true, true, true]),
            (("192.0.2.2", Some("n1")), [true, true, true]),
            // Of other nodes nothing is known, but an agent of their own is there.
            (("10.0.0.7", Some("n3")), [false, false, false]),
            // Nobody knows this one, and so nobody else looks.
            (("10.0.0.7", Some("n2")), [false, true, true]),
            (("10.244.2.7", Some("n2")), [false, true, false]),
            (("10.0.0.7", None), [true, true, true]),
            (("10.244.1.7", None), [false, false, false]),
            (("10.244.2.7", None), [true, true, false]),
            // A pod that a controller knows.
            (("10.244.3.3", None), [false, false, false]),
            (("192.0.2.1", None), [false, false, false]),
            // No range of its family is known.
            (("fd00::7", Some("n1")), [false, false, false]),
            (("fd00::7", None), [false, false, false]),
        ] {
            let model = model(&[endpoint]);
            let told = [(true, &[][..]), (false, &[]), (false, &[CLUSTER])].map(|(all, net)| found(&model, all, net));
            assert_eq!(told.clone().map(|told| !told.is_empty()), flagged, "{endpoint:?}: {told:?}");
        }
    }

    #[test]
    fn r22_a_slice_is_named_with_some_addresses_and_only_some_slices_are() {
        let many: Vec<String> = (1..=9).map(|host| format!("10.0.0.{host}")).collect();
        let many: Vec<(&str, Option<&str>)> = many.iter().map(|address| (&**address, Some("n1"))).collect();
        let mut model = model(&many);
        let told = found(&model, false, &[]);
        assert_eq!((told.len(), &*told[0].object), (1, "EndpointSlice default/web-1"));
        assert!(told[0].cause.contains(": 10.0.0.1, ") && told[0].cause.ends_with(", and 4 more"), "{told:?}");
        for number in 0..30 {
            model.slices.insert(fixture::name(&format!("w{number}")), slice("web", false, &many));
        }
        let told = found(&model, false, &[]);
        assert_eq!((told.len(), &*told[20].object), (21, "EndpointSlices"));
        assert!(told[20].cause.starts_with("11 more "), "{told:?}");
    }

    #[test]
    fn r22_a_slice_that_says_it_is_of_pods_is_believed_where_the_controller_makes_slices() {
        for (service, flagged) in [("app", false), ("web", true)] {
            let mut model = model(&[]);
            model.slices.insert(fixture::name("x"), slice(service, true, &[("10.0.0.7", None)]));
            assert_eq!(!found(&model, false, &[]).is_empty(), flagged, "{service}");
        }
    }

    #[test]
    fn r22_a_change_of_endpoints_is_looked_at_alone() {
        let known = Known { all_nodes: false, cluster: &[] };
        let mut model = model(&[("10.0.0.7", None)]);
        let mut foreign = Foreign::default();
        let touched = |service: &str| Touched::Endpoints([fixture::name(service)].into());
        foreign.look(&model, known, &touched("app"));
        assert_eq!(foreign.problems().count(), 0, "of another Service");
        foreign.look(&model, known, &touched("web"));
        assert_eq!(foreign.problems().count(), 1);
        model.slices.remove(&fixture::name("web-1"));
        foreign.look(&model, known, &touched("app"));
        assert_eq!(foreign.problems().count(), 1);
        foreign.look(&model, known, &touched("web"));
        assert_eq!(foreign.problems().count(), 0);
    }

    #[test]
    fn the_api_servers_own_slice_is_where_it_is() {
        let mut model = model(&[("10.0.0.7", None)]);
        for slice in model.slices.values_mut() {
            slice.service = "kubernetes".to_owned();
        }
        assert_eq!(found(&model, true, &[]), []);
    }
}
