//! The process that owns the world and its control plane until it is asked to end.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use clap::Args;
use lb_tests::{ControlPlane, Echo, TARGET, World as TestWorld, kube::PodSpec};
use tokio::signal::unix::{SignalKind, signal};

use crate::sheet::Sheet;

/// The world that is wanted.
#[derive(Args, Clone, Debug)]
pub(crate) struct World {
    /// Nodes, each a network namespace
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Pods on each node, with the label app=web and an echo server on port 9376 of TCP and UDP
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=100))]
    pods: u8,
}

impl World {
    /// As they were given.
    pub(crate) fn arguments(&self) -> [String; 2] {
        [format!("--nodes={}", self.nodes), format!("--pods={}", self.pods)]
    }
}

/// Builds everything, writes down what there is, and waits for SIGTERM.
pub(crate) fn keep(run_dir: &Path, wanted: &World) -> anyhow::Result<()> {
    // Of the terminal that `up` was typed in nothing is left, so that it may be closed.
    rustix::process::setsid().context("cannot start a session")?;
    let path = run_dir.join("lock");
    let lock = fs::File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if lock.try_lock().is_err() {
        bail!("another one is starting or up: {} is locked", path.display());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _context = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let world = TestWorld::builder().nodes(wanted.nodes).pods(wanted.pods).build()?;
    let plane = ControlPlane::start(&world)?;
    plane.apply_nodes(&world)?;
    let mut servers = Vec::new();
    for pod in world.pods() {
        servers.push(Echo::start(pod.place(), &[TARGET], &[TARGET])?);
        plane.apply_pod(pod, &PodSpec::labelled("app", "web"))?;
    }
    Sheet::of(&world, &plane)?.write(run_dir)?;
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    Sheet::remove(run_dir)?;
    drop((servers, plane, world));
    Ok(())
}
