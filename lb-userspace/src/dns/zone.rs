//! Names of the cluster zone and what they answer, from a [`Model`] (semantics.md 5a, rules D1 to D18).

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::model::{Endpoint, EndpointSlice, Model, ObjectName, Service, ServiceType};

/// TTL of the TXT record that names the version of the specification, in seconds (D1).
const VERSION_TTL: u32 = 28_800;
/// Aliases followed inside the zone: longer chains are loops.
const MAX_ALIASES: usize = 8;

/// What is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The zone, in lower case, without a dot at its end.
    pub zone: String,
    /// TTL of positive and negative answers, in seconds (D15).
    pub ttl: u32,
}

/// Type of a question, as far as it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 address.
    A,
    /// IPv6 address.
    Aaaa,
    /// Port and host of a service (RFC 2782).
    Srv,
    /// Name of an address.
    Ptr,
    /// Alias.
    Cname,
    /// Text.
    Txt,
    /// Start of authority.
    Soa,
    /// Name server.
    Ns,
    /// A type no name of the zone has: NODATA or NXDOMAIN.
    Other,
}

/// Data of a record. Names are in lower case, without a dot at their end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// Service port and host.
    Srv {
        /// Port of the Service, or of the endpoint under a headless one.
        port: u16,
        /// Host.
        target: String,
    },
    /// Name of an address.
    Ptr(String),
    /// Alias.
    Cname(String),
    /// Text.
    Txt(String),
    /// Start of authority; its values are [`Zone::soa`]'s.
    Soa,
    /// Name server.
    Ns(String),
}

impl Data {
    fn kind(&self) -> Kind {
        match self {
            Self::A(_) => Kind::A,
            Self::Aaaa(_) => Kind::Aaaa,
            Self::Srv { .. } => Kind::Srv,
            Self::Ptr(_) => Kind::Ptr,
            Self::Cname(_) => Kind::Cname,
            Self::Txt(_) => Kind::Txt,
            Self::Soa => Kind::Soa,
            Self::Ns(_) => Kind::Ns,
        }
    }

    fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::A(address),
            IpAddr::V6(address) => Self::Aaaa(address),
        }
    }
}

/// A record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name, where it is not the one asked for: behind an alias.
    pub owner: Option<String>,
    /// Seconds.
    pub ttl: u32,
    /// Data.
    pub data: Data,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Records of the type asked for, or an alias.
    Records(Vec<Record>),
    /// The name exists, without records of that type (D3). The SOA has the name in `apex`.
    NoData {
        /// Apex of the zone.
        apex: String,
    },
    /// There is no such name.
    NxDomain {
        /// Apex of the zone.
        apex: String,
    },
    /// A name of a zone that is not ours.
    Foreign,
}

/// The zone of one state of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    options: Options,
    /// By full name. A name with an empty list exists: NODATA for every type.
    names: HashMap<String, Vec<Data>>,
}

impl Zone {
    /// All names of a state.
    pub fn new(model: &Model, options: Options) -> Self {
        let mut zone = Self { options, names: HashMap::new() };
        zone.fixed(model);
        let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for (name, slice) in &model.slices {
            slices.entry((&name.namespace, &slice.service)).or_default().push(slice);
        }
        for (name, service) in &model.services {
            let slices = slices.get(&(name.namespace.as_str(), name.name.as_str())).map_or(&[][..], Vec::as_slice);
            zone.service(name, service, slices);
        }
        zone.cluster_ip_names(model);
        for records in zone.names.values_mut() {
            records.sort_unstable();
            records.dedup();
        }
        zone
    }

    /// TTL of positive and negative answers, in seconds.
    pub fn ttl(&self) -> u32 {
        self.options.ttl
    }

    /// Name of the server, as SOA and NS have it.
    pub fn server(&self) -> String {
        format!("ns.dns.{}", self.options.zone)
    }

    /// Mailbox of the SOA.
    pub fn mailbox(&self) -> String {
        format!("hostmaster.{}", self.options.zone)
    }

    /// Answers a question. `name` is in any case (D1), without a dot at its end.
    pub fn answer(&self, name: &str, kind: Kind) -> Answer {
        let mut name = name.to_ascii_lowercase();
        let Some(apex) = self.apex(&name) else { return Answer::Foreign };
        let apex = apex.to_owned();
        let mut found: Vec<Record> = Vec::new();
        for step in 0..=MAX_ALIASES {
            let owner = (step > 0).then(|| name.clone());
            let Some(records) = self.names.get(&name) else { break };
            let ttl = if records.iter().any(|data| matches!(data, Data::Txt(_))) { VERSION_TTL } else { self.ttl() };
            let of = |kind| {
                let of_kind = records.iter().filter(move |data| data.kind() == kind);
                let owner = &owner;
                of_kind.map(move |data| Record { owner: owner.clone(), ttl, data: data.clone() })
            };
            found.extend(of(kind));
            let alias = records.iter().find_map(|data| match data {
                Data::Cname(target) if matches!(kind, Kind::A | Kind::Aaaa) => Some(target.clone()),
                _ => None,
            });
            let Some(target) = alias else { break };
            found.extend(of(Kind::Cname));
            name = target;
        }
        if !found.is_empty() {
            return Answer::Records(found);
        }
        if self.names.contains_key(&name) || is_part_of_an_address(&name) {
            Answer::NoData { apex }
        } else {
            Answer::NxDomain { apex }
        }
    }

    /// The zone of ours that `name` is in.
    fn apex(&self, name: &str) -> Option<&str> {
        [self.options.zone.as_str(), "in-addr.arpa", "ip6.arpa"]
            .into_iter()
            .find(|apex| name.strip_suffix(apex).is_some_and(|before| before.is_empty() || before.ends_with('.')))
    }

    fn add(&mut self, name: String, data: Data) {
        self.exists(&name);
        self.names.entry(name).or_default().push(data);
    }

    /// The name exists, and so do all between it and the apex (RFC 8020).
    fn exists(&mut self, name: &str) {
        let mut name = name;
        while !self.names.contains_key(name) {
            self.names.insert(name.to_owned(), Vec::new());
            match name.split_once('.') {
                Some((_, parent)) if self.apex(parent) == Some(self.options.zone.as_str()) => name = parent,
                _ => break,
            }
        }
    }

    fn fixed(&mut self, model: &Model) {
        let zone = self.options.zone.clone();
        for apex in [zone.clone(), "in-addr.arpa".to_owned(), "ip6.arpa".to_owned()] {
            let server = Data::Ns(self.server());
            self.add(apex.clone(), Data::Soa);
            self.add(apex, server);
        }
        self.add(format!("dns-version.{zone}"), Data::Txt("1.1.0".to_owned()));
        self.exists(&format!("svc.{zone}"));
        self.exists(&self.server());
        let own = ObjectName { namespace: "kube-system".to_owned(), name: "kube-dns".to_owned() };
        for address in model.services.get(&own).into_iter().flat_map(|service| &service.cluster_ips) {
            self.add(self.server(), Data::address(*address));
        }
        for namespace in &model.namespaces {
            self.exists(&format!("{namespace}.svc.{zone}"));
        }
    }

    fn service(&mut self, name: &ObjectName, service: &Service, slices: &[&EndpointSlice]) {
        let host = format!("{}.{}.svc.{}", name.name, name.namespace, self.options.zone);
        self.exists(&format!("{}.svc.{}", name.namespace, self.options.zone));
        if service.service_type == ServiceType::ExternalName {
            let target = service.external_name.as_deref().map(|target| target.trim_end_matches('.'));
            // D11: an address is no name to refer to.
            if let Some(target) = target.filter(|target| !target.is_empty() && target.parse::<IpAddr>().is_err()) {
                self.add(host, Data::Cname(target.to_ascii_lowercase()));
            }
            return;
        }
        self.endpoints(&host, service.headless, slices);
        if service.headless {
            return;
        }
        self.exists(&host);
        for address in &service.cluster_ips {
            self.add(host.clone(), Data::address(*address));
        }
        for port in &service.ports {
            let data = Data::Srv { port: port.port.get(), target: host.clone() };
            self.srv(&host, &port.name, &port.protocol.to_string(), data);
        }
    }

    /// D4: every port on the Service's own name, and a named one on its own.
    fn srv(&mut self, host: &str, port: &str, protocol: &str, data: Data) {
        if !port.is_empty() {
            let name = format!("_{port}._{protocol}.{host}").to_ascii_lowercase();
            self.add(name, data.clone());
        }
        self.add(host.to_owned(), data);
    }

    /// D6 to D10, D12 and D17: endpoints have names under every Service, and are the Service's under a headless one.
    fn endpoints(&mut self, host: &str, headless: bool, slices: &[&EndpointSlice]) {
        for slice in slices {
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
                let target = format!("{}.{host}", label(endpoint));
                self.add(target.clone(), Data::address(endpoint.address));
                self.add(reverse(endpoint.address), Data::Ptr(target.clone()));
                if !headless {
                    continue;
                }
                self.add(host.to_owned(), Data::address(endpoint.address));
                for port in &slice.ports {
                    let data = Data::Srv { port: port.port.get(), target: target.clone() };
                    self.srv(host, &port.name, &port.protocol.to_string(), data);
                }
            }
        }
    }

    /// D5: exactly one name, whatever endpoints have that address.
    fn cluster_ip_names(&mut self, model: &Model) {
        let mut seen = BTreeSet::new();
        for (name, service) in &model.services {
            for address in service.cluster_ips.iter().filter(|address| seen.insert(**address)) {
                let host = format!("{}.{}.svc.{}", name.name, name.namespace, self.options.zone);
                self.names.insert(reverse(*address), vec![Data::Ptr(host)]);
            }
        }
    }
}

/// D7: the hostname, or the address with dashes.
fn label(endpoint: &Endpoint) -> String {
    if let Some(hostname) = endpoint.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
        return hostname.to_ascii_lowercase();
    }
    let mut label = endpoint.address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// Name of an address for PTR (RFC 1035 section 3.5, RFC 3596 section 2.5).
pub fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4));
            nibbles.collect::<String>() + "ip6.arpa"
        }
    }
}

/// Above the names of addresses: it may have names below, which NXDOMAIN would deny (RFC 8020).
fn is_part_of_an_address(name: &str) -> bool {
    let labels = |suffix| name.strip_suffix(suffix).map(|labels| labels.split('.').count());
    labels(".in-addr.arpa").is_some_and(|count| count < 4) || labels(".ip6.arpa").is_some_and(|count| count < 32)
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
