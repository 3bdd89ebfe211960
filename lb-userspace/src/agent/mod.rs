//! The agent: one event loop between the source, the network and the maps.
//!
//! ```text
//! documents changed --+
//! links, routes ------+-> Agent -> Engine -> maps
//! a command ----------+         -> hooks on devices, routes into ballast0
//! ```

mod cleanup;
mod collect;
mod loader;
mod network;
mod orphans;
mod status;
mod takeover;

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use lb_common::{
    half_open::slots,
    settings::{Setting, snat_ports},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

pub use self::cleanup::cleanup;
use self::{collect::Collection, loader::Loader, network::Network, orphans::Orphans, takeover::Takeover};
use crate::{
    bpf::{self, Datapath},
    config::{Config, Notes},
    control::{self, Request, Response},
    desired::NodeContext,
    engine::Engine,
    file_source::{self, Finding, Watch},
    gc::Clock,
    lock::InstanceLock,
    memory,
    model::Model,
    net,
    report::{HookStatus, Problem},
};

/// How often the network is listed even if no event came.
const LIST_EVERY: Duration = Duration::from_secs(30);

/// What `ballast run` was asked for.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// File, folder, or `-`.
    pub path: PathBuf,
    /// Name of this node.
    pub node: String,
    /// The configuration, already read and checked.
    pub config: Config,
    /// What of it is not as asked.
    pub notes: Notes,
    /// State directory.
    pub state_dir: PathBuf,
    /// The bpffs.
    pub bpffs: PathBuf,
    /// The cgroup2 whose processes are served; the root of the cgroup2 mount if absent.
    pub cgroup: Option<PathBuf>,
    /// The allocation file, if not the default one.
    pub allocations: Option<PathBuf>,
    /// Service CIDRs.
    pub service_cidrs: Vec<IpNet>,
    /// nodePort range.
    pub node_port_range: RangeInclusive<u16>,
}

/// What `ballast cleanup` was asked for.
#[derive(Clone, Debug)]
pub struct CleanupOptions {
    /// State directory.
    pub state_dir: PathBuf,
    /// The bpffs.
    pub bpffs: PathBuf,
    /// The cgroup2.
    pub cgroup: Option<PathBuf>,
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// A running agent.
struct Agent {
    options: RunOptions,
    _pins: InstanceLock,
    datapath: Datapath,
    engine: Engine,
    network: Network,
    /// The last documents that could be read.
    model: Model,
    findings: Vec<Finding>,
    /// Why the documents cannot be read now.
    source_error: Option<Problem>,
    /// Why the maps are not what they should be.
    sync_error: Option<Problem>,
    /// Found once, at start.
    start_problems: Vec<Problem>,
    socket_hooks: HookStatus,
    orphans: Orphans,
    clock_ticks: u32,
    takeover: Takeover,
    hash_seed: u64,
    netns_cookie: u64,
    collection: Collection,
}

/// Runs until SIGTERM or SIGINT. What was pinned stays and keeps forwarding.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.state_dir).with_context(|| {
        format!("cannot make the state directory {}; name another with --state-dir", options.state_dir.display())
    })?;
    let _lock = InstanceLock::take(&options.state_dir)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // The watches before the first reads: no change falls between them.
    let (_watch, mut ticks) = watch(&options)?;
    let mut events = net::events::watch().context("cannot watch the network")?;
    let mut loader = Loader::new(source_options(&options));
    loader.start();
    let loaded = loader.finished().await?.context("no documents to begin with")?;
    report(&loaded.findings);
    let mut agent = Agent::start(options, loaded).await?;
    let server = control::Server::bind(&agent.options.state_dir)
        .with_context(|| format!("cannot open the control socket in {}", agent.options.state_dir.display()))?;
    let mut requests = server.serve();
    let mut list = interval_at(Instant::now() + LIST_EVERY, LIST_EVERY);
    list.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tracing::info!("ready: {} Services, {} frontends", agent.model.services.len(), agent.frontends());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(()) = ticks.recv() => loader.start(),
            loaded = loader.finished() => match loaded? {
                Ok(loaded) => agent.documents(loaded).await,
                Err(error) => agent.unreadable(&error),
            },
            Some(_) = events.recv() => agent.network_changed().await,
            _ = list.tick() => {
                agent.network_changed().await;
                // No change of the documents tells that a lock was released or an allocation file restored.
                if agent.source_error.is_some() {
                    loader.start();
                }
            }
            () = sleep_until(agent.collection.due()) => {
                if agent.collect().await {
                    // A socket may have asked for its backend just before that went, and connected just after.
                    agent.collect_sockets();
                }
            }
            Some((request, answer)) = requests.recv() => {
                let response = agent.answer(&request).await;
                if answer.send(response).is_err() {
                    tracing::debug!("a command went away before its answer");
                }
            }
        }
    }
    tracing::info!("stopping; programs, maps and flows stay (`ballast cleanup` removes them)");
    Ok(())
}

fn source_options(options: &RunOptions) -> file_source::Options {
    file_source::Options {
        path: options.path.clone(),
        service_cidrs: options.service_cidrs.clone(),
        node_port_range: options.node_port_range.clone(),
        allocations: options.allocations.clone(),
        write_allocations: true,
    }
}

fn watch(options: &RunOptions) -> anyhow::Result<(Option<Watch>, mpsc::Receiver<()>)> {
    if options.path.as_os_str() == "-" {
        // Standard input is read once; the sender is gone, so the loop never hears of a change.
        return Ok((None, mpsc::channel(1).1));
    }
    let (watch, ticks) = Watch::new(&options.path)
        .with_context(|| format!("cannot watch {}; give a file or folder that exists", options.path.display()))?;
    Ok((Some(watch), ticks))
}

impl Agent {
    async fn start(options: RunOptions, loaded: file_source::Loaded) -> anyhow::Result<Self> {
        bpf::check_bpffs(&options.bpffs)?;
        let pins = InstanceLock::take_pins(&options.bpffs)?;
        let mut datapath = Datapath::open(&options.bpffs, &options.config.maps)?;
        #[cfg(feature = "bpf-log")]
        datapath.follow_log();
        let (engine, problem) = Engine::open(&mut datapath.maps, &options.state_dir)
            .with_context(|| format!("cannot read the state in {}", options.state_dir.display()))?;
        let word = |setting: Setting| datapath.maps.word("LB_SETTINGS", setting as u32);
        let (seed, taking_over) = (word(Setting::HashSeed)?, word(Setting::Takeover)?);
        let clock_ticks = ticks_per_second()?;
        let now = datapath.clock().context("cannot read the kernel's clock")?;
        let clock = Clock { now, ticks_per_second: clock_ticks };
        let seconds = options.config.takeover_seconds;
        let network = Network::open(&options).await?;
        let collection = Collection::new(&datapath.maps);
        let mut agent = Self {
            clock_ticks,
            takeover: Takeover::begin(taking_over, seed == 0, clock, seconds),
            hash_seed: if seed == 0 { random()? } else { seed },
            netns_cookie: net::netns_cookie().context("cannot read the cookie of the network namespace")?,
            options,
            _pins: pins,
            datapath,
            engine,
            network,
            model: loaded.model,
            findings: loaded.findings,
            source_error: None,
            sync_error: None,
            start_problems: problem.into_iter().collect(),
            socket_hooks: HookStatus::default(),
            orphans: Orphans::open(),
            collection,
        };
        // Tables before hooks: the first packet a program sees finds everything.
        agent.network.list(&agent.options).await;
        agent.program().await;
        agent.attach_sockets();
        agent.network.attach(&mut agent.datapath);
        memory::give_back();
        Ok(agent)
    }

    /// New documents.
    async fn documents(&mut self, loaded: file_source::Loaded) {
        self.model = loaded.model;
        self.findings = loaded.findings;
        self.source_error = None;
        report(&self.findings);
        self.program().await;
        memory::give_back();
    }

    /// The documents cannot be read: the last good ones stay.
    fn unreadable(&mut self, error: &file_source::LoadError) {
        let problem = Problem {
            object: format!("source {}", self.options.path.display()),
            cause: error.to_string(),
            fix: "correct it; until then the last good state stays".to_owned(),
        };
        if self.source_error.as_ref() != Some(&problem) {
            tracing::error!("{error}; the last good state stays");
        }
        self.source_error = Some(problem);
    }

    /// Links, addresses or routes may have changed.
    async fn network_changed(&mut self) {
        self.network.list(&self.options).await;
        // A new interface first: what it carries until then passes untranslated, and the tables are there already.
        self.network.attach(&mut self.datapath);
        self.program().await;
    }

    /// Makes the maps and routes what documents and network ask for.
    async fn program(&mut self) {
        let node = self.node();
        let backends = self.engine.compute(&self.model, &node);
        self.network.resolve(&backends).await;
        let settings = self.settings();
        match self.engine.sync(&mut self.datapath.maps, &self.network.next_hops(), &settings) {
            Ok(0) => self.sync_error = None,
            Ok(writes) => {
                self.sync_error = None;
                tracing::info!("{writes} map writes; {} frontends", self.frontends());
                self.end_orphans();
            }
            Err(error) => {
                tracing::error!("{error}");
                self.sync_error = Some(Problem {
                    object: "maps".to_owned(),
                    cause: error.to_string(),
                    fix: "it is tried again with the next change".to_owned(),
                });
            }
        }
        self.network.route(&self.engine.desired).await;
    }

    fn node(&mut self) -> NodeContext {
        NodeContext {
            name: self.options.node.clone(),
            node_port_addrs: self.network.node_port_addresses(&self.options, self.model.nodes.get(&self.options.node)),
            local_addrs: self.network.local_addresses(),
            service_cidrs: self.options.service_cidrs.clone(),
            detect_node_cidr: self.options.config.detects_node_cidr(),
            external_ips: self.options.config.external_ips.clone(),
        }
    }

    fn settings(&self) -> Vec<(Setting, u64)> {
        let (first, last) = self.options.config.snat_ports.clone().into_inner();
        let mut settings = vec![
            (Setting::NetnsCookie, self.netns_cookie),
            (Setting::SnatPorts, snat_ports(first, last)),
            (Setting::HashSeed, self.hash_seed),
            (Setting::TicksPerSecond, u64::from(self.clock_ticks)),
            (Setting::HalfOpenSlots, u64::from(slots(self.options.config.maps.conntrack))),
            (Setting::Takeover, self.takeover.word),
        ];
        settings.extend(self.network.uplink_words());
        settings.extend(self.network.host_source_words());
        if let Some(host) = self.network.host_device() {
            let [a, b, c, d, e, f] = host.mac;
            settings.push((Setting::HostDevice, u64::from(host.ifindex)));
            settings.push((Setting::HostMac, u64::from_le_bytes([a, b, c, d, e, f, 0, 0])));
        }
        settings
    }

    fn attach_sockets(&mut self) {
        let cgroup = match (&self.options.cgroup, net::cgroup2_root()) {
            (Some(path), _) => Ok(path.clone()),
            (None, found) => found,
        };
        let attached = if self.options.config.socket_hooks {
            cgroup.map_err(|error| error.to_string()).and_then(|path| {
                self.datapath.attach_cgroup(&path).map_err(|error| error.to_string())?;
                Ok(path.display().to_string())
            })
        } else {
            Err("switched off by socketHooks: false".to_owned())
        };
        self.socket_hooks = match attached {
            Ok(detail) => HookStatus { attached: true, detail },
            Err(detail) => HookStatus { attached: false, detail },
        };
        let keep = self.socket_hooks.attached.then(|| PathBuf::from(&self.socket_hooks.detail));
        if let Err(error) = self.datapath.detach_cgroups(keep.as_deref()) {
            tracing::warn!("cannot look for socket hooks of an earlier run: {error}");
        }
        if !self.socket_hooks.attached {
            tracing::warn!(
                "no socket hooks: {}; host processes do not reach this node's own nodePorts",
                self.socket_hooks.detail
            );
        }
    }

    fn frontends(&self) -> usize {
        self.engine.desired.services.values().map(|service| service.frontends.len()).sum()
    }

    async fn answer(&self, request: &Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(self.status().await)),
            Request::Services => Response::Services(self.service_rows()),
            Request::Describe { namespace, name } => self.describe(namespace, name),
        }
    }
}

fn report(findings: &[Finding]) {
    for finding in findings {
        tracing::warn!("{finding}");
    }
}

/// HZ: the coarse clock's resolution is one jiffy.
fn ticks_per_second() -> anyhow::Result<u32> {
    let resolution = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    let nanoseconds = u32::try_from(resolution.tv_nsec).unwrap_or(0);
    if resolution.tv_sec != 0 || nanoseconds == 0 {
        bail!("the kernel's tick is {resolution:?}; please file a bug");
    }
    Ok((1_000_000_000 + nanoseconds / 2) / nanoseconds)
}

fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if got != bytes.len() {
        bail!("the kernel gave {got} random bytes instead of 8");
    }
    Ok(u64::from_ne_bytes(bytes).max(1))
}
