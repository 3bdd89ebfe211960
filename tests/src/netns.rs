//! Network namespaces: named, entered by child processes and by threads, removed on drop.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context, anyhow};
use rustix::thread::LinkNameSpaceType;

use crate::tool;

/// Where `ip netns` keeps its names.
pub(crate) const NAMES: &str = "/run/netns";

/// A network namespace of a world; deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// Makes a namespace called `name` in `/run/netns`, with `lo` up.
    pub(crate) fn create(name: &str) -> anyhow::Result<Self> {
        let mut add = Command::new("ip");
        add.args(["netns", "add", name]);
        tool::run(add, "")?;
        let path = Path::new(NAMES).join(name);
        let file = match File::open(&path) {
            Ok(file) => Arc::new(file),
            Err(error) => {
                delete(name)?;
                return Err(error).with_context(|| format!("cannot open {}", path.display()));
            }
        };
        let namespace = Self { name: name.to_owned(), file };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns exec NAME` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a batch of `ip` commands in it, one a line.
    pub fn ip(&self, batch: &str) -> anyhow::Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        tool::run(command, batch).with_context(|| format!("namespace {}", self.name))?;
        Ok(())
    }

    /// Runs a batch of `bridge` commands in it, one a line.
    pub(crate) fn bridge(&self, batch: &str) -> anyhow::Result<()> {
        let mut command = Command::new("bridge");
        command.args(["-n", &self.name, "-batch", "-"]);
        tool::run(command, batch).map(drop)
    }

    /// What `ip ARGS` prints in it.
    pub fn ip_output(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(args);
        tool::run(command, "")
    }

    /// The MAC of a device.
    pub fn mac(&self, device: &str) -> anyhow::Result<[u8; 6]> {
        let link = self.ip_output(&["-o", "link", "show", device])?;
        let text = link.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
        let text = text.with_context(|| format!("{device} has no MAC: {link}"))?;
        let octets: Result<Vec<u8>, _> = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect();
        octets?.try_into().map_err(|_| anyhow!("{text} is no MAC"))
    }

    /// Loads nftables rules into it.
    pub fn nft(&self, rules: &str) -> anyhow::Result<()> {
        let mut command = self.command("nft", None)?;
        command.args(["-f", "-"]);
        tool::run(command, rules).map(drop)
    }

    /// What `nft -j ARGS` prints in it.
    pub fn nft_json(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut command = self.command("nft", None)?;
        command.arg("-j").args(args);
        serde_json::from_str(&tool::run(command, "")?).context("cannot read nft's JSON")
    }

    /// Sets an interface's offload features, for example `[("tx", false), ("gro", true)]` (as `ethtool -K`).
    pub fn offload(&self, interface: &str, features: &[(&str, bool)]) -> anyhow::Result<()> {
        let mut command = self.command("ethtool", None)?;
        command.args(["-K", interface]);
        for &(feature, on) in features {
            command.args([feature, if on { "on" } else { "off" }]);
        }
        tool::run(command, "").map(drop)
    }

    /// Writes a sysctl below `net`, for example `ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        self.sysctls(&[(key, value)])
    }

    /// Writes several sysctls below `net`.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.run(|| {
            for (key, value) in settings {
                // The kernel resolves /proc/sys/net by the namespace of the thread that opens it.
                std::fs::write(Path::new("/proc/sys/net").join(key), value)
                    .with_context(|| format!("sysctl net/{key} = {value}"))?;
            }
            Ok(())
        })?
    }

    /// Runs `body` on a thread of its own inside the namespace: sockets it opens belong there for good.
    ///
    /// The thread stays in the cgroup of the calling process: socket hooks of a node do not see it. Use a
    /// [`Place`](crate::Place)'s command where they must.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(body())
                })
                .join()
                .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Moves the calling thread into the namespace.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        rustix::thread::move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter namespace {}", self.name))
    }

    /// A command that will run in the namespace and, if given, in the cgroup whose `cgroup.procs` is `procs`.
    pub(crate) fn command(
        &self,
        program: impl AsRef<std::ffi::OsStr>,
        procs: Option<&Path>,
    ) -> anyhow::Result<Command> {
        let procs = procs
            .map(|path| {
                File::options().write(true).open(path).with_context(|| format!("cannot open {}", path.display()))
            })
            .transpose()?;
        let namespace = Arc::clone(&self.file);
        let mut command = Command::new(program);
        let enter = move || {
            if let Some(procs) = &procs {
                // "0" is the process that writes.
                rustix::io::write(procs, b"0").map_err(std::io::Error::from)?;
            }
            // SAFETY: setns takes no pointers; the descriptor is open, the closure owns it.
            if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        };
        // SAFETY: between fork and exec the closure makes two system calls on descriptors it owns; it allocates
        // nothing and takes no lock.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.name) {
            eprintln!("world: {error:#}");
        }
    }
}

/// Removes a name and, with the last process and descriptor in it, the namespace.
pub(crate) fn delete(name: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(["netns", "del", name]);
    tool::run(command, "").map(drop)
}
