//! The order of backends in a ring.

use std::{collections::BTreeSet, hash::Hasher, net::IpAddr};

use siphasher::sip::SipHasher13;

use crate::desired::{BackendAddr, ServiceKey};

/// Rendezvous order: each backend's place depends on the service port and on itself, so a ring that gains or loses a
/// backend keeps the order of the others, and every node has the same order.
pub(super) fn ring_order(key: &ServiceKey, backends: &BTreeSet<BackendAddr>) -> Vec<BackendAddr> {
    let mut scored: Vec<_> = backends.iter().map(|backend| (score(key, *backend), *backend)).collect();
    scored.sort_unstable_by(|a, b| b.cmp(a));
    scored.into_iter().map(|(_, backend)| backend).collect()
}

/// Fed byte by byte and not by `Hash`, whose bytes may differ between compilers: the order must survive upgrades.
fn score(key: &ServiceKey, backend: BackendAddr) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x6261_6c6c_6173_7400, 0x7269_6e67_0000_0001);
    for part in [&*key.service.namespace, &*key.service.name, &*key.port_name, &*key.protocol.to_string()] {
        hasher.write(part.as_bytes());
        hasher.write(&[0]);
    }
    match backend.addr {
        IpAddr::V4(addr) => hasher.write(&addr.octets()),
        IpAddr::V6(addr) => hasher.write(&addr.octets()),
    }
    hasher.write(&backend.port.get().to_be_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::{IpFamily, ObjectName, Protocol};

    #[test]
    fn losing_a_backend_keeps_the_order_of_the_others() {
        let key = ServiceKey {
            service: ObjectName { namespace: "default".into(), name: "web".into() },
            port_name: String::new(),
            protocol: Protocol::Tcp,
            family: IpFamily::V4,
        };
        let port = NonZeroU16::new(80).expect("not zero");
        let all: BTreeSet<_> = (1..=50).map(|host| BackendAddr { addr: [10, 0, 0, host].into(), port }).collect();
        let order = ring_order(&key, &all);
        assert_ne!(order, all.iter().copied().collect::<Vec<_>>());
        for gone in &all {
            let mut rest = all.clone();
            rest.remove(gone);
            let kept: Vec<_> = order.iter().copied().filter(|backend| backend != gone).collect();
            assert_eq!(ring_order(&key, &rest), kept);
        }
    }
}
