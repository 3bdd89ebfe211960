//! A running `ballast run` of a node.

use std::{ffi::OsString, fs, net::IpAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, bail};
use lb_userspace::report::{ServiceRow, Status};
use rustix::process::Signal;

use crate::{
    Manifest, Node, Place, Process, World,
    container::{Container, PodSetup},
    process::binary,
    wait_until,
    wiring::SERVICE_CIDRS,
};

/// How an agent is configured; written as a `BallastConfiguration`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// `on` (also on veths), `off` or `auto`.
    pub xdp: &'static str,
    /// Whether the socket hooks are attached.
    pub socket_hooks: bool,
    /// Further lines of that document; further documents for `--config` may follow, each after a `---`.
    pub more: String,
}

impl Setup {
    /// tcx only.
    pub fn tcx(socket_hooks: bool) -> Self {
        Self { xdp: "off", socket_hooks, more: String::new() }
    }

    /// XDP on uplinks, though they are veths.
    pub fn xdp(socket_hooks: bool) -> Self {
        Self { xdp: "on", socket_hooks, more: String::new() }
    }

    fn text(&self) -> String {
        let Self { xdp, socket_hooks, more } = self;
        // Quoted: `on` and `off` are booleans to YAML 1.1.
        format!(
            "apiVersion: ballast.dev/v1alpha1\nkind: BallastConfiguration\n\
             xdp: \"{xdp}\"\nsocketHooks: {socket_hooks}\n{more}"
        )
    }
}

/// An agent; killed on drop (what it attached goes with the world), its stderr printed if the test is failing.
#[derive(Debug)]
pub struct Agent {
    place: Place,
    process: Option<Process>,
    /// The arguments that say where its objects come from.
    source: Vec<OsString>,
    config: PathBuf,
    /// Further variables.
    environment: Vec<(&'static str, OsString)>,
    /// Instead of all three.
    container: Option<Container>,
    state_dir: PathBuf,
    bpffs: PathBuf,
    cgroup: PathBuf,
}

impl Agent {
    /// Starts the agent of `node` on the world's manifest folder, and waits until it answers.
    pub fn start(world: &World, node: &Node, setup: &Setup) -> anyhow::Result<Self> {
        let allocations = world.directory().join("allocations.json");
        let mut source: Vec<OsString> = ["-f".into(), world.manifests().into(), "--service-cidr".into()].into();
        source.extend([SERVICE_CIDRS.join(",").into(), "--allocations".into(), allocations.into()]);
        Self::start_on(world, node, setup, source)
    }

    /// Starts the agent of `node` with these arguments for its source, such as `--kubeconfig` and a path, and waits until it
    /// answers.
    pub fn start_on(
        world: &World,
        node: &Node,
        setup: &Setup,
        source: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> anyhow::Result<Self> {
        let config = world.directory().join(format!("{}-config.yaml", node.name()));
        fs::write(&config, setup.text()).with_context(|| format!("cannot write {}", config.display()))?;
        let mut agent = Self {
            place: node.place().clone(),
            process: None,
            source: source.into_iter().map(Into::into).collect(),
            config,
            environment: Vec::new(),
            container: None,
            state_dir: node.state_dir(),
            bpffs: node.bpffs(),
            cgroup: node.cgroup().to_owned(),
        };
        agent.launch()?;
        Ok(agent)
    }

    /// Starts the container of a manifest on `node`, and waits until it answers.
    pub fn start_in_pod(world: &World, node: &Node, manifest: &Manifest, setup: &PodSetup) -> anyhow::Result<Self> {
        let folder = world.directory().join(format!("{}-{}", node.name(), manifest.flavour));
        let mut agent = Self {
            place: node.place().clone(),
            process: None,
            source: Vec::new(),
            config: PathBuf::new(),
            environment: Vec::new(),
            container: Some(Container::new(manifest, node, setup, &folder)?),
            state_dir: node.state_dir(),
            bpffs: node.bpffs(),
            cgroup: node.cgroup().to_owned(),
        };
        agent.launch()?;
        Ok(agent)
    }

    /// Agents on every node.
    pub fn start_all(world: &World, setup: &Setup) -> anyhow::Result<Vec<Self>> {
        world.nodes().iter().map(|node| Self::start(world, node, setup)).collect()
    }

    /// Sets a variable of its environment, from the next [`launch`](Self::launch) on; a container has its own.
    pub fn set_variable(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.environment.push((name, value.into()));
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop), and waits until it answers.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        let command = match &self.container {
            Some(container) => container.command(|program| self.place.command(program))?,
            None => self.command()?,
        };
        let label = format!("agent of {}", self.place.name());
        let process = self.process.insert(Process::spawn(&label, command)?);
        let id = process.id();
        wait_until(&format!("{label}: an answer on its socket"), Duration::from_secs(30), || {
            if let Some(process) = &mut self.process
                && !process.is_running()
            {
                return Ok(Err(process.stderr()));
            }
            match self.status() {
                Ok(status) if status.agent_pid == Some(id) => Ok(Ok(())),
                Ok(status) => Err(format!("pid {:?} answers instead of {id}", status.agent_pid)),
                Err(error) => Err(format!("{error:#}")),
            }
        })?
        .map_err(|stderr| anyhow::anyhow!("{label} ended at once:\n{stderr}"))
    }

    fn command(&self) -> anyhow::Result<Command> {
        let mut command = self.place.command(binary("ballast")?)?;
        command.arg("run").args(&self.source).args(["--hostname-override", self.place.name()]);
        command.arg("--config").arg(&self.config);
        // Whoever reads the log of a failed test wants to see each change.
        command.args(["--v", "2"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.where_it_lives(&mut command);
        Ok(command)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("the agent is not running")?.kill()
    }

    /// Ends it as a service manager does, and waits.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("the agent is not running")?;
        process.signal(Signal::TERM)?;
        let status = process.wait(Duration::from_secs(10))?;
        if !status.success() {
            bail!("the agent of {} ended with {status}: {}", self.place.name(), process.stderr().trim());
        }
        Ok(())
    }

    /// What it has written to its standard error since it was last launched.
    pub fn stderr(&self) -> String {
        self.process.as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// `ballast status -o json`.
    pub fn status(&self) -> anyhow::Result<Status> {
        let text = self.query(&["status", "-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("cannot read the status {text:?}"))
    }

    /// `ballast service list -o json`.
    pub fn services(&self) -> anyhow::Result<Vec<ServiceRow>> {
        let text = self.query(&["service", "list", "-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("cannot read the list {text:?}"))
    }

    /// Waits until Service `name` of namespace `default` is listed with `backends` backends.
    pub fn wait_service(&self, name: &str, backends: u64) -> anyhow::Result<ServiceRow> {
        let what = format!("{}: Service {name} with {backends} backends", self.place.name());
        wait_until(&what, Duration::from_secs(10), || {
            let rows = self.services().map_err(|error| format!("{error:#}"))?;
            match rows.into_iter().find(|row| row.namespace == "default" && row.name == name) {
                None => Err("not listed".to_owned()),
                Some(row) if row.backends != backends => Err(format!("it has {}", row.backends)),
                Some(row) => Ok(row),
            }
        })
    }

    /// The ClusterIPs of Service `name`, once it is listed with `backends` backends.
    pub fn cluster_ips(&self, name: &str, backends: u64) -> anyhow::Result<Vec<IpAddr>> {
        let row = self.wait_service(name, backends)?;
        row.cluster_ips
            .iter()
            .map(|ip| ip.parse().with_context(|| format!("Service {name}: {ip} is no address")))
            .collect()
    }

    /// `ballast cleanup`; the agent must have been stopped.
    pub fn cleanup(&self) -> anyhow::Result<String> {
        self.query(&["cleanup"])
    }

    /// As a reboot does it to an agent that has stopped: what was pinned is gone, the snapshot is still there.
    pub fn reboot(&self) -> anyhow::Result<()> {
        let snapshot = self.state_dir.join("snapshot");
        let saved = fs::read(&snapshot).with_context(|| format!("no {}", snapshot.display()))?;
        self.cleanup()?;
        fs::create_dir_all(&self.state_dir)?;
        fs::write(&snapshot, saved)?;
        Ok(())
    }

    /// Runs a subcommand against this agent; its output. Exit code 3 (degraded) is an answer as well.
    pub fn query(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.place.command(binary("ballast")?)?;
        command.args(arguments);
        self.where_it_lives(&mut command);
        let output = command.output().context("cannot run ballast")?;
        if !matches!(output.status.code(), Some(0 | 3)) {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("ballast {}: {}: {}", arguments.join(" "), output.status, stderr.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn where_it_lives(&self, command: &mut Command) {
        command.arg("--state-dir").arg(&self.state_dir);
        command.arg("--bpffs").arg(&self.bpffs).arg("--cgroup").arg(&self.cgroup);
    }
}
