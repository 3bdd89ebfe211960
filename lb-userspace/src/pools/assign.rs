//! Which Service gets which addresses.
//!
//! What is held stays, what is asked for comes next, then what nobody names; each in the order of namespace and name, so
//! that the result does not depend on the order in which Services came.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Pool, Pools, Reason, Refusal,
    search::Search,
    tenants::{Conflict, Tenant, Tenants},
    wish::{Requested, group, requested},
};
use crate::model::{IpFamily, ObjectName, Service};

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
    /// Addresses of Services that cannot be read or understood. They stay theirs; whoever has one beside them keeps it.
    pub kept: &'a [(IpAddr, &'a ObjectName)],
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
    office.tenants.keep(around.kept);
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
pub(super) struct Case<'a> {
    pub(super) tenant: Tenant<'a>,
    pub(super) held: &'a [IpAddr],
    requested: Vec<Requested>,
    pub(super) given: Vec<IpAddr>,
    pub(super) refusals: Vec<Refusal>,
    /// Nothing can be decided for it: what it asks for is not understood.
    pub(super) closed: bool,
    /// It got an address and had to give it up.
    pub(super) gave_up: bool,
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

    pub(super) fn given(&self, family: IpFamily) -> Option<IpAddr> {
        self.given.iter().copied().find(|ip| IpFamily::of(ip) == family)
    }

    pub(super) fn is_requested(&self, family: IpFamily) -> bool {
        self.requested.iter().any(|requested| IpFamily::of(&requested.ip) == family)
    }

    pub(super) fn needs_both(&self) -> bool {
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
pub(super) struct Office<'a> {
    pub(super) pools: &'a Pools,
    pub(super) around: Surroundings<'a>,
    pub(super) tenants: Tenants<'a>,
}

impl<'a> Office<'a> {
    pub(super) fn selects(&self, pool: &Pool, tenant: &Tenant<'a>) -> bool {
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
            Conflict::Kept(owner) => {
                let cause = format!(
                    "{ip} of pool {} is kept for Service {owner}, which is refused or cannot be read",
                    pool.name
                );
                refuse(Reason::AddressTaken, cause, "ask for another, or correct that Service")
            }
            Conflict::SamePort(owner, (protocol, port)) => {
                let cause = format!("{}, which has port {port}/{protocol} too", have(owner));
                refuse(Reason::AddressTaken, cause, "ask for another, or use another port")
            }
        })
    }
}
