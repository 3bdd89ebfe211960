//! What people are told of the network.

use super::Network;
use crate::{
    bpf::Attached,
    net::{host_device, roles::Device},
    report::{DeviceStatus, Problem},
};

impl Network {
    pub(in crate::agent) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.problems.values().flatten().cloned().collect();
        problems.extend(self.host.as_ref().err().cloned());
        let name = |ifindex: u32| {
            let device = self.devices.iter().find(|device| device.ifindex == ifindex);
            device.map_or_else(|| host_device::NAME.to_owned(), |device| device.name.clone())
        };
        for (ifindex, result) in &self.attached {
            match result {
                Err(cause) => problems.push(Problem {
                    object: format!("device {}", name(*ifindex)),
                    cause: cause.clone(),
                    fix: "its Service traffic is not served; tcx needs kernel 6.6 or newer; it is tried again with every change"
                        .to_owned(),
                }),
                Ok(Attached { degraded: Some(cause), .. }) => problems.push(Problem {
                    object: format!("device {}", name(*ifindex)),
                    cause: format!("XDP refused, tcx does its work: {cause}"),
                    fix: "free the device's XDP hook, or say so with interfaces: [{match: ..., xdp: off}]".to_owned(),
                }),
                Ok(Attached { xdp: true, .. }) => {
                    let cost = self.devices.iter().find(|device| device.ifindex == *ifindex);
                    problems.extend(cost.and_then(|device| device.xdp_cost.clone()).map(|cause| Problem {
                        object: format!("device {}", name(*ifindex)),
                        cause,
                        fix: "tcx does the same work there: say so with interfaces: [{match: ..., xdp: off}]".to_owned(),
                    }));
                }
                Ok(_) => {}
            }
        }
        problems
    }

    pub(in crate::agent) fn device_status(&self) -> Vec<DeviceStatus> {
        let status = |device: &Device| {
            let attached = self.attached.get(&device.ifindex);
            let (hooks, degraded) = match attached {
                None => ("none", None),
                Some(Err(error)) => ("none", Some(error.clone())),
                Some(Ok(Attached { xdp: true, .. })) => ("xdp+tcx", device.xdp_cost.clone()),
                Some(Ok(Attached { xdp: false, degraded })) => ("tcx", degraded.clone()),
            };
            DeviceStatus {
                name: device.name.clone(),
                ifindex: device.ifindex,
                role: device.role.to_string(),
                why: format!("{}; {}", device.why, device.xdp_why),
                hooks: hooks.to_owned(),
                degraded,
            }
        };
        let host = self.host.as_ref().ok().map(|host| {
            let attached = self.attached.get(&host.ifindex);
            DeviceStatus {
                name: host_device::NAME.to_owned(),
                ifindex: host.ifindex,
                role: "host".to_owned(),
                why: "packets of this node's processes to Services".to_owned(),
                hooks: if attached.is_some_and(Result::is_ok) { "tcx" } else { "none" }.to_owned(),
                degraded: attached.and_then(|result| result.as_ref().err().cloned()),
            }
        });
        self.devices.iter().map(status).chain(host).collect()
    }
}
