//! `cargo xtask cluster`: a real Kubernetes control plane, built of Go modules, in namespaces of its own.

mod go;
mod program;

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};
use clap::Subcommand;

pub(crate) use self::go::NoGo;
use self::program::Program;
use crate::{
    root,
    step::{self, Mark},
    tools, world,
};

/// What a control plane is made of, and how a person talks to it.
const CONTROL_PLANE: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];

#[derive(Subcommand, Debug)]
pub(crate) enum Cluster {
    /// Build etcd, kube-apiserver and the rest of tests/cluster into ~/.cache/ballast/cluster (`BALLAST_CLUSTER_CACHE`)
    Build {
        /// Only these, for example `kubectl`
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
            let wanted = if programs.is_empty() { Program::all()? } else { read(programs)? };
            build(&wanted)?;
            let cache = program::cache()?;
            for program in wanted {
                println!("{}", program.path(&cache).display());
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

fn build(programs: &[Program]) -> Result<()> {
    let cache = program::cache()?;
    go::ensure(programs, &cache)?;
    let names: Vec<_> = programs.iter().map(|program| format!("{} {}", program.name, program.version)).collect();
    step::print_line(Mark::Ok, &format!("{}: in {}", names.join(", "), cache.display()), None);
    Ok(())
}

fn read(names: &[String]) -> Result<Vec<Program>> {
    let all = Program::all()?;
    if let Some(name) = names.iter().find(|name| !all.iter().any(|program| program.name == **name)) {
        let known: Vec<_> = all.iter().map(|program| program.name.as_str()).collect();
        bail!("{name} is none of the programs under tests/cluster: {}", known.join(", "));
    }
    names.iter().map(|name| Program::read(name)).collect()
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
