//! Who has which address.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    num::NonZeroU16,
};

use super::wish::Group;
use crate::model::{ObjectName, Protocol, Service};

type Port = (Protocol, NonZeroU16);

/// A Service as a tenant.
#[derive(Clone, Copy)]
pub(super) struct Tenant<'a> {
    pub(super) name: &'a ObjectName,
    pub(super) service: &'a Service,
    pub(super) group: Option<Group<'a>>,
}

impl Tenant<'_> {
    pub(super) fn ports(&self) -> impl Iterator<Item = Port> {
        self.service.ports.iter().map(|port| (port.protocol, port.port))
    }
}

/// Why an address cannot be had beside those who have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conflict<'a> {
    /// It is had alone, or under another key.
    Alone(&'a ObjectName),
    /// Under the same key, but from other pods.
    OtherPods(&'a ObjectName),
    /// It is kept for one of which nothing else is known.
    Kept(&'a ObjectName),
    /// With this port.
    SamePort(&'a ObjectName, Port),
}

/// An address that somebody has.
struct Let<'a> {
    tenants: BTreeMap<&'a ObjectName, Option<Group<'a>>>,
    /// The group of all of them; none if one has it alone, or beside strangers.
    common: Option<Group<'a>>,
    ports: HashMap<Port, &'a ObjectName>,
}

impl<'a> Let<'a> {
    fn common_of(tenants: &BTreeMap<&'a ObjectName, Option<Group<'a>>>) -> Option<Group<'a>> {
        let first = *tenants.first_key_value()?.1;
        first.filter(|_| tenants.values().all(|other| *other == first))
    }
}

/// All addresses that somebody has.
#[derive(Default)]
pub(super) struct Tenants<'a> {
    addresses: BTreeMap<IpAddr, Let<'a>>,
    kept: HashMap<IpAddr, &'a ObjectName>,
}

impl<'a> Tenants<'a> {
    pub(super) fn is_free(&self, ip: IpAddr) -> bool {
        !self.addresses.contains_key(&ip) && !self.kept.contains_key(&ip)
    }

    /// Addresses with the group that shares them, in their order.
    pub(super) fn shared(&self) -> impl Iterator<Item = (IpAddr, Group<'a>)> {
        self.addresses.iter().filter_map(|(ip, at)| Some((*ip, at.common?)))
    }

    /// Whether a Service can have an address beside those who have it already.
    pub(super) fn check(&self, ip: IpAddr, tenant: &Tenant<'a>) -> Result<(), Conflict<'a>> {
        if let Some(owner) = self.kept.get(&ip).filter(|owner| **owner != tenant.name) {
            return Err(Conflict::Kept(owner));
        }
        let Some(at) = self.addresses.get(&ip) else { return Ok(()) };
        if at.common.is_none() || at.common != tenant.group {
            let mut others = at.tenants.iter().filter(|(name, _)| **name != tenant.name);
            if let Some((owner, group)) = others.find(|(_, group)| group.is_none() || **group != tenant.group) {
                let same_key = group.zip(tenant.group).is_some_and(|(one, other)| one.key == other.key);
                return Err(if same_key { Conflict::OtherPods(owner) } else { Conflict::Alone(owner) });
            }
        }
        let taken = |port| at.ports.get(&port).filter(|owner| **owner != tenant.name).map(|owner| (*owner, port));
        match tenant.ports().find_map(taken) {
            Some((owner, port)) => Err(Conflict::SamePort(owner, port)),
            None => Ok(()),
        }
    }

    /// From here on nobody else gets these.
    pub(super) fn keep(&mut self, kept: &[(IpAddr, &'a ObjectName)]) {
        self.kept.extend(kept.iter().copied());
    }

    /// Lets an address, without a question.
    pub(super) fn add(&mut self, ip: IpAddr, tenant: &Tenant<'a>) {
        let at = self.addresses.entry(ip).or_insert_with(|| Let {
            tenants: BTreeMap::new(),
            common: tenant.group,
            ports: HashMap::new(),
        });
        at.tenants.insert(tenant.name, tenant.group);
        at.common = at.common.filter(|common| tenant.group == Some(*common));
        for port in tenant.ports() {
            at.ports.entry(port).or_insert(tenant.name);
        }
    }

    /// Takes it back.
    pub(super) fn remove(&mut self, ip: IpAddr, tenant: &Tenant<'a>) {
        let Some(at) = self.addresses.get_mut(&ip) else { return };
        at.tenants.remove(tenant.name);
        at.ports.retain(|_, owner| *owner != tenant.name);
        at.common = Let::common_of(&at.tenants);
        if at.tenants.is_empty() {
            self.addresses.remove(&ip);
        }
    }
}
