//! Real kube-proxy in nftables mode.

use std::{fs, process::Command};

use anyhow::{Context as _, bail};
use lb_tests::{ControlPlane, Process, World};

use super::{Subject, kube_proxy_binary};

/// A running kube-proxy; killed on drop, its rules go with the world.
pub(super) struct KubeProxy {
    process: Process,
}

/// Whether it can run here; an error says what is missing.
pub(super) fn check() -> anyhow::Result<()> {
    kube_proxy_binary()?;
    match Command::new("nft").arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!("nft --version: {}", output.status),
        Err(error) => bail!("no nft, which kube-proxy calls: apt-get install nftables, or --no-peer ({error})"),
    }
}

impl KubeProxy {
    pub(super) fn start(plane: &ControlPlane, world: &World) -> anyhow::Result<Self> {
        let kubeconfig = plane.kube_proxy_kubeconfig();
        let node = world.node(0);
        let config = world.directory().join("kube-proxy.yaml");
        // As kubeadm writes it, but for what a network namespace must not set.
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
             clientConnection:\n  kubeconfig: {}\nhostnameOverride: {}\nclusterCIDR: {}\n\
             conntrack:\n  maxPerCore: 0\n  min: 0\n  tcpCloseWaitTimeout: 0s\n  tcpEstablishedTimeout: 0s\n",
            kubeconfig.display(),
            node.name(),
            node.pod_cidrs().join(","),
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = node.place().command(kube_proxy_binary()?)?;
        command.arg("--config").arg(&config);
        Ok(Self { process: Process::spawn("kube-proxy", command)? })
    }
}

impl Subject for KubeProxy {
    fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.process.id())
    }
}
