//! The resolver file of a pod with dnsPolicy `ClusterFirst`, as the kubelet writes it (`pkg/kubelet/network/dns/dns.go`).

use std::net::{IpAddr, Ipv4Addr};

use crate::model::{Model, ObjectName};

/// Where kubeadm puts the name service, and where it is taken to be if the documents do not tell.
pub const NAMESERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));

/// The cluster's zone unless another is given.
pub const ZONE: &str = "cluster.local";

/// Why the documents name no name service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is no such Service.
    #[error("the documents have no Service kube-system/kube-dns")]
    Service,
    /// It is headless, an alias, or nothing was allocated to it.
    #[error("Service kube-system/kube-dns has no cluster IP")]
    Address,
}

/// The cluster IP of Service `kube-system/kube-dns`: of its primary family.
pub fn nameserver(model: &Model) -> Result<IpAddr, Missing> {
    let name = ObjectName { namespace: "kube-system".to_owned(), name: "kube-dns".to_owned() };
    let service = model.services.get(&name).ok_or(Missing::Service)?;
    service.cluster_ips.first().copied().ok_or(Missing::Address)
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
        assert_eq!(nameserver(&Model::default()), Err(Missing::Service));
    }
}
