//! From the API server to the first correct packet: a real control plane with thousands of Services, one agent after the
//! other on the same node, the same changes.
//!
//! A pod of the node sends datagrams to one of the Services, each from a new port, so that each is a new flow; the answer
//! names the backend that got it. Right is who the API server says.

mod cluster;
mod peer;
mod probe;
pub(crate) mod process;
mod report;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_tests::{Agent, ControlPlane, Echo, Place, Setup, TARGET, World, binary, web::get};

use self::{
    cluster::Size,
    peer::KubeProxy,
    probe::Prober,
    process::Usage,
    report::{Figures, print},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Control {
    /// Services
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: u32,
    /// Endpoints of all Services together
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    endpoints: u32,
    /// Changes of one endpoint, one after the other
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// The same for kube-proxy, which takes longer for each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    peer_changes: u32,
    /// Seconds of idling that are looked at
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    idle: u32,
    /// Without kube-proxy
    #[arg(long)]
    no_peer: bool,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// How long an agent may take for its first sync, and for one change.
const START: Duration = Duration::from_mins(5);
const CHANGE: Duration = Duration::from_mins(1);
/// Between two changes: whoever rests after a sync has rested.
const BETWEEN: Duration = Duration::from_millis(1500);

/// Where Services are made, an agent is measured, and packets are sent.
struct Bench {
    plane: ControlPlane,
    _servers: Vec<Echo>,
    vip: SocketAddr,
    world: World,
}

/// An agent while it is measured.
trait Subject {
    fn pid(&self) -> anyhow::Result<u32>;
}

impl Subject for Agent {
    fn pid(&self) -> anyhow::Result<u32> {
        self.status()?.agent_pid.context("the agent does not run")
    }
}

/// Measures and prints.
pub(crate) fn control(options: &Control) -> anyhow::Result<()> {
    let with_peer = !options.no_peer;
    if with_peer {
        peer::check()?;
    }
    let size = Size::new(options.services, options.endpoints);
    let bench = Bench::start(&size)?;
    let mut all = BTreeMap::new();
    all.insert("Ballast", bench.ballast(options)?);
    if with_peer {
        all.insert("kube-proxy", bench.kube_proxy(options)?);
    }
    print(&size, &all, options.json)
}

impl Bench {
    fn start(size: &Size) -> anyhow::Result<Self> {
        eprintln!("starting a control plane");
        let world = World::builder().nodes(1).pods(3).build()?;
        let mut plane = ControlPlane::start(&world)?;
        // They would only look at each change.
        plane.kill_controllers()?;
        plane.apply_nodes(&world)?;
        let pods: Vec<&Place> = world.pods().skip(1).map(lb_tests::Pod::place).collect();
        let servers = pods.iter().map(|pod| Echo::start(pod, &[], &[TARGET])).collect::<anyhow::Result<_>>()?;
        eprintln!("making {size}");
        let vip = cluster::fill(&plane, size, pods[0])?;
        Ok(Self { plane, _servers: servers, vip, world })
    }

    /// What the first packet is answered by.
    fn begin(&self) -> anyhow::Result<Instant> {
        cluster::point_at(&self.plane, self.world.node(0).pod(1).place())?;
        Ok(Instant::now())
    }

    fn ballast(&self, options: &Control) -> anyhow::Result<Figures> {
        eprintln!("Ballast: starting");
        let source = [OsStr::new("--kubeconfig"), self.plane.agent_kubeconfig().as_os_str()];
        let begin = self.begin()?;
        let mut agent = Agent::start_on(&self.world, self.world.node(0), &Setup::tcx(true), source)?;
        let figures = self.measure(&agent, begin, options.changes, options.idle);
        agent.stop()?;
        let booted = figures.is_ok().then(|| self.boot(&agent, options.changes));
        agent.cleanup()?;
        Ok(Figures { booted: booted.transpose()?, ..figures? })
    }

    /// From the start of an agent that finds nothing pinned and no API server, as after a reboot, until its snapshot serves.
    fn boot(&self, before: &Agent, changes: u32) -> anyhow::Result<Duration> {
        eprintln!("  start without an API server");
        let node = self.world.node(0);
        before.reboot()?;
        let last = self.target(changes).name();
        let mut agent = None;
        let (begin, answered) = Prober::new(node.pod(0).place(), self.vip).wait_for(last, START, || {
            // Nobody listens there.
            agent = Some(Agent::start_on(&self.world, node, &Setup::tcx(true), ["--master", "http://127.0.0.1:9"])?);
            Ok(())
        })?;
        if let Some(mut agent) = agent {
            agent.stop()?;
        }
        Ok(answered.duration_since(begin))
    }

    /// Where the endpoint is after so many changes.
    fn target(&self, changes: u32) -> &Place {
        let pods = self.world.node(0).pods();
        // The first pod asks.
        pods[1 + changes as usize % (pods.len() - 1)].place()
    }

    fn kube_proxy(&self, options: &Control) -> anyhow::Result<Figures> {
        eprintln!("kube-proxy: starting");
        let begin = self.begin()?;
        let proxy = KubeProxy::start(&self.plane, &self.world)?;
        self.measure(&proxy, begin, options.peer_changes, options.idle)
    }

    fn measure(&self, subject: &impl Subject, begin: Instant, changes: u32, idle: u32) -> anyhow::Result<Figures> {
        let node = self.world.node(0);
        let prober = Prober::new(node.pod(0).place(), self.vip);
        let first = prober.wait_for(self.target(0).name(), START, || Ok(()))?;
        let first_packet = first.1.duration_since(begin);
        lb_tests::wait_until("/healthz of 200", START, || match get(node.place(), "127.0.0.1:10256", "/healthz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        let healthy = begin.elapsed();
        let first_sync = first_sync(node.place())?;
        eprintln!("  healthy after {:.2} s; idle for {idle} s", healthy.as_secs_f64());
        let pid = subject.pid()?;
        std::thread::sleep(Duration::from_secs(5));
        let at_rest = Usage::of(pid)?;
        std::thread::sleep(Duration::from_secs(u64::from(idle)));
        let later = Usage::of(pid)?;
        let cpu = later.cpu.saturating_sub(at_rest.cpu);
        eprintln!("  {changes} changes");
        let mut times = Vec::new();
        let before = Usage::of(pid)?;
        for number in 0..changes {
            std::thread::sleep(BETWEEN);
            let to = self.target(number + 1);
            let (sent, answered) = prober.wait_for(to.name(), CHANGE, || cluster::point_at(&self.plane, to))?;
            times.push(answered.duration_since(sent));
        }
        let after = Usage::of(pid)?;
        ensure!(!times.is_empty(), "no changes");
        times.sort_unstable();
        Ok(Figures {
            first_packet,
            booted: None,
            healthy,
            first_sync,
            times,
            cpu_per_change: after.cpu.saturating_sub(before.cpu) / changes,
            idle_cpu: cpu.as_secs_f64() / f64::from(idle),
            anonymous: after.anonymous,
            resident: after.resident,
            maps: after.maps,
        })
    }
}

/// How long the first sync took, as the agent's own histogram has it: both families in one.
fn first_sync(node: &Place) -> anyhow::Result<Duration> {
    let (_, page) = get(node, "127.0.0.1:10249", "/metrics").map_err(anyhow::Error::msg)?;
    let sum = |name: &str| {
        let lines = page
            .lines()
            .filter(|line| line.starts_with(name) && line.contains("IPv4") || line.starts_with(&format!("{name} ")));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).fold(0.0, f64::max)
    };
    let full = sum("kubeproxy_sync_full_proxy_rules_duration_seconds_sum");
    let any = sum("kubeproxy_sync_proxy_rules_duration_seconds_sum");
    Ok(Duration::from_secs_f64(if full > 0.0 { full } else { any }))
}

/// The binaries are those of this build.
fn kube_proxy_binary() -> anyhow::Result<std::path::PathBuf> {
    binary("ballast").context("the agent")?;
    lb_tests::program("kube-proxy")
}
