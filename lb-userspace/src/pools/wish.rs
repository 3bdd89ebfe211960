//! What a Service asks for.

use std::{collections::BTreeMap, net::IpAddr};

use super::{ANNOTATION_ADDRESSES, ANNOTATION_SHARING, Reason, Refusal};
use crate::model::{IpFamily, Service, TrafficPolicy};

/// Where the address it asks for is written.
pub(super) const FIELD_IP: &str = "spec.loadBalancerIP";

pub(super) fn annotation_field() -> String {
    format!("metadata.annotations[{ANNOTATION_ADDRESSES}]")
}

/// An address that is asked for, with the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requested {
    pub(super) ip: IpAddr,
    pub(super) field: String,
}

/// The addresses a Service asks for, at most one of each family; none if it leaves that to us.
pub(super) fn requested(service: &Service) -> Result<Vec<Requested>, Refusal> {
    let annotation = service.annotations.get(ANNOTATION_ADDRESSES).map(|text| text.trim());
    let annotation = annotation.filter(|text| !text.is_empty());
    let field = annotation_field();
    let written = service.balancer.as_ref().and_then(|balancer| balancer.ip.as_deref());
    let mut found: Vec<Requested> = Vec::new();
    let mut add = |field: &str, text: &str| {
        let refuse = |cause: String, fix: &str| refusal(field, cause, fix);
        let ip: IpAddr = text.trim().parse().map_err(|_| {
            refuse(format!("{:?} is no IP address", text.trim()), "write addresses such as 198.51.100.7,2001:db8::7")
        })?;
        let family = IpFamily::of(&ip);
        if !service.ip_families.contains(&family) {
            let fix = "ask for an address of a family in spec.ipFamilies";
            return Err(refuse(format!("{ip} is of no family of this Service"), fix));
        }
        match found.iter().find(|one| IpFamily::of(&one.ip) == family) {
            Some(other) if other.ip == ip => {}
            Some(other) => {
                let cause = format!("{} and {ip} are both {family} addresses", other.ip);
                return Err(refuse(cause, "ask for at most one of each family"));
            }
            None => found.push(Requested { ip, field: field.to_owned() }),
        }
        Ok(())
    };
    for text in annotation.iter().flat_map(|list| list.split(',')) {
        add(&field, text)?;
    }
    if let Some(text) = written {
        add(FIELD_IP, text)?;
    }
    Ok(found)
}

fn refusal(field: &str, cause: String, fix: &str) -> Refusal {
    Refusal { reason: Reason::InvalidRequest, field: field.to_owned(), cause, fix: fix.to_owned() }
}

/// Services of one group may have one address together, if their ports differ. As `MetalLB` has it: those with policy
/// Local only if they select the same pods, because the address is announced from nodes that have some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Group<'a> {
    pub(super) key: &'a str,
    pub(super) pods: Option<&'a BTreeMap<String, String>>,
}

/// The group of a Service; none: it has its addresses alone.
pub(super) fn group(service: &Service) -> Option<Group<'_>> {
    let key = service.annotations.get(ANNOTATION_SHARING).map(String::as_str).filter(|key| !key.is_empty())?;
    match service.external_policy {
        TrafficPolicy::Cluster => Some(Group { key, pods: None }),
        // Whose endpoints nobody can tell.
        TrafficPolicy::Local if service.selector.is_empty() => None,
        TrafficPolicy::Local => Some(Group { key, pods: Some(&service.selector) }),
    }
}
