//! The name service of the demo: each agent answers, and Service kube-dns leads to them.

use std::net::IpAddr;

use lb_tests::World;
use lb_userspace::model::{Model, ObjectName};
use serde_json::{Value, json};

/// Where kubeadm puts it, and its like.
const ADDRESSES: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];

/// Name of the Service.
pub(crate) fn service() -> ObjectName {
    ObjectName { namespace: "kube-system".to_owned(), name: "kube-dns".to_owned() }
}

/// The Service and its endpoints, the nodes; at its usual addresses, if they are free.
pub(crate) fn documents(world: &World, model: &Model) -> Vec<Value> {
    let ObjectName { namespace, name } = service();
    let ports = |target: &str| {
        ["UDP", "TCP"]
            .map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, target: 53, "port": 53}))
    };
    let mut spec = json!({"ipFamilyPolicy": "RequireDualStack", "ports": ports("targetPort")});
    let usual: Vec<IpAddr> = ADDRESSES.iter().filter_map(|address| address.parse().ok()).collect();
    if !model.services.values().flat_map(|service| &service.cluster_ips).any(|ip| usual.contains(ip)) {
        spec["clusterIP"] = json!(ADDRESSES[0]);
        spec["clusterIPs"] = json!(ADDRESSES);
    }
    let metadata = json!({"name": name, "namespace": namespace});
    let mut documents = vec![json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})];
    for (index, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let endpoints: Vec<_> = world
            .nodes()
            .iter()
            .map(|node| json!({"addresses": [node.ips()[index]], "nodeName": node.name()}))
            .collect();
        documents.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": format!("{name}-{}", family.to_lowercase()), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "ports": ports("port"), "endpoints": endpoints,
        }));
    }
    documents
}
