//! The world: namespaces, wires, cgroups and mounts, built by [`WorldBuilder`] and removed on drop.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;

use crate::{
    Namespace, Network, Node, Options, Place, Pod, WorldBuilder, cgroup::Cgroup, kube::PodSpec, network, sys,
    wait_until, wiring,
};

/// Counts what netfilter finds INVALID on its way through a node, and drops it.
const DROP_INVALID: &str = "table inet world {
    counter invalid { }
    chain forward {
        type filter hook forward priority 0; policy accept;
        ct state invalid counter name invalid drop
    }
}
";

/// A small cluster: a client outside, a router, nodes and their pods. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct World {
    id: String,
    options: Options,
    nodes: Vec<Node>,
    client: Place,
    router: Namespace,
    directory: PathBuf,
    pod_specs: Mutex<BTreeMap<String, PodSpec>>,
    // After everything that may run a process.
    cgroup: Cgroup,
    _client_cgroup: Cgroup,
}

impl World {
    /// A world of two nodes with two pods each.
    pub fn new() -> anyhow::Result<Self> {
        Self::builder().build()
    }

    /// Options first.
    pub fn builder() -> WorldBuilder {
        WorldBuilder::default()
    }

    pub(crate) fn build(options: Options) -> anyhow::Result<Self> {
        let id = sys::unique_name()?;
        let cgroup = Cgroup::create(sys::cgroup2_mount()?.join(&id))?;
        let client_cgroup = Cgroup::create(cgroup.path().join("client"))?;
        let router = Namespace::create(&format!("{id}-router"))?;
        let client = Namespace::create(&format!("{id}-client"))?;
        for (namespace, forwards) in [(&router, true), (&client, false)] {
            wiring::prepare(namespace, &options, forwards)?;
        }
        if options.segment {
            wiring::add_segment(&router)?;
        }
        wiring::join_client(&router, &client, &options)?;
        let (ipv4, ipv6) = wiring::client_ips(0);
        let client =
            Place { name: "client".to_owned(), namespace: Arc::new(client), procs: client_cgroup.procs(), ipv4, ipv6 };
        let directory = std::env::temp_dir().join(&id);
        let mut world = Self {
            id,
            options,
            nodes: Vec::new(),
            client,
            router,
            directory,
            pod_specs: Mutex::default(),
            cgroup,
            _client_cgroup: client_cgroup,
        };
        fs::create_dir(&world.directory).with_context(|| format!("cannot make {}", world.directory.display()))?;
        fs::create_dir(world.manifests()).context("cannot make the manifest folder")?;
        for number in 1..=world.options.nodes {
            world.add_node(number)?;
            for index in 1..=world.options.pods {
                world.add_pod(usize::from(number) - 1, &format!("pod-{number}-{index}"), &[])?;
            }
        }
        if !world.nodes.is_empty() {
            world.route_services_via(0)?;
        }
        world.settle()?;
        Ok(world)
    }

    fn add_node(&mut self, number: u8) -> anyhow::Result<()> {
        let given = self.options.names.get(usize::from(number) - 1).cloned();
        let name = given.unwrap_or_else(|| format!("node{number}"));
        let cgroup = Cgroup::create(self.cgroup.path().join(&name))?;
        let namespace = Namespace::create(&format!("{}-node{number}", self.id))?;
        wiring::prepare(&namespace, &self.options, true)?;
        wiring::join_node(&self.router, &namespace, number, &self.options)?;
        if self.options.drop_invalid {
            namespace.nft(DROP_INVALID)?;
        }
        let network = self.options.network;
        network.prepare(&namespace, number, wiring::node_ips(number, 0))?;
        if network == Network::Bridge {
            let on = if self.options.bridge_netfilter { "1" } else { "0" };
            namespace.sysctls(&[("bridge/bridge-nf-call-iptables", on), ("bridge/bridge-nf-call-ip6tables", on)])?;
        }
        let directory = self.directory.join(&name);
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let (ipv4, ipv6) = wiring::node_ips(number, 0);
        let place = Place { name, namespace: Arc::new(namespace), procs: cgroup.procs(), ipv4, ipv6 };
        let node = Node { number, place, pods: Vec::new(), directory, cgroup, uplinks: self.options.uplinks };
        sys::mount_bpffs(&node.bpffs())?;
        for other in &self.nodes {
            network.join_nodes(other, &node, self.options.segment)?;
            network.join_nodes(&node, other, self.options.segment)?;
        }
        self.nodes.push(node);
        Ok(())
    }

    /// Adds a pod to node `node` (counted from 0), with the given addresses; of a family without one, with the next free
    /// address of the node's podCIDR.
    ///
    /// Pods that [`build`](WorldBuilder::build) did not make are usable once [`settle`](Self::settle) returns.
    pub fn add_pod(&mut self, node: usize, name: &str, ips: &[IpAddr]) -> anyhow::Result<&Pod> {
        let count = self.nodes.len();
        let of =
            self.nodes.get(node).with_context(|| format!("pod {name}: no node {node}: there are {count} nodes"))?;
        let index = u8::try_from(of.pods.len() + 1).ok().filter(|&index| index <= 240);
        let index = index.with_context(|| format!("pod {name}: {} is full", of.name()))?;
        let next = wiring::pod_ips(of.number, index);
        let ipv4 = ips.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        let ipv6 = ips.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
        let (ipv4, ipv6) = (ipv4.unwrap_or(next.0), ipv6.unwrap_or(next.1));
        let namespace = Namespace::create(&format!("{}-n{}p{index}", self.id, of.number))?;
        wiring::prepare(&namespace, &self.options, false)?;
        let interface = format!("pod{index}");
        let node_ips = (of.place.ipv4, of.place.ipv6);
        let network = self.options.network;
        network.join_pod(of.namespace(), of.number, &interface, node_ips, &namespace, (ipv4, ipv6))?;
        let procs = of.place.procs.clone();
        if (ipv4, ipv6) != next {
            self.route_pod(of, (ipv4, ipv6))?;
        }
        let place = Place { name: name.to_owned(), namespace: Arc::new(namespace), procs, ipv4, ipv6 };
        let node = self.nodes.get_mut(node).context("the node just found")?;
        node.pods.push(Pod { place, node: node.place.name.clone(), interface });
        node.pods.last().context("the pod just added")
    }

    /// A namespace beside the nodes, where a control plane can run, with a cgroup below the world's.
    pub(crate) fn add_control_plane(&self) -> anyhow::Result<(Place, Cgroup)> {
        let cgroup = Cgroup::create(self.cgroup.path().join("control-plane"))?;
        let namespace = Namespace::create(&format!("{}-control", self.id))?;
        wiring::prepare(&namespace, &self.options, false)?;
        wiring::join_control_plane(&self.router, &namespace, &self.options)?;
        let (ipv4, ipv6) = wiring::control_ips();
        let place = Place {
            name: "control-plane".to_owned(),
            namespace: Arc::new(namespace),
            procs: cgroup.procs(),
            ipv4,
            ipv6,
        };
        Ok((place, cgroup))
    }

    /// Makes the veth pair of a pod again, after it was deleted.
    pub fn plug(&self, pod: &Pod) -> anyhow::Result<()> {
        let node = self.nodes.iter().find(|node| node.name() == pod.node()).context("a pod of another world")?;
        let (node_ips, pod_ips) = ((node.ipv4(), node.ipv6()), (pod.ipv4(), pod.ipv6()));
        let network = self.options.network;
        network.join_pod(node.namespace(), node.number, &pod.interface, node_ips, pod.namespace(), pod_ips)
    }

    /// Makes the tunnel of a node again, after it was deleted.
    pub fn tunnel(&self, node: &Node) -> anyhow::Result<()> {
        let network = self.options.network;
        network.add_device(node.namespace(), node.number, (node.ipv4(), node.ipv6()))?;
        let mut others = self.nodes.iter().filter(|other| other.number != node.number);
        others.try_for_each(|other| network.join_nodes(node, other, self.options.segment))
    }

    /// Leads everybody to addresses that may be none of their node's podCIDRs.
    fn route_pod(&self, node: &Node, (ipv4, ipv6): (Ipv4Addr, Ipv6Addr)) -> anyhow::Result<()> {
        let (via4, via6) = wiring::node_ips(node.number, 0);
        self.router.ip(&format!("route replace {ipv4}/32 via {via4}\nroute replace {ipv6}/128 via {via6}\n"))?;
        let (network, segment) = (self.options.network, self.options.segment);
        let mut others = self.nodes.iter().filter(|other| other.number != node.number);
        others.try_for_each(|other| {
            network.lead(other, node, &format!("{ipv4}/32"), segment)?;
            network.lead(other, node, &format!("{ipv6}/128"), segment)
        })
    }

    /// Waits until every device is up and every address usable.
    pub fn settle(&self) -> anyhow::Result<()> {
        let places = self.nodes.iter().flat_map(|node| {
            std::iter::once(&node.place).chain(node.pods.iter().map(|pod| &pod.place)).map(Place::namespace)
        });
        for namespace in [&self.router, self.client.namespace()].into_iter().chain(places) {
            wait_until(&format!("devices of {}", namespace.name()), Duration::from_secs(10), || {
                let text = namespace.ip_output(&["-o", "addr"]).map_err(|error| error.to_string())?;
                let links = namespace.ip_output(&["-o", "link"]).map_err(|error| error.to_string())?;
                // A bridge has no carrier before its first port.
                let empty = |line: &&str| line.contains(&format!(": {}: <NO-CARRIER", network::BRIDGE));
                let mut links = links.lines().filter(|line| !empty(line));
                match links.find(|line| line.contains("state DOWN") || line.contains("state LOWERLAYERDOWN")) {
                    Some(line) => Err(line.to_owned()),
                    None if text.contains("tentative") => Err("an address is tentative".to_owned()),
                    None => Ok(()),
                }
            })?;
        }
        Ok(())
    }

    /// Sends what the outside has for `ClusterIPs` and `LoadBalancer` addresses to node `node` (0 is the default).
    pub fn route_services_via(&self, node: usize) -> anyhow::Result<()> {
        let node = self.node(node);
        let mut batch = String::new();
        for range in wiring::SERVICE_RANGES {
            let [ipv4, ipv6] = node.ips();
            let via = if range.contains(':') { ipv6 } else { ipv4 };
            wiring::line(&mut batch, &format!("route replace {range} via {via}"));
        }
        self.router.ip(&batch)
    }

    /// Turns the transmit checksum offload of every sender (client, nodes' uplinks, pods) on or off.
    ///
    /// With it on, as veths are made, checksums are partial and nobody notices a wrong one; off, they are as on a wire.
    pub fn set_tx_checksum(&self, on: bool) -> anyhow::Result<()> {
        let features = [("tx", on)];
        self.client.namespace().offload("eth0", &features)?;
        for node in &self.nodes {
            for uplink in 0..node.uplinks {
                node.namespace().offload(&format!("eth{uplink}"), &features)?;
            }
            for pod in &node.pods {
                pod.namespace().offload("eth0", &features)?;
            }
        }
        Ok(())
    }

    /// The client outside of the cluster.
    pub fn client(&self) -> &Place {
        &self.client
    }

    /// The router's namespace: its devices are `client`, `node1`, `node2`, ...
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Node `index`, counted from 0.
    ///
    /// # Panics
    /// If there is no such node: the test asks for what it did not build.
    pub fn node(&self, index: usize) -> &Node {
        assert!(index < self.nodes.len(), "no node {index}: this world has {}", self.nodes.len());
        &self.nodes[index]
    }

    /// The source that a backend sees of what `node` masquerades, or sends itself: that of the node's route to it.
    pub fn source_towards(&self, node: &Node, pod: &str, like: IpAddr) -> IpAddr {
        let own = node.pods.iter().any(|own| own.name() == pod);
        self.options.network.source(node, own, like.is_ipv4())
    }

    /// All pods, node by node.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(|node| &node.pods)
    }

    /// What the pods' documents say, by pod.
    pub(crate) fn pod_specs(&self) -> MutexGuard<'_, BTreeMap<String, PodSpec>> {
        self.pod_specs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all its names start with: namespaces, its cgroup, its directory.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its directory, gone with it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The folder of Kubernetes documents that agents are started with.
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Processes first: they hold namespaces and mounts. The cgroups themselves go by their own drop.
        if let Err(error) = fs::write(self.cgroup.path().join("cgroup.kill"), "1") {
            eprintln!("world: cannot end the processes of {}: {error}", self.id);
        }
        for mount in sys::mounts_below(&self.directory) {
            if let Err(error) = sys::unmount(&mount) {
                eprintln!("world: {error:#}");
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("world: cannot remove {}: {error}", self.directory.display());
        }
    }
}
