//! Addresses that nobody names: one the Service's group has already, else the lowest that is free.

use std::{collections::HashMap, net::IpAddr, num::NonZeroU16};

use super::{
    Pool, Pools, Reason, Refusal,
    assign::{Case, Office},
    tenants::Tenant,
    wish::Group,
};
use crate::model::{IpFamily, Protocol};

/// Where an address is shared: by a group, in a pool, of a family.
type Place<'a> = (Group<'a>, usize, IpFamily);
type Ports = Vec<(Protocol, NonZeroU16)>;

/// The search for addresses that nobody names. Addresses are only taken while it goes on: what was not free is not looked
/// at again.
pub(super) struct Search<'a> {
    /// The lowest address that may be free, by pool and family: its range, and itself.
    free: HashMap<(usize, IpFamily), Option<(usize, IpAddr)>>,
    shared: HashMap<Place<'a>, Vec<IpAddr>>,
    /// How many of a place's addresses have no room for these ports.
    full: HashMap<(Place<'a>, Ports), usize>,
}

impl<'a> Search<'a> {
    pub(super) fn new(office: &Office<'a>) -> Self {
        let mut shared: HashMap<Place<'a>, Vec<IpAddr>> = HashMap::new();
        for (ip, group) in office.tenants.shared() {
            let Some(pool) = office.pools.place(ip) else { continue };
            shared.entry((group, pool, IpFamily::of(&ip))).or_default().push(ip);
        }
        Self { free: HashMap::new(), shared, full: HashMap::new() }
    }

    /// Gives what is missing, or says why it cannot.
    pub(super) fn complete(&mut self, office: &mut Office<'a>, case: &mut Case<'a>) {
        let families = &case.tenant.service.ip_families;
        let missing: Vec<IpFamily> = families.iter().copied().filter(|family| case.given(*family).is_none()).collect();
        let pools: Vec<usize> = if missing.is_empty() || case.closed {
            Vec::new()
        } else {
            let all = office.pools.pools.iter().enumerate();
            all.filter(|(_, pool)| pool.auto_assign && office.selects(pool, &case.tenant)).map(|(at, _)| at).collect()
        };
        let mut found = Vec::new();
        let open: Vec<IpFamily> =
            missing.into_iter().filter(|family| !case.closed && !case.is_requested(*family)).collect();
        for family in open {
            match pools.iter().find_map(|pool| self.find(office, &case.tenant, *pool, family)) {
                Some(ip) => found.push(ip),
                None => case.refusals.push(none_left(office.pools, &pools, family)),
            }
        }
        if case.needs_both() && case.given.len() + found.len() < families.len() {
            // One it held before stays: nothing that works ends by this.
            found.clear();
            case.given.retain(|ip| {
                case.held.contains(ip) || {
                    office.tenants.remove(*ip, &case.tenant);
                    case.gave_up = true;
                    false
                }
            });
            if case.given.is_empty() {
                case.refusals.push(Refusal {
                    reason: Reason::BothFamilies,
                    field: "spec.ipFamilyPolicy".to_owned(),
                    cause: "RequireDualStack, but an address of each family cannot be had".to_owned(),
                    fix: "use PreferDualStack, which takes what there is".to_owned(),
                });
            }
        }
        for ip in found {
            self.give(office, case, ip);
        }
    }

    fn give(&mut self, office: &mut Office<'a>, case: &mut Case<'a>, ip: IpAddr) {
        let is_new = office.tenants.is_free(ip);
        office.tenants.add(ip, &case.tenant);
        case.given.push(ip);
        if is_new
            && let Some(group) = case.tenant.group
            && let Some(pool) = office.pools.place(ip)
        {
            self.shared.entry((group, pool, IpFamily::of(&ip))).or_default().push(ip);
        }
    }

    /// An address of a pool: one its group has already, else the lowest that is free.
    fn find(&mut self, office: &Office<'a>, tenant: &Tenant<'a>, pool: usize, family: IpFamily) -> Option<IpAddr> {
        if let Some(group) = tenant.group {
            let place = (group, pool, family);
            let mut ports: Ports = tenant.ports().collect();
            ports.sort_unstable();
            let all = self.shared.get(&place).map_or(&[][..], Vec::as_slice);
            let full = self.full.entry((place, ports)).or_default();
            while let Some(ip) = all.get(*full) {
                if office.tenants.check(*ip, tenant).is_ok() {
                    return Some(*ip);
                }
                *full += 1;
            }
        }
        self.lowest(office, pool, family)
    }

    fn lowest(&mut self, office: &Office<'a>, at: usize, family: IpFamily) -> Option<IpAddr> {
        let pool = office.pools.pools.get(at)?;
        let first_of = |from: usize| {
            let ranges = pool.ranges.iter().enumerate().skip(from);
            ranges.into_iter().find(|(_, range)| range.family() == family).map(|(place, range)| (place, range.first))
        };
        let next = self.free.entry((at, family)).or_insert_with(|| first_of(0));
        while let Some((place, ip)) = *next {
            if !pool.avoids(ip) && office.tenants.is_free(ip) && (office.around.taken)(ip).is_none() {
                return Some(ip);
            }
            let after = pool.ranges.get(place).and_then(|range| range.after(ip));
            *next = after.map(|ip| (place, ip)).or_else(|| first_of(place + 1));
        }
        None
    }
}

fn none_left(pools: &Pools, selecting: &[usize], family: IpFamily) -> Refusal {
    let refuse = |reason, cause: String, fix: &str| Refusal {
        reason,
        field: "spec.type".to_owned(),
        cause,
        fix: fix.to_owned(),
    };
    let selecting = selecting.iter().filter_map(|place| pools.pools.get(*place));
    let (with, without): (Vec<&Pool>, Vec<&Pool>) = selecting.partition(|pool| pool.has_family(family));
    let words = |pools: &[&Pool]| pools.iter().take(8).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match (&*with, &*without) {
        ([], []) => refuse(
            Reason::NoPool,
            "no address pool is for this Service".to_owned(),
            "see the pools' namespaces and selectors; those with autoAssign: false want to be asked for an address",
        ),
        ([], _) => {
            let cause = format!("no address pool for this Service has {family} addresses: {}", words(&without));
            refuse(Reason::NoPool, cause, "add some to a pool, or ask for one family in spec.ipFamilies")
        }
        _ => {
            let cause = format!("no {family} address is left in {}", words(&with));
            refuse(Reason::PoolsExhausted, cause, "widen a pool, or remove Services of type LoadBalancer")
        }
    }
}
