//! What programs beside the agent say alike: how to reach the API server, and where their pages are.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;

use super::args::{bind, missing};
use crate::{
    config::Bind,
    k8s::source::{Access, AccessError},
};

#[derive(Debug, Args)]
pub(super) struct ApiServer {
    /// How to reach the cluster's API server [default: the service account of a pod, $KUBECONFIG]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[arg(
        long,
        value_name = "URL",
        help = "URL of the API server, instead of the kubeconfig's or $KUBERNETES_SERVICE_HOST"
    )]
    master: Option<String>,
}

impl ApiServer {
    pub(super) fn access(self, state_dir: &Path) -> anyhow::Result<Access> {
        access(self.kubeconfig, self.master, state_dir)
    }
}

/// The way to the API server; without any it is the command line that is wrong.
pub(super) fn access(kubeconfig: Option<PathBuf>, master: Option<String>, state_dir: &Path) -> anyhow::Result<Access> {
    match Access::find(kubeconfig, master, state_dir) {
        Err(error @ AccessError::Nothing) => missing(&error.to_string()),
        found => Ok(found?),
    }
}

/// Where its pages are, on these ports unless it is said otherwise.
#[derive(Debug, Args)]
pub(super) struct Pages<const HEALTH: u16, const METRICS: u16> {
    #[arg(
        long,
        value_name = "ADDR:PORT",
        value_parser = |text: &str| bind(text, HEALTH),
        default_value = "off",
        help = "Where /health and /ready are, or off"
    )]
    healthz_bind_address: Bind,
    #[arg(
        long,
        value_name = "ADDR:PORT",
        value_parser = |text: &str| bind(text, METRICS),
        default_value = "off",
        help = "Where /metrics is, or off"
    )]
    metrics_bind_address: Bind,
}

impl<const HEALTH: u16, const METRICS: u16> Pages<HEALTH, METRICS> {
    /// Health, and metrics.
    pub(super) fn addresses(self) -> [Option<SocketAddr>; 2] {
        [self.healthz_bind_address, self.metrics_bind_address].map(|bind| match bind {
            Bind::At(at) => Some(at),
            Bind::Off => None,
        })
    }
}
