//! The resolver file of a pod with dnsPolicy `ClusterFirst`, as the kubelet writes it (`pkg/kubelet/network/dns/dns.go`).

use std::net::{IpAddr, Ipv4Addr};

use crate::model::{Model, ObjectName};

/// Where kubeadm puts the name service, and where it is taken to be if the documents do not tell.
pub const NAMESERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));

/// The cluster's zone unless another is given.
pub const ZONE: &str = "cluster.local";

/// The cluster IP of Service `kube-system/kube-dns`: of its primary family. `None` without the Service or its address.
pub fn nameserver(model: &Model) -> Option<IpAddr> {
    let name = ObjectName { namespace: "kube-system".to_owned(), name: "kube-dns".to_owned() };
    model.services.get(&name)?.cluster_ips.first().copied()
}

/// The file for a pod in `namespace`. `zone` has no dot at its end.
pub fn file(namespace: &str, zone: &str, nameservers: &[IpAddr]) -> String {
    let mut text = format!("search {namespace}.svc.{zone} svc.{zone} {zone}\n");
    for nameserver in nameservers {
        text.push_str(&format!("nameserver {nameserver}\n"));
    }
    text.push_str("options ndots:5\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_kubelets() {
        let text = "search shop.svc.k8s.test svc.k8s.test k8s.test\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n";
        let v6 = "fd00::a".parse().expect("an address");
        assert_eq!(file("shop", "k8s.test", &[NAMESERVER, v6]), text);
    }

    #[test]
    fn without_the_service_there_is_no_address() {
        assert_eq!(nameserver(&Model::default()), None);
    }
}
