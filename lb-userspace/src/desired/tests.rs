//! What the file source never lets through, or what is easier to say in types than in a scenario.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Desired, FrontendKind, HealthCheck, desired,
    fixture::{endpoint, name, port, service, web},
};
use crate::model::{Endpoint, EndpointPort, IpFamily, Protocol, ServicePort, ServiceType, TrafficPolicy};

fn frontends(desired: &Desired, service: &str) -> Vec<(FrontendKind, IpAddr, u16)> {
    let ports = desired.services.iter().filter(|(key, _)| key.service == name(service));
    let all = ports.flat_map(|(_, port)| &port.frontends);
    all.map(|frontend| (frontend.kind, frontend.addr, frontend.port.get())).collect()
}

#[test]
fn rule_2_1_2_without_families_the_cluster_ip_tells_its_own() {
    let (mut model, node) = web();
    let web = model.services.get_mut(&name("web")).expect("exists");
    web.ip_families.clear();
    assert_eq!(frontends(&desired(&model, &node), "web").len(), 3);
    let web = model.services.get_mut(&name("web")).expect("exists");
    web.ip_families = vec![IpFamily::V6];
    assert_eq!(desired(&model, &node).services.len(), 0, "a cluster IP outside its family is no VIP");
}

#[test]
fn rule_2_1_3_load_balancer_addresses_of_a_family_the_service_lacks_are_left_alone() {
    let (mut model, node) = web();
    let other: IpAddr = "2001:db8::7".parse().expect("an address");
    model.services.get_mut(&name("web")).expect("exists").load_balancer_ips.push(other);
    let desired = desired(&model, &node);
    assert!(!desired.vips.contains(&other));
    assert!(frontends(&desired, "web").iter().all(|(_, addr, _)| *addr != other));
}

#[test]
fn a_frontend_two_services_claim_stays_with_the_lower_name_and_the_other_keeps_the_rest() {
    let (mut model, node) = web();
    let mut rival = service();
    rival.cluster_ips = vec![[10, 96, 0, 11].into()];
    model.services.insert(name("aaa"), rival);
    let desired = desired(&model, &node);
    assert_eq!(frontends(&desired, "aaa").len(), 3);
    assert_eq!(frontends(&desired, "web"), [(FrontendKind::ClusterIp, IpAddr::from([10, 96, 0, 10]), 80)]);
    let causes: Vec<_> = desired.problems.iter().map(|problem| (&*problem.object, &*problem.cause)).collect();
    assert_eq!(
        causes,
        [
            ("Service default/web", "NodePort 192.0.2.1:30080/TCP already belongs to Service default/aaa"),
            ("Service default/web", "LoadBalancer 203.0.113.7:80/TCP already belongs to Service default/aaa"),
        ]
    );
}

#[test]
fn rule_2_7_3_the_nodes_own_address_is_what_bind_address_says() {
    let (mut model, mut node) = web();
    model.services.get_mut(&name("web")).expect("exists").source_ranges =
        vec!["198.51.100.0/24".parse().expect("a range")];
    let balancer: IpNet = "203.0.113.7/32".parse().expect("an address");
    model.nodes.get_mut("node1").expect("exists").internal_ips = vec![[192, 0, 2, 1].into()];
    for (bind_address, takes) in [(None, false), (Some([198, 51, 100, 9]), true), (Some([192, 0, 2, 9]), false)] {
        node.bind_address = bind_address.map(IpAddr::from);
        let desired = desired(&model, &node);
        let sources = desired.services.values().flat_map(|port| &port.sources);
        assert_eq!(sources.copied().any(|net| net == balancer), takes, "{bind_address:?}");
    }
    // Where the Node says another one of the family, that is no address of this node's.
    model.nodes.get_mut("node1").expect("exists").internal_ips = vec![[198, 51, 100, 1].into()];
    let sources = desired(&model, &node).services.into_values().flat_map(|port| port.sources);
    assert!(sources.into_iter().all(|net| net != balancer));
    // Another family's says nothing about this one.
    node.bind_address = Some("2001:db8::9".parse().expect("an address"));
    let sources = desired(&model, &node).services.into_values().flat_map(|port| port.sources);
    assert!(sources.into_iter().any(|net| net == balancer));
}

#[test]
fn the_same_port_in_tcp_and_udp_is_two_services() {
    let (mut model, node) = web();
    let web = model.services.get_mut(&name("web")).expect("exists");
    let tcp = web.ports[0].clone();
    web.ports.push(ServicePort { protocol: Protocol::Udp, ..tcp });
    let desired = desired(&model, &node);
    assert_eq!((desired.services.len(), desired.problems.len()), (2, 0));
    assert_eq!(frontends(&desired, "web").len(), 6);
}

#[test]
fn two_ports_of_one_name_are_named_as_a_problem() {
    let (mut model, node) = web();
    let web = model.services.get_mut(&name("web")).expect("exists");
    let first = web.ports[0].clone();
    web.ports.push(ServicePort { port: port(81), ..first });
    let desired = desired(&model, &node);
    assert_eq!((desired.services.len(), desired.problems.len()), (1, 1));
    assert!(desired.problems[0].cause.contains("two ports are named \"http\""));
}

#[test]
fn unroutable_endpoints_are_left_out_and_named_once() {
    let (mut model, node) = web();
    let slice = model.slices.get_mut(&name("web-1")).expect("exists");
    for host in [[127, 0, 0, 1], [169, 254, 0, 1], [224, 0, 0, 1], [0, 0, 0, 0], [255, 255, 255, 255]] {
        slice.endpoints.push(endpoint(host, "node1", true));
    }
    let desired = desired(&model, &node);
    let service = desired.services.values().next().expect("one");
    assert_eq!((service.backends.len(), desired.problems.len()), (2, 5));
}

#[test]
fn a_service_that_is_not_of_its_type_any_more_has_no_leftover_frontends() {
    let (mut model, node) = web();
    model.services.get_mut(&name("web")).expect("exists").service_type = ServiceType::ClusterIp;
    let desired = desired(&model, &node);
    assert_eq!(frontends(&desired, "web").len(), 1);
    assert_eq!(desired.vips.len(), 1);
}

#[test]
fn rule_2_4_1_a_detector_of_the_other_family_is_none() {
    let (mut model, node) = web();
    let own = model.nodes.get_mut("node1").expect("exists");
    own.pod_cidrs = vec!["fd00:10:244:1::/64".parse().expect("a prefix")];
    let desired = desired(&model, &node);
    let service = desired.services.values().next().expect("one");
    assert!(service.frontends.iter().all(|it| it.kind != FrontendKind::ClusterIp || !it.outside.masquerade()));
}

#[test]
fn rule_2_6_3_ready_addresses_here_count_once_whatever_their_ports() {
    let (mut model, node) = web();
    let check = |model: &crate::model::Model| desired(model, &node).health_checks.get(&name("web")).copied();
    assert_eq!(check(&model), None, "no port is known");
    let web = model.services.get_mut(&name("web")).expect("exists");
    web.health_check_node_port = Some(port(30999));
    web.ports.push(ServicePort { name: "admin".to_owned(), port: port(81), node_port: None, ..web.ports[0].clone() });
    let slice = model.slices.get_mut(&name("web-1")).expect("exists");
    slice.ports.push(EndpointPort { name: "admin".to_owned(), port: port(8081), ..slice.ports[0].clone() });
    assert_eq!(check(&model), Some(HealthCheck { port: port(30999), local: 1 }), "two ports of one pod");
    let slice = model.slices.get_mut(&name("web-1")).expect("exists");
    slice.endpoints.push(endpoint([10, 244, 1, 6], "node1", true));
    slice.endpoints.push(endpoint([10, 244, 1, 7], "node1", false));
    let leaving = Endpoint { serving: true, terminating: true, ..endpoint([10, 244, 1, 8], "node1", false) };
    slice.endpoints.push(leaving);
    assert_eq!(check(&model).map(|check| check.local), Some(2), "neither those not ready nor those that leave");
    // The other family's addresses are those of the same pods.
    let mut other = model.slices.get(&name("web-1")).expect("exists").clone();
    other.family = IpFamily::V6;
    other.endpoints =
        vec![Endpoint { address: "fd00::5".parse().expect("an address"), ..endpoint([0; 4], "node1", true) }];
    model.slices.insert(name("web-2"), other);
    let web = model.services.get_mut(&name("web")).expect("exists");
    web.ip_families.push(IpFamily::V6);
    web.cluster_ips.push("fd00:96::10".parse().expect("an address"));
    assert_eq!(check(&model).map(|check| check.local), Some(2));
    model.slices.get_mut(&name("web-1")).expect("exists").endpoints.clear();
    assert_eq!(check(&model).map(|check| check.local), Some(1));
}

#[test]
fn rule_2_6_1_only_load_balancers_with_policy_local_are_probed() {
    let (mut model, node) = web();
    let all = [ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer];
    for (service_type, policy) in
        all.into_iter().flat_map(|it| [(it, TrafficPolicy::Cluster), (it, TrafficPolicy::Local)])
    {
        let web = model.services.get_mut(&name("web")).expect("exists");
        (web.service_type, web.external_policy, web.health_check_node_port) = (service_type, policy, Some(port(30999)));
        let probed = desired(&model, &node).health_checks.contains_key(&name("web"));
        assert_eq!(probed, service_type == ServiceType::LoadBalancer && policy == TrafficPolicy::Local);
    }
}
