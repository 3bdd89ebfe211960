//! Rights, mounts and settings of this machine.

use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use super::{Findings, Level};
use crate::{
    bpf::{self, OpenError},
    config::Config,
    net,
    rights::{self, Capability},
};

pub(super) fn rights(findings: &mut Findings) {
    let mask = match rights::effective() {
        Ok(mask) => mask,
        Err(error) => return findings.unseen("capabilities", &error),
    };
    for Capability { name, why, .. } in rights::NEEDED {
        if rights::missing(mask).all(|missing| missing.name != name) {
            findings.ok(name, format!("there, to {why}"));
        } else {
            let found = format!("missing: without it an agent cannot {why}");
            let fix = format!("run the agent as root or give it {name}");
            // What this user may not do, the agent's may.
            let is_root = rustix::process::geteuid().is_root();
            findings.add(if is_root { Level::Problem } else { Level::Warning }, name, found, Some(&fix));
        }
    }
}

pub(super) fn mounts(findings: &mut Findings, bpffs: &Path, cgroup: &io::Result<PathBuf>) {
    match bpf::check_bpffs(bpffs) {
        Ok(()) => findings.ok("bpffs", bpffs.display().to_string()),
        Err(OpenError::NoBpffs(path)) => {
            let fix = format!("mkdir -p {0}; mount -t bpf bpf {0}; or name another with --bpffs", path.display());
            findings.problem("bpffs", format!("{} is none", path.display()), &fix);
        }
        Err(error) => findings.unseen("bpffs", &error),
    }
    let without = "host processes then do not reach this node's own nodePorts: mount -t cgroup2 none \
                   /sys/fs/cgroup/unified, or name one with --cgroup";
    match cgroup {
        Ok(path) => match net::is_cgroup2(path) {
            Ok(true) => findings.ok("cgroup2", path.display().to_string()),
            Ok(false) => findings.warn("cgroup2", format!("{} is in no cgroup2 file system", path.display()), without),
            Err(error) => findings.warn("cgroup2", format!("{}: {error}", path.display()), without),
        },
        Err(error) => findings.warn("cgroup2", error.to_string(), without),
    }
}

/// `uplinks`: the devices that lead out of this node.
pub(super) fn settings(findings: &mut Findings, config: &Config, uplinks: &[String]) {
    for (object, level) in [("net.ipv4.ip_forward", Level::Problem), ("net.ipv6.conf.all.forwarding", Level::Warning)] {
        match sysctl(object).as_deref() {
            Ok("0") => {
                let fix = format!("sysctl -w {object}=1");
                findings.add(level, object, "0: nothing is forwarded to Pods and other nodes", Some(&fix));
            }
            Ok(value) => findings.ok(object, value),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => findings.unseen(object, error),
        }
    }
    for device in uplinks {
        rp_filter(findings, device, uplinks.len() > 1);
    }
    local_ports(findings, &config.snat_ports);
    conntrack(findings);
}

/// The stricter of the device's mode and the one for all devices counts.
fn rp_filter(findings: &mut Findings, device: &str, several_uplinks: bool) {
    let object = format!("net.ipv4.conf.{device}.rp_filter");
    // A device's name may hold dots, which mean slashes to sysctl(8).
    let mode = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"))?;
        text.trim().parse::<u8>().map_err(io::Error::other)
    };
    match mode("all").and_then(|all| Ok(all.max(mode(device)?))) {
        Ok(1) if several_uplinks => findings.warn(
            object.clone(),
            "1 (strict), and this node has several uplinks: a packet that comes by another one than its answer would \
             leave by is dropped",
            &format!("sysctl -w {object}=2"),
        ),
        Ok(mode) => findings.ok(object, mode.to_string()),
        Err(error) => findings.unseen(object, &error),
    }
}

/// Fewer ports than this are too few for a node's own connections.
const FEW_PORTS: usize = 4096;

fn local_ports(findings: &mut Findings, snat: &RangeInclusive<u16>) {
    let object = "net.ipv4.ip_local_port_range";
    let range = match sysctl(object) {
        Ok(text) => text,
        Err(error) => return findings.unseen(object, &error),
    };
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return findings.warn(
            object,
            format!("{range:?} is no range"),
            "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"",
        );
    };
    let left = (first..=last).filter(|port| !snat.contains(port)).count();
    let found = format!(
        "{first}-{last}; masqueraded flows use {}-{}, which an agent reserves; {left} ports are left to this node's own \
         sockets",
        snat.start(),
        snat.end()
    );
    if left < FEW_PORTS {
        findings.warn(object, found, "widen the range, or move snatPorts in BallastConfiguration");
    } else {
        findings.ok(object, found);
    }
}

fn conntrack(findings: &mut Findings) {
    let object = "net.netfilter.nf_conntrack_count";
    let number = |name: &str| sysctl(name).and_then(|text| text.parse::<u64>().map_err(io::Error::other));
    match (number(object), number("net.netfilter.nf_conntrack_max")) {
        (Ok(count), Ok(max)) if count >= max / 5 * 4 && max > 0 => findings.warn(
            object,
            format!("{count} of {max}: netfilter drops new connections when it is full"),
            "raise net.netfilter.nf_conntrack_max",
        ),
        (Ok(count), Ok(max)) => findings.ok(object, format!("{count} of {max}")),
        (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            findings.ok("nf_conntrack", "not loaded; Ballast has its own");
        }
        (Err(error), _) | (_, Err(error)) => findings.unseen(object, &error),
    }
}

fn sysctl(name: &str) -> io::Result<String> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::read_to_string(path).map(|text| text.trim().to_owned())
}
