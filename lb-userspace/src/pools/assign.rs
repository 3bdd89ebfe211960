//! Which Service gets which addresses.
//!
//! What is held stays, what is asked for comes next, then what nobody names; each in the order of namespace and name, so
//! that the result does not depend on the order in which Services came.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    num::NonZeroU16,
};

use super::{
    Pool, Pools, Reason, Refusal,
    tenants::{Conflict, Tenant, Tenants},
    wish::{Group, Requested, group, requested},
};
use crate::model::{IpFamily, ObjectName, Protocol, Service};

/// Services that give up an address for another may each wait for the next; so often it is looked again.
const MOVES: usize = 16;

/// A Service and the addresses it has.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    /// Name.
    pub name: &'a ObjectName,
    /// The Service.
    pub service: &'a Service,
    /// Addresses it has.
    pub held: &'a [IpAddr],
    /// Whether its addresses are given here; else what it holds is written by somebody else and nobody's to give.
    pub ours: bool,
}

/// What else decides.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Labels of a namespace, where they are known.
    pub labels: &'a dyn Fn(&str) -> Option<&'a BTreeMap<String, String>>,
    /// Whose an address is that is no load balancer address: `a cluster IP of Service default/db`.
    pub taken: &'a dyn Fn(IpAddr) -> Option<String>,
}

/// An address, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The address.
    pub ip: IpAddr,
    /// Name of its pool.
    pub pool: String,
}

/// What becomes of a Service: an address for each family, or a refusal; both where it keeps what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// In the order of its families.
    pub addresses: Vec<Granted>,
    /// Why some are missing, or not those it asks for.
    pub refusals: Vec<Refusal>,
}

/// Assigns addresses to all Services that are ours; pure, and the same for any order of `claimants`.
pub fn assign<'a>(
    pools: &'a Pools,
    claimants: impl IntoIterator<Item = Claimant<'a>>,
    around: Surroundings<'a>,
) -> BTreeMap<ObjectName, Assignment> {
    let mut claimants: Vec<Claimant<'a>> = claimants.into_iter().collect();
    claimants.sort_unstable_by_key(|claimant| claimant.name);
    let mut office = Office { pools, around, tenants: Tenants::default() };
    let mut cases: Vec<Case<'a>> = claimants.iter().filter(|claimant| claimant.ours).map(Case::of).collect();
    for case in &mut cases {
        office.keep(case);
    }
    for claimant in claimants.iter().filter(|claimant| !claimant.ours) {
        let tenant = Tenant { name: claimant.name, service: claimant.service, group: group(claimant.service) };
        for ip in claimant.held {
            office.tenants.add(*ip, &tenant);
        }
    }
    office.grant_requests(&mut cases);
    complete(&mut office, &mut cases);
    cases.into_iter().map(|case| (case.tenant.name.clone(), case.assignment(pools))).collect()
}

/// Gives what is missing. Whoever has to give something up makes room for those who found none.
fn complete<'a>(office: &mut Office<'a>, cases: &mut [Case<'a>]) {
    let mut open: Vec<usize> = (0..cases.len()).collect();
    loop {
        let mut search = Search::new(office);
        let mut given_up = false;
        for place in &open {
            let Some(case) = cases.get_mut(*place) else { continue };
            let before = case.gave_up;
            search.complete(office, case);
            given_up |= case.gave_up != before;
        }
        if !given_up {
            return;
        }
        // Nobody gives up twice: what it asks for is not tried again.
        open = (0..cases.len()).filter(|place| cases.get_mut(*place).is_some_and(Case::reopen)).collect();
    }
}

/// A Service on its way to its addresses.
struct Case<'a> {
    tenant: Tenant<'a>,
    held: &'a [IpAddr],
    requested: Vec<Requested>,
    given: Vec<IpAddr>,
    refusals: Vec<Refusal>,
    /// Nothing can be decided for it: what it asks for is not understood.
    closed: bool,
    /// It got an address and had to give it up.
    gave_up: bool,
}

impl<'a> Case<'a> {
    fn of(claimant: &Claimant<'a>) -> Self {
        let service = claimant.service;
        let tenant = Tenant { name: claimant.name, service, group: group(service) };
        let (requested, refusals) = match requested(service) {
            Ok(requested) => (requested, Vec::new()),
            Err(refusal) => (Vec::new(), vec![refusal]),
        };
        let closed = !refusals.is_empty();
        Self { tenant, held: claimant.held, requested, given: Vec::new(), refusals, closed, gave_up: false }
    }

    fn given(&self, family: IpFamily) -> Option<IpAddr> {
        self.given.iter().copied().find(|ip| IpFamily::of(ip) == family)
    }

    fn is_requested(&self, family: IpFamily) -> bool {
        self.requested.iter().any(|requested| IpFamily::of(&requested.ip) == family)
    }

    fn needs_both(&self) -> bool {
        self.tenant.service.balancer.as_ref().is_some_and(|balancer| balancer.both_families)
    }

    /// Whether it found no address in full pools, which is then forgotten.
    fn reopen(&mut self) -> bool {
        let asks = |refusal: &Refusal| !matches!(refusal.reason, Reason::PoolsExhausted | Reason::BothFamilies);
        let is_open = !self.gave_up && self.refusals.iter().any(|it| it.reason == Reason::PoolsExhausted);
        if is_open {
            self.refusals.retain(asks);
        }
        is_open
    }

    fn assignment(self, pools: &Pools) -> Assignment {
        let families = self.tenant.service.ip_families.iter();
        let granted = |ip: IpAddr| Some(Granted { ip, pool: pools.of(ip)?.name.clone() });
        let addresses = families.filter_map(|family| self.given(*family).and_then(granted)).collect();
        Assignment { addresses, refusals: self.refusals }
    }
}

/// Where addresses are given.
struct Office<'a> {
    pools: &'a Pools,
    around: Surroundings<'a>,
    tenants: Tenants<'a>,
}

impl<'a> Office<'a> {
    fn selects(&self, pool: &Pool, tenant: &Tenant<'a>) -> bool {
        pool.selects(tenant.name, tenant.service, (self.around.labels)(&tenant.name.namespace))
    }

    /// One address of each family that it holds and may hold.
    fn keep(&mut self, case: &mut Case<'a>) {
        for ip in case.held {
            let family = IpFamily::of(ip);
            let may = case.tenant.service.ip_families.contains(&family)
                && case.given(family).is_none()
                && self.pools.of(*ip).is_some_and(|pool| self.selects(pool, &case.tenant))
                && (self.around.taken)(*ip).is_none()
                && self.tenants.check(*ip, &case.tenant).is_ok();
            if may {
                self.tenants.add(*ip, &case.tenant);
                case.given.push(*ip);
            }
        }
    }

    /// Whoever gives up an address may make another request possible: they are asked again while that is so.
    fn grant_requests(&mut self, cases: &mut [Case<'a>]) {
        let mut waiting: Vec<(usize, Requested)> = Vec::new();
        for (place, case) in cases.iter().enumerate() {
            let others = case.requested.iter().filter(|requested| !case.given.contains(&requested.ip));
            waiting.extend(others.map(|requested| (place, requested.clone())));
        }
        for _ in 0..MOVES {
            let before = waiting.len();
            waiting.retain(|(place, requested)| {
                cases.get_mut(*place).is_some_and(|case| self.grant(case, requested).is_err())
            });
            if waiting.len() == before {
                break;
            }
        }
        for (place, requested) in waiting {
            let Some(case) = cases.get_mut(place) else { continue };
            if let Err(mut refusal) = self.grant(case, &requested) {
                if let Some(kept) = case.given(IpFamily::of(&requested.ip)) {
                    refusal.cause.push_str(&format!(": {kept} stays"));
                }
                case.refusals.push(refusal);
            }
        }
    }

    /// The address it asks for, in the place of the one it has.
    fn grant(&mut self, case: &mut Case<'a>, requested: &Requested) -> Result<(), Refusal> {
        let ip = requested.ip;
        self.may_have(&case.tenant, requested)?;
        if let Some(old) = case.given(IpFamily::of(&ip)) {
            self.tenants.remove(old, &case.tenant);
            case.given.retain(|given| *given != old);
        }
        self.tenants.add(ip, &case.tenant);
        case.given.push(ip);
        Ok(())
    }

    fn may_have(&self, tenant: &Tenant<'a>, Requested { ip, field }: &Requested) -> Result<(), Refusal> {
        let refuse =
            |reason, cause: String, fix: &str| Refusal { reason, field: field.clone(), cause, fix: fix.to_owned() };
        let Some(pool) = self.pools.of(*ip) else {
            let names: Vec<String> = self.pools.iter().take(8).map(ToString::to_string).collect();
            let cause = format!("{ip} is of no address pool; there are {}", names.join(", "));
            return Err(refuse(Reason::OutsidePools, cause, "ask for an address of one of them, or add it to one"));
        };
        if !self.selects(pool, tenant) {
            let cause = format!("{ip} is of pool {}, which is not for this Service", pool.name);
            return Err(refuse(Reason::NotSelected, cause, "see the pool's namespaces and selectors"));
        }
        if pool.avoids(*ip) {
            let cause = format!("{ip} is of pool {}, which gives no address that ends in .0 or .255", pool.name);
            return Err(refuse(Reason::OutsidePools, cause, "ask for another, or set avoidBuggyIPs: false"));
        }
        if let Some(owner) = (self.around.taken)(*ip) {
            let cause = format!("{ip} of pool {} is {owner}", pool.name);
            return Err(refuse(Reason::AddressTaken, cause, "ask for another"));
        }
        let Err(conflict) = self.tenants.check(*ip, tenant) else { return Ok(()) };
        let have = |owner: &ObjectName| format!("{ip} of pool {} belongs to Service {owner}", pool.name);
        Err(match conflict {
            Conflict::Alone(owner) => {
                let fix = "ask for another, or give both the same annotation ballast.dev/allow-shared-ip";
                refuse(Reason::AddressTaken, have(owner), fix)
            }
            Conflict::OtherPods(owner) => {
                let cause =
                    format!("{}, and with externalTrafficPolicy: Local only the same pods share one", have(owner));
                refuse(
                    Reason::AddressTaken,
                    cause,
                    "ask for another, or use the same selector or policy Cluster in both",
                )
            }
            Conflict::SamePort(owner, (protocol, port)) => {
                let cause = format!("{}, which has port {port}/{protocol} too", have(owner));
                refuse(Reason::AddressTaken, cause, "ask for another, or use another port")
            }
        })
    }
}

/// Where an address is shared: by a group, in a pool, of a family.
type Place<'a> = (Group<'a>, usize, IpFamily);
type Ports = Vec<(Protocol, NonZeroU16)>;

/// The search for addresses that nobody names. Addresses are only taken while it goes on: what was not free is not looked
/// at again.
struct Search<'a> {
    /// The lowest address that may be free, by pool and family: its range, and itself.
    free: HashMap<(usize, IpFamily), Option<(usize, IpAddr)>>,
    shared: HashMap<Place<'a>, Vec<IpAddr>>,
    /// How many of a place's addresses have no room for these ports.
    full: HashMap<(Place<'a>, Ports), usize>,
}

impl<'a> Search<'a> {
    fn new(office: &Office<'a>) -> Self {
        let mut shared: HashMap<Place<'a>, Vec<IpAddr>> = HashMap::new();
        for (ip, group) in office.tenants.shared() {
            let Some(pool) = office.pools.place(ip) else { continue };
            shared.entry((group, pool, IpFamily::of(&ip))).or_default().push(ip);
        }
        Self { free: HashMap::new(), shared, full: HashMap::new() }
    }

    /// Gives what is missing, or says why it cannot.
    fn complete(&mut self, office: &mut Office<'a>, case: &mut Case<'a>) {
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
