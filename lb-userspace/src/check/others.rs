//! Other programs that serve, or may change, the same traffic.

use std::{fs, io};

use super::Findings;
use crate::{
    bpf::probe,
    config::Config,
    kube_proxy,
    net::{
        Link, Netlink,
        roles::{self, Device, Role},
    },
};

/// Programs on the devices an agent would attach to; returns the names of the uplinks.
pub(super) async fn devices(findings: &mut Findings, config: &Config) -> Vec<String> {
    let listed = async {
        let netlink = Netlink::open()?;
        let (links, addresses) = (netlink.links().await?, netlink.addresses().await?);
        let defaults = netlink.default_route_devices().await?;
        let (devices, problems) = roles::classify(&links, &addresses, &defaults, &config.interfaces, config.xdp);
        Ok::<_, io::Error>((netlink, links, devices, problems))
    };
    let (netlink, links, devices, problems) = match listed.await {
        Ok(listed) => listed,
        Err(error) => {
            findings.unseen("interfaces", &error);
            return Vec::new();
        }
    };
    for problem in problems {
        findings.warn(problem.object, problem.cause, &problem.fix);
    }
    let served: Vec<&Device> = devices.iter().filter(|device| device.role != Role::Ignored).collect();
    if served.is_empty() {
        findings.warn(
            "interfaces",
            "none leads out of this node or to a Pod",
            "give a device an address or a route, or name it under interfaces: in BallastConfiguration",
        );
    }
    for device in &served {
        let link = links.iter().find(|link| link.ifindex == device.ifindex);
        on_device(findings, &netlink, device, link).await;
    }
    if links.iter().any(|link| link.name == "kube-ipvs0") {
        findings.problem(
            "device kube-ipvs0",
            "kube-proxy in IPVS mode left it: its addresses are this node's own, so their packets never reach a Service",
            "stop kube-proxy and run `kube-proxy --cleanup`, or `ip link del kube-ipvs0`",
        );
    }
    served.iter().filter(|device| device.role == Role::Uplink).map(|device| device.name.clone()).collect()
}

async fn on_device(findings: &mut Findings, netlink: &Netlink, device: &Device, link: Option<&Link>) {
    let object = format!("device {}", device.name);
    let before = findings.all.len();
    match link.and_then(|link| link.xdp_program).map(probe::foreign_program) {
        Some(Ok(Some(name))) if device.xdp => findings.warn(
            &*object,
            format!("XDP program {name} is there, so that tcx does the work of XDP"),
            "remove it if it is not meant (`ip link set dev DEVICE xdp off`), or say xdp: off for this device",
        ),
        Some(Ok(Some(name))) => findings.warn(
            &*object,
            format!("XDP program {name} sees packets before Ballast does"),
            "nothing, if it is meant: `ip link set dev DEVICE xdp off` removes it",
        ),
        Some(Err(error)) => findings.unseen(format!("{object}, XDP"), &error),
        Some(Ok(None)) | None => {}
    }
    match probe::foreign_tcx(&device.name) {
        Ok(names) if names.is_empty() => {}
        Ok(names) => findings.warn(
            &*object,
            format!("tcx programs of others: {}; Ballast is first at ingress and last at egress", names.join(", ")),
            "nothing, if they do not serve Services themselves: `bpftool net` shows whose they are",
        ),
        Err(error) => findings.unseen(format!("{object}, tcx"), &error),
    }
    match netlink.filters(device.ifindex).await {
        Ok(kinds) if kinds.is_empty() => {}
        Ok(kinds) => findings.warn(
            &*object,
            format!("tc filters of others: {}; they run after tcx", kinds.join(", ")),
            "nothing, if they do not serve Services themselves: `tc filter show dev DEVICE ingress` shows them",
        ),
        Err(error) => findings.unseen(format!("{object}, tc"), &error),
    }
    if findings.all.len() == before {
        findings.ok(object, format!("{} ({}), no programs of others", device.role, device.why));
    }
}

/// What kube-proxy runs, or left.
pub(super) async fn kube_proxy(findings: &mut Findings) {
    let before = findings.all.len();
    match processes("kube-proxy") {
        Ok(pids) if pids.is_empty() => {}
        Ok(pids) => findings.problem(
            "kube-proxy",
            format!("runs (pid {})", pids.join(", ")),
            "stop it: `kubectl -n kube-system delete daemonset kube-proxy`, then `kube-proxy --cleanup`",
        ),
        Err(error) => findings.unseen("kube-proxy", &error),
    }
    let fix = "run `kube-proxy --cleanup`, or reboot once kube-proxy no longer starts";
    for (program, chains) in kube_proxy::chains().await {
        match chains {
            Ok(chains) => {
                if let Some(first) = chains.first() {
                    let found = format!("{} of its chains are in netfilter ({program}), such as {first}", chains.len());
                    findings.problem("kube-proxy's rules", found, fix);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let found = format!("could not look: no command {program}");
                findings.warn("kube-proxy's rules", found, "install it, or look for KUBE-* chains by other means");
            }
            Err(error) => findings.unseen("kube-proxy's rules", &error),
        }
    }
    if findings.all.len() == before {
        findings.ok("kube-proxy", "neither running nor any chains of it");
    }
}

/// Process ids by the name of the command.
fn processes(name: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_string_lossy().into_owned();
        // It may have ended meanwhile.
        if pid.parse::<u32>().is_ok() && fs::read_to_string(entry.path().join("comm")).is_ok_and(|it| it.trim() == name)
        {
            found.push(pid);
        }
    }
    Ok(found)
}
