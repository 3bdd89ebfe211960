//! What the status of each Service should say; pure.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    model::{BalancerCondition, Model, ObjectName, Service},
    pools::{self, Assignment, CLASS, Claimant, Pools, Refusal, Surroundings},
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

/// What was written before and is not in the model yet: addresses, with the Service they were decided for.
pub type Underway = BTreeMap<ObjectName, (Service, Vec<IpAddr>)>;

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

/// Decides for all Services.
pub fn decide(model: &Model, pools: &Pools, underway: &Underway) -> Decision {
    let written = |name: &ObjectName| underway.get(name).map(|(_, ips)| ips.as_slice());
    let owners: BTreeMap<&ObjectName, Owner> =
        model.services.iter().map(|(name, service)| (name, owner(service, pools))).collect();
    let claimants = model.services.iter().map(|(name, service)| Claimant {
        name,
        service,
        held: written(name).unwrap_or(&service.load_balancer_ips),
        ours: owners.get(name) == Some(&Owner::Ours),
    });
    let cluster_ips: BTreeMap<IpAddr, &ObjectName> = model
        .services
        .iter()
        .flat_map(|(name, service)| service.cluster_ips.iter().map(move |ip| (*ip, name)))
        .filter(|(ip, _)| pools.of(*ip).is_some())
        .collect();
    let taken = |ip: IpAddr| cluster_ips.get(&ip).map(|owner| format!("a cluster IP of Service {owner}"));
    let around = Surroundings { labels: &|namespace| model.namespace_labels.get(namespace), taken: &taken };
    let mut assigned = pools::assign(pools, claimants, around);
    let mut decision = Decision::default();
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

/// Drops what the model shows by now, or what was decided for a Service that is another one.
pub fn settle(underway: &mut Underway, model: &Model) {
    underway.retain(|name, (decided_for, _)| model.services.get(name) == Some(decided_for));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::fixture,
        model::{Balancer, ServiceType, TrafficPolicy},
        pools::{AddressPool, Reason},
    };

    fn pools(yaml: &str) -> Pools {
        let written: Vec<AddressPool> = serde_saphyr::from_str(yaml).expect("pools");
        written.try_into().expect("valid")
    }

    fn home() -> Pools {
        pools("[{name: home, addresses: [198.51.100.1-198.51.100.2]}]")
    }

    fn service(ips: &[&str], balancer: Balancer) -> Service {
        Service {
            external_policy: TrafficPolicy::Cluster,
            load_balancer_ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
            balancer: (balancer != Balancer::default()).then(|| Box::new(balancer)),
            ..fixture::service()
        }
    }

    fn said(is_true: bool, reason: &str, message: &str) -> Option<BalancerCondition> {
        Some(BalancerCondition { is_true, reason: reason.to_owned(), message: message.to_owned() })
    }

    fn of_class(class: &str) -> Balancer {
        Balancer { class: Some(class.to_owned()), ..Balancer::default() }
    }

    fn model(services: Vec<(&str, Service)>) -> Model {
        let services = services.into_iter().map(|(name, service)| (fixture::name(name), service)).collect();
        Model { services, ..Model::default() }
    }

    fn ips(wanted: &Wanted) -> Option<Vec<String>> {
        wanted.ingress.as_ref().map(|ips| ips.iter().map(ToString::to_string).collect())
    }

    /// The model after all was written.
    fn apply(model: &mut Model, decision: &Decision) {
        for (name, wanted) in &decision.writes {
            let service = model.services.get_mut(name).expect("there");
            let mut balancer = service.balancer.take().unwrap_or_default();
            balancer.condition.clone_from(&wanted.condition);
            if let Some(ips) = &wanted.ingress {
                service.load_balancer_ips.clone_from(ips);
                balancer.other_ingress = false;
            }
            service.balancer = (*balancer != Balancer::default()).then_some(balancer);
        }
    }

    #[test]
    fn addresses_are_written_once_with_their_pool() {
        let mut model = model(vec![("a", service(&[], Balancer::default())), ("b", service(&[], of_class(CLASS)))]);
        let decision = decide(&model, &home(), &Underway::new());
        let written = &decision.writes[&fixture::name("a")];
        assert_eq!(ips(written), Some(vec!["198.51.100.1".to_owned()]));
        assert_eq!(written.condition, said(true, "Assigned", "198.51.100.1 of pool home"));
        assert_eq!((decision.assigned, decision.in_use["home"], decision.writes.len()), (2, 2, 2));
        apply(&mut model, &decision);
        assert_eq!(decide(&model, &home(), &Underway::new()).writes, BTreeMap::new());
    }

    #[test]
    fn what_was_written_counts_before_it_is_seen() {
        let mut model = model(vec![("z", service(&[], Balancer::default()))]);
        let first = decide(&model, &home(), &Underway::new());
        let mut underway: Underway = [(
            fixture::name("z"),
            (model.services[&fixture::name("z")].clone(), vec!["198.51.100.1".parse().expect("an address")]),
        )]
        .into();
        // Its event was on its way before ours is.
        model.services.insert(fixture::name("a"), service(&[], Balancer::default()));
        settle(&mut underway, &model);
        let second = decide(&model, &home(), &underway);
        assert_eq!(ips(&second.writes[&fixture::name("a")]), Some(vec!["198.51.100.2".to_owned()]));
        assert_eq!(second.writes[&fixture::name("z")], first.writes[&fixture::name("z")]);
        apply(&mut model, &second);
        settle(&mut underway, &model);
        assert!(underway.is_empty());
    }

    #[test]
    fn a_refusal_is_said_and_unsaid() {
        let mut model = model(vec![
            (
                "a",
                service(
                    &["198.51.100.1"],
                    Balancer { condition: said(true, "Assigned", "198.51.100.1 of pool home"), ..Balancer::default() },
                ),
            ),
            (
                "b",
                service(
                    &["198.51.100.2"],
                    Balancer { condition: said(true, "Assigned", "198.51.100.2 of pool home"), ..Balancer::default() },
                ),
            ),
            ("c", service(&[], Balancer::default())),
        ]);
        let decision = decide(&model, &home(), &Underway::new());
        assert_eq!(decision.writes.len(), 1, "the others keep theirs: {:?}", decision.writes);
        let condition = decision.writes[&fixture::name("c")].condition.clone().expect("said");
        assert!(
            !condition.is_true
                && condition.reason == "AddressPoolsExhausted"
                && condition.message.contains("home (198.51.100.1-198.51.100.2)")
        );
        assert_eq!(decision.refusals[&fixture::name("c")][0].reason, Reason::PoolsExhausted);
        apply(&mut model, &decision);
        assert!(decide(&model, &home(), &Underway::new()).writes.is_empty());
        model.services.remove(&fixture::name("a"));
        let decision = decide(&model, &home(), &Underway::new());
        assert_eq!(decision.writes[&fixture::name("c")].condition, said(true, "Assigned", "198.51.100.1 of pool home"));
    }

    #[test]
    fn a_foreign_class_is_never_touched() {
        let foreign = || of_class("metallb.io/lb");
        let said_once = Balancer { condition: said(true, "Assigned", "x"), ..foreign() };
        let hostname = Balancer { other_ingress: true, ..foreign() };
        let model = model(vec![
            ("a", service(&["198.51.100.1"], foreign())),
            ("b", service(&[], foreign())),
            ("c", service(&["203.0.113.1"], said_once)),
            ("d", service(&[], hostname)),
            ("e", service(&[], Balancer::default())),
        ]);
        let decision = decide(&model, &home(), &Underway::new());
        assert_eq!(decision.writes.keys().collect::<Vec<_>>(), [&fixture::name("c"), &fixture::name("e")]);
        assert_eq!(decision.writes[&fixture::name("c")], Wanted { ingress: None, condition: None });
        assert_eq!(
            ips(&decision.writes[&fixture::name("e")]),
            Some(vec!["198.51.100.2".to_owned()]),
            "the other's is taken"
        );
    }

    #[test]
    fn what_another_gave_without_a_class_is_left_or_taken_over() {
        let model = model(vec![
            ("cloud", service(&["203.0.113.1"], Balancer::default())),
            ("hostname", service(&[], Balancer { other_ingress: true, ..Balancer::default() })),
            ("metal", service(&["198.51.100.2"], Balancer::default())),
        ]);
        let decision = decide(&model, &home(), &Underway::new());
        assert_eq!(decision.writes.keys().collect::<Vec<_>>(), [&fixture::name("metal")]);
        assert_eq!(ips(&decision.writes[&fixture::name("metal")]), Some(vec!["198.51.100.2".to_owned()]));
    }

    #[test]
    fn what_was_ours_goes_with_the_type() {
        let ours = Balancer { condition: said(true, "Assigned", "x"), ..Balancer::default() };
        let pending = Balancer { condition: said(false, "AddressPoolsExhausted", "x"), ..Balancer::default() };
        let changed =
            |ips: &[&str], balancer| Service { service_type: ServiceType::NodePort, ..service(ips, balancer) };
        let model = model(vec![
            ("a", changed(&[], ours)),
            ("b", changed(&[], pending)),
            ("c", changed(&[], Balancer::default())),
        ]);
        let decision = decide(&model, &home(), &Underway::new());
        assert_eq!(decision.writes.len(), 2);
        assert_eq!(decision.writes[&fixture::name("a")], Wanted { ingress: Some(Vec::new()), condition: None });
        assert_eq!(decision.writes[&fixture::name("b")], Wanted { ingress: None, condition: None });
    }

    #[test]
    fn without_pools_only_those_that_name_us_are_told() {
        let model = model(vec![("a", service(&[], Balancer::default())), ("b", service(&[], of_class(CLASS)))]);
        let decision = decide(&model, &Pools::default(), &Underway::new());
        assert_eq!(decision.writes.keys().collect::<Vec<_>>(), [&fixture::name("b")]);
        assert_eq!(
            decision.writes[&fixture::name("b")].condition.as_ref().map(|condition| &*condition.reason),
            Some("NoAddressPool")
        );
        assert_eq!(decision.refusals.len(), 1);
    }

    #[test]
    fn a_cluster_ip_is_no_load_balancer_address() {
        let mut model = model(vec![("a", service(&[], Balancer::default()))]);
        model.services.get_mut(&fixture::name("a")).expect("there").cluster_ips =
            vec!["198.51.100.1".parse().expect("an address")];
        let decision = decide(&model, &home(), &Underway::new());
        assert_eq!(ips(&decision.writes[&fixture::name("a")]), Some(vec!["198.51.100.2".to_owned()]));
    }
}
