//! The command line.

mod render;

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{
    agent::{self, CleanupOptions, RunOptions},
    config::{self, Loaded},
    control::{self, Request, Response},
};

/// Kubernetes Services in eBPF.
#[derive(Debug, Parser)]
#[command(name = "ballast", version, about, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 degraded (see `ballast status`).")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the Services of a file or folder of Kubernetes documents on this node
    Run(Box<Run>),
    /// Show the agent's devices, tables, counters and problems
    Status(Ask),
    /// Show Services
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Remove everything an agent made on this node: programs, tables, routes, settings
    Cleanup(Cleanup),
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// List all Services
    List(Ask),
    /// Show a Service with its frontends, endpoints and problems
    Describe {
        /// Which: NAMESPACE/NAME
        #[arg(value_parser = object)]
        service: (String, String),
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Debug, Args)]
struct Places {
    /// Where the agent keeps its state and listens
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ballast")]
    state_dir: PathBuf,
    /// BPF file system to pin to
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// cgroup2 whose processes are served [default: the root of its mount]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Run {
    /// File, folder or - for standard input: Service, Pod, Node, Namespace, Endpoints, EndpointSlice documents
    #[arg(short, long = "filename", value_name = "PATH")]
    file: PathBuf,
    #[arg(
        long,
        alias = "hostname-override",
        value_name = "NAME",
        help = "Name of this node [default: hostnameOverride, $NODE_NAME, the host name]"
    )]
    node: Option<String>,
    /// KubeProxyConfiguration and/or BallastConfiguration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where allocated addresses and ports are kept, for all nodes of the documents
    /// [default: /var/lib/ballast/allocations/<hash of PATH>.json]
    #[arg(long, value_name = "PATH")]
    allocations: Option<PathBuf>,
    /// Ranges of cluster IPs
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.96.0.0/16,fd00:10:96::/112")]
    service_cidr: Vec<IpNet>,
    /// Range of nodePorts
    #[arg(long, value_name = "FIRST-LAST", value_parser = port_range, default_value = "30000-32767")]
    node_port_range: RangeInclusive<u16>,
    #[command(flatten)]
    places: Places,
}

#[derive(Debug, Args)]
struct Ask {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    places: Places,
}

#[derive(Debug, Args)]
struct Cleanup {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    places: Places,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

fn object(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/NAME, for example default/web".to_owned()),
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text.split_once('-').and_then(|(first, last)| {
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        (first > 0 && first <= last).then_some(first..=last)
    });
    range.ok_or_else(|| "write two ports, for example 30000-32767".to_owned())
}

/// Degraded.
const DEGRADED: u8 = 3;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("cannot start").and_then(|runtime| runtime.block_on(execute(cli)));
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run(run) => {
            log();
            agent::run(options(*run)?).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Status(ask) => show(&ask, &Request::Status).await,
        Command::Service(ServiceCommand::List(ask)) => show(&ask, &Request::Services).await,
        Command::Service(ServiceCommand::Describe { service: (namespace, name), ask }) => {
            show(&ask, &Request::Describe { namespace, name }).await
        }
        Command::Cleanup(Cleanup { dry_run, places: Places { state_dir, bpffs, cgroup } }) => {
            let lines = agent::cleanup(CleanupOptions { state_dir, bpffs, cgroup, dry_run }).await?;
            for line in lines {
                println!("{line}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            println!("ballast {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn log() {
    use std::io::IsTerminal as _;

    use tracing_subscriber::{EnvFilter, filter::LevelFilter};
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
}

fn options(run: Run) -> anyhow::Result<RunOptions> {
    let Loaded { config, notes } = match &run.config {
        None => Loaded::default(),
        Some(path) => config::load(path)?,
    };
    for note in notes.not_yet.iter().chain(&notes.no_effect) {
        tracing::warn!("{}: {} ({})", note.object, note.cause, note.fix);
    }
    let node = run
        .node
        .or_else(|| config.hostname_override.clone())
        .or_else(|| std::env::var("NODE_NAME").ok())
        .map(|name| name.trim().to_lowercase())
        .filter(|name| !name.is_empty());
    let node = match node {
        Some(node) => node,
        None => rustix::system::uname().nodename().to_string_lossy().to_lowercase(),
    };
    let mut families: Vec<bool> = run.service_cidr.iter().map(|net| matches!(net.addr(), IpAddr::V6(_))).collect();
    families.sort_unstable();
    families.dedup();
    if families.len() != run.service_cidr.len() {
        anyhow::bail!("--service-cidr: two ranges of one family; give at most one IPv4 and one IPv6 range");
    }
    let Places { state_dir, bpffs, cgroup } = run.places;
    Ok(RunOptions {
        path: run.file,
        node,
        config,
        notes,
        state_dir,
        bpffs,
        cgroup,
        allocations: run.allocations,
        service_cidrs: run.service_cidr.into_iter().map(|net| net.trunc()).collect(),
        node_port_range: run.node_port_range,
    })
}

async fn show(ask: &Ask, request: &Request) -> anyhow::Result<ExitCode> {
    let response = control::ask(&ask.places.state_dir, request).await?;
    let degraded = match &response {
        Response::Status(status) => !status.problems.is_empty() || !status.not_honoured.is_empty(),
        Response::Detail(detail) => !detail.problems.is_empty() || !detail.row.not_honoured.is_empty(),
        Response::Services(_) => false,
        Response::NotFound { namespace, name } => {
            anyhow::bail!("there is no Service {namespace}/{name}; `ballast service list` shows those there are")
        }
        Response::Error { message } => anyhow::bail!("the agent answered: {message}"),
    };
    let text = match &response {
        Response::Status(status) => render::print(status.as_ref(), ask.output, render::status)?,
        Response::Services(rows) => render::print(rows, ask.output, |rows| render::services(rows))?,
        Response::Detail(detail) => render::print(detail.as_ref(), ask.output, render::detail)?,
        Response::NotFound { .. } | Response::Error { .. } => String::new(),
    };
    println!("{}", text.trim_end());
    Ok(if degraded { ExitCode::from(DEGRADED) } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_and_ranges_are_checked() {
        assert_eq!(object("default/web"), Ok(("default".to_owned(), "web".to_owned())));
        for wrong in ["web", "/web", "default/", "a/b/c"] {
            assert!(object(wrong).is_err(), "{wrong}");
        }
        assert_eq!(port_range("1-2"), Ok(1..=2));
        for wrong in ["1", "2-1", "0-5", "a-b", "1-70000"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
    }
}
