//! What the command line says.

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum, error::ErrorKind};
use ipnet::IpNet;

use super::{
    client_args::{Env, Exec, Resolv, Shell},
    controller_args::Controller,
    dns_args::{Dns, RunDns},
};
use crate::{
    config::{Bind, HEALTHZ_PORT, METRICS_PORT},
    logs,
};

/// Kubernetes Services in eBPF.
#[derive(Debug, Parser)]
#[command(name = "ballast", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 degraded (see `ballast status`).")]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
    #[command(flatten)]
    pub(super) global: Global,
}

/// Before or after the subcommand, as people expect it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(super) struct Global {
    /// Form of the answer; wide is a list with more columns [default: table]
    #[arg(short, long, value_enum, global = true, value_name = "FORM")]
    pub(super) output: Option<Output>,
    /// Where the agent keeps its state and listens
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ballast", global = true)]
    pub(super) state_dir: PathBuf,
    /// BPF file system to pin to
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", global = true)]
    pub(super) bpffs: PathBuf,
    /// cgroup2 whose processes are served, or a folder it is mounted in [default: the root of its mount]
    #[arg(long, value_name = "DIR", global = true)]
    pub(super) cgroup: Option<PathBuf>,
    /// Where this network namespace's /proc/sys/net is writable: in a container not at its own place
    #[arg(long, value_name = "DIR", default_value = "/proc/sys/net", global = true)]
    pub(super) proc_sys_net: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve Services on this node: those of a cluster, or of a file or folder of Kubernetes documents
    Run(Box<Run>),
    /// Answer DNS queries for the names of Services and endpoints. Needs neither root nor a node
    Dns(Box<Dns>),
    /// Give Services of type LoadBalancer addresses of configured pools, in a cluster that has nobody who does
    Controller(Box<Controller>),
    /// Show the agent's devices, tables, counters and problems
    Status,
    /// Show Services
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Show the backends in the tables
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Show the flows in the conntrack tables
    #[command(subcommand)]
    Conntrack(ConntrackCommand),
    /// Look whether this machine can serve: kernel, mounts, settings, rights, other programs. Changes nothing
    #[command(after_help = "Exit codes: 0 all is well, 3 there are warnings, 1 there are problems.")]
    Check {
        /// The configuration an agent would have
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Remove everything an agent made on this node: programs, tables, routes, settings
    Cleanup {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the environment variables by which a container of a namespace finds Services
    Env(Env),
    /// Start a command with these environment variables; what the caller has set itself wins
    #[command(after_help = "Exit codes: the command's, 126 it cannot be started, 127 there is none.")]
    Exec(Exec),
    /// Print the resolv.conf of a pod of a namespace
    Resolv(Resolv),
    /// Print a script with which a shell completes commands and options
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// List all Services
    List,
    /// Show a Service with its frontends, endpoints and problems
    Describe {
        /// Which: NAMESPACE/NAME
        #[arg(value_parser = object)]
        service: (String, String),
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum BackendCommand {
    /// List backends with slot, generation, next hop and connections, as the kernel has them
    List {
        /// Only this Service's
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object)]
        service: Option<(String, String)>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConntrackCommand {
    /// List flows with client, frontend, backend and the source the backend sees
    List {
        /// Only this Service's
        #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object)]
        service: Option<(String, String)>,
        /// Only this client's
        #[arg(long, value_name = "IP")]
        client: Option<IpAddr>,
        /// Show at most so many
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: u32,
    },
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// File, folder or - for standard input: Service, Pod, Node, Namespace, Endpoints, EndpointSlice documents. Without it
    /// the objects are a cluster's
    #[arg(short, long = "filename", value_name = "PATH", conflicts_with_all = ["kubeconfig", "master"])]
    pub(super) file: Option<PathBuf>,
    #[arg(
        long,
        value_name = "FILE",
        help = "How to reach the cluster's API server [default: clientConnection.kubeconfig, the service account of a pod, \
                $KUBECONFIG]"
    )]
    pub(super) kubeconfig: Option<PathBuf>,
    #[arg(
        long,
        value_name = "URL",
        help = "URL of the API server, instead of the kubeconfig's or $KUBERNETES_SERVICE_HOST"
    )]
    pub(super) master: Option<String>,
    #[arg(
        long,
        visible_alias = "hostname-override",
        value_name = "NAME",
        help = "Name of this node [default: hostnameOverride, $NODE_NAME, the host name]"
    )]
    pub(super) node: Option<String>,
    /// KubeProxyConfiguration and/or BallastConfiguration
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Mount a BPF file system at --bpffs if there is none
    #[arg(long)]
    pub(super) mount_bpffs: bool,
    #[arg(
        long,
        value_name = "ADDR:PORT",
        value_parser = |text: &str| bind(text, HEALTHZ_PORT),
        help = "Where /healthz and /livez are, or off [default: healthzBindAddress, 0.0.0.0:10256, with -f 127.0.0.1:10256]"
    )]
    pub(super) healthz_bind_address: Option<Bind>,
    #[arg(
        long,
        value_name = "ADDR:PORT",
        value_parser = |text: &str| bind(text, METRICS_PORT),
        help = "Where /metrics and /proxyMode are, or off [default: metricsBindAddress, 127.0.0.1:10249]"
    )]
    pub(super) metrics_bind_address: Option<Bind>,
    /// Form of the log lines [default: logging.format, text]
    #[arg(long, visible_alias = "logging-format", value_enum, value_name = "FORM")]
    pub(super) log_format: Option<logs::Format>,
    /// How much is logged: 0 what needs attention, 2 each change, 6 everything [default: logging.verbosity, 0]
    #[arg(short, long = "v", value_name = "N")]
    pub(super) verbosity: Option<u32>,
    /// Where allocated addresses and ports are kept, for all nodes of the documents
    /// [default: /var/lib/ballast/allocations/<hash of PATH>.json]
    #[arg(long, value_name = "PATH", requires = "file", conflicts_with_all = ["kubeconfig", "master"])]
    pub(super) allocations: Option<PathBuf>,
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        help = "Ranges of cluster IPs [default: the cluster's ServiceCIDR objects; with -f 10.96.0.0/16,fd00:10:96::/112]"
    )]
    pub(super) service_cidr: Vec<IpNet>,
    /// Range of nodePorts that are given out with -f [default: 30000-32767]
    #[arg(long, value_name = "FIRST-LAST", value_parser = port_range, requires = "file", conflicts_with_all = ["kubeconfig", "master"])]
    pub(super) node_port_range: Option<RangeInclusive<u16>>,
    #[command(flatten)]
    pub(super) dns: RunDns,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Table,
    Wide,
    Json,
    Yaml,
}

impl Cli {
    /// Reads the command line of this process; wrong usage ends it with a message and code 2.
    pub(super) fn read() -> Self {
        let parsed = Self::from_arg_matches(&Self::definition().get_matches());
        let cli = parsed.unwrap_or_else(|error| error.exit());
        if let Err(error) = cli.check() {
            error.exit();
        }
        cli
    }

    /// The command line, with what a shared argument needs in one command alone.
    fn definition() -> clap::Command {
        Self::command().mut_subcommand("run", RunDns::need_dns)
    }

    /// What clap cannot say.
    fn check(&self) -> Result<(), clap::Error> {
        let conflict = |text: String| Err(Self::command().error(ErrorKind::ArgumentConflict, text));
        let list = matches!(
            self.command,
            Command::Service(ServiceCommand::List) | Command::Backend(_) | Command::Conntrack(_)
        );
        if self.global.output == Some(Output::Wide) && !list {
            return conflict("--output wide is for lists: `service list`, `backend list`, `conntrack list`".to_owned());
        }
        let name = match &self.command {
            Command::Run(run) => {
                let v4 = run.service_cidr.iter().filter(|net| net.addr().is_ipv4()).count();
                if v4 > 1 || run.service_cidr.len() - v4 > 1 {
                    let text = "--service-cidr: two ranges of one family; give at most one IPv4 and one IPv6 range";
                    return conflict(text.to_owned());
                }
                "run"
            }
            Command::Cleanup { .. } => "cleanup",
            Command::Exec(_) => "exec",
            Command::Dns(_) => "dns",
            Command::Controller(_) => "controller",
            Command::Resolv(_) => "resolv",
            Command::Completion { .. } => "completion",
            Command::Status
            | Command::Service(_)
            | Command::Backend(_)
            | Command::Conntrack(_)
            | Command::Check { .. }
            | Command::Env(_)
            | Command::Version => return Ok(()),
        };
        if self.global.output.is_none() {
            return Ok(());
        }
        conflict(format!("--output: `ballast {name}` has no answer that comes in forms; leave it out"))
    }
}

/// The script for `shell`.
pub(super) fn completion(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ballast", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Ends the process as clap does when an argument is missing.
pub(super) fn missing(text: &str) -> ! {
    Cli::command().error(ErrorKind::MissingRequiredArgument, text).exit()
}

pub(super) fn object(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/NAME, for example default/web".to_owned()),
    }
}

/// A domain: labels of letters, digits and dashes, in any case, with or without a dot at the end.
pub(super) fn zone(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 200 && name.split('.').all(label) {
        Ok(name)
    } else {
        Err("write a DNS name: letters, digits and dashes, such as cluster.local".to_owned())
    }
}

pub(super) fn bind(text: &str, port: u16) -> Result<Bind, String> {
    Bind::parse(text, port).ok_or_else(|| format!("write ADDRESS:PORT, such as 127.0.0.1:{port}, or off"))
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text.split_once('-').and_then(|(first, last)| {
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        (first > 0 && first <= last).then_some(first..=last)
    });
    range.ok_or_else(|| "write two ports, for example 30000-32767".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::definition().debug_assert();
    }

    #[test]
    fn nothing_about_names_is_said_for_nothing() {
        let read = |line: &str| Cli::definition().try_get_matches_from(line.split(' ')).map(drop);
        for argument in [
            "--upstream 192.0.2.1",
            "--ttl 9",
            "--dns-ttl 9",
            "--pods insecure",
            "--cluster-cidr 10.0.0.0/8",
            "--allow-recursion 10.0.0.0/8 --upstream 192.0.2.1",
            "--rate-limit 5",
            "--rate-limit-exempt 10.0.0.0/8",
            "--cluster-domain a.b",
            "--dns-listen 127.0.0.1:53",
        ] {
            let error = read(&format!("ballast run {argument}")).expect_err(argument);
            assert!(error.to_string().contains("--dns\n"), "{argument}: {error}");
            assert!(read(&format!("ballast run --dns {argument}")).is_ok(), "{argument}");
        }
        assert!(read("ballast run -f x --dns").is_ok() && read("ballast run").is_ok());
        assert!(read("ballast dns --ttl 9 --upstream 192.0.2.1").is_ok());
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

    #[test]
    fn options_of_every_command_stand_before_or_after_it() {
        for line in [
            "ballast -o json --state-dir /s service list",
            "ballast service -o json list --state-dir /s",
            "ballast --state-dir /s service list -o json",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).expect("understood");
            assert_eq!((cli.global.output, cli.global.state_dir), (Some(Output::Json), "/s".into()), "{line}");
        }
    }

    #[test]
    fn a_form_is_refused_where_there_is_no_answer() {
        let check = |line: &str| Cli::try_parse_from(line.split(' ')).expect("understood").check();
        assert!(check("ballast cleanup --dry-run -o json").is_err_and(|error| error.exit_code() == 2));
        assert!(check("ballast -o json run -f x").is_err());
        assert!(check("ballast version -o json").is_ok());
    }
}
