//! What the command line says to `env`, `exec`, `resolv` and `completion`.

use std::{ffi::OsString, net::IpAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::args::zone;
use crate::{convert::is_label, resolv};

/// Shells that `ballast completion` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// How a command reads documents. It never changes what was allocated.
#[derive(Debug, Args)]
pub(super) struct Reading {
    /// Where `ballast run` keeps allocated addresses [default: /var/lib/ballast/allocations/<hash of PATH>.json]
    #[arg(long, value_name = "PATH", requires = "file")]
    pub(super) allocations: Option<PathBuf>,
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        requires = "file",
        help = "Ranges of cluster IPs [default: 10.96.0.0/16,fd00:10:96::/112]"
    )]
    pub(super) service_cidr: Vec<IpNet>,
}

#[derive(Debug, Args)]
pub(super) struct Env {
    /// Namespace of the container
    #[arg(value_name = "NAMESPACE", value_parser = namespace)]
    pub(super) namespace: String,
    /// File, folder or - for standard input: the documents that `ballast run -f` serves
    #[arg(short, long = "filename", value_name = "PATH")]
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) reading: Reading,
    /// Only Service default/kubernetes, as for a pod with enableServiceLinks: false
    #[arg(long)]
    pub(super) no_service_links: bool,
}

#[derive(Debug, Args)]
pub(super) struct Exec {
    #[command(flatten)]
    pub(super) env: Env,
    /// The command and its arguments, in which $(NAME) is replaced by the variable's value, and $$ by $, as in a pod
    #[arg(value_name = "COMMAND", required = true, last = true)]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct Resolv {
    /// Namespace of the pod
    #[arg(value_name = "NAMESPACE", value_parser = namespace)]
    pub(super) namespace: String,
    /// File, folder or - for standard input: the documents that `ballast run -f` serves
    #[arg(short, long = "filename", value_name = "PATH")]
    pub(super) file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) reading: Reading,
    /// Zone of the cluster
    #[arg(long, value_name = "NAME", default_value = resolv::ZONE, value_parser = zone)]
    pub(super) zone: String,
    /// Addresses to ask [default: the cluster IP of Service kube-system/kube-dns, 10.96.0.10]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(super) nameserver: Vec<IpAddr>,
}

fn namespace(text: &str) -> Result<String, String> {
    let namespace = is_label(text).then(|| text.to_owned());
    namespace.ok_or_else(|| "write a namespace: lower-case letters, digits and -, such as default".to_owned())
}
