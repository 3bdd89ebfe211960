//! `addressPools` of a configuration, checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::Deserialize;

use super::{AddressRange, LabelSelector, Pool, Pools};
use crate::{convert::is_subdomain, model::IpFamily};

/// An entry of `addressPools`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddressPool {
    /// Name.
    #[serde(default)]
    pub name: String,
    /// `198.51.100.0/24`, `198.51.100.10-198.51.100.20`, `198.51.100.7`; IPv6 as well.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whether IPv4 addresses that end in .0 or .255 are not given: some old clients do not speak to them.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    /// Whether Services get addresses of it that do not ask for them.
    #[serde(default = "yes")]
    pub auto_assign: bool,
    /// Smaller numbers are asked first; 0, the default, last.
    #[serde(default)]
    pub priority: u32,
    /// Namespaces whose Services it is for; with `namespace_selector`, either will do.
    #[serde(default)]
    pub namespaces: BTreeSet<String>,
    /// Labels of the namespaces whose Services it is for.
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of the Services it is for.
    pub service_selector: Option<LabelSelector>,
}

const fn yes() -> bool {
    true
}

/// What is wrong with the pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolError {
    /// `addressPools[1].addresses[0]`.
    pub field: String,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl PoolError {
    fn new(field: String, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { field, cause: cause.into(), fix: fix.into() }
    }
}

impl TryFrom<Vec<AddressPool>> for Pools {
    type Error = PoolError;

    fn try_from(written: Vec<AddressPool>) -> Result<Self, PoolError> {
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        let mut ranges: Vec<Written> = Vec::new();
        let mut pools = Vec::new();
        for (place, pool) in written.into_iter().enumerate() {
            let at = |field: &str| format!("addressPools[{place}].{field}");
            if !is_subdomain(&pool.name) {
                let fix = "use lower-case letters, digits, - and .";
                return Err(PoolError::new(at("name"), format!("{:?} is no name of a pool", pool.name), fix));
            }
            if let Some(other) = names.insert(pool.name.clone(), place) {
                let cause = format!("{} is the name of addressPools[{other}] too", pool.name);
                return Err(PoolError::new(at("name"), cause, "rename one of them"));
            }
            if pool.addresses.is_empty() {
                let cause = format!("pool {} has no addresses", pool.name);
                return Err(PoolError::new(at("addresses"), cause, "write ranges such as 198.51.100.0/24"));
            }
            for (name, selector) in
                [("namespaceSelector", &pool.namespace_selector), ("serviceSelector", &pool.service_selector)]
            {
                if let Some((field, cause)) = selector.as_ref().and_then(LabelSelector::wrong) {
                    return Err(PoolError::new(at(&format!("{name}.{field}")), cause, "write it as Kubernetes does"));
                }
            }
            let mut own = Vec::new();
            for (index, text) in pool.addresses.iter().enumerate() {
                let field = at(&format!("addresses[{index}]"));
                let range = range(&field, text)?;
                own.push(range);
                ranges.push(Written { range, field, text: text.clone(), pool: pool.name.clone() });
            }
            own.sort_unstable();
            pools.push((
                pool.priority,
                Pool {
                    name: pool.name,
                    ranges: own,
                    avoid_buggy_ips: pool.avoid_buggy_ips,
                    auto_assign: pool.auto_assign,
                    namespaces: pool.namespaces,
                    namespace_selector: pool.namespace_selector,
                    service_selector: pool.service_selector,
                },
            ));
        }
        check_overlaps(ranges)?;
        pools.sort_by(|(priority, pool), (other_priority, other)| {
            (*priority == 0, *priority, &pool.name).cmp(&(*other_priority == 0, *other_priority, &other.name))
        });
        let pools: Vec<Pool> = pools.into_iter().map(|(_, pool)| pool).collect();
        let each = |(place, pool): (usize, &Pool)| pool.ranges.iter().map(|range| (*range, place)).collect::<Vec<_>>();
        let mut index: Vec<_> = pools.iter().enumerate().flat_map(each).collect();
        index.sort_unstable();
        Ok(Self { pools, index })
    }
}

/// A range as it was written.
struct Written {
    range: AddressRange,
    field: String,
    text: String,
    pool: String,
}

/// Sorted by their first addresses, neighbours overlap if any do.
fn check_overlaps(mut ranges: Vec<Written>) -> Result<(), PoolError> {
    ranges.sort_by_key(|written| written.range);
    let overlapping = ranges.windows(2).find_map(|pair| match pair {
        [one, other] if one.range.overlaps(&other.range) => Some((one, other)),
        _ => None,
    });
    let Some((one, other)) = overlapping else { return Ok(()) };
    let cause = if one.pool == other.pool {
        format!("{} and {} of pool {} overlap", other.text, one.text, one.pool)
    } else {
        format!("{} of pool {} overlaps {} of pool {} ({})", other.text, other.pool, one.text, one.pool, one.field)
    };
    Err(PoolError::new(other.field.clone(), cause, "give each address to one pool, once"))
}

/// What no Service may have.
fn special() -> [(AddressRange, &'static str); 9] {
    let v4 = |first: [u8; 4], last: [u8; 4]| AddressRange {
        first: Ipv4Addr::from(first).into(),
        last: Ipv4Addr::from(last).into(),
    };
    let v6 = |first: u128, last: u128| AddressRange {
        first: Ipv6Addr::from(first).into(),
        last: Ipv6Addr::from(last).into(),
    };
    [
        (v4([0, 0, 0, 0], [0, 255, 255, 255]), "unspecified"),
        (v4([127, 0, 0, 0], [127, 255, 255, 255]), "loopback"),
        (v4([169, 254, 0, 0], [169, 254, 255, 255]), "link-local"),
        (v4([224, 0, 0, 0], [239, 255, 255, 255]), "multicast"),
        (v4([255, 255, 255, 255], [255, 255, 255, 255]), "broadcast"),
        (v6(0, 1), "unspecified or loopback"),
        (v6(0xffff_0000_0000, 0xffff_ffff_ffff), "IPv4-mapped"),
        (v6(0xfe80 << 112, (0xfec0 << 112) - 1), "link-local"),
        (v6(0xff00 << 112, u128::MAX), "multicast"),
    ]
}

fn range(field: &str, text: &str) -> Result<AddressRange, PoolError> {
    let wrong = |cause: String, fix: &str| PoolError::new(field.to_owned(), cause, fix);
    let shapes = "write a range such as 198.51.100.0/24, 198.51.100.10-198.51.100.20 or 2001:db8::/120";
    let malformed = || wrong(format!("{text:?} is no range of addresses"), shapes);
    let range = if let Some((first, last)) = text.split_once('-') {
        let parse = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| malformed());
        let range = AddressRange { first: parse(first)?, last: parse(last)? };
        if IpFamily::of(&range.first) != IpFamily::of(&range.last) {
            return Err(wrong(format!("{text:?} begins in one family and ends in another"), shapes));
        }
        if range.first > range.last {
            return Err(wrong(format!("{text:?} ends before it begins"), "write the smaller address first"));
        }
        range
    } else if let Ok(ip) = text.trim().parse::<IpAddr>() {
        AddressRange { first: ip, last: ip }
    } else {
        let net: IpNet = text.trim().parse().map_err(|_| malformed())?;
        if net != net.trunc() {
            let fix = format!("write {} for the network, or {} for the address", net.trunc(), net.addr());
            return Err(wrong(format!("{net} is neither a network nor one address"), &fix));
        }
        AddressRange { first: net.network(), last: net.broadcast() }
    };
    if let Some((_, what)) = special().into_iter().find(|(special, _)| special.overlaps(&range)) {
        let cause = format!("{text} has {what} addresses, which traffic must not be sent to");
        return Err(wrong(cause, "leave them out"));
    }
    Ok(range)
}
