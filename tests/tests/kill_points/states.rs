//! Random states of a small cluster.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16};

use lb_userspace::{
    desired::{Detector, NodeContext},
    image::NextHopInfo,
    model::{
        Endpoint, EndpointPort, EndpointSlice, IpFamily, Model, Node, ObjectName, Protocol, Service, ServicePort,
        ServiceType, TargetPort, TrafficPolicy,
    },
};

/// splitmix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }

    fn small(&mut self, end: u8) -> u8 {
        u8::try_from(self.below(u64::from(end))).unwrap_or(0)
    }

    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// What an agent is asked for.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) model: Model,
    pub(crate) next_hops: BTreeMap<IpAddr, NextHopInfo>,
}

const OWN: [u8; 4] = [192, 0, 2, 1];

pub(crate) fn node() -> NodeContext {
    NodeContext {
        name: "node1".to_owned(),
        node_port_addrs: vec![OWN.into(), v6(2, 1)],
        local_addrs: [OWN.into(), v6(2, 1)].into(),
        service_cidrs: ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().expect("a prefix")).into(),
        detector: Detector::NodeCidr,
        masquerade_all: false,
        ..NodeContext::default()
    }
}

fn v6(net: u16, host: u16) -> IpAddr {
    [0xfd00, net, 0, 0, 0, 0, 0, host].into()
}

fn addr(family: IpFamily, net: u8, host: u8) -> IpAddr {
    match family {
        IpFamily::V4 => [10, net, 0, host].into(),
        IpFamily::V6 => v6(u16::from(net), u16::from(host)),
    }
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("not zero")
}

const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];
const SERVICES: u8 = 6;
const PODS: u8 = 8;

/// A state of up to six Services. The cluster IPs go round between two states, so that an address may change its
/// Service.
pub(crate) fn state(random: &mut Random) -> State {
    let mut model = Model::default();
    let pod_cidrs = vec!["10.1.0.0/24".parse().expect("a prefix")];
    model.nodes.insert("node1".to_owned(), Node { pod_cidrs, ..Node::default() });
    let turn = if random.once_in(3) { random.small(SERVICES) } else { 0 };
    for index in 0..SERVICES {
        if random.once_in(4) {
            continue;
        }
        let name = ObjectName { namespace: "default".to_owned(), name: format!("s{index}") };
        let service = service(random, index, (index + turn) % SERVICES);
        for family in service.ip_families.clone() {
            let slice = slice(random, &name.name, &service, family);
            let slice_name = ObjectName { namespace: "default".to_owned(), name: format!("s{index}-{family}") };
            model.slices.insert(slice_name, slice);
        }
        model.services.insert(name, service);
    }
    let mut next_hops = BTreeMap::new();
    for family in FAMILIES {
        for host in 0..PODS {
            let ifindex = u32::from(random.small(4));
            let hop = NextHopInfo { ifindex, prefsrc: Some(addr(family, 0, 1)), local: ifindex == 3 };
            if ifindex > 0 {
                next_hops.insert(addr(family, 1, host + 1), hop);
            }
        }
    }
    State { model, next_hops }
}

fn policy(random: &mut Random) -> TrafficPolicy {
    if random.once_in(3) { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn service(random: &mut Random, index: u8, address: u8) -> Service {
    let ip_families = match random.below(3) {
        0 => vec![IpFamily::V4],
        1 => vec![IpFamily::V6],
        _ => FAMILIES.to_vec(),
    };
    let service_type = match random.below(3) {
        0 => ServiceType::ClusterIp,
        1 => ServiceType::NodePort,
        _ => ServiceType::LoadBalancer,
    };
    let has_node_port = service_type != ServiceType::ClusterIp;
    let ports = (0..=u16::from(random.small(2))).map(|number| ServicePort {
        name: format!("p{number}"),
        protocol: if number == 0 { Protocol::Tcp } else { Protocol::Udp },
        port: port(80),
        target: TargetPort::Number(port(8080)),
        node_port: has_node_port.then(|| port(30000 + u16::from(index) * 2 + number)),
    });
    let balancer = (service_type == ServiceType::LoadBalancer).then(|| addr(ip_families[0], 203, address + 1));
    Service {
        service_type,
        headless: false,
        cluster_ips: ip_families.iter().map(|family| addr(*family, 96, address + 1)).collect(),
        ports: ports.collect(),
        ip_families,
        selector: BTreeMap::new(),
        external_policy: policy(random),
        internal_policy: policy(random),
        load_balancer_ips: balancer.into_iter().collect(),
        external_ips: vec![],
        source_ranges: vec![],
        affinity_seconds: None,
        external_name: None,
        publish_not_ready: false,
        health_check_node_port: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        foreign_proxy: false,
        balancer: None,
    }
}

/// A slice of a Service with random endpoints.
pub(crate) fn slice(random: &mut Random, name: &str, service: &Service, family: IpFamily) -> EndpointSlice {
    let mut endpoints = Vec::new();
    for host in 0..PODS {
        if random.once_in(2) {
            continue;
        }
        let (ready, terminating) = (!random.once_in(4), random.once_in(4));
        endpoints.push(Endpoint {
            address: addr(family, 1, host + 1),
            ready: ready && !terminating,
            serving: ready,
            terminating,
            node: Some(if random.once_in(3) { "node1" } else { "node2" }.to_owned()),
            pod: None,
            hostname: None,
        });
    }
    let ports = service.ports.iter().map(|service_port| EndpointPort {
        name: service_port.name.clone(),
        protocol: service_port.protocol,
        port: port(8080),
    });
    EndpointSlice {
        service: name.to_owned(),
        family,
        ports: ports.collect(),
        endpoints,
        triggered: None,
        of_controller: false,
    }
}
