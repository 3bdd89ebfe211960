//! The cluster: namespaces, documents, echo servers, agents.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context, bail};
use lb_tests::{Agent, Echo, Place, Setup, World};
use lb_userspace::{
    file_source::{self, Options},
    model::{self, Protocol, TrafficPolicy},
};

/// A Service as the table needs it.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) load_balancer_ips: Vec<IpAddr>,
    /// Protocol, port, nodePort.
    pub(crate) ports: Vec<(Protocol, u16, Option<u16>)>,
    /// Pods behind it, by name, on any node.
    pub(crate) backends: Vec<String>,
    pub(crate) external_local: bool,
}

/// The running cluster; everything goes when it is dropped.
pub(crate) struct Stage {
    // Agents before the world: they end while their namespaces still exist.
    agents: Vec<Agent>,
    _servers: Vec<Echo>,
    pub(crate) targets: Vec<Target>,
    pub(crate) world: World,
}

impl Stage {
    pub(crate) fn build(file: Option<&Path>, say: impl Fn(&str)) -> anyhow::Result<Self> {
        let demo = super::demo_folder()?;
        let source = file.unwrap_or(&demo);
        say("building a client, a router and two nodes in network namespaces");
        let mut world = World::builder().nodes(2).pods(0).rp_filter(1).drop_invalid(true).build()?;
        copy(source, &world)?;
        let allocations = world.directory().join("allocations.json");
        let options =
            Options { allocations: Some(allocations), write_allocations: true, ..Options::new(world.manifests()) };
        let loaded = file_source::load(&options).with_context(|| format!("cannot read {}", source.display()))?;
        for finding in &loaded.findings {
            say(&format!("{finding}"));
        }
        let model = loaded.model;
        say("starting the pods");
        let mut servers = Vec::new();
        let names = add_pods(&mut world, &model, &say)?;
        world.settle()?;
        for pod in world.pods() {
            if let Some(object) = names.get(pod.place().name()) {
                let ports = |protocol| of_protocol(object, protocol);
                servers.push(Echo::start(pod.place(), &ports(Protocol::Tcp), &ports(Protocol::Udp))?);
            }
        }
        if model.nodes.is_empty() {
            world.apply_nodes()?;
        }
        say("starting an agent on each node");
        let agents = Agent::start_all(&world, &Setup::tcx(true))?;
        let targets = targets(&model);
        for (agent, target) in agents.iter().flat_map(|agent| targets.iter().map(move |target| (agent, target))) {
            let rows = agent.services()?;
            if !rows.iter().any(|row| row.name == target.name) {
                bail!("the agent does not know Service {}", target.name);
            }
        }
        Ok(Self { agents, _servers: servers, targets, world })
    }

    /// The client outside.
    pub(crate) fn client(&self) -> &Place {
        self.world.client()
    }

    /// Runs a command in the client's namespace.
    pub(crate) fn run_at_client(&self, command: &[String]) -> anyhow::Result<ExitStatus> {
        let (program, arguments) = command.split_first().context("no command")?;
        let mut child = self.client().command(program)?;
        child.args(arguments).status().with_context(|| format!("cannot run {program}"))
    }

    /// Shows what the agents think, when something failed.
    pub(crate) fn explain(&self) {
        for agent in &self.agents {
            match agent.query(&["status"]) {
                Ok(text) => eprintln!("{text}"),
                Err(error) => eprintln!("{error:#}"),
            }
        }
    }

    /// How to play.
    pub(crate) fn manual(&self) -> String {
        let netns = |place: &Place| place.namespace().name().to_owned();
        let mut text = "It stays up until Ctrl-C. Try:\n".to_owned();
        let node = self.world.node(0);
        text.push_str(&format!("  ballast status --state-dir {}\n", node.state_dir().display()));
        text.push_str(&format!("  ballast service list --state-dir {}\n", node.state_dir().display()));
        text.push_str(&format!("  ip netns exec {} bash      # the client outside\n", netns(self.client())));
        for node in self.world.nodes() {
            text.push_str(&format!("  ip netns exec {} bash      # {}\n", netns(node.place()), node.place().name()));
        }
        for pod in self.world.pods() {
            text.push_str(&format!("  ip netns exec {} bash      # pod {}\n", netns(pod.place()), pod.place().name()));
        }
        text.push_str(&format!("Edit the documents in {}: the agents follow.", self.world.manifests().display()));
        text
    }
}

/// Copies the documents, so that playing with them changes nobody's files.
fn copy(source: &Path, world: &World) -> anyhow::Result<()> {
    if source.is_file() {
        let text = fs::read_to_string(source).with_context(|| format!("cannot read {}", source.display()))?;
        return world.apply("documents.yaml", &text);
    }
    let entries = fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))?;
    for entry in entries {
        let path = entry?.path();
        let yaml =
            path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
        if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| yaml) {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            world.apply(name, &text)?;
        }
    }
    Ok(())
}

fn of_protocol(pod: &model::Pod, protocol: Protocol) -> Vec<u16> {
    pod.ports.iter().filter(|(_, of, _)| *of == protocol).map(|(_, _, port)| port.get()).collect()
}

/// Makes a namespace for each Pod that can have one; the Pods by name.
fn add_pods(
    world: &mut World,
    model: &model::Model,
    say: &impl Fn(&str),
) -> anyhow::Result<BTreeMap<String, model::Pod>> {
    let mut names = BTreeMap::new();
    for (name, pod) in &model.pods {
        let node = match pod.node.as_deref() {
            Some("node1") => 0,
            Some("node2") => 1,
            other => {
                say(&format!("Pod {name}: nodeName {other:?} is neither node1 nor node2; it gets no namespace"));
                continue;
            }
        };
        if pod.host_network {
            say(&format!("Pod {name}: hostNetwork; it gets no namespace"));
            continue;
        }
        let ipv4 = pod.ips.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        let ipv6 = pod.ips.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
        let index = u8::try_from(names.len() + 100).unwrap_or(u8::MAX);
        let number = u8::try_from(node + 1)?;
        let ips = (
            ipv4.unwrap_or_else(|| Ipv4Addr::new(10, 244, number, index)),
            ipv6.unwrap_or_else(|| Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(number), 0, 0, 0, u16::from(index))),
        );
        world.add_pod(node, &name.name, Some(ips)).with_context(|| format!("Pod {name}"))?;
        names.insert(name.name.clone(), pod.clone());
    }
    Ok(names)
}

fn targets(model: &model::Model) -> Vec<Target> {
    let mut targets = Vec::new();
    for (name, service) in &model.services {
        if service.cluster_ips.is_empty() {
            continue;
        }
        let slices =
            model.slices.iter().filter(|(slice, of)| slice.namespace == name.namespace && of.service == name.name);
        let endpoints = slices.flat_map(|(_, slice)| &slice.endpoints).filter(|endpoint| endpoint.ready);
        let mut backends: Vec<String> = endpoints.filter_map(|endpoint| endpoint.pod.clone()).collect();
        backends.sort();
        backends.dedup();
        targets.push(Target {
            name: name.name.clone(),
            cluster_ips: service.cluster_ips.clone(),
            load_balancer_ips: service.load_balancer_ips.clone(),
            ports: service
                .ports
                .iter()
                .map(|port| (port.protocol, port.port.get(), port.node_port.map(std::num::NonZero::get)))
                .collect(),
            backends,
            external_local: service.external_policy == TrafficPolicy::Local,
        });
    }
    targets
}

/// How long a single try may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
