//! The cluster: namespaces, documents, echo servers, agents.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use ipnet::IpNet;
use lb_tests::{Agent, Network, Node, Place, Pod, Setup, World};
use lb_userspace::{
    file_source::{self, Options, Source, Watch},
    model::Model,
};
use tokio::sync::mpsc;

use crate::{
    cast::{self, Cast},
    names,
    progress::Progress,
    signals::Signals,
    targets::{Target, targets},
};

/// The file of the name service's documents.
const NAMES: &str = "demo-kube-dns.yaml";

/// The running cluster; everything goes when it is dropped.
pub(crate) struct Stage {
    // Agents before the world: they end while their namespaces still exist.
    agents: Vec<Agent>,
    hooked: Vec<bool>,
    cast: Cast,
    pub(crate) model: Model,
    source: Source,
    /// The name service is ours, and at its Service's address.
    names: bool,
    pub(crate) targets: Vec<Target>,
    pub(crate) world: World,
}

impl Stage {
    pub(crate) fn build(
        file: Option<&Path>,
        network: Network,
        progress: &Progress,
        signals: &Signals,
    ) -> anyhow::Result<Self> {
        let demo = super::demo_folder()?;
        let file = file.unwrap_or(&demo);
        let texts = read(file)?;
        let names = names(&texts, file)?;
        progress.say("building a client, a router and the nodes in network namespaces");
        let world = World::builder().nodes(u8::try_from(names.len())?).names(&names).pods(0);
        let mut world = world.rp_filter(1).drop_invalid(true).network(network).build()?;
        signals.check()?;
        // A copy: playing with them changes nobody's files.
        for (name, text) in &texts {
            world.apply(name, text)?;
        }
        let allocations = world.directory().join("allocations.json");
        let options =
            Options { allocations: Some(allocations), write_allocations: true, ..Options::new(world.manifests()) };
        let mut source = Source::new(options);
        let mut loaded = source.reload().with_context(|| format!("cannot read {}", file.display()))?;
        if loaded.model.nodes.is_empty() {
            world.apply_nodes()?;
            loaded = source.reload()?;
        }
        let names = !loaded.model.services.contains_key(&names::service());
        if names {
            world.apply_documents(NAMES, &names::documents(&world, &loaded.model))?;
            loaded = source.reload()?;
        }
        let folder = format!("{}/", world.manifests().display());
        for finding in &loaded.findings {
            progress.note(&finding.to_string().replace(&folder, ""));
        }
        progress.say("starting the pods");
        let mut cast = Cast::default();
        cast.place(&mut world, &loaded.model, |line| progress.note(line))?;
        signals.check()?;
        progress.say("starting an agent on each node");
        let mut agents = Vec::new();
        for node in world.nodes() {
            agents.push(start(&world, node)?);
            signals.check()?;
        }
        let hooked: Vec<bool> =
            agents.iter().map(|agent| Ok(agent.status()?.socket_hooks.attached)).collect::<anyhow::Result<_>>()?;
        // With what the agents allocated.
        let model = source.reload()?.model;
        let mut stage = Self { agents, hooked, cast, model, source, names, targets: Vec::new(), world };
        stage.aim();
        stage.check_services()?;
        stage.route_load_balancers()?;
        Ok(stage)
    }

    /// Finds what is to be tried. The name service is tried by those who ask it.
    fn aim(&mut self) {
        self.targets = targets(&self.model, &self.cast);
        if self.names {
            self.targets.retain(|target| target.object != names::service());
        }
    }

    fn check_services(&self) -> anyhow::Result<()> {
        for agent in &self.agents {
            let rows = agent.services()?;
            for Target { object, .. } in &self.targets {
                if !rows.iter().any(|row| row.name == object.name && row.namespace == object.namespace) {
                    bail!("the agent does not know Service {object}");
                }
            }
        }
        Ok(())
    }

    /// The documents may give any address to a load balancer; the outside must find the first node by it.
    fn route_load_balancers(&self) -> anyhow::Result<()> {
        let via = self.world.node(0);
        for ip in self.targets.iter().flat_map(|target| &target.load_balancer_ips) {
            self.world.router().ip(&format!("route replace {ip} via {}\n", via.ip_like(*ip)))?;
        }
        Ok(())
    }

    /// The client outside.
    pub(crate) fn client(&self) -> &Place {
        self.world.client()
    }

    /// A pod of the namespace.
    pub(crate) fn first_of(&self, namespace: &str) -> Option<&Place> {
        self.place(self.cast.first_of(namespace)?)
    }

    /// A pod of another namespace, and that namespace.
    pub(crate) fn outside_of(&self, namespace: &str) -> Option<(&Place, &str)> {
        let (name, namespace) = self.cast.outside_of(namespace)?;
        Some((self.place(name)?, namespace))
    }

    fn place(&self, pod: &str) -> Option<&Place> {
        self.world.pods().find(|known| known.name() == pod).map(Pod::place)
    }

    /// Where the resolver file of a namespace's pods is, once it was printed.
    pub(crate) fn resolver_file(&self, namespace: &str) -> PathBuf {
        self.world.directory().join(format!("resolv-{namespace}.conf"))
    }

    /// The command that prints a pod's resolver file.
    pub(crate) fn resolv(&self, namespace: &str) -> Vec<String> {
        if self.names {
            return ballast(&["resolv", namespace]);
        }
        // The documents' own name service is an echo server here.
        let nameserver = self.world.node(0).ipv4().to_string();
        ["ballast", "resolv", namespace, "--nameserver", &nameserver].map(str::to_owned).to_vec()
    }

    /// Whether the node's agent chooses backends at `connect()`.
    pub(crate) fn has_socket_hooks(&self, node: &Node) -> bool {
        let index = self.world.nodes().iter().position(|of| of.name() == node.name());
        index.and_then(|index| self.hooked.get(index)).is_some_and(|hooked| *hooked)
    }

    /// The podCIDRs of a node's document.
    pub(crate) fn pod_cidrs(&self, node: &Node) -> &[IpNet] {
        self.model.nodes.get(node.name()).map_or(&[], |node| &node.pod_cidrs)
    }

    /// Tells when the documents change.
    pub(crate) fn watch(&self) -> anyhow::Result<(Watch, mpsc::Receiver<()>)> {
        Watch::new(&self.world.manifests()).context("cannot watch the documents")
    }

    /// Gives Pods that are new in the documents a namespace. The agents read the documents themselves.
    pub(crate) fn follow(&mut self, progress: &Progress) -> anyhow::Result<()> {
        let loaded = match self.source.reload() {
            Ok(loaded) => loaded,
            Err(error) => {
                progress.note(&format!("{error}; the last good state stays"));
                return Ok(());
            }
        };
        for finding in &loaded.findings {
            progress.note(&finding.to_string());
        }
        self.model = loaded.model;
        let new = self.cast.place(&mut self.world, &self.model, |line| progress.note(line))?;
        self.aim();
        self.route_load_balancers()?;
        for pod in self.world.pods().filter(|pod| new.iter().any(|name| name == pod.name())) {
            progress.note(&format!("  ip netns exec {} bash      # pod {}", pod.namespace().name(), pod.name()));
        }
        progress.note("the documents have changed, the agents follow");
        Ok(())
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
        let ballast = std::env::var_os("BALLAST_BIN").map_or_else(|| PathBuf::from("ballast"), PathBuf::from);
        let ballast = ballast.display();
        let mut text = "It stays up until Ctrl-C. Try:\n".to_owned();
        for node in self.world.nodes().iter().take(1) {
            let state = node.state_dir();
            for command in ["status", "service list"] {
                text.push_str(&format!("  {ballast} {command} --state-dir {}\n", state.display()));
            }
        }
        let mut line = |place: &Place, what: &str| {
            text.push_str(&format!("  ip netns exec {} bash      # {what}\n", place.namespace().name()));
        };
        line(self.client(), "the client outside");
        for node in self.world.nodes() {
            line(node, node.name());
        }
        for pod in self.world.pods() {
            line(pod, &format!("pod {}", pod.name()));
        }
        if let Some((pod, namespace)) = self.cast.with_namespace() {
            let resolver = self.resolver_file(namespace);
            let (pod, resolver) = (self.place(pod).map_or("", |place| place.namespace().name()), resolver.display());
            let mount = format!("mount --bind {resolver} /etc/resolv.conf && exec bash");
            text.push_str(&format!(
                "  ip netns exec {pod} unshare --mount sh -c '{mount}'      # and it finds names\n"
            ));
        }
        let folder = self.world.manifests();
        text.push_str(&format!(
            "Edit the documents in {}: the agents follow, new Pods get a namespace.",
            folder.display()
        ));
        text
    }
}

/// The agent of a node, which answers for names too.
fn start(world: &World, node: &Node) -> anyhow::Result<Agent> {
    let [documents, allocations] = [world.manifests(), world.directory().join("allocations.json")];
    let mut source: Vec<OsString> =
        ["-f".into(), documents.into(), "--allocations".into(), allocations.into(), "--dns".into()].into();
    for address in [[127, 0, 0, 1].into()].into_iter().chain(node.ips()) {
        source.extend(["--dns-listen".into(), SocketAddr::new(address, 53).to_string().into()]);
    }
    Agent::start_on(world, node, &Setup::tcx(true), source)
}

/// A command of `ballast` that reads the documents, for the world's folder.
pub(crate) fn ballast(words: &[&str]) -> Vec<String> {
    let words = ["ballast"].iter().chain(words).chain(&["-f", "manifests", "--allocations", "allocations.json"]);
    words.map(|&word| word.to_owned()).collect()
}

/// The documents: name and text of each file.
fn read(source: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let text = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    if source.is_file() {
        let name = source.file_name().and_then(|name| name.to_str()).unwrap_or("documents.yaml");
        return Ok(vec![(name.to_owned(), text(source)?)]);
    }
    let mut texts = Vec::new();
    for entry in fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let known = extension.is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension));
        if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| known && path.is_file()) {
            texts.push((name.to_owned(), text(&path)?));
        }
    }
    if texts.is_empty() {
        bail!("{} holds no .yaml, .yml or .json file", source.display());
    }
    texts.sort();
    Ok(texts)
}

/// The names of the nodes the documents speak of: read before there is a world to read them in.
fn names(texts: &[(String, String)], source: &Path) -> anyhow::Result<Vec<String>> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let documents = folder.path().join("documents");
    fs::create_dir(&documents)?;
    for (name, text) in texts {
        fs::write(documents.join(name), text)?;
    }
    let allocations = Some(folder.path().join("allocations.json"));
    let options = Options { allocations, write_allocations: true, ..Options::new(documents) };
    let loaded = file_source::load(&options).with_context(|| format!("cannot read {}", source.display()))?;
    Ok(cast::node_names(&loaded.model))
}
