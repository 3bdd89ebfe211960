//! The agent: one event loop between the source, the network and the maps.
//!
//! ```text
//! documents or API objects changed --+
//! links, routes ---------------------+-> Agent -> Engine -> maps
//! a command -------------------------+         -> hooks on devices, routes into ballast0
//! ```

mod cleanup;
mod collect;
mod dns;
mod events;
mod input;
mod loader;
mod network;
mod orphans;
mod program;
mod ready;
mod settings;
mod snapshot;
mod status;
mod takeover;
mod verify;
mod web;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use lb_common::settings::Setting;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

pub use self::{cleanup::cleanup, dns::DnsOptions, input::SourceOptions};
use self::{
    collect::Collection, dns::Dns, events::Events, input::Input, network::Network, orphans::Orphans, ready::Readiness,
    takeover::Takeover, verify::Verification, web::Web,
};
use crate::{
    bpf::{self, Datapath},
    config::Config,
    control::{self, Request, Response},
    desired::foreign::Foreign,
    engine::Engine,
    gc::Clock,
    lock::InstanceLock,
    logs, memory,
    model::{Model, Touched},
    net,
    report::{HookStatus, Problem},
    rights,
    service_manager::{Notice, ServiceManager},
};

/// How often the network is listed even if no event came.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// Between two rounds that changes of the source lead to: as long as the last one took, so that no stream of changes takes
/// more than half of a core. What comes meanwhile is in the next round, whole.
const SHORTEST_REST: Duration = Duration::from_millis(2);
const LONGEST_REST: Duration = Duration::from_millis(200);

/// What `ballast run` was asked for.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Where the objects come from.
    pub source: SourceOptions,
    /// Name of this node.
    pub node: String,
    /// The configuration, already read and checked.
    pub config: Config,
    /// What of it is not as asked.
    pub notes: Vec<Problem>,
    /// State directory.
    pub state_dir: PathBuf,
    /// The bpffs.
    pub bpffs: PathBuf,
    /// The cgroup2 whose processes are served; the root of the cgroup2 mount if absent.
    pub cgroup: Option<PathBuf>,
    /// `/proc/sys/net`, or where it is writable.
    pub proc_sys_net: PathBuf,
    /// Whether a bpffs is mounted where there is none.
    pub mount_bpffs: bool,
    /// Answer DNS queries too.
    pub dns: Option<DnsOptions>,
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
    /// `/proc/sys/net`, or where it is writable.
    pub proc_sys_net: PathBuf,
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
    input: Input,
    /// The last state of the source that is whole.
    model: Model,
    snapshots: snapshot::Writer,
    /// The first state is in the maps, or an earlier agent's still is: hooks are attached.
    attached: bool,
    readiness: Readiness,
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
    verification: Verification,
    foreign: Foreign,
    events: Events,
    web: Web,
    dns: Option<Dns>,
}

/// Runs until SIGTERM or SIGINT. What was pinned stays and keeps forwarding.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.state_dir).with_context(|| {
        format!("cannot make the state directory {}; name another with --state-dir", options.state_dir.display())
    })?;
    let _lock = InstanceLock::take(&options.state_dir)?;
    if options.mount_bpffs {
        bpf::mount_bpffs(&options.bpffs)?;
    }
    let manager = ServiceManager::of_this_process();
    let mut watchdog = manager.watchdog();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // The watches before the first reads: no change falls between them.
    let mut events = net::events::watch().context("cannot watch the network")?;
    let mut model = Model::default();
    // A plugin for credentials may take its time.
    let input = tokio::select! {
        input = Input::open(&options, &mut model) => input?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let (web, mut pages) = Web::start(&options)?;
    let mut agent = Agent::start(options, input, model, web).await?;
    let server = control::Server::bind(&agent.options.state_dir)
        .with_context(|| format!("cannot open the control socket in {}", agent.options.state_dir.display()))?;
    let mut requests = server.serve();
    let mut list = interval_at(Instant::now() + LIST_EVERY, LIST_EVERY);
    list.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rest_until = Instant::now();
    loop {
        agent.tell_ready(&manager);
        let resting = Instant::now() < rest_until;
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = watchdog.tick() => manager.tell(Notice::Alive),
            () = agent.readiness.overdue() => {}
            touched = agent.input.next(&mut agent.model), if !resting => {
                let touched = touched?;
                if touched != Touched::NOTHING {
                    let begin = Instant::now();
                    agent.source_changed(&touched).await;
                    rest_until = Instant::now() + begin.elapsed().clamp(SHORTEST_REST, LONGEST_REST);
                }
            }
            () = sleep_until(rest_until), if resting => {}
            () = agent.events.looks.due() => agent.look(),
            () = agent.snapshots.due() => agent.snapshots.start(&agent.model),
            Some(_) = events.recv() => agent.network_changed(true).await,
            _ = list.tick() => {
                agent.network_changed(false).await;
                agent.input.retry();
                agent.events.looks.want(&Touched::All);
                logs::tell_suppressed();
            }
            () = sleep_until(agent.collection.due()) => {
                if agent.collect().await {
                    // A socket may have asked for its backend just before that went, and connected just after.
                    agent.collect_sockets();
                }
            }
            () = sleep_until(agent.verification.due()), if agent.attached => agent.verify(),
            Some(page) = pages.recv() => {
                if page.send(agent.metrics().await).is_err() {
                    tracing::debug!("a scraper went away before its page");
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
    manager.tell(Notice::Stopping);
    agent.snapshots.finish(&agent.model).await;
    tracing::info!("stopping; programs, maps and flows stay (`ballast cleanup` removes them)");
    Ok(())
}

impl Agent {
    async fn start(options: RunOptions, mut input: Input, model: Model, web: Web) -> anyhow::Result<Self> {
        bpf::check_bpffs(&options.bpffs)?;
        let pins = InstanceLock::take_pins(&options.bpffs)?;
        let mut datapath = Datapath::open(&options.bpffs, &options.config.maps).map_err(rights::explain)?;
        #[cfg(feature = "bpf-log")]
        datapath.follow_log();
        let (engine, problem) = Engine::open(&mut datapath.maps, &options.state_dir)
            .with_context(|| format!("cannot read the state in {}", options.state_dir.display()))?;
        let word = |setting: Setting| datapath.maps.word("LB_SETTINGS", setting as u32);
        let (seed, taking_over) = (word(Setting::HashSeed)?, word(Setting::Takeover)?);
        let clock_ticks = ticks_per_second()?;
        let now = datapath.clock().context("cannot read the kernel's clock")?;
        let clock = Clock { now, ticks_per_second: clock_ticks, timeouts: options.config.timeouts };
        let seconds = options.config.takeover_seconds;
        let oom = oom_score(&options);
        let network = Network::open(&options).await?;
        let dns = Dns::start(&options, &model)?;
        let collection = Collection::new(&datapath.maps);
        let events = Events::new(input.recorder(&options.node));
        let snapshots = snapshot::Writer::new(snapshot::file(&options.state_dir), options.node.clone());
        let mut agent = Self {
            clock_ticks,
            takeover: Takeover::begin(taking_over, seed == 0, clock, seconds).await,
            hash_seed: if seed == 0 { random()? } else { seed },
            netns_cookie: net::netns_cookie().context("cannot read the cookie of the network namespace")?,
            options,
            _pins: pins,
            datapath,
            engine,
            network,
            input,
            model,
            snapshots,
            attached: false,
            readiness: Readiness::new(),
            sync_error: None,
            start_problems: problem.into_iter().chain(oom).collect(),
            socket_hooks: HookStatus::default(),
            orphans: Orphans::open(),
            collection,
            verification: Verification::new(),
            foreign: Foreign::default(),
            events,
            web,
            dns,
        };
        agent.network.list(&agent.options).await;
        if agent.input.is_ready() {
            agent.source_changed(&Touched::All).await;
        } else if agent.engine.is_filled() {
            tracing::info!("forwarding goes on as an earlier agent left it, until the cluster's objects are here");
            agent.attach();
            agent.show_snapshot();
            // The network may be another one than it was.
            agent.program(&Touched::All).await;
        } else {
            agent.take_snapshot().await;
        }
        Ok(agent)
    }

    /// What is pinned may be newer than the snapshot: that is only what commands and probes show until the objects are here.
    fn show_snapshot(&mut self) {
        let (found, _) = snapshot::read(&snapshot::file(&self.options.state_dir), &self.options.node);
        self.input.set_tables(found.as_ref().map(|snapshot| snapshot.at_seconds));
        if let Some(snapshot) = found {
            self.model = snapshot.model;
            let node = self.node();
            // Nothing is programmed of it.
            let _backends = self.engine.compute(&self.model, &node, &Touched::All);
            self.engine.show_no_room();
        }
    }

    /// Nothing is pinned and the cluster does not answer yet, as after a reboot: what was last known is better than nothing.
    async fn take_snapshot(&mut self) {
        let (found, problems) = snapshot::read(&snapshot::file(&self.options.state_dir), &self.options.node);
        for problem in &problems {
            tracing::warn!("{}: {}", problem.object, problem.cause);
        }
        self.start_problems.extend(problems);
        if let Some(snapshot) = found {
            tracing::warn!(
                "serving the snapshot of {} s ago until the cluster's objects are here",
                snapshot::now().saturating_sub(snapshot.at_seconds)
            );
            self.model = snapshot.model;
            self.input.set_snapshot(snapshot.at_seconds);
            self.source_changed(&Touched::All).await;
        }
    }

    /// The source has another state, which is whole.
    async fn source_changed(&mut self, touched: &Touched) {
        // First: it takes no time beside the tables, and headless names do not need them.
        if let Some(dns) = &mut self.dns {
            dns.set(&self.model, touched);
        }
        self.program(touched).await;
        self.events.looks.want(touched);
        if self.input.is_of_cluster() {
            self.snapshots.mark();
        }
        if !self.attached {
            // Tables before hooks: the first packet a program sees finds everything.
            self.attach();
        }
        if *touched == Touched::All {
            memory::give_back();
        }
    }

    fn attach(&mut self) {
        self.attach_sockets();
        self.network.attach(&mut self.datapath);
        self.attached = true;
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

    async fn answer(&mut self, request: &Request) -> Response {
        match request {
            Request::Status => {
                // Whoever asks is told what is so now.
                self.look();
                Response::Status(Box::new(self.status().await))
            }
            Request::Services => Response::Services(self.service_rows()),
            Request::Describe { namespace, name } => self.describe(namespace, name),
        }
    }
}

/// As kube-proxy does: what the configuration asks for must be, the default may fail.
fn oom_score(options: &RunOptions) -> Option<Problem> {
    if let Some(score) = options.config.oom_score_adj {
        return memory::set_oom_score(score);
    }
    if matches!(options.source, SourceOptions::Cluster { .. })
        && let Some(problem) = memory::set_oom_score(memory::OOM_SCORE_DEFAULT)
    {
        tracing::debug!("{}: {}", problem.object, problem.cause);
    }
    None
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
