//! What is decided for Services in every state.

use super::*;
use crate::{
    desired::fixture,
    model::{Balancer, ServiceType, TrafficPolicy},
    pools::AddressPool,
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

fn said(is_true: bool, reason: &str, message: &str) -> BalancerCondition {
    BalancerCondition { is_true, reason: reason.to_owned(), message: message.to_owned() }
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
    let decision = decide(&model, &home(), &Underway::default(), &[]);
    let written = &decision.writes[&fixture::name("a")];
    assert_eq!(ips(written), Some(vec!["198.51.100.1".to_owned()]));
    assert_eq!(written.condition, Some(said(true, "Assigned", "198.51.100.1 of pool home")));
    assert_eq!((decision.assigned, decision.in_use["home"], decision.writes.len()), (2, 2, 2));
    apply(&mut model, &decision);
    assert_eq!(decide(&model, &home(), &Underway::default(), &[]).writes, BTreeMap::new());
}

#[test]
fn what_was_written_counts_before_it_is_seen() {
    let mut model = model(vec![("z", service(&[], Balancer::default()))]);
    let first = decide(&model, &home(), &Underway::default(), &[]);
    let mut underway = Underway::default();
    let name = fixture::name("z");
    underway.sent(&name, &model.services[&name], &first.writes[&name]);
    // Its event was on its way before ours is.
    model.services.insert(fixture::name("a"), service(&[], Balancer::default()));
    underway.settle(&model);
    let second = decide(&model, &home(), &underway, &[]);
    assert_eq!(ips(&second.writes[&fixture::name("a")]), Some(vec!["198.51.100.2".to_owned()]));
    assert_eq!(second.writes[&name], first.writes[&name]);
    assert!(underway.has(&name, &second.writes[&name]), "it is not written again");
    apply(&mut model, &second);
    underway.settle(&model);
    assert_eq!(underway, Underway::default());
}

#[test]
fn a_service_that_is_again_as_it_was_is_written_again_and_keeps_its_address() {
    let mut model = model(vec![("z", service(&[], Balancer::default()))]);
    let (name, mut underway) = (fixture::name("z"), Underway::default());
    let first = decide(&model, &home(), &underway, &[]);
    underway.sent(&name, &model.services[&name], &first.writes[&name]);
    assert!(!underway.doubt(&[fixture::name("a")].into()), "nothing of it was told");
    // Deleted and made again, or put back: the events came together.
    model.services.insert(fixture::name("a"), service(&[], Balancer::default()));
    assert!(underway.doubt(&[name.clone(), fixture::name("a")].into()), "a round is due");
    underway.settle(&model);
    let second = decide(&model, &home(), &underway, &[]);
    assert_eq!(second.writes[&name], first.writes[&name], "what may be written still is nobody else's");
    assert!(!underway.has(&name, &second.writes[&name]), "it is written again");
    underway.sent(&name, &model.services[&name], &second.writes[&name]);
    assert!(underway.has(&name, &second.writes[&name]), "once");
}

#[test]
fn a_refusal_is_said_and_unsaid() {
    let mut model = model(vec![
        (
            "a",
            service(
                &["198.51.100.1"],
                Balancer {
                    condition: Some(said(true, "Assigned", "198.51.100.1 of pool home")),
                    ..Balancer::default()
                },
            ),
        ),
        (
            "b",
            service(
                &["198.51.100.2"],
                Balancer {
                    condition: Some(said(true, "Assigned", "198.51.100.2 of pool home")),
                    ..Balancer::default()
                },
            ),
        ),
        ("c", service(&[], Balancer::default())),
    ]);
    let decision = decide(&model, &home(), &Underway::default(), &[]);
    assert_eq!(decision.writes.len(), 1, "the others keep theirs: {:?}", decision.writes);
    let condition = decision.writes[&fixture::name("c")].condition.clone().expect("said");
    assert!(
        !condition.is_true
            && condition.reason == "AddressPoolsExhausted"
            && condition.message.contains("home (198.51.100.1-198.51.100.2)")
    );
    assert_eq!(decision.refusals[&fixture::name("c")][0].reason, Reason::PoolsExhausted);
    apply(&mut model, &decision);
    assert!(decide(&model, &home(), &Underway::default(), &[]).writes.is_empty());
    model.services.remove(&fixture::name("a"));
    let decision = decide(&model, &home(), &Underway::default(), &[]);
    assert_eq!(
        decision.writes[&fixture::name("c")].condition,
        Some(said(true, "Assigned", "198.51.100.1 of pool home"))
    );
}

#[test]
fn a_foreign_class_is_never_touched() {
    let foreign = || of_class("metallb.io/lb");
    let said_once = Balancer { condition: Some(said(true, "Assigned", "x")), ..foreign() };
    let hostname = Balancer { other_ingress: true, ..foreign() };
    let model = model(vec![
        ("a", service(&["198.51.100.1"], foreign())),
        ("b", service(&[], foreign())),
        ("c", service(&["203.0.113.1"], said_once)),
        ("d", service(&[], hostname)),
        ("e", service(&[], Balancer::default())),
    ]);
    let decision = decide(&model, &home(), &Underway::default(), &[]);
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
    let decision = decide(&model, &home(), &Underway::default(), &[]);
    assert_eq!(decision.writes.keys().collect::<Vec<_>>(), [&fixture::name("metal")]);
    assert_eq!(ips(&decision.writes[&fixture::name("metal")]), Some(vec!["198.51.100.2".to_owned()]));
}

/// Nobody else may write there.
#[test]
fn under_our_class_what_another_wrote_is_replaced() {
    let assigned = Some(said(true, "Assigned", "198.51.100.2 of pool home"));
    let model = model(vec![
        ("address", service(&["203.0.113.1"], of_class(CLASS))),
        (
            "hostname",
            service(
                &["198.51.100.2"],
                Balancer { other_ingress: true, condition: assigned.clone(), ..of_class(CLASS) },
            ),
        ),
    ]);
    let decision = decide(&model, &home(), &Underway::default(), &[]);
    assert_eq!(ips(&decision.writes[&fixture::name("address")]), Some(vec!["198.51.100.1".to_owned()]));
    let written = &decision.writes[&fixture::name("hostname")];
    assert_eq!((ips(written), &written.condition), (Some(vec!["198.51.100.2".to_owned()]), &assigned));
}

#[test]
fn what_was_ours_goes_with_the_type() {
    let ours = Balancer { condition: Some(said(true, "Assigned", "x")), ..Balancer::default() };
    let pending = Balancer { condition: Some(said(false, "AddressPoolsExhausted", "x")), ..Balancer::default() };
    let changed = |ips: &[&str], balancer| Service { service_type: ServiceType::NodePort, ..service(ips, balancer) };
    let model =
        model(vec![("a", changed(&[], ours)), ("b", changed(&[], pending)), ("c", changed(&[], Balancer::default()))]);
    let decision = decide(&model, &home(), &Underway::default(), &[]);
    assert_eq!(decision.writes.len(), 2);
    assert_eq!(decision.writes[&fixture::name("a")], Wanted { ingress: Some(Vec::new()), condition: None });
    assert_eq!(decision.writes[&fixture::name("b")], Wanted { ingress: None, condition: None });
}

#[test]
fn without_pools_only_those_that_name_us_are_told() {
    let model = model(vec![("a", service(&[], Balancer::default())), ("b", service(&[], of_class(CLASS)))]);
    let decision = decide(&model, &Pools::default(), &Underway::default(), &[]);
    assert_eq!(decision.writes.keys().collect::<Vec<_>>(), [&fixture::name("b")]);
    assert_eq!(
        decision.writes[&fixture::name("b")].condition.as_ref().map(|condition| &*condition.reason),
        Some("NoAddressPool")
    );
    assert_eq!(decision.refusals.len(), 1);
}

#[test]
fn before_the_first_good_pools_whoever_waits_is_told_and_nobody_loses_anything() {
    let ours = Balancer { condition: Some(said(true, "Assigned", "198.51.100.1 of pool home")), ..Balancer::default() };
    let mut model = model(vec![
        ("class", service(&[], of_class(CLASS))),
        ("foreign", service(&[], of_class("metallb.io/lb"))),
        ("has", service(&["198.51.100.1"], ours)),
        ("hostname", service(&[], Balancer { other_ingress: true, ..Balancer::default() })),
        ("port", Service { service_type: ServiceType::NodePort, ..service(&[], Balancer::default()) }),
        ("waits", service(&[], Balancer::default())),
    ]);
    let problem =
        Problem { object: "address pools in x".to_owned(), cause: "a overlaps b".to_owned(), fix: "mend".to_owned() };
    let decision = wait(&model, &problem);
    assert_eq!(decision.refusals.keys().collect::<Vec<_>>(), [&fixture::name("class"), &fixture::name("waits")]);
    let refusal = &decision.refusals[&fixture::name("waits")][0];
    assert_eq!(
        (refusal.reason, &*refusal.to_string()),
        (Reason::InvalidPools, "address pools in x: a overlaps b (mend)")
    );
    let written = said(false, "InvalidAddressPools", "address pools in x: a overlaps b (mend)");
    let written = Wanted { ingress: None, condition: Some(written) };
    assert_eq!(decision.writes, [(fixture::name("class"), written)].into());
    apply(&mut model, &decision);
    assert_eq!(wait(&model, &problem).writes, BTreeMap::new(), "once");
    let good = decide(&model, &home(), &Underway::default(), &[]);
    assert_eq!(good.assigned, 2, "one waits for a third address: {:?}", good.refusals);
}

#[test]
fn a_cluster_ip_is_no_load_balancer_address() {
    let mut model = model(vec![("a", service(&[], Balancer::default()))]);
    model.services.get_mut(&fixture::name("a")).expect("there").cluster_ips =
        vec!["198.51.100.1".parse().expect("an address")];
    let decision = decide(&model, &home(), &Underway::default(), &[]);
    assert_eq!(ips(&decision.writes[&fixture::name("a")]), Some(vec!["198.51.100.2".to_owned()]));
}

#[test]
fn what_a_refused_service_has_is_in_use_and_nobodys_to_give() {
    let ip: IpAddr = "198.51.100.1".parse().expect("an address");
    let refused = fixture::name("refused");
    let model = model(vec![("a", service(&[], Balancer::default()))]);
    let decision = decide(&model, &home(), &Underway::default(), &[(ip, &refused)]);
    assert_eq!(ips(&decision.writes[&fixture::name("a")]), Some(vec!["198.51.100.2".to_owned()]));
    assert_eq!((decision.in_use["home"], decision.assigned, decision.writes.len()), (2, 1, 1));
    // Its last good version is in use: it counts once.
    let decision = decide(&model, &home(), &Underway::default(), &[(ip, &fixture::name("a"))]);
    assert_eq!(decision.in_use["home"], 1);
}
