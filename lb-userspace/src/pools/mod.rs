//! Addresses for Services of type LoadBalancer: the pools they are taken from, and which Service gets which.
//!
//! ```text
//! addressPools -> Pools --+
//! Services, held ---------+-> assign -> Assignment of each Service (addresses, or why there is none)
//! ```
//! Pure, like the model. The file source keeps what was assigned in its allocation file, the controller in the Services'
//! statuses; either hands it in again as *held*. Whoever announces addresses reads the Services, not this.

mod assign;
mod parse;
mod refusal;
mod search;
mod selector;
mod tenants;
mod wish;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

pub use self::{
    assign::{Assignment, Claimant, Granted, Surroundings, assign},
    parse::{AddressPool, PoolError},
    refusal::{Reason, Refusal},
    selector::{Expression, LabelSelector, Operator},
};
use crate::model::{IpFamily, ObjectName, Service, ServiceType};

/// spec.loadBalancerClass of the Services that are ours, beside those without one.
pub const CLASS: &str = "ballast.dev/lb";
/// Annotation: addresses a Service asks for, at most one of each family, divided by commas.
pub const ANNOTATION_ADDRESSES: &str = "ballast.dev/load-balancer-ips";
/// Annotation: Services with the same value may have one address together.
pub const ANNOTATION_SHARING: &str = "ballast.dev/allow-shared-ip";
/// Label that every namespace has.
const LABEL_NAMESPACE: &str = "kubernetes.io/metadata.name";

/// Whether a Service gets its addresses from here: another class is another controller's (KEP-1959).
pub fn is_ours(service: &Service) -> bool {
    let class = service.balancer.as_ref().and_then(|balancer| balancer.class.as_deref());
    service.service_type == ServiceType::LoadBalancer && class.is_none_or(|class| class == CLASS)
}

/// Addresses from `first` to `last`, both among them, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    const fn family(&self) -> IpFamily {
        IpFamily::of(&self.first)
    }

    fn contains(&self, ip: IpAddr) -> bool {
        self.first <= ip && ip <= self.last
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The address after one, if it is of this range.
    fn after(&self, ip: IpAddr) -> Option<IpAddr> {
        let next = match ip {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip).checked_add(1)?)),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip).checked_add(1)?)),
        };
        Some(next).filter(|next| self.contains(*next))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// A pool of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Name.
    pub name: String,
    ranges: Vec<AddressRange>,
    avoid_buggy_ips: bool,
    auto_assign: bool,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
    service_selector: Option<LabelSelector>,
}

impl Pool {
    /// Whether a Service may have addresses of it.
    fn selects(&self, name: &ObjectName, service: &Service, labels: Option<&BTreeMap<String, String>>) -> bool {
        let named = |key: &str| (key == LABEL_NAMESPACE).then_some(&*name.namespace);
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str).or_else(|| named(key));
        let in_namespace = match &self.namespace_selector {
            None => self.namespaces.is_empty() || self.namespaces.contains(&name.namespace),
            Some(selector) => self.namespaces.contains(&name.namespace) || selector.matches(label),
        };
        let of_service = |key: &str| service.labels.get(key).map(String::as_str);
        in_namespace && self.service_selector.as_ref().is_none_or(|selector| selector.matches(of_service))
    }

    /// Whether an address of it is not given: a .0 or .255 of IPv4 where those are avoided.
    const fn avoids(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.avoid_buggy_ips && matches!(ip.octets(), [.., 0 | 255]),
            IpAddr::V6(_) => false,
        }
    }

    fn has_family(&self, family: IpFamily) -> bool {
        self.ranges.iter().any(|range| range.family() == family)
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let mut texts: Vec<String> = self.ranges.iter().take(SHOWN).map(ToString::to_string).collect();
        if self.ranges.len() > SHOWN {
            texts.push("...".to_owned());
        }
        write!(f, "{} ({})", self.name, texts.join(", "))
    }
}

/// All pools; no address is of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    /// In the order they are asked: by priority, then by name.
    pools: Vec<Pool>,
    /// Every range with the index of its pool, by address.
    index: Vec<(AddressRange, usize)>,
}

impl Pools {
    /// Whether there is none: then Services are left as they are.
    pub const fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// In the order they are asked.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    /// Whether one asks for labels of namespaces.
    pub fn select_namespaces(&self) -> bool {
        self.pools.iter().any(|pool| pool.namespace_selector.is_some())
    }

    /// The pool that has an address.
    pub fn of(&self, ip: IpAddr) -> Option<&Pool> {
        self.pools.get(self.place(ip)?)
    }

    fn place(&self, ip: IpAddr) -> Option<usize> {
        let after = self.index.partition_point(|(range, _)| range.first <= ip);
        let (range, pool) = self.index.get(after.checked_sub(1)?)?;
        range.contains(ip).then_some(*pool)
    }
}

#[cfg(test)]
mod neighbours;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod ranges;
#[cfg(test)]
mod tests;
