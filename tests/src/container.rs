//! The container of deploy/ as a runtime would start it, without one: a mount namespace of its own with a root that holds
//! the program, its libraries and what the manifest mounts, and no more capabilities than it says.
//!
//! Processes, host name and users are the machine's: nothing of the agent depends on them.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind_recursive, mount_change, mount_remount};

use crate::{Manifest, Node, process::binary};

/// Where a pod finds who it is.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The last capability there can be a bit for.
const LAST_CAPABILITY: u32 = 63;
/// Those a manifest may name, by their bits.
const CAPABILITIES: [(&str, u32); 5] =
    [("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("SYS_RESOURCE", 24), ("PERFMON", 38), ("BPF", 39)];

/// A container of a node.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    root: PathBuf,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    mounts: Vec<Mount>,
    read_only: bool,
    /// Bits that are left; all if absent.
    capabilities: Option<u64>,
}

#[derive(Clone, Debug)]
struct Mount {
    from: PathBuf,
    /// In the container.
    to: String,
    read_only: bool,
}

/// What a cluster gives a pod, and what a test wants otherwise.
#[derive(Clone, Debug, Default)]
pub struct PodSetup {
    /// `token` and `ca.crt`.
    pub service_account: PathBuf,
    /// Further variables, such as `KUBERNETES_SERVICE_HOST`.
    pub environment: Vec<(String, String)>,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// A capability to take away.
    pub without: Option<String>,
}

impl Container {
    /// The container of `manifest` on `node`; its root is made in `folder`.
    pub(crate) fn new(manifest: &Manifest, node: &Node, setup: &PodSetup, folder: &Path) -> anyhow::Result<Self> {
        let root = folder.join("root");
        let config = folder.join("config");
        for folder in [&root, &config] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(config.join("config.yaml"), manifest.config()?).context("cannot write the configuration")?;
        let mount = |from: &Path, to: &str, read_only| Mount { from: from.to_owned(), to: to.to_owned(), read_only };
        let mut mounts = vec![
            mount(Path::new("/usr"), "/usr", true),
            mount(Path::new("/dev"), "/dev", false),
            mount(Path::new("/proc"), "/proc", false),
            mount(Path::new("/sys"), "/sys", true),
            mount(&binary("ballast")?, "/ballast", true),
            mount(&config, "/etc/ballast", true),
            mount(&setup.service_account, SERVICE_ACCOUNT, true),
        ];
        if !manifest.is_privileged()? {
            // As every runtime does.
            mounts.push(mount(Path::new("/proc/sys"), "/proc/sys", true));
        }
        for host in manifest.host_mounts()? {
            // The node's own, where the machine has one for all.
            let from = match host.host.as_str() {
                "/var/lib/ballast" => node.state_dir(),
                "/sys/fs/bpf" => node.bpffs(),
                "/sys/fs/cgroup" => node.cgroup().to_owned(),
                other => PathBuf::from(other),
            };
            mounts.push(mount(&from, &host.container, host.read_only));
        }
        fs::create_dir_all(node.state_dir()).context("cannot make the state directory")?;
        let capabilities = if manifest.is_privileged()? { None } else { Some(bits(manifest, setup)?) };
        let mut command = manifest.command()?;
        command.extend(setup.arguments.iter().cloned());
        let node_name = ("NODE_NAME".to_owned(), node.name().to_owned());
        let environment = setup.environment.iter().cloned().chain([node_name]).collect();
        let read_only = manifest.has_read_only_root()?;
        let container = Self { root, command, environment, mounts, read_only, capabilities };
        container.make_root()?;
        Ok(container)
    }

    /// The places that are mounted on, which a read-only image must have.
    fn make_root(&self) -> anyhow::Result<()> {
        for mount in &self.mounts {
            let place = self.place(&mount.to);
            // What lies below another mount is there with it.
            let below = self.mounts.iter().any(|other| mount.to.starts_with(&format!("{}/", other.to)));
            if below {
                continue;
            }
            if mount.from.is_dir() {
                fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
            } else {
                fs::write(&place, "").with_context(|| format!("cannot make {}", place.display()))?;
            }
        }
        for name in ["lib", "lib64"] {
            let link = fs::read_link(Path::new("/").join(name));
            if let Ok(target) = link
                && self.root.join(name).symlink_metadata().is_err()
            {
                symlink(target, self.root.join(name)).context("cannot link the libraries")?;
            }
        }
        Ok(())
    }

    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A command that becomes the container's program; `enter` made it be of the node.
    pub(crate) fn command(&self, enter: impl FnOnce(&str) -> anyhow::Result<Command>) -> anyhow::Result<Command> {
        let (program, arguments) = self.command.split_first().context("no command")?;
        let mut command = enter(program)?;
        command.args(arguments).env_clear().envs(self.environment.iter().cloned()).env("PATH", "/:/usr/sbin:/usr/bin");
        let root = c_path(&self.root)?;
        let mounts = self
            .mounts
            .iter()
            .map(|mount| Ok((c_path(&mount.from)?, c_path(&self.place(&mount.to))?, mount.read_only)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (read_only, capabilities) = (self.read_only, self.capabilities);
        let enter = move || -> io::Result<()> {
            // SAFETY: unshare takes no pointers; the process has one thread, as it was forked just now.
            if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
            mount_change(c"/", private)?;
            mount_bind_recursive(&*root, &*root)?;
            for (from, to, read_only) in &mounts {
                mount_bind_recursive(&**from, &**to)?;
                if *read_only {
                    mount_remount(&**to, MountFlags::BIND | MountFlags::RDONLY, c"")?;
                }
            }
            if read_only {
                mount_remount(&*root, MountFlags::BIND | MountFlags::RDONLY, c"")?;
            }
            rustix::process::chroot(&*root)?;
            rustix::process::chdir(c"/")?;
            capabilities.map_or(Ok(()), keep)
        };
        // SAFETY: between fork and exec the closure makes system calls with what it owns; it allocates nothing and takes no
        // lock.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }
}

/// Root's program gets what is in the bounding set (capabilities(7)).
fn keep(capabilities: u64) -> io::Result<()> {
    for bit in (0..=LAST_CAPABILITY).filter(|bit| capabilities >> bit & 1 == 0) {
        // SAFETY: prctl with this operation takes a number.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(bit), 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            // The kernel has no capability of that number.
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
        }
    }
    // SAFETY: as above; allowPrivilegeEscalation: false.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn bits(manifest: &Manifest, setup: &PodSetup) -> anyhow::Result<u64> {
    let mut names = manifest.capabilities()?;
    if let Some(without) = &setup.without {
        ensure!(names.remove(without), "{} has no {without} to take away", manifest.flavour);
    }
    names.iter().try_fold(0, |bits, name| {
        let known = CAPABILITIES.iter().find(|(known, _)| known == name);
        let (_, bit) = known.with_context(|| format!("capability {name}: teach its number to the tests"))?;
        Ok(bits | 1 << bit)
    })
}

fn c_path(path: &Path) -> anyhow::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("{} has a NUL", path.display()))
}
