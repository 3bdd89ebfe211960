//! What a frontend does for each kind of client, from the traffic policies (semantics.md 2.3, 2.4).

use std::net::IpAddr;

use lb_common::frontend::{ClientRule, Scope};

use crate::model::TrafficPolicy;

/// The rules of one frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) pod: ClientRule,
    pub(crate) host: ClientRule,
    pub(crate) outside: ClientRule,
}

impl Rules {
    /// A cluster IP. The policy decides the set for everyone; the source is rewritten unless the detector calls it a
    /// pod, and without a detector never; with `masquerade_all` always (semantics.md 2.4.1).
    pub(super) const fn internal(policy: TrafficPolicy, has_detector: bool, masquerade_all: bool) -> Self {
        let scope = match policy {
            TrafficPolicy::Cluster => Scope::Cluster,
            TrafficPolicy::Local => Scope::Local,
        };
        let stranger = ClientRule::new(scope, has_detector || masquerade_all);
        Self { pod: ClientRule::new(scope, masquerade_all), host: stranger, outside: stranger }
    }

    /// A nodePort or load balancer address. Policy Cluster always rewrites the source (semantics.md 2.4.2). Policy
    /// Local holds for outsiders only: pods and this node's processes reach the whole cluster (2.3.4, 2.3.5, 2.4.3).
    pub(super) const fn external(policy: TrafficPolicy) -> Self {
        match policy {
            TrafficPolicy::Cluster => {
                let everyone = ClientRule::new(Scope::Cluster, true);
                Self { pod: everyone, host: everyone, outside: everyone }
            }
            TrafficPolicy::Local => Self {
                pod: ClientRule::new(Scope::Cluster, false),
                host: ClientRule::new(Scope::Cluster, true),
                outside: ClientRule::new(Scope::Local, false),
            },
        }
    }

    /// Whether they are those of a cluster IP: one set for everyone and no pod's source rewritten, which no nodePort or
    /// load balancer address has.
    pub(crate) fn are_internal(self) -> bool {
        !self.pod.masquerade() && self.pod.scope() == self.outside.scope()
    }

    /// Whether any client is sent to the set.
    pub(super) fn use_scope(self, scope: Scope) -> bool {
        [self.pod, self.host, self.outside].iter().any(|rule| rule.scope() == scope)
    }
}

/// Why no packet can be sent to an address from here, or `None` when one can.
pub(super) fn unroutable(addr: IpAddr) -> Option<&'static str> {
    if addr.is_loopback() {
        return Some("a loopback address");
    }
    if addr.is_unspecified() {
        return Some("the unspecified address");
    }
    if addr.is_multicast() {
        return Some("a multicast address");
    }
    match addr {
        IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address written as IPv6"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_and_external_rules_are_told_apart() {
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            for has_detector in [true, false] {
                assert!(Rules::internal(policy, has_detector, false).are_internal());
            }
            assert!(!Rules::external(policy).are_internal());
        }
    }
}
