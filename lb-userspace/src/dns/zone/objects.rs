//! What the zone holds of the objects, and how it follows them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry as Slot},
    net::IpAddr,
    sync::Arc,
};

use crate::model::{self, EndpointSlice, Model, ObjectName, Protocol, ServiceType, Touched};

/// Of a Service, what is answered for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// It has cluster IPs, or will have.
    Addressed {
        /// clusterIPs.
        addresses: Vec<IpAddr>,
        /// Ports.
        ports: Vec<Port>,
    },
    /// It is its endpoints.
    Headless,
    /// It is another name; none for what is no name to refer to (D11).
    Alias(Option<String>),
}

/// A port of a Service or of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) number: u16,
}

/// A ready endpoint (D12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) address: IpAddr,
    hostname: Option<Box<str>>,
}

impl Host {
    /// D7: the hostname, or the address with dashes.
    pub(super) fn label(&self) -> String {
        self.hostname.as_deref().map_or_else(|| dashed(self.address), str::to_owned)
    }

    /// Whether its label is `label`, which as an address is `dashed`.
    pub(super) fn is_called(&self, label: &str, dashed: Option<IpAddr>) -> bool {
        self.hostname.as_deref().map_or_else(|| dashed == Some(self.address), |name| name == label)
    }
}

/// An address as a label: a dash at its end would be none.
pub(super) fn dashed(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) ports: Vec<Port>,
    pub(super) hosts: Vec<Host>,
}

/// A Service's name, with what there is under it: slices may come before their Service.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Arc<ObjectName>,
    pub(super) service: Option<Service>,
    slices: BTreeMap<String, Slice>,
}

impl Entry {
    /// Ready endpoints with the ports of their slice.
    pub(super) fn hosts(&self) -> impl Iterator<Item = (&Host, &[Port])> {
        self.slices.values().flat_map(|slice| slice.hosts.iter().map(|host| (host, slice.ports.as_slice())))
    }
}

type ByName = HashMap<String, Entry>;
type ByAddress = HashMap<IpAddr, Vec<Arc<ObjectName>>>;

/// Addresses of Pods, by namespace.
type Addresses = HashMap<String, HashSet<IpAddr>>;

/// What of the objects is not as a model has it.
#[derive(Debug, Default)]
pub(in crate::dns) struct Differences {
    services: Vec<ObjectName>,
    slices: Vec<ObjectName>,
    namespaces: Option<HashSet<String>>,
    pods: Option<Addresses>,
}

impl Differences {
    /// Whether there are none.
    pub(in crate::dns) const fn is_empty(&self) -> bool {
        self.services.is_empty() && self.slices.is_empty() && self.namespaces.is_none() && self.pods.is_none()
    }
}

/// The objects, by what is asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    /// By namespace.
    services: HashMap<String, ByName>,
    namespaces: HashSet<String>,
    /// The Service each slice is of.
    slices: HashMap<ObjectName, String>,
    cluster_ips: ByAddress,
    endpoints: ByAddress,
    pods: Addresses,
}

impl Objects {
    pub(super) fn entry(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.services.get(namespace)?.get(name)
    }

    pub(super) fn has_namespace(&self, name: &str) -> bool {
        let has = |entry: &Entry| entry.service.is_some();
        self.namespaces.contains(name) || self.services.get(name).is_some_and(|all| all.values().any(has))
    }

    pub(super) fn has_pod(&self, namespace: &str, address: IpAddr) -> bool {
        self.pods.get(namespace).is_some_and(|pods| pods.contains(&address))
    }

    /// D5: one Service, whatever endpoints have that address.
    pub(super) fn of_cluster_ip(&self, address: IpAddr) -> Option<&ObjectName> {
        self.cluster_ips.get(&address)?.iter().min().map(AsRef::as_ref)
    }

    /// Services with a ready endpoint of that address (D10).
    pub(super) fn of_endpoint(&self, address: IpAddr) -> impl Iterator<Item = &Entry> {
        let names = self.endpoints.get(&address).into_iter().flatten();
        let entries = names.filter_map(|name| self.entry(&name.namespace, &name.name));
        entries.filter(|entry| matches!(entry.service, Some(Service::Addressed { .. } | Service::Headless)))
    }

    /// Services, and ready endpoints of slices.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let entries = self.services.values().flat_map(HashMap::values);
        entries.fold((0, 0), |(services, endpoints), entry| {
            (services + usize::from(entry.service.is_some()), endpoints + entry.hosts().count())
        })
    }

    /// What is not as the model has it, where no more than `touched` can be. Nobody needs to wait for this look.
    pub(super) fn differences(&self, model: &Model, touched: &Touched, pods: bool) -> Differences {
        match touched {
            Touched::Endpoints(services) => {
                let slices: BTreeSet<_> =
                    services.iter().flat_map(|service| self.slices_not_as(model, service)).collect();
                Differences { slices: slices.into_iter().collect(), ..Differences::default() }
            }
            Touched::All => self.all_differences(model, pods),
        }
    }

    /// Slices that are or were of this Service.
    fn slices_not_as(&self, model: &Model, service: &ObjectName) -> Vec<ObjectName> {
        let of = |name: &String| ObjectName { namespace: service.namespace.clone(), name: name.clone() };
        let entry = self.entry(&service.namespace, &service.name);
        let old = entry.into_iter().flat_map(|entry| entry.slices.keys()).map(of);
        let old = old.filter(|name| model.slices.get(name).is_none_or(|slice| slice.service != service.name));
        let new = model.slices_of(service).filter(|(name, slice)| !self.is_slice(name, slice));
        old.chain(new.map(|(name, _)| name.clone())).collect()
    }

    fn all_differences(&self, model: &Model, pods: bool) -> Differences {
        let services = model.services.iter().filter(|(name, service)| !self.is_service(name, service));
        let slices = model.slices.iter().filter(|(name, slice)| !self.is_slice(name, slice));
        let entries = self.services.values().flat_map(HashMap::values).filter(|entry| entry.service.is_some());
        let names = entries.map(|entry| entry.name.as_ref()).filter(|name| !model.services.contains_key(*name));
        let gone = self.slices.keys().filter(|name| !model.slices.contains_key(*name));
        let namespaces = self.namespaces.len() != model.namespaces.len()
            || model.namespaces.iter().any(|name| !self.namespaces.contains(name));
        Differences {
            services: services.map(|(name, _)| name).chain(names).cloned().collect(),
            slices: slices.map(|(name, _)| name).chain(gone).cloned().collect(),
            namespaces: namespaces.then(|| model.namespaces.iter().cloned().collect()),
            pods: pods.then(|| addresses(model)).filter(|pods| *pods != self.pods),
        }
    }

    /// Becomes what the model has, of which these are the differences.
    pub(super) fn apply(&mut self, model: &Model, differences: Differences) {
        let Differences { services, slices, namespaces, pods } = differences;
        for name in &slices {
            self.set_slice(name, model.slices.get(name));
        }
        for name in &services {
            self.set_service(name, model.services.get(name));
        }
        self.namespaces = namespaces.unwrap_or_else(|| std::mem::take(&mut self.namespaces));
        self.pods = pods.unwrap_or_else(|| std::mem::take(&mut self.pods));
    }

    fn is_service(&self, name: &ObjectName, service: &model::Service) -> bool {
        let entry = self.entry(&name.namespace, &name.name);
        entry.and_then(|entry| entry.service.as_ref()).is_some_and(|is| is.is(service))
    }

    fn is_slice(&self, name: &ObjectName, slice: &EndpointSlice) -> bool {
        self.slices.get(name).is_some_and(|service| {
            let entry = self.entry(&name.namespace, service).filter(|_| **service == *slice.service);
            entry.and_then(|entry| entry.slices.get(&name.name)).is_some_and(|is| is.is(slice))
        })
    }

    /// A Service as it is now, or none.
    fn set_service(&mut self, name: &ObjectName, service: Option<&model::Service>) {
        let entry = of(&mut self.services, name);
        let old = std::mem::replace(&mut entry.service, service.map(Service::of));
        for address in old.iter().flat_map(Service::addresses) {
            take(&mut self.cluster_ips, *address, &entry.name);
        }
        for address in entry.service.iter().flat_map(Service::addresses) {
            self.cluster_ips.entry(*address).or_insert_with(|| Vec::with_capacity(1)).push(Arc::clone(&entry.name));
        }
        self.drop_if_empty(name);
    }

    /// A slice as it is now, or none.
    fn set_slice(&mut self, name: &ObjectName, slice: Option<&EndpointSlice>) {
        if let Some(service) = self.slices.remove(name) {
            let service = ObjectName { namespace: name.namespace.clone(), name: service };
            let entry = of(&mut self.services, &service);
            for host in entry.slices.remove(&name.name).iter().flat_map(|slice| &slice.hosts) {
                take(&mut self.endpoints, host.address, &entry.name);
            }
            self.drop_if_empty(&service);
        }
        let Some(slice) = slice else { return };
        let service = ObjectName { namespace: name.namespace.clone(), name: slice.service.clone() };
        let entry = of(&mut self.services, &service);
        let new = Slice::of(slice);
        for host in &new.hosts {
            self.endpoints.entry(host.address).or_insert_with(|| Vec::with_capacity(1)).push(Arc::clone(&entry.name));
        }
        entry.slices.insert(name.name.clone(), new);
        self.slices.insert(name.clone(), service.name);
    }

    fn drop_if_empty(&mut self, name: &ObjectName) {
        let Some(all) = self.services.get_mut(&name.namespace) else { return };
        if all.get(&name.name).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            all.remove(&name.name);
        }
        if all.is_empty() {
            self.services.remove(&name.namespace);
        }
    }
}

/// The datapath's view of Pods does not count: an address is a Pod's until it has ended.
fn addresses(model: &Model) -> Addresses {
    let mut addresses = Addresses::new();
    for (name, pod) in model.pods.iter().filter(|(_, pod)| !pod.finished) {
        addresses.entry(name.namespace.clone()).or_default().extend(pod.ips.iter().copied());
    }
    addresses
}

fn of<'a>(services: &'a mut HashMap<String, ByName>, name: &ObjectName) -> &'a mut Entry {
    let new = || Entry { name: Arc::new(name.clone()), service: None, slices: BTreeMap::new() };
    services.entry(name.namespace.clone()).or_default().entry(name.name.clone()).or_insert_with(new)
}

/// Takes one mention of a name away.
fn take(all: &mut ByAddress, address: IpAddr, name: &Arc<ObjectName>) {
    let Slot::Occupied(mut slot) = all.entry(address) else { return };
    if let Some(at) = slot.get().iter().position(|other| other == name) {
        slot.get_mut().swap_remove(at);
    }
    if slot.get().is_empty() {
        slot.remove();
    }
}

impl Service {
    fn of(service: &model::Service) -> Self {
        if service.service_type == ServiceType::ExternalName {
            return Self::Alias(alias(service).map(str::to_ascii_lowercase));
        }
        if service.headless {
            return Self::Headless;
        }
        let port = |port: &model::ServicePort| Port {
            name: port.name.to_ascii_lowercase(),
            protocol: port.protocol,
            number: port.port.get(),
        };
        Self::Addressed { addresses: service.cluster_ips.clone(), ports: service.ports.iter().map(port).collect() }
    }

    /// Whether it is made of `service`; cheaper than making another one.
    fn is(&self, service: &model::Service) -> bool {
        match self {
            Self::Alias(target) => {
                service.service_type == ServiceType::ExternalName
                    && target.as_deref().map(str::to_owned) == alias(service).map(str::to_ascii_lowercase)
            }
            _ if service.service_type == ServiceType::ExternalName => false,
            Self::Headless => service.headless,
            Self::Addressed { addresses, ports } => {
                !service.headless
                    && *addresses == service.cluster_ips
                    && ports.len() == service.ports.len()
                    && ports.iter().zip(&service.ports).all(|(port, new)| {
                        port.number == new.port.get()
                            && port.protocol == new.protocol
                            && port.name.eq_ignore_ascii_case(&new.name)
                    })
            }
        }
    }

    fn addresses(&self) -> &[IpAddr] {
        if let Self::Addressed { addresses, .. } = self { addresses } else { &[] }
    }
}

/// D11: an address is no name to refer to, and neither is what no name server could answer.
fn alias(service: &model::Service) -> Option<&str> {
    let target = service.external_name.as_deref()?.trim_end_matches('.');
    let is_name = target.len() <= 253 && target.split('.').all(is_label);
    (is_name && target.parse::<IpAddr>().is_err()).then_some(target)
}

impl Slice {
    fn of(slice: &EndpointSlice) -> Self {
        let port = |port: &model::EndpointPort| Port {
            name: port.name.to_ascii_lowercase(),
            protocol: port.protocol,
            number: port.port.get(),
        };
        let host = |endpoint: &model::Endpoint| Host {
            address: endpoint.address,
            hostname: hostname(endpoint).map(|name| name.to_ascii_lowercase().into()),
        };
        let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
        Self { ports: slice.ports.iter().map(port).collect(), hosts: ready.map(host).collect() }
    }

    /// Whether it is made of `slice`.
    fn is(&self, slice: &EndpointSlice) -> bool {
        let ready = || slice.endpoints.iter().filter(|endpoint| endpoint.ready);
        self.ports.len() == slice.ports.len()
            && self.hosts.len() == ready().count()
            && self.ports.iter().zip(&slice.ports).all(|(port, new)| {
                port.number == new.port.get()
                    && port.protocol == new.protocol
                    && port.name.eq_ignore_ascii_case(&new.name)
            })
            && self.hosts.iter().zip(ready()).all(|(host, new)| {
                let same = |(is, new): (&str, &str)| is.eq_ignore_ascii_case(new);
                host.address == new.address
                    && match (host.hostname.as_deref(), hostname(new)) {
                        (None, None) => true,
                        (Some(is), Some(new)) => same((is, new)),
                        _ => false,
                    }
            })
    }
}

/// As the API allows it: a label.
fn hostname(endpoint: &model::Endpoint) -> Option<&str> {
    endpoint.hostname.as_deref().filter(|name| is_label(name))
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && !text.contains('.')
}
