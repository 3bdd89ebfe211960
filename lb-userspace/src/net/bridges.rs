//! Whether netfilter sees what a bridge forwards.

use std::{fs, path::Path};

use super::{
    Link,
    roles::{Device, Role},
};
use crate::report::Problem;

/// What to know about the bridges that pods hang on; `sysctls` is `/proc/sys/net`.
///
/// A pod's question to a Service is routed, the answer of a pod on the same bridge only bridged. Our hooks on the ports
/// see both; netfilter sees the answer by `br_netfilter` alone.
pub fn warnings(links: &[Link], devices: &[Device], sysctls: &Path) -> Vec<Problem> {
    let on = |name: &str| {
        let path = sysctls.join("bridge").join(name);
        fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
    };
    // The kernel asks the bridge's own switch and this one.
    let everywhere = on("bridge-nf-call-iptables") && on("bridge-nf-call-ip6tables");
    let has_pods = |bridge: &Link| {
        let port = |link: &&Link| link.master == Some(bridge.ifindex);
        let pod = |link: &Link| devices.iter().any(|device| device.ifindex == link.ifindex && device.role == Role::Pod);
        links.iter().filter(port).any(pod)
    };
    links
        .iter()
        .filter(|link| link.kind.as_deref() == Some("bridge") && !everywhere && !link.netfilter && has_pods(link))
        .map(|bridge| Problem {
            object: format!("bridge {}", bridge.name),
            cause: "netfilter does not see what it forwards, so not the answer of a pod to another one of this node: \
                    a rule that drops INVALID ends connections between them through a Service"
                .to_owned(),
            fix: "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1 \
                  net.bridge.bridge-nf-call-ip6tables=1; without such a rule nothing is to be done"
                .to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(link: &Link, role: Role, settings: Option<[&str; 2]>) -> Vec<String> {
        let folder = tempfile::tempdir().expect("a directory");
        if let Some([ipv4, ipv6]) = settings {
            let bridge = folder.path().join("bridge");
            fs::create_dir(&bridge).expect("a directory");
            fs::write(bridge.join("bridge-nf-call-iptables"), ipv4).expect("a file");
            fs::write(bridge.join("bridge-nf-call-ip6tables"), ipv6).expect("a file");
        }
        let port = Link { ifindex: 3, name: "veth0".to_owned(), master: Some(2), up: true, ..Link::default() };
        let device = Device {
            ifindex: 3,
            name: "veth0".to_owned(),
            role,
            why: String::new(),
            resting: false,
            xdp: false,
            xdp_why: String::new(),
            xdp_cost: None,
        };
        let warnings = warnings(&[link.clone(), port], &[device], folder.path());
        warnings.into_iter().map(|problem| problem.object).collect()
    }

    #[test]
    fn a_bridge_of_pods_that_netfilter_does_not_see_is_told() {
        let bridge =
            Link { ifindex: 2, name: "cni0".to_owned(), kind: Some("bridge".to_owned()), up: true, ..Link::default() };
        let told = ["bridge cni0".to_owned()];
        assert_eq!(warned(&bridge, Role::Pod, None), told);
        assert_eq!(warned(&bridge, Role::Pod, Some(["0\n", "0\n"])), told);
        assert_eq!(warned(&bridge, Role::Pod, Some(["1\n", "0\n"])), told);
        assert_eq!(warned(&bridge, Role::Pod, Some(["1\n", "1\n"])), [""; 0]);
        assert_eq!(warned(&bridge, Role::Uplink, None), [""; 0]);
        assert_eq!(warned(&Link { netfilter: true, ..bridge.clone() }, Role::Pod, None), [""; 0]);
        assert_eq!(warned(&Link { kind: Some("bond".to_owned()), ..bridge }, Role::Pod, None), [""; 0]);
    }
}
