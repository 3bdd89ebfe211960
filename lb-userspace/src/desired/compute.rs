//! Model in, [`Desired`] out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use ipnet::IpNet;
use lb_common::{
    frontend::{FrontendFlags, Scope},
    ring::WhenEmpty,
};

use super::{
    Desired, DesiredFrontend, DesiredService, Detector, ExternalIps, FrontendKind, HealthCheck, NodeContext,
    ServiceKey,
    rules::{Rules, unroutable},
};
use crate::{
    model::{EndpointSlice, IpFamily, Model, ObjectName, Protocol, Service, ServicePort, ServiceType},
    net::node_ports::Own,
    report::Problem,
    topology::{self, EndpointState, PortEndpoints},
};

/// Computes what the datapath should hold.
pub fn desired(model: &Model, node: &NodeContext) -> Desired {
    let mut slices: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for (name, slice) in &model.slices {
        slices.entry((&name.namespace, &slice.service)).or_default().push(slice);
    }
    let local_pod_cidrs = model.nodes.get(&node.name).map(|own| own.pod_cidrs.clone()).unwrap_or_default();
    let detected = match &node.detector {
        Detector::NodeCidr => local_pod_cidrs.clone(),
        Detector::Ranges(ranges) => ranges.clone(),
    };
    let ours: Vec<Ours<'_>> = model.services.iter().filter_map(|(name, service)| Ours::of(name, service)).collect();
    // An address of this node is never owned: its other ports belong to the node's own processes.
    let vips = ours.iter().flat_map(Ours::vips).filter(|vip| !node.local_addrs.contains(vip)).collect();
    let mut compute = Compute::new(model, node, &vips, &detected);
    for service in ours {
        let of_service = slices.get(&(&*service.name.namespace, &*service.name.name));
        compute.add(&service, of_service.map_or(&[], Vec::as_slice));
    }
    let Part { services, health_checks, problems, warnings } = compute.out;
    let service_cidrs = node.service_cidrs.clone();
    Desired { services, vips, service_cidrs, local_pod_cidrs, detected, health_checks, problems, warnings }
}

/// Computes the Services of these `names` anew, none of which has changed itself: slices of theirs have. Every name is one
/// of `desired`'s, computed of the same Services and node. `None` where that is not enough to tell: everything has to be
/// computed then.
pub fn endpoints(
    desired: &Desired,
    model: &Model,
    node: &NodeContext,
    names: &BTreeSet<ObjectName>,
) -> Option<Endpoints> {
    let mut compute = Compute::new(model, node, &desired.vips, &desired.detected);
    for ours in names.iter().filter_map(|name| Ours::of(name, model.services.get(name)?)) {
        let slices: Vec<&EndpointSlice> = model.slices_of(ours.name).map(|(_, slice)| slice).collect();
        compute.add(&ours, &slices);
        // What is told of a Service stands among what is told of all; and it may tell of another one's addresses.
        let told = |problems: &[Problem]| {
            let object = format!("Service {}", ours.name);
            problems.iter().filter(|problem| problem.object == object).cloned().collect::<Vec<_>>()
        };
        let same = told(&compute.out.problems) == told(&desired.problems)
            && told(&compute.out.warnings) == told(&desired.warnings);
        if !same {
            return None;
        }
    }
    let Part { services, health_checks, .. } = compute.out;
    let is_new = |key: &ServiceKey| !desired.services.contains_key(key);
    let differs = |(key, new): (&ServiceKey, &DesiredService)| {
        let (frontends, sources, affinity) = (&new.frontends, &new.sources, new.affinity);
        desired
            .services
            .get(key)
            .is_none_or(|old| (&old.frontends, &old.sources, old.affinity) != (frontends, sources, affinity))
    };
    if services.keys().any(is_new) || services.iter().any(differs) {
        return None;
    }
    Some(Endpoints { services, health_checks })
}

/// Services with other endpoints.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// All ports of these Services.
    pub services: BTreeMap<ServiceKey, DesiredService>,
    /// Of those of them that balancers probe.
    pub health_checks: BTreeMap<ObjectName, HealthCheck>,
}

/// A Service that has a datapath, with its cluster IP of each family.
struct Ours<'a> {
    name: &'a ObjectName,
    service: &'a Service,
    families: Vec<(IpFamily, IpAddr)>,
}

impl<'a> Ours<'a> {
    /// The intake rules of semantics.md 2.1.2.
    fn of(name: &'a ObjectName, service: &'a Service) -> Option<Self> {
        if service.headless || service.foreign_proxy || service.service_type == ServiceType::ExternalName {
            return None;
        }
        let families: Vec<_> = if service.ip_families.is_empty() {
            service.cluster_ips.first().map(|ip| (IpFamily::of(ip), *ip)).into_iter().collect()
        } else {
            let pairs = service.ip_families.iter().copied().zip(service.cluster_ips.iter().copied());
            pairs.filter(|(family, ip)| IpFamily::of(ip) == *family).collect()
        };
        (!families.is_empty()).then_some(Self { name, service, families })
    }

    fn vips(&self) -> impl Iterator<Item = IpAddr> {
        let cluster_ips = self.families.iter().map(|(_, ip)| *ip);
        let balancers = self.families.iter().flat_map(|(family, _)| self.balancers(*family));
        cluster_ips.chain(balancers)
    }

    /// Load balancer addresses.
    fn balancers(&self, family: IpFamily) -> impl Iterator<Item = IpAddr> {
        let is_balancer = self.service.service_type == ServiceType::LoadBalancer;
        let addrs = if is_balancer { self.service.load_balancer_ips.as_slice() } else { &[] };
        addrs.iter().copied().filter(move |addr| IpFamily::of(addr) == family)
    }

    /// Whose connections the load balancer addresses of a family take; everyone's if there is none (semantics.md 2.7.4).
    /// `own`: addresses of this node.
    fn sources(&self, family: IpFamily, own: &BTreeSet<IpAddr>) -> BTreeSet<IpNet> {
        let of_family = |net: &&IpNet| IpFamily::of(&net.addr()) == family;
        let mut sources: BTreeSet<IpNet> =
            self.service.source_ranges.iter().filter(of_family).map(IpNet::trunc).collect();
        // A node that owns the address uses it as its source (semantics.md 2.7.3).
        if own.iter().any(|addr| sources.iter().any(|net| net.contains(addr))) {
            sources.extend(self.balancers(family).map(IpNet::from));
        }
        sources
    }
}

struct Compute<'a> {
    node: &'a NodeContext,
    /// Addresses of this node, those its Node object tells where it does.
    own: BTreeSet<IpAddr>,
    /// [`Desired::vips`]
    vips: &'a BTreeSet<IpAddr>,
    /// [`Desired::detected`]
    detected: &'a [IpNet],
    claims: BTreeMap<(IpAddr, NonZeroU16, Protocol), &'a ObjectName>,
    out: Part,
}

/// What Services add to [`Desired`].
#[derive(Default)]
struct Part {
    services: BTreeMap<ServiceKey, DesiredService>,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'a> Compute<'a> {
    fn new(model: &Model, node: &'a NodeContext, vips: &'a BTreeSet<IpAddr>, detected: &'a [IpNet]) -> Self {
        let internal_ips = model.nodes.get(&node.name).map(|own| &*own.internal_ips);
        let own = Own { name: &node.name, internal_ips, bind_address: node.bind_address }.addresses();
        let own = if own.is_empty() { node.local_addrs.clone() } else { own.into_iter().collect() };
        Self { node, own, vips, detected, claims: BTreeMap::new(), out: Part::default() }
    }

    fn add(&mut self, ours: &Ours<'a>, slices: &[&EndpointSlice]) {
        self.warn_of_externals(ours);
        self.warn_of_open_family(ours);
        let mut unroutable_endpoints = BTreeSet::new();
        let probed = ours.service.health_check_port();
        let mut ready_here = BTreeMap::<IpFamily, BTreeSet<IpAddr>>::new();
        for port in &ours.service.ports {
            for (family, cluster_ip) in &ours.families {
                let mut endpoints =
                    topology::port_endpoints(slices, &port.name, port.protocol, *family, &self.node.name);
                endpoints.retain(|backend, _| match unroutable(backend.addr) {
                    Some(why) => {
                        unroutable_endpoints.insert((backend.addr, why));
                        false
                    }
                    None => true,
                });
                if probed.is_some() {
                    let ready = endpoints.iter().filter(|(_, it)| it.local && it.state == EndpointState::Ready);
                    ready_here.entry(*family).or_default().extend(ready.map(|(backend, _)| backend.addr));
                }
                self.add_port(ours, port, *family, *cluster_ip, &endpoints);
            }
        }
        if let Some(port) = probed {
            let local = ready_here.values().map(BTreeSet::len).max().unwrap_or(0);
            self.out.health_checks.insert(ours.name.clone(), HealthCheck { port, local });
        }
        for (addr, why) in unroutable_endpoints {
            self.problem(
                ours.name,
                format!("endpoint {addr} is {why} and is left out"),
                "give the endpoint an address that other nodes can reach",
            );
        }
    }

    fn add_port(
        &mut self,
        ours: &Ours<'a>,
        port: &ServicePort,
        family: IpFamily,
        cluster_ip: IpAddr,
        endpoints: &PortEndpoints,
    ) {
        let key =
            ServiceKey { service: ours.name.clone(), port_name: port.name.clone(), protocol: port.protocol, family };
        if self.out.services.contains_key(&key) {
            let cause = format!("two ports are named {:?} with protocol {}", port.name, port.protocol);
            self.problem(ours.name, cause, "give every port of the Service its own name");
            return;
        }
        let (frontends, used) = self.frontends(ours, port, family, cluster_ip);
        let has_ranges =
            frontends.iter().any(|frontend: &DesiredFrontend| frontend.flags.contains(FrontendFlags::SOURCE_RANGES));
        if frontends.is_empty() {
            return;
        }
        let reachable = topology::reachable(endpoints);
        let local_empty = if reachable.has_any() { WhenEmpty::Drop } else { WhenEmpty::Reject };
        // A set nobody is sent to is not computed (semantics.md 2.2.1): its ring stays unused.
        let uses = |scope| used.iter().any(|rules: &Rules| rules.use_scope(scope));
        let (uses_cluster, uses_local) = (uses(Scope::Cluster), uses(Scope::Local));
        let service = DesiredService {
            backends: reachable.usable,
            cluster: if uses_cluster { reachable.cluster.backends } else { BTreeSet::new() },
            // The Cluster set is empty only when nothing can serve anywhere (semantics.md 2.3.1).
            cluster_empty: WhenEmpty::Reject,
            local: if uses_local { reachable.local.backends } else { BTreeSet::new() },
            local_empty: if uses_local { local_empty } else { WhenEmpty::Reject },
            frontends,
            sources: if has_ranges { ours.sources(family, &self.own) } else { BTreeSet::new() },
            affinity: ours.service.affinity_seconds,
        };
        self.out.services.insert(key, service);
    }

    fn frontends(
        &mut self,
        ours: &Ours<'a>,
        port: &ServicePort,
        family: IpFamily,
        cluster_ip: IpAddr,
    ) -> (Vec<DesiredFrontend>, Vec<Rules>) {
        let has_detector = self.detected.iter().any(|cidr| IpFamily::of(&cidr.addr()) == family);
        let internal = Rules::internal(ours.service.internal_policy, has_detector, self.node.masquerade_all);
        let external = Rules::external(ours.service.external_policy);
        let mut wanted = vec![(cluster_ip, port.port, FrontendKind::ClusterIp, internal)];
        let has_node_port = matches!(ours.service.service_type, ServiceType::NodePort | ServiceType::LoadBalancer);
        if let Some(node_port) = port.node_port.filter(|_| has_node_port) {
            let addrs = self.node.node_port_addrs.iter().filter(|addr| {
                // semantics.md 2.9.2: never an address that is somebody's VIP.
                IpFamily::of(addr) == family && !self.vips.contains(addr)
            });
            wanted.extend(addrs.map(|addr| (*addr, node_port, FrontendKind::NodePort, external)));
        }
        wanted.extend(ours.balancers(family).map(|addr| (addr, port.port, FrontendKind::LoadBalancer, external)));
        let externals = self.externals(ours.service, family);
        wanted.extend(externals.map(|addr| (addr, port.port, FrontendKind::ExternalIp, external)));

        let has_ranges = ours.service.source_ranges.iter().any(|net| IpFamily::of(&net.addr()) == family);
        let mut frontends = Vec::new();
        let mut used = Vec::new();
        for (addr, number, kind, rules) in wanted {
            let holder = *self.claims.entry((addr, number, port.protocol)).or_insert(ours.name);
            let mine = frontends.iter().any(|other: &DesiredFrontend| other.addr == addr && other.port == number);
            if holder != ours.name || mine {
                let at = SocketAddr::new(addr, number.get());
                let cause = format!("{kind} {at}/{} already belongs to Service {holder}", port.protocol);
                self.problem(ours.name, cause, "give one of the two another address or port");
                continue;
            }
            let Rules { pod, host, outside } = rules;
            let own = self.node.node_port_addrs.contains(&addr) || self.node.local_addrs.contains(&addr);
            let mut flags = if own { FrontendFlags::OWN_ADDRESS } else { FrontendFlags::NONE };
            if kind == FrontendKind::LoadBalancer && has_ranges {
                flags = flags.with(FrontendFlags::SOURCE_RANGES);
            }
            // No hook knows a pod's address (design.md section 2.2).
            if ours.service.affinity_seconds.is_some() {
                flags = flags.with(FrontendFlags::AFFINITY);
            }
            // And none rewrites a source.
            let masquerade_all = self.node.masquerade_all && kind == FrontendKind::ClusterIp;
            if masquerade_all || flags.contains(FrontendFlags::SOURCE_RANGES) || flags.contains(FrontendFlags::AFFINITY)
            {
                flags = flags.with(FrontendFlags::NO_POD_SOCKET);
            }
            frontends.push(DesiredFrontend { addr, port: number, kind, pod, host, outside, flags });
            used.push(rules);
        }
        (frontends, used)
    }

    /// External IPs that are served. One that a balancer gave as well is its own: that has ranges.
    fn externals<'s>(&'s self, service: &'s Service, family: IpFamily) -> impl Iterator<Item = IpAddr> + use<'s> {
        let addrs = service.external_ips.iter().copied().filter(move |addr| IpFamily::of(addr) == family);
        addrs.filter(|addr| {
            self.node.external_ips.allow(*addr)
                && unroutable(*addr).is_none()
                && !service.load_balancer_ips.contains(addr)
        })
    }

    /// External IPs that are not served, and why (reliability.md section 7).
    fn warn_of_externals(&mut self, ours: &Ours<'a>) {
        let asked = &ours.service.external_ips;
        for addr in asked.iter().filter_map(|addr| Some((addr, unroutable(*addr)?))) {
            let cause = format!("externalIP {} is {} and is not served", addr.0, addr.1);
            self.problem(ours.name, cause, "write an address that others can reach");
        }
        let closed: Vec<&IpAddr> = asked.iter().filter(|addr| !self.node.external_ips.allow(**addr)).collect();
        if closed.is_empty() {
            return;
        }
        let (why, fix) = if self.node.external_ips == ExternalIps::Off {
            ("they are off", "externalIPs: {enabled: true} in BallastConfiguration")
        } else {
            (
                "they are in none of the allowed ranges",
                "add their range to externalIPs.allowedCIDRs in BallastConfiguration",
            )
        };
        self.out.warnings.push(Problem {
            object: format!("Service {}", ours.name),
            cause: format!("externalIPs {} are not served: {why}", list(&closed)),
            fix: format!("{fix}; whoever may write Services then takes the traffic of these addresses"),
        });
    }

    /// Ranges of one family say nothing about the other (semantics.md 2.7.4): as with kube-proxy, but told.
    fn warn_of_open_family(&mut self, ours: &Ours<'a>) {
        for (family, _) in &ours.families {
            let open: Vec<IpAddr> = ours.balancers(*family).collect();
            let ranges = &ours.service.source_ranges;
            if open.is_empty() || ranges.is_empty() || ranges.iter().any(|net| IpFamily::of(&net.addr()) == *family) {
                continue;
            }
            self.out.warnings.push(Problem {
                object: format!("Service {}", ours.name),
                cause: format!(
                    "no range of loadBalancerSourceRanges ({}) is {family}, so that {} takes everyone's connections",
                    list(ranges),
                    list(&open)
                ),
                fix: format!("add the {family} ranges that are meant; 0.0.0.0/0 or ::/0 says that it is"),
            });
        }
    }

    fn problem(&mut self, name: &ObjectName, cause: String, fix: &str) {
        self.out.problems.push(Problem { object: format!("Service {name}"), cause, fix: fix.to_owned() });
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
