//! `cargo xtask cluster up | down | status`: a control plane and a world of nodes that stay until they are taken down.

mod keep;
mod sheet;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use lb_tests::{Process, is_root, owner, sweep_leftovers, traces, wait_until};

use self::{keep::World, sheet::Sheet};

/// A real Kubernetes control plane (etcd, kube-apiserver, kube-controller-manager) in a network namespace, beside nodes
/// and pods that are namespaces too. There are no kubelets: you are the one who makes Pods and their status.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask cluster", version)]
struct Options {
    /// Where it is written down what runs, and the log of the process that keeps it
    #[arg(
        long,
        env = "BALLAST_CLUSTER_RUN",
        default_value = "/run/ballast-cluster",
        global = true,
        value_name = "DIR"
    )]
    run_dir: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Start it, and leave it running
    Up(World),
    /// End it, and nothing else
    Down,
    /// What runs, how it is reached, and whether it answers
    Status,
    /// The process that holds the world; `up` starts it
    #[command(hide = true)]
    Keep(World),
}

/// How long the servers may take together, on a busy machine.
const START: Duration = Duration::from_mins(4);
/// How long taking it down may take.
const END: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.what {
        What::Up(world) => up(&options.run_dir, world),
        What::Down => down(&options.run_dir),
        What::Status => status(&options.run_dir),
        What::Keep(world) => keep::keep(&options.run_dir, world).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn up(run_dir: &Path, world: &World) -> anyhow::Result<ExitCode> {
    needs_root()?;
    if let Some(sheet) = running(run_dir)? {
        println!("It is up already.\n\n{sheet}");
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
    let path = run_dir.join("log");
    let log = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("cannot tell where this program is")?);
    command.arg("keep").args(world.arguments()).arg("--run-dir").arg(run_dir);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut keeper = command.spawn().context("cannot start the process that keeps it")?;
    let sheet = wait_until("the control plane", START, || {
        if let Some(status) = keeper.try_wait().map_err(|error| error.to_string())? {
            return Ok(Err(status));
        }
        match running(run_dir) {
            Ok(Some(sheet)) => Ok(Ok(sheet)),
            Ok(None) => Err("not ready yet".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    });
    match sheet {
        Ok(Ok(sheet)) => {
            println!("{sheet}");
            Ok(ExitCode::SUCCESS)
        }
        Ok(Err(status)) => {
            let said = fs::read_to_string(&path).unwrap_or_default();
            bail!("the control plane did not come up ({status}):\n{}", said.trim_end())
        }
        Err(error) => {
            keeper.kill().context("cannot end the process that keeps it")?;
            keeper.wait().context("cannot wait for the process that keeps it")?;
            sweep_leftovers();
            Err(error)
        }
    }
}

fn down(run_dir: &Path) -> anyhow::Result<ExitCode> {
    needs_root()?;
    let Some(sheet) = Sheet::read(run_dir)? else {
        println!("nothing is up");
        return Ok(ExitCode::SUCCESS);
    };
    let world = sheet.world();
    if let Some(pid) = owner(world) {
        Process::ask_to_end(pid)?;
        wait_until("the end of the process that kept it", END, || {
            if owner(world).is_none() { Ok(()) } else { Err(format!("process {pid} still runs")) }
        })?;
    }
    // Where the keeper was killed it could not clean up.
    sweep_leftovers();
    Sheet::remove(run_dir)?;
    let left = traces(world);
    if !left.is_empty() {
        bail!("still there: {}", left.join(", "));
    }
    println!("down: {world}");
    Ok(ExitCode::SUCCESS)
}

fn status(run_dir: &Path) -> anyhow::Result<ExitCode> {
    let Some(sheet) = running(run_dir)? else {
        println!("nothing is up: cargo xtask cluster up");
        return Ok(ExitCode::FAILURE);
    };
    needs_root()?;
    println!("{sheet}");
    let output = sheet.kubectl(&["get", "--raw=/readyz"]).output().context("cannot run ip")?;
    if output.status.success() {
        println!("\nThe API server is ready.");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("\nThe API server does not answer: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(ExitCode::FAILURE)
    }
}

/// What runs, if its keeper lives.
fn running(run_dir: &Path) -> anyhow::Result<Option<Sheet>> {
    Ok(Sheet::read(run_dir)?.filter(|sheet| owner(sheet.world()).is_some()))
}

fn needs_root() -> anyhow::Result<()> {
    if !is_root() {
        bail!("it is in network namespaces: run this as root, `sudo -E env PATH=\"$PATH\" cargo xtask cluster ...`");
    }
    Ok(())
}
