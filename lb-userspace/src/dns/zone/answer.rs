//! What each name answers.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Answer, Data, Kind, MAX_ALIASES, Pods, Record, VERSION_TTL, Zone,
    objects::{Entry, Port, Service, dashed},
    reverse::{self, V4, V6},
};
use crate::model::Protocol;

/// What a name has: none if there is no such name, and nothing if there is one without records of that kind.
type Found = Option<Vec<Data>>;

impl Zone {
    /// Answers a question. `name` is in any case (D1), without a dot at its end.
    pub fn answer(&self, name: &str, kind: Kind) -> Answer {
        let asked = name.to_ascii_lowercase();
        let Some((apex, labels)) = self.split(&asked) else { return Answer::Foreign };
        if apex != self.options.zone {
            return self.address_answer(apex, labels, kind);
        }
        let mut records: Vec<Record> = Vec::new();
        let (mut name, mut exists) = (asked.clone(), false);
        for step in 0..=MAX_ALIASES {
            let Some((apex, labels)) = self.split(&name).filter(|(apex, _)| *apex == self.options.zone) else { break };
            let Some(found) = self.found(apex, labels, kind) else { break };
            exists = true;
            let owner = (step > 0).then(|| name.clone());
            let alias = match found.as_slice() {
                [Data::Cname(target)] if kind != Kind::Cname => Some(target.clone()),
                _ => None,
            };
            records.extend(found.into_iter().map(|data| {
                let ttl = if matches!(data, Data::Txt(_)) { VERSION_TTL } else { self.ttl() };
                Record { owner: owner.clone(), ttl, data }
            }));
            let Some(target) = alias else { break };
            // Once is enough, also of aliases that lead in a circle (RFC 2181 5).
            let seen = |record: &Record| record.owner.as_deref().unwrap_or(&asked) == target;
            if records.iter().any(seen) {
                break;
            }
            name = target;
        }
        let apex = self.options.zone.clone();
        match (records.is_empty(), exists) {
            (false, _) => Answer::Records(records),
            (true, true) => Answer::NoData { apex },
            (true, false) => Answer::NxDomain { apex },
        }
    }

    /// The name that an answer ends with and leaves to others: an alias out of the zone.
    pub fn leads_out<'a>(&self, records: &'a [Record]) -> Option<&'a str> {
        match records.last().map(|record| &record.data) {
            Some(Data::Cname(target)) if self.split(target).is_none() => Some(target),
            _ => None,
        }
    }

    /// The zone of ours that `name` is in, and what stands before it.
    fn split<'a>(&self, name: &'a str) -> Option<(&str, &'a str)> {
        let zone = self.options.zone.as_str();
        [zone, V4, V6].into_iter().find_map(|apex| {
            let before = name.strip_suffix(apex)?;
            if before.is_empty() { Some((apex, before)) } else { Some((apex, before.strip_suffix('.')?)) }
        })
    }

    /// Records of a name of the cluster's zone. `labels` stand before the zone.
    fn found(&self, apex: &str, labels: &str, kind: Kind) -> Found {
        if labels.is_empty() {
            return Some(self.at_apex(kind));
        }
        let mut labels = labels.rsplit('.');
        let top = labels.next();
        let rest: [Option<&str>; 5] = std::array::from_fn(|_| labels.next());
        match (top, rest) {
            (Some("dns-version"), [None, ..]) => Some(only(kind, Data::Txt("1.1.0".to_owned()))),
            (Some("dns" | "svc"), [None, ..]) => Some(Vec::new()),
            (Some("dns"), [Some("ns"), None, ..]) => Some(self.own_addresses(kind)),
            (Some("svc"), [Some(namespace), None, ..]) => self.objects.has_namespace(namespace).then(Vec::new),
            (Some("svc"), [Some(namespace), Some(name), rest @ ..]) => {
                let entry = self.objects.entry(namespace, name)?;
                let host = || format!("{name}.{namespace}.svc.{apex}");
                match rest {
                    [None, ..] => own(entry, host, kind),
                    [Some(label), None, _] => below(entry, label, kind),
                    [Some(protocol), Some(port), None] => by_port(entry, host, protocol, port, kind),
                    _ => None,
                }
            }
            (Some("pod"), rest) if self.options.pods != Pods::Disabled => self.of_pod(rest, kind),
            _ => None,
        }
    }

    fn at_apex(&self, kind: Kind) -> Vec<Data> {
        match kind {
            Kind::Soa => vec![Data::Soa],
            Kind::Ns => vec![Data::Ns(self.server())],
            _ => Vec::new(),
        }
    }

    fn own_addresses(&self, kind: Kind) -> Vec<Data> {
        match self.objects.entry("kube-system", "kube-dns").and_then(|entry| entry.service.as_ref()) {
            Some(Service::Addressed { addresses, .. }) => of_kind(addresses.iter().copied(), kind),
            _ => Vec::new(),
        }
    }

    /// D16.
    fn of_pod(&self, labels: [Option<&str>; 5], kind: Kind) -> Found {
        match labels {
            [None, ..] => Some(Vec::new()),
            [Some(namespace), None, ..] => self.objects.has_namespace(namespace).then(Vec::new),
            [Some(namespace), Some(label), None, ..] => {
                let address = undashed(label)?;
                let known = match self.options.pods {
                    Pods::Disabled => false,
                    Pods::Insecure => self.objects.has_namespace(namespace),
                    Pods::Verified => self.objects.has_pod(namespace, address),
                };
                known.then(|| of_kind([address], kind))
            }
            _ => None,
        }
    }

    /// Names of addresses: ours in the ranges that are ours, and everywhere without an upstream.
    fn address_answer(&self, apex: &str, labels: &str, kind: Kind) -> Answer {
        if labels.is_empty() {
            let records = self.at_apex(kind);
            return self.of_data(records, apex);
        }
        let net = reverse::net(labels, apex == V6);
        let whole = net.filter(|net| net.prefix_len() == net.max_prefix_len());
        let names = whole.map_or_else(BTreeSet::new, |net| self.names_of(net.addr()));
        if !names.is_empty() {
            let records = if kind == Kind::Ptr { names.into_iter().map(Data::Ptr).collect() } else { Vec::new() };
            return self.of_data(records, apex);
        }
        let ours = |net: &ipnet::IpNet| self.options.ranges.iter().any(|range| reverse::overlap(range, net));
        if self.options.upstream && !net.as_ref().is_some_and(ours) {
            return Answer::Foreign;
        }
        let apex = apex.to_owned();
        // Above the names of addresses: it may have names below, which NXDOMAIN would deny (RFC 8020).
        if net.is_some() && whole.is_none() { Answer::NoData { apex } } else { Answer::NxDomain { apex } }
    }

    fn of_data(&self, data: Vec<Data>, apex: &str) -> Answer {
        if data.is_empty() {
            return Answer::NoData { apex: apex.to_owned() };
        }
        Answer::Records(data.into_iter().map(|data| Record { owner: None, ttl: self.ttl(), data }).collect())
    }

    /// D5 and D10.
    fn names_of(&self, address: IpAddr) -> BTreeSet<String> {
        let zone = &self.options.zone;
        if let Some(name) = self.objects.of_cluster_ip(address) {
            return [format!("{}.{}.svc.{zone}", name.name, name.namespace)].into();
        }
        let mut names = BTreeSet::new();
        for entry in self.objects.of_endpoint(address) {
            let hosts = entry.hosts().filter(|(host, _)| host.address == address);
            names.extend(
                hosts.map(|(host, _)| {
                    format!("{}.{}.{}.svc.{zone}", host.label(), entry.name.name, entry.name.namespace)
                }),
            );
        }
        names
    }
}

/// The Service's own name: D2, D4, D6, D9, D11.
fn own(entry: &Entry, host: impl Fn() -> String, kind: Kind) -> Found {
    match entry.service.as_ref()? {
        Service::Alias(target) => {
            let target = target.clone()?;
            Some(if matches!(kind, Kind::A | Kind::Aaaa | Kind::Cname) {
                vec![Data::Cname(target)]
            } else {
                Vec::new()
            })
        }
        Service::Addressed { addresses, ports } => Some(match kind {
            Kind::Srv => ports.iter().map(|port| Data::Srv { port: port.number, target: host() }).collect(),
            _ => of_kind(addresses.iter().copied(), kind),
        }),
        Service::Headless => {
            entry.hosts().next()?;
            Some(match kind {
                Kind::Srv => sorted(each_port(entry, &host(), |_| true)),
                _ => of_kind(sorted(entry.hosts().map(|(host, _)| host.address)), kind),
            })
        }
    }
}

/// One label below a Service: an endpoint's host (D7, D17), or the protocol above its ports.
fn below(entry: &Entry, label: &str, kind: Kind) -> Found {
    match entry.service.as_ref()? {
        Service::Alias(_) => return None,
        service => {
            if let Some(protocol) = label.strip_prefix('_') {
                return has_port(entry, service, |port| is(port.protocol, protocol)).then(Vec::new);
            }
        }
    }
    let dashed = undashed(label);
    let hosts = entry.hosts().map(|(host, _)| host);
    let addresses: Vec<IpAddr> = hosts.filter(|host| host.is_called(label, dashed)).map(|host| host.address).collect();
    (!addresses.is_empty()).then(|| of_kind(sorted(addresses), kind))
}

/// Two labels below a Service: D4, D9.
fn by_port(entry: &Entry, host: impl Fn() -> String, protocol: &str, port: &str, kind: Kind) -> Found {
    let (protocol, name) = (protocol.strip_prefix('_')?, port.strip_prefix('_')?);
    let this = |port: &Port| !name.is_empty() && port.name == name && is(port.protocol, protocol);
    let service = entry.service.as_ref()?;
    if !has_port(entry, service, this) {
        return None;
    }
    Some(match service {
        _ if kind != Kind::Srv => Vec::new(),
        Service::Addressed { ports, .. } => {
            ports.iter().filter(|port| this(port)).map(|port| Data::Srv { port: port.number, target: host() }).collect()
        }
        Service::Headless => sorted(each_port(entry, &host(), this)),
        Service::Alias(_) => Vec::new(),
    })
}

/// Whether a named port of the Service, or of a ready endpoint of a headless one, is so.
fn has_port(entry: &Entry, service: &Service, so: impl Fn(&Port) -> bool) -> bool {
    let so = |port: &Port| !port.name.is_empty() && so(port);
    match service {
        Service::Addressed { ports, .. } => ports.iter().any(so),
        Service::Headless => entry.hosts().any(|(_, ports)| ports.iter().any(so)),
        Service::Alias(_) => false,
    }
}

fn each_port<'a>(entry: &'a Entry, host: &'a str, so: impl Fn(&Port) -> bool + 'a) -> impl Iterator<Item = Data> + 'a {
    entry.hosts().flat_map(move |(endpoint, ports)| {
        let target = format!("{}.{host}", endpoint.label());
        let ports: Vec<_> = ports.iter().filter(|port| so(port)).map(|port| port.number).collect();
        ports.into_iter().map(move |port| Data::Srv { port, target: target.clone() })
    })
}

fn is(protocol: Protocol, label: &str) -> bool {
    protocol.to_string().eq_ignore_ascii_case(label)
}

/// The address that a label is, if it is written as we write it.
fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = || label.replace('-', ".").parse().ok().map(IpAddr::V4);
    let v6 = || label.replace('-', ":").parse().ok().map(IpAddr::V6);
    v4().or_else(v6).filter(|address| dashed(*address) == label)
}

fn of_kind(addresses: impl IntoIterator<Item = IpAddr>, kind: Kind) -> Vec<Data> {
    let like = |address: &IpAddr| matches!((address, kind), (IpAddr::V4(_), Kind::A) | (IpAddr::V6(_), Kind::Aaaa));
    addresses.into_iter().filter(like).map(Data::address).collect()
}

fn sorted<T: Ord>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = all.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn only(kind: Kind, data: Data) -> Vec<Data> {
    if data.kind() == kind { vec![data] } else { Vec::new() }
}
