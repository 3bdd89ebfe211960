//! What the status of each Service should say; pure.

use std::{collections::BTreeMap, net::IpAddr};

use super::underway::Underway;
use crate::{
    model::{BalancerCondition, Model, ObjectName, Service},
    pools::{self, Assignment, CLASS, Claimant, Pools, Reason, Refusal, Surroundings},
    report::Problem,
};

/// Reason of the condition of a Service that has its addresses.
const ASSIGNED: &str = "Assigned";

/// What a Service's status should say of its load balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// status.loadBalancer.ingress; none: it stays as it is, for it is another controller's.
    pub ingress: Option<Vec<IpAddr>>,
    /// Our condition; none: it goes.
    pub condition: Option<BalancerCondition>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Statuses that are not as they should be.
    pub writes: BTreeMap<ObjectName, Wanted>,
    /// Why Services have no address, or not the one they ask for.
    pub refusals: BTreeMap<ObjectName, Vec<Refusal>>,
    /// Addresses in use by pool.
    pub in_use: BTreeMap<String, u64>,
    /// Services that have addresses of ours.
    pub assigned: u64,
}

/// Whose the ingress of a Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Ours, or to become so.
    Ours,
    /// Another controller's: it is not touched.
    Another,
    /// It was ours and must go.
    Former,
}

/// Whoever finds addresses in a Service without a class and without our condition did not give them: they are taken over if
/// they are of our pools, and left alone otherwise.
fn owner(service: &Service, pools: &Pools) -> Owner {
    let balancer = service.balancer.as_deref();
    let condition = balancer.and_then(|balancer| balancer.condition.as_ref());
    let class = balancer.and_then(|balancer| balancer.class.as_deref());
    if !pools::is_ours(service) {
        // The class of a load balancer never changes; whoever has another one has got its ingress from there.
        let was_ours = condition.is_some_and(|condition| condition.is_true) && class.is_none_or(|class| class == CLASS);
        return if was_ours { Owner::Former } else { Owner::Another };
    }
    let ours = condition.is_some_and(|condition| condition.is_true) || class == Some(CLASS);
    let others = balancer.is_some_and(|balancer| balancer.other_ingress);
    let fits = || !others && service.load_balancer_ips.iter().all(|ip| pools.of(*ip).is_some());
    if ours || fits() { Owner::Ours } else { Owner::Another }
}

/// Decides for all Services. `kept` is what Services have that are refused: they are not in the model.
pub fn decide(model: &Model, pools: &Pools, underway: &Underway, kept: &[(IpAddr, &ObjectName)]) -> Decision {
    let owners: BTreeMap<&ObjectName, Owner> =
        model.services.iter().map(|(name, service)| (name, owner(service, pools))).collect();
    let claimants = model.services.iter().map(|(name, service)| Claimant {
        name,
        service,
        held: underway.ips(name).unwrap_or(&service.load_balancer_ips),
        ours: owners.get(name) == Some(&Owner::Ours),
    });
    let cluster_ips: BTreeMap<IpAddr, &ObjectName> = model
        .services
        .iter()
        .flat_map(|(name, service)| service.cluster_ips.iter().map(move |ip| (*ip, name)))
        .filter(|(ip, _)| pools.of(*ip).is_some())
        .collect();
    let taken = |ip: IpAddr| cluster_ips.get(&ip).map(|owner| format!("a cluster IP of Service {owner}"));
    let labels = |namespace: &str| model.namespace_labels.get(namespace);
    let around = Surroundings { labels: &labels, taken: &taken, kept };
    let mut assigned = pools::assign(pools, claimants, around);
    let mut decision = Decision::default();
    // Of one whose last good version is in use they are counted with that.
    for (ip, _) in kept.iter().filter(|(_, name)| !model.services.contains_key(*name)) {
        if let Some(pool) = pools.of(*ip) {
            *decision.in_use.entry(pool.name.clone()).or_default() += 1;
        }
    }
    for (name, service) in &model.services {
        let condition = service.balancer.as_ref().and_then(|balancer| balancer.condition.as_ref());
        let wanted = match (owners.get(name), assigned.remove(name)) {
            (Some(Owner::Ours), Some(assignment)) => {
                decision.count(&assignment);
                let wanted = wanted(&assignment);
                if !assignment.refusals.is_empty() {
                    decision.refusals.insert(name.clone(), assignment.refusals);
                }
                // Without pools this cluster's balancers are nobody's business here, until one of them asks for us.
                let silent = pools.is_empty() && condition.is_none() && !has_class(service);
                if silent {
                    decision.refusals.remove(name);
                    continue;
                }
                wanted
            }
            (Some(Owner::Former), _) => Wanted { ingress: Some(Vec::new()), condition: None },
            _ => Wanted { ingress: None, condition: None },
        };
        if differs(service, condition, &wanted) {
            decision.writes.insert(name.clone(), wanted);
        }
    }
    decision
}

/// Decides while there have been no good pools yet: whoever waits for an address is told why. Nobody loses one.
pub fn wait(model: &Model, problem: &Problem) -> Decision {
    let refusal = Refusal {
        reason: Reason::InvalidPools,
        field: "spec.type".to_owned(),
        cause: format!("{}: {}", problem.object, problem.cause),
        fix: problem.fix.clone(),
    };
    let mut decision = Decision::default();
    for (name, service) in &model.services {
        let others = service.balancer.as_ref().is_some_and(|balancer| balancer.other_ingress);
        if !pools::is_ours(service) || !service.load_balancer_ips.is_empty() || others {
            continue;
        }
        let refusals = vec![refusal.clone()];
        let assignment = Assignment { addresses: Vec::new(), refusals };
        let wanted = Wanted { ingress: None, ..wanted(&assignment) };
        // Whether one without a class will be ours, the pools tell: its status is left alone.
        let condition = service.balancer.as_ref().and_then(|balancer| balancer.condition.as_ref());
        if (has_class(service) || condition.is_some()) && differs(service, condition, &wanted) {
            decision.writes.insert(name.clone(), wanted);
        }
        decision.refusals.insert(name.clone(), assignment.refusals);
    }
    decision
}

fn has_class(service: &Service) -> bool {
    service.balancer.as_ref().is_some_and(|balancer| balancer.class.is_some())
}

fn differs(service: &Service, condition: Option<&BalancerCondition>, wanted: &Wanted) -> bool {
    let other = service.balancer.as_ref().is_some_and(|balancer| balancer.other_ingress);
    let ingress = wanted.ingress.as_ref().is_some_and(|ips| *ips != service.load_balancer_ips || other);
    ingress || condition != wanted.condition.as_ref()
}

fn wanted(assignment: &Assignment) -> Wanted {
    let mut parts: Vec<String> =
        assignment.addresses.iter().map(|granted| format!("{} of pool {}", granted.ip, granted.pool)).collect();
    parts.extend(assignment.refusals.iter().map(ToString::to_string));
    let reason = assignment.refusals.first().map_or(ASSIGNED, |refusal| refusal.reason.word());
    Wanted {
        ingress: Some(assignment.addresses.iter().map(|granted| granted.ip).collect()),
        condition: Some(BalancerCondition {
            is_true: !assignment.addresses.is_empty(),
            reason: reason.to_owned(),
            message: parts.join("; "),
        }),
    }
}

impl Decision {
    fn count(&mut self, assignment: &Assignment) {
        self.assigned += u64::from(!assignment.addresses.is_empty());
        for granted in &assignment.addresses {
            *self.in_use.entry(granted.pool.clone()).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests;
