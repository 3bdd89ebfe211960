//! Which endpoints of a service port may be used, and in which set.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    desired::BackendAddr,
    model::{Endpoint, EndpointSlice, IpFamily, Protocol},
};

/// How far an endpoint may be used. The order is the order of semantics.md 2.1.5: the greater state is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointState {
    /// Never used: not ready, or terminating and no longer serving (semantics.md 2.2.6).
    NotReady,
    /// Serving while it terminates: used where no ready endpoint is left.
    Terminating,
    /// Ready.
    Ready,
}

impl EndpointState {
    /// The state of an endpoint whose conditions are resolved.
    pub const fn of(endpoint: &Endpoint) -> Self {
        if endpoint.ready {
            Self::Ready
        } else if endpoint.serving && endpoint.terminating {
            Self::Terminating
        } else {
            Self::NotReady
        }
    }

    /// As `service describe` shows it.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NotReady => "not ready",
            Self::Terminating => "terminating",
            Self::Ready => "ready",
        }
    }
}

/// An endpoint of one service port, after the union over the slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortEndpoint {
    /// State.
    pub state: EndpointState,
    /// On this node, by exact equality of node names (semantics.md 2.1.6).
    pub local: bool,
    /// Node.
    pub node: Option<String>,
    /// Pod.
    pub pod: Option<String>,
}

/// The endpoints of one service port of one family.
pub type PortEndpoints = BTreeMap<BackendAddr, PortEndpoint>;

/// Joins slices with a service port: by port name and protocol, never by number (semantics.md 2.1.4). An address and
/// port that stands in several slices is one endpoint: the copy in the better state counts, among equals the one on
/// this node (semantics.md 2.1.5).
pub fn port_endpoints(
    slices: &[&EndpointSlice],
    port_name: &str,
    protocol: Protocol,
    family: IpFamily,
    node: &str,
) -> PortEndpoints {
    let mut union = PortEndpoints::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        for port in slice.ports.iter().filter(|port| port.name == port_name && port.protocol == protocol) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| IpFamily::of(&endpoint.address) == family) {
                let found = PortEndpoint {
                    state: EndpointState::of(endpoint),
                    local: endpoint.node.as_deref() == Some(node),
                    node: endpoint.node.clone(),
                    pod: endpoint.pod.clone(),
                };
                let at = BackendAddr { addr: endpoint.address, port: port.port };
                let known = union.entry(at).or_insert_with(|| found.clone());
                if (found.state, found.local) > (known.state, known.local) {
                    *known = found;
                }
            }
        }
    }
    union
}

/// Why a set holds what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// None: ready endpoints.
    Ready,
    /// No endpoint is ready: the ones that still serve while they terminate.
    Terminating,
    /// Nothing can serve.
    Nothing,
}

/// A set of backends and why it is this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The set.
    pub backends: BTreeSet<BackendAddr>,
    /// Why.
    pub fallback: Fallback,
}

/// What can be reached by a service port.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// Everything that flows may keep using: ready, or serving while terminating.
    pub usable: BTreeSet<BackendAddr>,
    /// The Cluster set.
    pub cluster: Chosen,
    /// The Local set.
    pub local: Chosen,
}

impl Reachable {
    /// Whether anything can serve, on any node: decides reject against drop (semantics.md 2.2.5).
    pub fn has_any(&self) -> bool {
        !self.usable.is_empty()
    }
}

/// The Cluster set is every ready endpoint; if there is none, every endpoint that still serves while it terminates
/// (semantics.md 2.2.3). The Local set is the same choice among the endpoints of this node. The two are decided apart:
/// Local may use a terminating endpoint while ready ones exist on other nodes (semantics.md 2.2.4).
pub fn reachable(endpoints: &PortEndpoints) -> Reachable {
    Reachable {
        usable: addresses(endpoints, |endpoint| endpoint.state > EndpointState::NotReady),
        cluster: choose(endpoints, |_| true),
        local: choose(endpoints, |endpoint| endpoint.local),
    }
}

fn choose(endpoints: &PortEndpoints, among: impl Fn(&PortEndpoint) -> bool) -> Chosen {
    for (state, fallback) in
        [(EndpointState::Ready, Fallback::Ready), (EndpointState::Terminating, Fallback::Terminating)]
    {
        let backends = addresses(endpoints, |endpoint| endpoint.state == state && among(endpoint));
        if !backends.is_empty() {
            return Chosen { backends, fallback };
        }
    }
    Chosen { backends: BTreeSet::new(), fallback: Fallback::Nothing }
}

fn addresses(endpoints: &PortEndpoints, keep: impl Fn(&PortEndpoint) -> bool) -> BTreeSet<BackendAddr> {
    endpoints.iter().filter(|(_, endpoint)| keep(endpoint)).map(|(addr, _)| *addr).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::EndpointPort;

    const READY: (bool, bool, bool) = (true, true, false);
    const DRAINING: (bool, bool, bool) = (false, true, true);
    const GONE: (bool, bool, bool) = (false, false, true);
    const UNREADY: (bool, bool, bool) = (false, false, false);

    fn slice(port: u16, endpoints: &[(u8, (bool, bool, bool), Option<&str>)]) -> EndpointSlice {
        EndpointSlice {
            triggered: None,
            of_controller: false,
            service: "web".into(),
            family: IpFamily::V4,
            ports: vec![EndpointPort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: NonZeroU16::new(port).expect("a port"),
            }],
            endpoints: endpoints
                .iter()
                .map(|(host, (ready, serving, terminating), node)| Endpoint {
                    address: [10, 244, 0, *host].into(),
                    ready: *ready,
                    serving: *serving,
                    terminating: *terminating,
                    node: node.map(str::to_owned),
                    pod: None,
                    hostname: None,
                })
                .collect(),
        }
    }

    fn join(slices: &[EndpointSlice]) -> PortEndpoints {
        port_endpoints(&slices.iter().collect::<Vec<_>>(), "http", Protocol::Tcp, IpFamily::V4, "here")
    }

    fn hosts(set: &BTreeSet<BackendAddr>) -> Vec<String> {
        set.iter().map(|backend| format!("{}:{}", backend.addr, backend.port)).collect()
    }

    #[test]
    fn rule_2_1_4_the_join_key_is_name_and_protocol_and_numbers_may_differ() {
        let slices = [slice(80, &[(1, READY, None)]), slice(81, &[(2, READY, None)])];
        assert_eq!(hosts(&reachable(&join(&slices)).cluster.backends), ["10.244.0.1:80", "10.244.0.2:81"]);
        let slices: Vec<_> = slices.iter().collect();
        assert!(port_endpoints(&slices, "http", Protocol::Udp, IpFamily::V4, "here").is_empty());
        assert!(port_endpoints(&slices, "", Protocol::Tcp, IpFamily::V4, "here").is_empty());
        assert!(port_endpoints(&slices, "http", Protocol::Tcp, IpFamily::V6, "here").is_empty());
    }

    #[test]
    fn rule_2_1_5_the_better_copy_wins_in_any_order() {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            let copies = [
                slice(80, &[(1, UNREADY, Some("here"))]),
                slice(80, &[(1, READY, Some("there"))]),
                slice(80, &[(1, DRAINING, Some("here"))]),
                slice(80, &[(1, READY, Some("here"))]),
            ];
            let union = join(&order.map(|index: usize| copies[index].clone()));
            assert_eq!(union.len(), 1);
            let only = union.values().next().expect("one endpoint");
            assert_eq!((only.state, only.local), (EndpointState::Ready, true));
        }
    }

    #[test]
    fn rule_2_1_6_without_a_node_name_nothing_is_local() {
        let union = join(&[slice(80, &[(1, READY, None), (2, READY, Some("here ")), (3, READY, Some("here"))])]);
        assert_eq!(hosts(&reachable(&union).local.backends), ["10.244.0.3:80"]);
    }

    #[test]
    fn rule_2_2_3_terminating_endpoints_serve_only_when_none_is_ready() {
        let both = reachable(&join(&[slice(80, &[(1, READY, None), (2, DRAINING, None)])]));
        assert_eq!(hosts(&both.cluster.backends), ["10.244.0.1:80"]);
        assert_eq!(both.usable.len(), 2);
        let last = reachable(&join(&[slice(80, &[(1, UNREADY, None), (2, DRAINING, None)])]));
        assert_eq!(hosts(&last.cluster.backends), ["10.244.0.2:80"]);
        assert_eq!(last.cluster.fallback, Fallback::Terminating);
    }

    #[test]
    fn rule_2_2_4_local_falls_back_apart_from_cluster() {
        let here = reachable(&join(&[slice(80, &[(1, READY, Some("there")), (2, DRAINING, Some("here"))])]));
        assert_eq!(hosts(&here.cluster.backends), ["10.244.0.1:80"]);
        assert_eq!(hosts(&here.local.backends), ["10.244.0.2:80"]);
        assert_eq!((here.cluster.fallback, here.local.fallback), (Fallback::Ready, Fallback::Terminating));
    }

    #[test]
    fn rule_2_2_5_and_2_2_6_unready_and_gone_endpoints_count_for_nothing() {
        let nothing = reachable(&join(&[slice(80, &[(1, UNREADY, Some("here")), (2, GONE, Some("here"))])]));
        assert!(!nothing.has_any());
        assert_eq!((nothing.cluster.fallback, nothing.local.fallback), (Fallback::Nothing, Fallback::Nothing));
        assert!(reachable(&join(&[slice(80, &[(1, DRAINING, Some("there"))])])).has_any());
    }
}
