//! Where a process of the world can run.

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, bail};

use crate::Namespace;

/// The client, a node or a pod: a namespace, a cgroup and an address of each family.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) name: String,
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) procs: PathBuf,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
}

impl Place {
    /// `client`, `node1`, or the pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A command that runs here: in the namespace and in the node's cgroup.
    pub fn command(&self, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        self.namespace.command(program, Some(&self.procs))
    }

    /// A command that runs here and finds `resolv_conf` as its `/etc/resolv.conf`: names are resolved as in a container.
    pub fn resolver(&self, resolv_conf: &Path, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = self.command("unshare")?;
        // The mount is seen by this command alone, and gone with it.
        command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#]);
        command.arg(resolv_conf).args(words);
        Ok(command)
    }

    /// What a command prints here that finds `resolv_conf` as its `/etc/resolv.conf`.
    pub fn resolving(&self, resolv_conf: &Path, words: &[&str]) -> anyhow::Result<String> {
        let output = self.resolver(resolv_conf, words)?.output().context("cannot run unshare")?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("{} at {}: {}: {stdout}{stderr}", words.join(" "), self.name, output.status);
        }
        Ok(stdout.into_owned())
    }

    /// Its (first) IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// Its (first) global IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.ipv6
    }

    /// Its address of the family of `like`.
    pub fn ip_like(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.ipv4.into() } else { self.ipv6.into() }
    }

    /// Both addresses, IPv4 first.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }
}
