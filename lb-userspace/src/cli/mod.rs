//! The command line.

mod args;
mod client_args;
mod clients;
mod controller_args;
mod dns_args;
mod render;
mod server_args;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;

use self::args::{BackendCommand, Cli, Command, ConntrackCommand, Global, Output, Run, ServiceCommand};
use crate::{
    agent::{self, CleanupOptions, RunOptions, SourceOptions},
    check::{self, CheckOptions, Level},
    config::{self, Loaded},
    control::{self, AskError, Request, Response},
    controller, dns, file_source,
    listing::{self, Filter, Tables},
    logs, memory,
    model::ObjectName,
    net,
    offline::{self, Places},
    report::Problem,
};

/// Degraded.
const DEGRADED: u8 = 3;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::read();
    memory::use_one_heap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("cannot start").and_then(|runtime| {
        let result = runtime.block_on(execute(cli));
        // A read of the documents may still wait for a lock: it has nothing to finish.
        runtime.shutdown_background();
        result
    });
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn execute(Cli { command, mut global }: Cli) -> anyhow::Result<ExitCode> {
    global.cgroup = global.cgroup.map(net::cgroup2_at);
    let output = global.output.unwrap_or(Output::Table);
    match command {
        Command::Run(run) => {
            Box::pin(agent::run(options(*run, global)?)).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Dns(arguments) => {
            logs::start(logs::Options::default());
            Box::pin(dns::run(arguments.options(&global.state_dir)?)).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Controller(arguments) => {
            logs::start(logs::Options::default());
            Box::pin(controller::run(arguments.options(&global.state_dir)?)).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Status => show(&global, output, &Request::Status).await,
        Command::Service(ServiceCommand::List) => show(&global, output, &Request::Services).await,
        Command::Service(ServiceCommand::Describe { service: (namespace, name) }) => {
            show(&global, output, &Request::Describe { namespace, name }).await
        }
        Command::Backend(BackendCommand::List { service }) => {
            let tables = Tables::open(&global.state_dir, &global.bpffs)?;
            let rows = listing::backends(tables, service.map(object).as_ref()).await?;
            say(&render::print(&rows, output, |rows| render::backends(rows))?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Conntrack(ConntrackCommand::List { service, client, limit }) => {
            let tables = Tables::open(&global.state_dir, &global.bpffs)?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let list = listing::flows(&tables, &Filter { service: service.map(object), client, limit })?;
            say(&render::print(&list, output, render::flows)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { config } => {
            let Loaded { config, .. } = config.as_deref().map(config::load).transpose()?.unwrap_or_default();
            let Global { bpffs, cgroup, .. } = global;
            let found = check::check(&CheckOptions { bpffs, cgroup, config }).await;
            say(&render::print(&found, output, |found| render::found(found))?)?;
            Ok(match found.iter().map(|found| found.level).max() {
                None | Some(Level::Ok) => ExitCode::SUCCESS,
                Some(Level::Warning) => ExitCode::from(DEGRADED),
                Some(Level::Problem) => ExitCode::FAILURE,
            })
        }
        Command::Cleanup { dry_run } => {
            let Global { state_dir, bpffs, cgroup, proc_sys_net, .. } = global;
            let lines = agent::cleanup(CleanupOptions { state_dir, bpffs, cgroup, proc_sys_net, dry_run }).await?;
            say(&lines.join("\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Env(options) => clients::env(&options, output),
        Command::Exec(options) => clients::exec(&options),
        Command::Resolv(options) => clients::resolv(options),
        Command::Completion { shell } => {
            say(&args::completion(shell))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            let version = serde_json::json!({ "version": env!("CARGO_PKG_VERSION") });
            let text = render::print(&version, output, |_| format!("ballast {}", env!("CARGO_PKG_VERSION")))?;
            say(&text)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn object((namespace, name): (String, String)) -> ObjectName {
    ObjectName { namespace, name }
}

fn options(run: Run, global: Global) -> anyhow::Result<RunOptions> {
    let Loaded { mut config, mut notes } = match &run.config {
        None => Loaded::default(),
        Some(path) => config::load(path)?,
    };
    if run.file.is_none() && !config.address_pools.is_empty() {
        notes.push(Problem {
            object: "addressPools".to_owned(),
            cause: "an agent of a cluster gives no addresses".to_owned(),
            fix: "give them to `ballast controller`".to_owned(),
        });
    }
    config.logging.format = run.log_format.unwrap_or(config.logging.format);
    config.logging.verbosity = run.verbosity.unwrap_or(config.logging.verbosity);
    logs::start(config.logging);
    for note in &notes {
        tracing::warn!("{}: {} ({})", note.object, note.cause, note.fix);
    }
    let node = node_name(run.node, config.hostname_override.clone(), std::env::var("NODE_NAME").ok());
    config.healthz_bind = run.healthz_bind_address.or(config.healthz_bind);
    config.metrics_bind = run.metrics_bind_address.or(config.metrics_bind);
    let Global { state_dir, bpffs, cgroup, proc_sys_net, .. } = global;
    let mount_bpffs = run.mount_bpffs;
    let service_cidrs: Vec<_> = run.service_cidr.into_iter().map(|net| net.trunc()).collect();
    let dns;
    let source = if let Some(path) = run.file {
        let mut options = file_source::Options::new(path);
        if !service_cidrs.is_empty() {
            options.service_cidrs = service_cidrs;
        }
        dns = run.dns.options(&options.service_cidrs, None);
        if let Some(range) = run.node_port_range {
            options.node_port_range = range;
        }
        SourceOptions::Documents(file_source::Options {
            allocations: run.allocations,
            pools: config.address_pools.clone(),
            write_allocations: true,
            ..options
        })
    } else {
        let kubeconfig = run.kubeconfig.or_else(|| Some(config.client_connection.kubeconfig.clone().into()));
        let access = server_args::access(kubeconfig, run.master, &state_dir)?;
        dns = run.dns.options(&service_cidrs, Some(access.clone()));
        SourceOptions::Cluster { access, service_cidrs: (!service_cidrs.is_empty()).then_some(service_cidrs) }
    };
    Ok(RunOptions { source, node, config, notes, state_dir, bpffs, cgroup, proc_sys_net, mount_bpffs, dns })
}

/// The first that says something of: `--hostname-override`, the configuration's, `NODE_NAME`, the host's name; in small
/// letters, as kubelets register it (component-helpers `node/util/hostname.go`).
fn node_name(given: Option<String>, config: Option<String>, variable: Option<String>) -> String {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let named = [given, config, variable].into_iter().flatten().find(|name| !name.trim().is_empty());
    named.unwrap_or_else(host).trim().to_lowercase()
}

async fn show(global: &Global, output: Output, request: &Request) -> anyhow::Result<ExitCode> {
    let (response, online) = match control::ask(&global.state_dir, request).await {
        Err(AskError::NotRunning { .. }) => (offline(global, request).await?, false),
        answered => (answered?, true),
    };
    let degraded = match &response {
        Response::Status(status) => !status.problems.is_empty(),
        Response::Detail(detail) => !detail.problems.is_empty(),
        Response::Services(_) => !online,
        Response::NotFound { namespace, name } if !online => anyhow::bail!(
            "no agent runs on {}, and the tables it left hold no Service {namespace}/{name}; `ballast service list` \
             shows those they hold, `ballast run` knows the others too",
            global.state_dir.display()
        ),
        Response::NotFound { namespace, name } => {
            anyhow::bail!("there is no Service {namespace}/{name}; `ballast service list` shows those there are")
        }
        Response::Error { message } => anyhow::bail!("the agent answered: {message}"),
    };
    let text = match &response {
        Response::Status(status) => render::print(status.as_ref(), output, render::status)?,
        Response::Services(rows) => render::print(rows, output, |rows| render::services(rows, output == Output::Wide))?,
        Response::Detail(detail) => render::print(detail.as_ref(), output, render::detail)?,
        Response::NotFound { .. } | Response::Error { .. } => String::new(),
    };
    say(&text)?;
    Ok(if degraded { ExitCode::from(DEGRADED) } else { ExitCode::SUCCESS })
}

/// Answers from the pins. A list has no place to say so: standard error does.
async fn offline(global: &Global, request: &Request) -> anyhow::Result<Response> {
    let Global { state_dir, bpffs, cgroup, .. } = global;
    let response = offline::answer(Places { state_dir, bpffs, cgroup: cgroup.as_deref() }, request).await?;
    if matches!(response, Response::Services(_)) {
        eprintln!(
            "no agent runs on {}; these are the Services in the tables pinned in {}",
            state_dir.display(),
            bpffs.display()
        );
    }
    Ok(response)
}

/// Prints an answer. `println!` would panic when the reader, `head` for example, has seen enough.
fn say(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_first_name_that_is_given() {
        let name = |given: &str, config: &str, variable: &str| {
            let [given, config, variable] =
                [given, config, variable].map(|name| (name != "none").then(|| name.to_owned()));
            node_name(given, config, variable)
        };
        assert_eq!(name("One", "two", "three"), "one");
        assert_eq!(name("none", " Two ", "three"), "two");
        assert_eq!(name("none", "none", "three"), "three");
        assert_eq!(name("", " ", "three"), "three", "an empty one is none");
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        assert_eq!(name("none", "none", "none"), host.trim().to_lowercase());
    }
}
