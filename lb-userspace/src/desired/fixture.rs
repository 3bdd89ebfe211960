//! Models for tests.

use std::num::NonZeroU16;

use super::NodeContext;
use crate::model::{
    Endpoint, EndpointPort, EndpointSlice, IpFamily, Model, Node, ObjectName, Protocol, Service, ServicePort,
    ServiceType, TargetPort, TrafficPolicy,
};

pub(crate) fn name(name: &str) -> ObjectName {
    ObjectName { namespace: "default".into(), name: name.into() }
}

pub(crate) fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("not zero")
}

/// A LoadBalancer Service with external policy Local.
pub(crate) fn service() -> Service {
    Service {
        service_type: ServiceType::LoadBalancer,
        headless: false,
        cluster_ips: vec![[10, 96, 0, 10].into()],
        ip_families: vec![IpFamily::V4],
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: port(80),
            target: TargetPort::Number(port(8080)),
            node_port: Some(port(30080)),
        }],
        selector: [("app".to_owned(), "web".to_owned())].into(),
        external_policy: TrafficPolicy::Local,
        internal_policy: TrafficPolicy::Cluster,
        load_balancer_ips: vec![[203, 0, 113, 7].into()],
        external_ips: vec![],
        source_ranges: vec![],
        affinity_seconds: None,
        external_name: None,
        publish_not_ready: false,
        health_check_node_port: None,
        labels: [].into(),
        annotations: [].into(),
        foreign_proxy: false,
        balancer: None,
    }
}

pub(crate) fn endpoint(host: [u8; 4], node: &str, ready: bool) -> Endpoint {
    Endpoint {
        address: host.into(),
        ready,
        serving: ready,
        terminating: false,
        node: Some(node.into()),
        pod: None,
        hostname: None,
    }
}

/// Service `default/web` with an endpoint here, one elsewhere, and one that is not ready, on node `node1`.
pub(crate) fn web() -> (Model, NodeContext) {
    let mut model = Model::default();
    model.services.insert(name("web"), service());
    let slice = EndpointSlice {
        triggered: None,
        of_controller: false,
        service: "web".into(),
        family: IpFamily::V4,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: port(8080) }],
        endpoints: vec![
            endpoint([10, 244, 1, 5], "node1", true),
            endpoint([10, 244, 2, 5], "node2", true),
            endpoint([10, 244, 2, 6], "node2", false),
        ],
    };
    model.slices.insert(name("web-1"), slice);
    let pod_cidrs = vec!["10.244.1.0/24".parse().expect("a prefix")];
    model.nodes.insert("node1".into(), Node { pod_cidrs, ..Node::default() });
    let own = [192, 0, 2, 1].into();
    let node = NodeContext {
        name: "node1".into(),
        node_port_addrs: vec![own],
        local_addrs: [own].into(),
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a prefix")],
        detector: super::Detector::NodeCidr,
        masquerade_all: false,
        external_ips: super::ExternalIps::Off,
        bind_address: None,
    };
    (model, node)
}
