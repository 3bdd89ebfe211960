//! `cargo xtask cluster`: a real Kubernetes control plane, built of Go modules, in namespaces of its own.

mod go;
mod program;

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use self::{go::Go, program::Program};
pub(crate) use self::{go::NoGo, program::cache};
use crate::{
    root,
    step::{self, Mark},
    tools, world,
};

/// What a control plane is made of, and how a person talks to it.
const CONTROL_PLANE: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];
/// The peer of the benchmarks.
const PEER: &str = "kube-proxy";

#[derive(Subcommand, Debug)]
pub(crate) enum Cluster {
    /// Build etcd, kube-apiserver and the rest of tests/cluster into ~/.cache/ballast/cluster (`BALLAST_CLUSTER_CACHE`)
    Build {
        /// Only these, for example `kubelet` [default: what the tests of a control plane need]
        programs: Vec<String>,
    },
    /// Start a control plane and nodes with pods, and leave them running
    #[command(disable_help_flag = true)]
    Up {
        /// Arguments: `--nodes N`, `--pods N`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// End what `up` started, and nothing else
    Down,
    /// What `up` started: where it listens, and whether it answers
    Status,
}

/// Builds, or builds and becomes the program that does the rest.
pub(crate) fn run(command: &Cluster) -> Result<ExitCode> {
    match command {
        Cluster::Build { programs } => {
            let default = || CONTROL_PLANE.into_iter().chain([PEER]).map(str::to_owned).collect();
            let wanted = if programs.is_empty() { default() } else { programs.clone() };
            for path in build_named(&wanted)? {
                println!("{}", path.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Cluster::Up { arguments } => {
            if !arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
                needs_root()?;
                tools::ensure_test_tools()?;
                build_for_tests()?;
            }
            become_cluster("up", arguments)
        }
        Cluster::Down => become_cluster("down", &[]),
        Cluster::Status => become_cluster("status", &[]),
    }
}

/// Builds what the tests start; the error is a [`NoGo`] where that cannot be for want of Go.
pub(crate) fn build_for_tests() -> Result<()> {
    build(&read(&CONTROL_PLANE.map(str::to_owned))?)
}

/// The version of a program under tests/cluster.
pub(crate) fn version(name: &str) -> Result<String> {
    Ok(read(&[name.to_owned()])?.swap_remove(0).version)
}

/// A Go that is new enough.
pub(crate) fn go() -> Result<PathBuf> {
    Ok(Go::find()?.program)
}

/// Builds these and says where they are, in their order.
pub(crate) fn build_named(names: &[String]) -> Result<Vec<PathBuf>> {
    let programs = read(names)?;
    build(&programs)?;
    let cache = cache()?;
    Ok(programs.iter().map(|program| program.path(&cache)).collect())
}

fn build(programs: &[Program]) -> Result<()> {
    let cache = cache()?;
    go::ensure(programs, &cache)?;
    let names: Vec<_> = programs.iter().map(|program| format!("{} {}", program.name, program.version)).collect();
    step::print_line(Mark::Ok, &format!("{}: in {}", names.join(", "), cache.display()), None);
    Ok(())
}

fn read(names: &[String]) -> Result<Vec<Program>> {
    let all = Program::all()?;
    let find = |name: &String| all.iter().find(|program| program.name == *name).cloned();
    names
        .iter()
        .map(|name| {
            let known: Vec<_> = all.iter().map(|program| program.name.as_str()).collect();
            let none = || format!("{name} is none of the programs under tests/cluster: {}", known.join(", "));
            find(name).with_context(none)
        })
        .collect()
}

fn needs_root() -> Result<()> {
    if !tools::is_root() {
        bail!(
            "the control plane gets a network namespace: run it as root, `sudo -E env PATH=\"$PATH\" cargo xtask cluster up`"
        );
    }
    Ok(())
}

fn become_cluster(what: &str, arguments: &[OsString]) -> Result<ExitCode> {
    let build = ["build", "-p", "lb-tests", "--bin", "ballast-cluster", "--bin", "ballast-peer"];
    step::must("build ballast-cluster", step::cargo().args(build))?;
    world::become_program(Command::new(root::target().join("debug/ballast-cluster")).arg(what).args(arguments))
}
