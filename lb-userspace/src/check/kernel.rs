//! What the kernel can do.

use std::{io, path::Path};

use super::Findings;
use crate::{
    bpf::{self, OpenError, probe},
    net::sock_diag::SockDiag,
};

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// `cgroup`: where socket hooks would be attached, if anywhere.
pub(super) fn features(findings: &mut Findings, cgroup: Option<&Path>) {
    tried(findings, "BPF programs", bpf::clock().map(drop), "loaded and run", "use a kernel with CONFIG_BPF_SYSCALL");
    tried(findings, "tcx", probe::tcx(), "links can be made", "use kernel 6.6 or newer with CONFIG_NET_XGRESS");
    match probe::xdp_frags() {
        Ok(()) => findings.ok("XDP", "programs may see packets of several buffers"),
        Err(error) if is_denied(&error) => findings.unseen("XDP", &error),
        Err(error) => findings.warn(
            "XDP",
            format!("no packets of several buffers: {error}"),
            "tcx does all of the work; use kernel 5.18 or newer for XDP with large MTUs",
        ),
    }
    if let Some(cgroup) = cgroup {
        match probe::socket_hooks(cgroup) {
            Ok(()) => findings.ok("socket hooks", format!("can be attached to {}", cgroup.display())),
            Err(error) if is_denied(&error) && !rustix::process::geteuid().is_root() => {
                findings.unseen("socket hooks", &error);
            }
            Err(error) => findings.warn(
                "socket hooks",
                format!("cannot be attached to {}: {error}", cgroup.display()),
                "name a cgroup2 whose hooks no program holds for itself with --cgroup; without them host processes do \
                 not reach this node's own nodePorts",
            ),
        }
    }
    if cgroup.is_some() {
        match SockDiag::open() {
            Ok(_) => findings.ok("UDP sockets", "can be ended when their backend goes"),
            Err(error) if is_denied(&error) => findings.unseen("UDP sockets", &error),
            Err(error) => findings.warn(
                "UDP sockets",
                format!("cannot be ended when their backend goes: {error}"),
                "use a kernel with CONFIG_INET_UDP_DIAG and CONFIG_INET_DIAG_DESTROY, or set socketHooks: false",
            ),
        }
    }
    tried(
        findings,
        "grace periods",
        probe::grace_period(),
        "membarrier waits for running programs",
        "use a kernel with CONFIG_MEMBARRIER and without nohz_full",
    );
    match probe::object() {
        Ok(()) => findings.ok("Ballast's programs", "the verifier takes all of them"),
        Err(error @ OpenError::NoObject) => {
            findings.problem("Ballast's programs", error.to_string(), "build it with `cargo xtask build`");
        }
        Err(error) if !rustix::process::geteuid().is_root() => findings.unseen("Ballast's programs", &error),
        Err(error) => findings.problem(
            "Ballast's programs",
            error.to_string(),
            "use kernel 6.6 or newer; file a bug with this line if it is",
        ),
    }
    if Path::new(BTF).exists() {
        findings.ok("BTF", BTF);
    } else {
        findings.warn("BTF", format!("no {BTF}"), "nothing for Ballast; bpftool needs CONFIG_DEBUG_INFO_BTF");
    }
}

fn tried(findings: &mut Findings, object: &str, result: io::Result<()>, good: &str, fix: &str) {
    match result {
        Ok(()) => findings.ok(object, good),
        Err(error) if is_denied(&error) => findings.unseen(object, &error),
        Err(error) => findings.problem(object, error.to_string(), fix),
    }
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}
