//! Cluster IPs, nodePorts and healthCheckNodePorts: who owns what, and what the rest gets.
//!
//! Recorded owners come first, then what documents write, in the order of namespace and name, then what is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use ipnet::IpNet;
use siphasher::sip::SipHasher13;

use super::{
    Options,
    allocation_file::{NodePortRecord, Record, Records},
    balancers,
    intake::Objects,
};
use crate::{
    convert::{Draft, Issue},
    model::{IpFamily, ObjectName, Protocol, Service},
};

/// In the place of a port's name, which it cannot be.
const HEALTH_CHECK: &str = "healthCheckNodePort";
/// More Services than this in one range are not supported; it bounds the search in a large IPv6 range.
const MAX_RANGE: u128 = 1 << 20;

/// The Services that keep or get all they need.
#[derive(Debug, Default)]
pub(super) struct Allocated {
    pub(super) services: BTreeMap<ObjectName, (Draft, Service)>,
    pub(super) issues: Vec<(ObjectName, Issue)>,
    /// The records to keep.
    pub(super) records: Records,
}

/// `present` holds every Service that has a document, also a refused one; `complete` says whether the others are gone.
pub(super) fn allocate(
    last_good: &BTreeMap<ObjectName, Draft>,
    records: &Records,
    present: &BTreeSet<ObjectName>,
    complete: bool,
    objects: &Objects,
    options: &Options,
) -> Allocated {
    let drafts = &objects.services;
    let mut claims = Claims::default();
    let mut out = Allocated::default();
    for (name, record) in records {
        if !present.contains(name) && complete {
            continue;
        }
        out.records.insert(name.clone(), record.clone());
        claims.seed(
            name,
            &drafts.get(name).map_or_else(|| record.clone(), |draft| wanted(draft, record)),
            drafts.get(name),
        );
    }
    let mut accepted = Vec::new();
    for (name, draft) in drafts {
        match claims.claim(name, draft) {
            Ok(()) => accepted.push((name, draft)),
            Err(issue) => {
                out.issues.push((name.clone(), issue));
                if let Some(old) = last_good.get(name)
                    && claims.claim(name, old).is_ok()
                {
                    accepted.push((name, old));
                }
            }
        }
    }
    for (name, draft) in accepted {
        out.issues.extend(outside(draft, options).into_iter().map(|issue| (name.clone(), issue)));
        let record = records.get(name).map(|record| wanted(draft, record)).unwrap_or_default();
        match complete_service(name, draft, &record, &mut claims, options) {
            Ok((service, warning)) => {
                out.issues.extend(warning.map(|issue| (name.clone(), issue)));
                out.records.insert(name.clone(), record_of(&service));
                out.services.insert(name.clone(), (draft.clone(), service));
            }
            Err(issue) => out.issues.push((name.clone(), issue)),
        }
    }
    balancers::give(&mut out, records, &claims, objects, options);
    out.records.retain(|_, record| *record != Record::default());
    out
}

/// What of a record a Service still asks for.
fn wanted(draft: &Draft, record: &Record) -> Record {
    let service = &draft.service;
    let ip = |ip: &&IpAddr| {
        let written = service.cluster_ips.iter().find(|written| IpFamily::of(written) == IpFamily::of(ip));
        draft.needs_cluster_ips()
            && service.ip_families.contains(&IpFamily::of(ip))
            && written.is_none_or(|written| written == *ip)
    };
    let node_port = |old: &&NodePortRecord| {
        let port = service.ports.iter().find(|port| port.name == old.name && port.protocol == old.protocol);
        port.is_some_and(|port| match port.node_port {
            Some(written) => written == old.node_port,
            None => {
                draft.needs_node_ports()
                    // A number that another port of this Service now writes is that port's.
                    && !service.ports.iter().any(|other| {
                        other.protocol == old.protocol && other.node_port == Some(old.node_port)
                    })
            }
        })
    };
    Record {
        cluster_ips: record.cluster_ips.iter().filter(ip).copied().collect(),
        node_ports: record.node_ports.iter().filter(node_port).cloned().collect(),
        load_balancer_ips: record
            .load_balancer_ips
            .iter()
            .filter(|ip| balancers::asks(draft) || service.load_balancer_ips.contains(ip))
            .copied()
            .collect(),
        health_check_node_port: record.health_check_node_port.filter(|old| {
            service.is_probed()
                && service.health_check_node_port.is_none_or(|written| written == *old)
                && !service.ports.iter().any(|port| (port.protocol, port.node_port) == (Protocol::Tcp, Some(*old)))
        }),
    }
}

fn record_of(service: &Service) -> Record {
    let node_port = |port: &crate::model::ServicePort| {
        let node_port = port.node_port?;
        Some(NodePortRecord { name: port.name.clone(), protocol: port.protocol, node_port })
    };
    Record {
        cluster_ips: service.cluster_ips.clone(),
        node_ports: service.ports.iter().filter_map(node_port).collect(),
        load_balancer_ips: service.load_balancer_ips.clone(),
        health_check_node_port: service.health_check_node_port,
    }
}

#[derive(Debug, Default)]
pub(super) struct Claims {
    ips: BTreeMap<IpAddr, ObjectName>,
    node_ports: BTreeMap<(Protocol, NonZeroU16), ObjectName>,
    balancers: BTreeMap<(IpAddr, Protocol, NonZeroU16), ObjectName>,
}

impl Claims {
    /// The Service whose cluster IP this is.
    pub(super) fn owner_of(&self, ip: IpAddr) -> Option<&ObjectName> {
        self.ips.get(&ip)
    }

    fn seed(&mut self, name: &ObjectName, record: &Record, draft: Option<&Draft>) {
        for ip in &record.cluster_ips {
            self.ips.insert(*ip, name.clone());
        }
        for port in &record.node_ports {
            self.node_ports.insert((port.protocol, port.node_port), name.clone());
        }
        if let Some(number) = record.health_check_node_port {
            self.node_ports.insert((Protocol::Tcp, number), name.clone());
        }
        let ports = draft.map(|draft| draft.service.ports.as_slice()).unwrap_or_default();
        for ip in &record.load_balancer_ips {
            for port in ports {
                self.balancers.entry((*ip, port.protocol, port.port)).or_insert_with(|| name.clone());
            }
        }
    }

    /// All that a Service writes, or nothing.
    fn claim(&mut self, name: &ObjectName, draft: &Draft) -> Result<(), Issue> {
        let service = &draft.service;
        let taken = |field: String, what: String, owner: &ObjectName| {
            Issue::error(field, format!("{what} belongs to Service {owner}"), "write another, or leave it out")
        };
        for (index, ip) in service.cluster_ips.iter().enumerate() {
            let mut owners = self.ips.get(ip).into_iter().chain(self.balancers_of(*ip));
            if let Some(owner) = owners.find(|owner| *owner != name) {
                return Err(taken(format!("spec.clusterIPs[{index}]"), ip.to_string(), owner));
            }
        }
        for (index, port) in service.ports.iter().enumerate() {
            if let Some(number) = port.node_port
                && let Some(owner) = self.node_ports.get(&(port.protocol, number)).filter(|owner| *owner != name)
            {
                let what = format!("nodePort {number}/{}", port.protocol);
                return Err(taken(format!("spec.ports[{index}].nodePort"), what, owner));
            }
        }
        if let Some(number) = service.health_check_node_port
            && let Some(owner) = self.node_ports.get(&(Protocol::Tcp, number)).filter(|owner| *owner != name)
        {
            return Err(taken("spec.healthCheckNodePort".to_owned(), format!("port {number}/TCP"), owner));
        }
        for (index, ip) in service.load_balancer_ips.iter().enumerate() {
            let ports = service.ports.iter();
            let others = ports.filter_map(|port| self.balancers.get(&(*ip, port.protocol, port.port)));
            if let Some(owner) = self.ips.get(ip).into_iter().chain(others.filter(|owner| *owner != name)).next() {
                return Err(taken(format!("status.loadBalancer.ingress[{index}].ip"), ip.to_string(), owner));
            }
        }
        for ip in &service.cluster_ips {
            self.ips.insert(*ip, name.clone());
        }
        for port in &service.ports {
            if let Some(number) = port.node_port {
                self.node_ports.insert((port.protocol, number), name.clone());
            }
            for ip in &service.load_balancer_ips {
                self.balancers.insert((*ip, port.protocol, port.port), name.clone());
            }
        }
        if let Some(number) = service.health_check_node_port {
            self.node_ports.insert((Protocol::Tcp, number), name.clone());
        }
        Ok(())
    }

    fn balancers_of(&self, ip: IpAddr) -> impl Iterator<Item = &ObjectName> {
        let first = (ip, Protocol::Tcp, NonZeroU16::MIN);
        let last = (ip, Protocol::Sctp, NonZeroU16::MAX);
        self.balancers.range(first..=last).map(|(_, owner)| owner)
    }

    fn ip_is_free(&self, ip: IpAddr) -> bool {
        !self.ips.contains_key(&ip) && self.balancers_of(ip).next().is_none()
    }

    /// Free for every protocol, so that a later port of another protocol can share the number.
    fn node_port_is_free(&self, number: NonZeroU16) -> bool {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .all(|protocol| !self.node_ports.contains_key(&(protocol, number)))
    }
}

fn outside(draft: &Draft, options: &Options) -> Vec<Issue> {
    let ips = draft.service.cluster_ips.iter().enumerate();
    let ips = ips.filter(|(_, ip)| !options.service_cidrs.iter().any(|net| net.contains(*ip)));
    let ips = ips.map(|(index, ip)| {
        let field = format!("spec.clusterIPs[{index}]");
        Issue::warning(field, format!("{ip} is outside the service ranges: kept"), "see --service-cidr")
    });
    let ports = draft.service.ports.iter().enumerate();
    let ports = ports.filter_map(|(index, port)| {
        let number = port.node_port.filter(|number| !options.node_port_range.contains(&number.get()))?;
        let field = format!("spec.ports[{index}].nodePort");
        Some(Issue::warning(field, format!("{number} is outside the nodePort range: kept"), "see --node-port-range"))
    });
    let health = draft.service.health_check_node_port;
    let health = health.filter(|number| !options.node_port_range.contains(&number.get())).map(|number| {
        let cause = format!("{number} is outside the nodePort range: kept");
        Issue::warning("spec.healthCheckNodePort", cause, "see --node-port-range")
    });
    ips.chain(ports).chain(health).collect()
}

/// Fills in what is missing: from the record, else from the ranges. A reader allocates nothing and says so.
fn complete_service(
    name: &ObjectName,
    draft: &Draft,
    record: &Record,
    claims: &mut Claims,
    options: &Options,
) -> Result<(Service, Option<Issue>), Issue> {
    let mut service = draft.service.clone();
    let mut missing = false;
    if draft.needs_cluster_ips() {
        let mut cluster_ips = Vec::new();
        for family in &service.ip_families {
            let of_family = |ip: &&IpAddr| IpFamily::of(ip) == *family;
            let known = draft.service.cluster_ips.iter().find(of_family);
            let known = known.or_else(|| record.cluster_ips.iter().find(of_family)).copied();
            let ip = match known {
                Some(ip) => ip,
                None if !options.write_allocations => {
                    missing = true;
                    continue;
                }
                None => pick_ip(name, *family, claims, &options.service_cidrs).ok_or_else(|| {
                    Issue::error(
                        "spec.clusterIP",
                        format!("no free {family} address is left in the service ranges"),
                        "widen --service-cidr, or remove Services",
                    )
                })?,
            };
            claims.ips.insert(ip, name.clone());
            cluster_ips.push(ip);
        }
        // A secondary address without its primary would stand in the primary's place.
        service.cluster_ips = if missing { Vec::new() } else { cluster_ips };
    }
    if draft.needs_node_ports() {
        for index in 0..service.ports.len() {
            let Some(port) = service.ports.get(index).filter(|port| port.node_port.is_none()) else { continue };
            let recorded = record.node_ports.iter().find(|old| old.name == port.name && old.protocol == port.protocol);
            // Like the API server: one port number for several protocols gets one nodePort.
            let twin = service.ports.iter().find_map(|other| other.node_port.filter(|_| other.port == port.port));
            let twin = twin.filter(|number| !claims.node_ports.contains_key(&(port.protocol, *number)));
            let known = recorded.map(|old| old.node_port).or_else(|| twin.filter(|_| options.write_allocations));
            let number = match known {
                Some(number) => number,
                None if !options.write_allocations => {
                    missing = true;
                    continue;
                }
                None => pick_node_port(name, &port.name, claims, options).ok_or_else(|| {
                    Issue::error(
                        format!("spec.ports[{index}].nodePort"),
                        "no free nodePort is left in the range",
                        "widen --node-port-range, or remove Services",
                    )
                })?,
            };
            claims.node_ports.insert((port.protocol, number), name.clone());
            if let Some(port) = service.ports.get_mut(index) {
                port.node_port = Some(number);
            }
        }
    }
    if service.is_probed() && service.health_check_node_port.is_none() {
        service.health_check_node_port = match record.health_check_node_port {
            Some(number) => Some(number),
            None if options.write_allocations => {
                Some(pick_node_port(name, HEALTH_CHECK, claims, options).ok_or_else(|| {
                    Issue::error(
                        "spec.healthCheckNodePort",
                        "no free port is left in the range of nodePorts",
                        "widen --node-port-range, or remove Services",
                    )
                })?)
            }
            None => {
                missing = true;
                None
            }
        };
        if let Some(number) = service.health_check_node_port {
            claims.node_ports.insert((Protocol::Tcp, number), name.clone());
        }
    }
    let warning = missing.then(|| {
        let what = if draft.needs_cluster_ips() && service.cluster_ips.is_empty() {
            "it has no cluster IP yet, so that its name has no address"
        } else {
            "not all of its nodePorts have been allocated yet"
        };
        Issue::warning("spec.clusterIP", what, "start `ballast run` on these documents, or write them")
    });
    Ok((service, warning))
}

fn hash(parts: &[&str]) -> u64 {
    let mut hasher = SipHasher13::new();
    for part in parts {
        hasher.write(part.as_bytes());
        hasher.write_u8(0);
    }
    hasher.finish()
}

/// 0..size, beginning at a place the hash names; the lower part, which people write by hand, comes last.
fn spread(hash: u64, size: u64, lower: u64) -> impl Iterator<Item = u64> {
    let lower = if lower < size { lower } else { 0 };
    let upper = (size - lower).max(1);
    (0..size - lower).map(move |step| lower + (hash % upper + step) % upper).chain(0..lower)
}

fn pick_ip(name: &ObjectName, family: IpFamily, claims: &Claims, cidrs: &[IpNet]) -> Option<IpAddr> {
    let hash = hash(&["cluster-ip", &family.to_string(), &name.namespace, &name.name]);
    cidrs.iter().filter(|net| IpFamily::of(&net.network()) == family).find_map(|net| {
        let host_bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let all = 1_u128.checked_shl(host_bits).unwrap_or(u128::MAX);
        // The network address is never given, nor is IPv4's broadcast address.
        let usable = all.saturating_sub(if family == IpFamily::V4 { 2 } else { 1 }).min(MAX_RANGE);
        let size = u64::try_from(usable).ok()?;
        spread(hash, size, (size / 16).clamp(16, 256))
            .filter_map(|offset| nth(net, u128::from(offset) + 1))
            .find(|ip| claims.ip_is_free(*ip))
    })
}

fn nth(net: &IpNet, offset: u128) -> Option<IpAddr> {
    match net.network() {
        IpAddr::V4(base) => {
            let number = u32::from(base).checked_add(u32::try_from(offset).ok()?)?;
            Some(Ipv4Addr::from(number).into())
        }
        IpAddr::V6(base) => Some(Ipv6Addr::from(u128::from(base).checked_add(offset)?).into()),
    }
}

fn pick_node_port(name: &ObjectName, port: &str, claims: &Claims, options: &Options) -> Option<NonZeroU16> {
    let (low, high) = (u64::from(*options.node_port_range.start()), u64::from(*options.node_port_range.end()));
    let size = (high + 1).checked_sub(low)?;
    spread(hash(&["node-port", &name.namespace, &name.name, port]), size, (size / 32).clamp(16, 128))
        .filter_map(|offset| u16::try_from(low + offset).ok().and_then(NonZeroU16::new))
        .find(|number| claims.node_port_is_free(*number))
}
