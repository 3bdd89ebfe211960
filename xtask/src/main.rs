//! Ballast's automation: `cargo xtask build | check | test | run | cluster | image | e2e | bench | fuzz | ci | tidy`.
//!
//! Every command prints one line per step with its time; `check`, `test`, `fuzz` and `ci` end with one line
//! `N passed, N failed, N skipped`. Nothing is installed unless it is missing, apt is there and we are root;
//! otherwise the exact command is named.

mod build;
mod check;
mod cluster;
mod deploy;
mod e2e;
mod fuzz;
mod libtest;
mod report;
mod root;
mod scoreboard;
mod step;
mod suites;
mod tidy;
mod toolchain;
mod tools;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{build::Log, report::Tally};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Ballast's automation", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the BPF object and the binary: target/debug/ballast, or target/release/ballast
    Build {
        /// Optimise the host binary (the BPF object always is)
        #[arg(long)]
        release: bool,
        /// Let the programs log every packet that does not take its normal course: `RUST_LOG=bpf=info ballast run`
        #[arg(long)]
        bpf_log: bool,
    },
    /// fmt, clippy, tidy, cargo-deny and typos, with warnings denied
    Check(check::Options),
    /// Run the tests; bare, it is what CI runs
    Test(suites::Options),
    /// Show the main job in network namespaces, or (--host) run the agent on this machine
    Run(world::RunOptions),
    /// A real Kubernetes control plane in namespaces of this machine
    Cluster {
        #[command(subcommand)]
        what: cluster::Cluster,
    },
    /// Make the container image that deploy/ runs, without Docker and without a network
    Image(deploy::ImageOptions),
    /// Run tests of Kubernetes' own end-to-end suite against a cluster on this machine, and write docs/conformance.md
    E2e(e2e::Options),
    /// Measure
    Bench {
        #[command(subcommand)]
        what: world::Bench,
    },
    /// Look for inputs that break a parser or the pipeline: libFuzzer, from the seeds in fuzz/corpus on
    Fuzz(fuzz::Options),
    /// check, then test, with one closing line
    Ci,
    /// Check the house rules: dependencies, sizes, unsafe, reachability, counters, module docs
    Tidy {
        /// Write docs/counters.md and deploy/install.yaml from what they are made of first
        #[arg(long)]
        write: bool,
    },
}

fn main() -> ExitCode {
    match dispatch(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Build { release, bpf_log } => {
            let bpf = toolchain::ensure()?;
            let log = if bpf_log { Log::On } else { Log::Off };
            build::object_with(&bpf, log)?;
            let binary = build::host_with(release, log)?;
            println!("built {}", root::display(&binary));
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(options) => Ok(close(&check::run(options)?)),
        Command::Test(options) => Ok(close(&suites::run(&options)?)),
        Command::Fuzz(options) => Ok(close(&fuzz::run(&options)?)),
        Command::Ci => {
            let mut tally = check::run(check::Options::default())?;
            tally.add(&suites::run(&suites::Options::default())?);
            Ok(close(&tally))
        }
        Command::Tidy { write } => {
            if write {
                tidy::write_counters(&root::workspace())?;
                deploy::write(&root::workspace())?;
            }
            Ok(close(&check::tidy()))
        }
        Command::Run(options) => world::run(&options),
        Command::Cluster { what } => cluster::run(&what),
        Command::E2e(options) => e2e::run(&options),
        Command::Image(options) => deploy::image(&options),
        Command::Bench { what } => world::bench(&what),
    }
}

/// Prints the one closing line; the exit code follows it.
fn close(tally: &Tally) -> ExitCode {
    tally.print_reasons();
    println!("{tally}");
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
