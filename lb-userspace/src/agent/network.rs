//! The network as the agent sees it: devices with their hooks, next hops, and the routes into `ballast0`.

mod told;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Bound,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::{family::Addr as _, settings::Setting};

use super::RunOptions;
use crate::{
    bpf::{Attached, Datapath},
    config::DetectLocal,
    desired::{Desired, Detector, FrontendKind},
    engine::{Backends, Engine},
    image::octets::Octets as _,
    model::Node,
    net::{
        self, Address, Netlink, NextHop, Ways, WaysTo, bridges,
        host_device::{self, HostDevice, Way},
        neighbours,
        node_ports::Own,
        reserved_ports,
        roles::{self, Device, Role},
    },
    report::Problem,
};

/// Ways that are asked for again at a time.
const CHECKED: usize = 1024;

/// The network of this node.
pub(super) struct Network {
    netlink: Netlink,
    host: Result<HostDevice, Problem>,
    addresses: Vec<Address>,
    default_routes: BTreeSet<u32>,
    /// Whom interfaces of pods lead to, where those are the detector.
    detected: Vec<IpNet>,
    devices: Vec<Device>,
    /// What is attached, by interface index; an error is told and tried again.
    attached: BTreeMap<u32, Result<Attached, String>>,
    /// To the backends.
    ways: WaysTo,
    /// The last of them that was asked for again.
    checked: Option<IpAddr>,
    /// By interface index.
    mtus: BTreeMap<u32, u32>,
    /// By origin, so that each listing replaces its own.
    problems: BTreeMap<&'static str, Vec<Problem>>,
    /// What may not be as meant, though nothing of ours is missing.
    warnings: Vec<Problem>,
}

/// Ways as they are compared: what an ICMP error taught comes and goes.
fn lasting(ways: &WaysTo) -> impl Iterator<Item = (IpAddr, NextHop)> {
    ways.iter().map(|(addr, way)| (*addr, way.lasting()))
}

/// Makes `ballast0`, or takes over the one that is there.
async fn make_host(netlink: &Netlink, options: &RunOptions) -> Result<HostDevice, Problem> {
    let host = host_device::ensure(netlink, &options.proc_sys_net).await.map_err(|error| Problem {
        object: format!("device {}", host_device::NAME),
        cause: error.to_string(),
        fix: "processes of this node reach Services by the socket hooks alone; see `ip link` and the error".to_owned(),
    });
    if let Err(problem) = &host {
        tracing::error!("{}: {}", problem.object, problem.cause);
    }
    host
}

impl Network {
    pub(super) async fn open(options: &RunOptions) -> io::Result<Self> {
        let netlink = Netlink::open()?;
        let host = make_host(&netlink, options).await;
        let mut problems = BTreeMap::new();
        if let Err(error) =
            reserved_ports::reserve(&options.config.snat_ports, &options.proc_sys_net, &options.state_dir)
        {
            let problem = Problem {
                object: "sysctl net.ipv4.ip_local_reserved_ports".to_owned(),
                cause: error.to_string(),
                fix: "sockets of this node may use ports that masqueraded flows use: reserve the snatPorts by hand"
                    .to_owned(),
            };
            problems.insert("ports", vec![problem]);
        }
        Ok(Self {
            netlink,
            host,
            addresses: Vec::new(),
            default_routes: BTreeSet::new(),
            detected: Vec::new(),
            devices: Vec::new(),
            attached: BTreeMap::new(),
            ways: WaysTo::new(),
            checked: None,
            mtus: BTreeMap::new(),
            problems,
            warnings: Vec::new(),
        })
    }

    /// Lists devices and addresses.
    pub(super) async fn list(&mut self, options: &RunOptions) {
        let listed = async {
            let links = self.netlink.links().await?;
            let addresses = self.netlink.addresses().await?;
            let pods = match &options.config.detect_local {
                DetectLocal::NodeCidr | DetectLocal::ClusterCidr(_) => Vec::new(),
                DetectLocal::BridgeInterface(bridge) => self.netlink.nets_behind(&links, |name| name == bridge).await?,
                DetectLocal::InterfaceNamePrefix(prefix) => {
                    self.netlink.nets_behind(&links, |name| name.starts_with(prefix)).await?
                }
            };
            Ok::<_, io::Error>((links, addresses, self.netlink.default_route_devices().await?, pods))
        };
        match listed.await {
            Ok((links, addresses, defaults, pods)) => {
                let config = &options.config;
                self.detected = pods;
                let (devices, problems) =
                    roles::classify(&links, &addresses, &defaults, &config.interfaces, config.xdp);
                self.problems.insert("devices", problems);
                self.warnings = bridges::warnings(&links, &devices, &options.proc_sys_net);
                self.devices = devices;
                self.warnings.extend(self.unguarded());
                self.mtus = links.iter().map(|link| (link.ifindex, link.mtu)).collect();
                self.addresses = addresses;
                self.default_routes = defaults;
                let present = |host: &HostDevice| links.iter().any(|link| link.ifindex == host.ifindex);
                if !self.host.as_ref().is_ok_and(present) {
                    self.host = make_host(&self.netlink, options).await;
                }
            }
            Err(error) => {
                tracing::warn!("cannot list the network: {error}; tried again soon");
                self.problems.insert(
                    "devices",
                    vec![Problem {
                        object: "network".to_owned(),
                        cause: format!("cannot be listed: {error}"),
                        fix: "nothing: it is tried again, devices keep their hooks".to_owned(),
                    }],
                );
            }
        }
    }

    /// Attaches what is new, forgets what is gone.
    pub(super) fn attach(&mut self, datapath: &mut Datapath) {
        for device in self.devices.iter().filter(|device| device.role != Role::Ignored) {
            let known = self.attached.get(&device.ifindex);
            if known.is_some_and(|known| known.as_ref().is_ok_and(|known| known.xdp == device.xdp)) {
                continue;
            }
            // Who has the XDP hook may have left it.
            let refused = known.and_then(|known| known.as_ref().ok()?.degraded.as_ref()).filter(|_| device.xdp);
            let result = match refused {
                Some(_) => Ok(datapath.retry_xdp(&device.name, device.ifindex)),
                None => datapath.attach_device(&device.name, device.ifindex, device.xdp),
            };
            match &result {
                Ok(Attached { degraded: Some(cause), .. }) if Some(cause) == refused => {}
                Ok(Attached { degraded: Some(cause), .. }) => {
                    tracing::warn!("device {}: XDP refused, tcx does its work: {cause}", device.name);
                }
                Ok(_) => tracing::info!("device {} ({}): attached", device.name, device.role),
                Err(error) if known.is_none() => tracing::error!("{error}"),
                Err(_) => {}
            }
            self.attached.insert(device.ifindex, result.map_err(|error| error.to_string()));
        }
        if let Ok(host) = &self.host
            && !self.attached.get(&host.ifindex).is_some_and(Result::is_ok)
        {
            let result = datapath.attach_host(host_device::NAME, host.ifindex);
            if let Err(error) = &result {
                tracing::error!("{error}");
            }
            self.attached.insert(host.ifindex, result.map(|()| Attached::default()).map_err(|error| error.to_string()));
        }
        let host = self.host.as_ref().ok().map(|host| host.ifindex);
        let wanted: BTreeSet<u32> = self
            .devices
            .iter()
            // What comes first when it is up again may be of a connection: without hooks the node would reset it.
            .filter(|device| device.role != Role::Ignored || device.resting)
            .map(|device| device.ifindex)
            .chain(host)
            .collect();
        let pinned = datapath.attached_devices().unwrap_or_else(|error| {
            tracing::warn!("cannot list pinned links: {error}");
            Vec::new()
        });
        for ifindex in pinned.into_iter().filter(|ifindex| !wanted.contains(ifindex)) {
            tracing::info!("interface {ifindex} is gone or ignored: forgotten");
            datapath.forget_device(ifindex);
        }
        self.attached.retain(|ifindex, _| wanted.contains(ifindex));
    }

    /// Asks for ways that are known, some more with each call; whether one of them is another one now.
    pub(super) async fn have_ways_changed(&mut self) -> bool {
        let from = self.checked.map_or(Bound::Unbounded, Bound::Excluded);
        let some = self.ways.range((from, Bound::Unbounded)).take(CHECKED);
        let some: WaysTo = some.map(|(addr, way)| (*addr, Arc::clone(way))).collect();
        self.checked = some.keys().next_back().copied().filter(|_| some.len() == CHECKED);
        let asked = net::next_hops(&some.keys().copied().collect()).await;
        asked.is_ok_and(|found| !lasting(&found).eq(lasting(&some)))
    }

    /// Finds the ways to backends: to all, if these are all, whose ways may be other ones now, else to those that are new;
    /// whether any way is another one now.
    pub(super) async fn resolve(&mut self, backends: &Backends) -> bool {
        let asked = if backends.whole {
            Cow::Borrowed(&backends.addrs)
        } else {
            Cow::Owned(backends.addrs.iter().copied().filter(|addr| !self.ways.contains_key(addr)).collect())
        };
        match net::next_hops(&asked).await {
            Ok(ways) if backends.whole => {
                let changed = !lasting(&self.ways).eq(lasting(&ways));
                self.ways = ways;
                self.problems.remove("hops");
                changed
            }
            Ok(ways) => {
                let changed = !ways.is_empty();
                self.ways.extend(ways);
                changed
            }
            Err(error) => {
                tracing::warn!("cannot resolve the ways to the backends: {error}; the last ones stay");
                self.problems.insert(
                    "hops",
                    vec![Problem {
                        object: "routes".to_owned(),
                        cause: format!("the ways to the backends cannot be resolved: {error}"),
                        fix: "nothing: it is tried again with the next change".to_owned(),
                    }],
                );
                false
            }
        }
    }

    /// Forgets ways to backends that are gone: changes of endpoints only add some.
    pub(super) fn forget_gone(&mut self, engine: &Engine) {
        let at_most: usize = engine.desired.services.values().map(|service| service.backends.len()).sum();
        if self.ways.len() > at_most {
            let backends = engine.backends().addrs;
            self.ways.retain(|addr, _| backends.contains(addr));
        }
    }

    /// Whether the ways are those of now.
    pub(super) fn is_resolved(&self) -> bool {
        !self.problems.contains_key("hops")
    }

    /// Routes into `ballast0`: the Service CIDRs, and every other address of ours.
    pub(super) async fn route(&mut self, desired: &Desired) {
        let Ok(host) = self.host else { return };
        let mut wanted = BTreeMap::new();
        let frontends = desired.services.values().flat_map(|service| &service.frontends);
        // An external IP may be another machine's, which has other ports as well: the hook alone serves this node's processes.
        let owned = |kind| !matches!(kind, FrontendKind::NodePort | FrontendKind::ExternalIp);
        // The addresses of the node lead to itself: the socket hooks serve those (design.md section 2.3).
        let others = frontends.filter(|frontend| owned(frontend.kind)).map(|frontend| frontend.addr);
        let own = self.local_addresses();
        let singles = others.chain(desired.vips.iter().copied()).filter(|addr| !own.contains(addr)).map(IpNet::from);
        for net in desired.service_cidrs.iter().copied().chain(singles) {
            let covered = desired.service_cidrs.iter().any(|cidr| *cidr != net && cidr.contains(&net));
            let Some(source) = self.source(net) else { continue };
            if !covered {
                wanted.insert(net, Way { prefsrc: Some(source), mtu: self.mtu(net) });
            }
        }
        let problems = match host_device::sync_routes(&self.netlink, host, &wanted).await {
            Ok(problems) => problems,
            Err(error) => vec![Problem {
                object: format!("routes into {}", host_device::NAME),
                cause: error.to_string(),
                fix: "nothing: it is tried again with the next change".to_owned(),
            }],
        };
        self.problems.insert("routes", problems);
    }

    /// The smallest MTU of the ways to backends, or where there are none yet of the uplinks. What was learned of a single
    /// backend by an ICMP error does not count: it is the kernel's to apply, and to forget.
    fn mtu(&self, net: IpNet) -> Option<u32> {
        let of_family = |addr: &IpAddr| addr.is_ipv4() == net.addr().is_ipv4();
        let ways = self.ways.iter().filter(|(addr, way)| of_family(addr) && !way.info.local);
        let device = |ifindex: u32| self.mtus.get(&ifindex).copied();
        let mtu = |way: &NextHop| way.lasting().mtu(device(way.info.ifindex));
        let uplinks = self.devices.iter().filter(|device| device.role == Role::Uplink);
        let smallest = ways.filter_map(|(_, way)| mtu(way)).min();
        let smallest = smallest.or_else(|| uplinks.filter_map(|uplink| device(uplink.ifindex)).min());
        // RFC 8200 section 5: no IPv6 link takes less.
        smallest.map(|mtu| if net.addr().is_ipv6() { mtu.max(1280) } else { mtu })
    }

    /// The source address for packets into `ballast0`: the node's own of that family, on an uplink or on the bridge over
    /// one.
    fn source(&self, net: IpNet) -> Option<IpAddr> {
        let uplink = |address: &Address| {
            let of = |device: &Device| device.ifindex == address.ifindex && device.role == Role::Uplink;
            self.default_routes.contains(&address.ifindex) || self.devices.iter().any(of)
        };
        let suits = |address: &&Address| {
            address.usable
                && address.universe
                && net::is_global(address.net.addr())
                && address.net.addr().is_ipv4() == net.addr().is_ipv4()
        };
        let mut candidates: Vec<&Address> = self.addresses.iter().filter(suits).collect();
        candidates.sort_by_key(|address| !uplink(address));
        candidates.first().map(|address| address.net.addr())
    }

    /// The source of packets into `ballast0`, as settings: what the socket hooks take for the address of a process that
    /// has not bound its socket.
    pub(super) fn host_source_words(&self) -> Vec<(Setting, u64)> {
        let source = |any: IpAddr| self.host.as_ref().ok().and_then(|_| self.source(any.into()));
        let v4 = source(Ipv4Addr::UNSPECIFIED.into()).and_then(<[u8; 4]>::from_ip).unwrap_or_default();
        let v6 = source(Ipv6Addr::UNSPECIFIED.into()).and_then(<[u8; 16]>::from_ip).unwrap_or_default();
        let words = |settings: [Setting; 2], words: [u64; 2]| settings.into_iter().zip(words);
        let v4 = words(<[u8; 4]>::HOST_SOURCE, v4.to_words()).take(1);
        v4.chain(words(<[u8; 16]>::HOST_SOURCE, v6.to_words())).collect()
    }

    /// Interfaces that no pod of this node sends by: uplinks and overlays.
    fn outer_devices(&self) -> impl Iterator<Item = u32> {
        let outer = |device: &&Device| matches!(device.role, Role::Uplink | Role::Overlay);
        self.devices.iter().filter(outer).map(|device| device.ifindex)
    }

    /// The same as settings, two a word.
    pub(super) fn uplink_words(&self) -> Vec<(Setting, u64)> {
        let mut outer = self.outer_devices();
        let mut word = || u64::from(outer.next().unwrap_or(0)) | u64::from(outer.next().unwrap_or(0)) << 32;
        Setting::UPLINKS.map(|setting| (setting, word())).into()
    }

    /// What is beyond the words.
    fn unguarded(&self) -> Option<Problem> {
        let beyond: Vec<u32> = self.outer_devices().skip(2 * Setting::UPLINKS.len()).collect();
        let named = self.devices.iter().filter(|device| beyond.contains(&device.ifindex));
        let names: Vec<&str> = named.map(|device| &*device.name).collect();
        (!names.is_empty()).then(|| Problem {
            object: "uplinks".to_owned(),
            cause: format!("more than {}: {}", 2 * Setting::UPLINKS.len(), names.join(", ")),
            fix: "packets that come by these with an address of this node's pods are taken for theirs: set rp_filter there"
                .to_owned(),
        })
    }

    /// The ways to the backends.
    pub(super) const fn ways(&self) -> Ways<'_> {
        Ways(&self.ways)
    }

    pub(super) fn host_device(&self) -> Option<HostDevice> {
        self.host.as_ref().ok().copied()
    }

    /// Where nodePorts are served; what is wrong with that is told from now on.
    pub(super) fn node_port_addresses(&mut self, options: &RunOptions, own: Option<&Node>) -> Vec<IpAddr> {
        let config = &options.config;
        let own = Own {
            name: &options.node,
            internal_ips: own.map(|own| &*own.internal_ips),
            bind_address: config.bind_address,
        };
        let mut served = config.node_port_addresses.serve(&self.addresses, &own);
        self.problems.insert("node ports", served.problems);
        served.addresses.retain(|addr| config.localhost_node_ports || !addr.is_loopback());
        served.addresses
    }

    /// Who is a pod, as the routes are.
    pub(super) fn detector(&self, detect: &DetectLocal) -> Detector {
        match detect {
            DetectLocal::NodeCidr => Detector::NodeCidr,
            DetectLocal::ClusterCidr(ranges) => Detector::Ranges(ranges.clone()),
            DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => {
                Detector::Ranges(self.detected.clone())
            }
        }
    }

    pub(super) fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(|address| address.net.addr()).collect()
    }

    pub(super) fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Next hops that do not answer now. Asked of the kernel each time: neighbours change their state every few seconds,
    /// and nothing of ours depends on it.
    pub(super) async fn silent_neighbours(&self) -> Vec<Problem> {
        let name = |ifindex: u32| {
            let device = self.devices.iter().find(|device| device.ifindex == ifindex);
            device.map_or_else(|| format!("#{ifindex}"), |device| device.name.clone())
        };
        match self.netlink.neighbours().await {
            Ok(found) => neighbours::warnings(&self.ways, &found, name),
            Err(error) => vec![Problem {
                object: "next hops".to_owned(),
                cause: format!("whether they answer is unknown: {error}"),
                fix: "see `ip neigh`".to_owned(),
            }],
        }
    }
}
