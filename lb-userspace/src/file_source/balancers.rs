//! Load balancer addresses of documents that do not write them: of the pools, kept in the allocation file.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Options,
    allocate::{Allocated, Claims},
    allocation_file::Records,
    intake::Objects,
};
use crate::{
    convert::{Draft, Issue},
    model::{IpFamily, ObjectName, Service},
    pools::{self, Assignment, Claimant, Surroundings},
};

/// Whether a Service gets addresses here: those a document's status writes are another's, who gave them.
pub(super) fn asks(draft: &Draft) -> bool {
    let service = &draft.service;
    let elsewhere = service.balancer.as_ref().is_some_and(|balancer| balancer.other_ingress);
    pools::is_ours(service) && service.load_balancer_ips.is_empty() && !elsewhere
}

/// Gives each Service that asks what it held in the `before`, else what the pools have. A reader takes the record as it is;
/// so does an agent without pools, which would take from the others of the folder what they gave.
pub(super) fn give(out: &mut Allocated, before: &Records, claims: &Claims, objects: &Objects, options: &Options) {
    let held = held(out, before);
    if options.pools.is_empty() || !options.write_allocations {
        for (name, ips) in held {
            out.set(&name, ips);
        }
        return;
    }
    let given: BTreeMap<ObjectName, Assignment> = assign(out, &held, before, claims, objects, options);
    for (name, Assignment { addresses, refusals }) in given {
        out.set(&name, addresses.into_iter().map(|granted| granted.ip).collect());
        let issue = |refusal: pools::Refusal| {
            let reason = format!("no load balancer address as asked: {}", refusal.cause);
            (name.clone(), Issue::error(refusal.field, reason, refusal.fix))
        };
        out.issues.extend(refusals.into_iter().map(issue));
    }
}

impl Allocated {
    fn set(&mut self, name: &ObjectName, ips: Vec<IpAddr>) {
        if let Some((_, service)) = self.services.get_mut(name) {
            service.load_balancer_ips.clone_from(&ips);
            self.records.entry(name.clone()).or_default().load_balancer_ips = ips;
        }
    }
}

fn held(out: &Allocated, before: &Records) -> BTreeMap<ObjectName, Vec<IpAddr>> {
    let of = |(name, (draft, service)): (&ObjectName, &(Draft, Service))| {
        let record = before.get(name).filter(|_| asks(draft))?;
        let ips = record.load_balancer_ips.iter().copied();
        let ips = ips.filter(|ip| service.ip_families.contains(&IpFamily::of(ip)));
        Some((name.clone(), ips.collect()))
    };
    out.services.iter().filter_map(of).collect()
}

fn assign(
    out: &Allocated,
    held: &BTreeMap<ObjectName, Vec<IpAddr>>,
    before: &Records,
    claims: &Claims,
    objects: &Objects,
    options: &Options,
) -> BTreeMap<ObjectName, Assignment> {
    // Of Services that are refused now, or in a file that cannot be read: they will want them back.
    let absent = before.iter().filter(|(name, _)| out.records.contains_key(name) && !out.services.contains_key(name));
    let kept: Vec<(IpAddr, &ObjectName)> =
        absent.flat_map(|(name, record)| record.load_balancer_ips.iter().map(move |ip| (*ip, name))).collect();
    let nodes: BTreeMap<IpAddr, &String> =
        objects.nodes.iter().flat_map(|(name, node)| node.internal_ips.iter().map(move |ip| (*ip, name))).collect();
    let taken = |ip: IpAddr| {
        let cluster_ip = claims.owner_of(ip).map(|owner| format!("a cluster IP of Service {owner}"));
        cluster_ip.or_else(|| nodes.get(&ip).map(|node| format!("an address of Node {node}")))
    };
    let claimants = out.services.iter().map(|(name, (draft, service))| {
        let ours = asks(draft);
        let written: &[IpAddr] = &service.load_balancer_ips;
        let held = if ours { held.get(name).map_or(&[][..], Vec::as_slice) } else { written };
        Claimant { name, service, held, ours }
    });
    let labels = |namespace: &str| objects.namespace_labels.get(namespace);
    let around = Surroundings { labels: &labels, taken: &taken, kept: &kept };
    pools::assign(&options.pools, claimants, around)
}
