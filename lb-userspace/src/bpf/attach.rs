//! Attaching: pinned links, adopted when they are there, so that no packet meets no program.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
    links::FdLink, tc::TcAttachOptions,
};

use super::{
    Datapath, chain, pins, program,
    sys::{self, Access},
};

/// The socket hooks, in the order they are attached: answers are known before questions are asked.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    "lb_peername4",
    "lb_peername6",
    "lb_recvmsg4",
    "lb_recvmsg6",
    "lb_connect4",
    "lb_connect6",
    "lb_sendmsg4",
    "lb_sendmsg6",
];

/// Magic number of cgroup2 in `statfs(2)`.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// A hook that could not be attached.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach {program} to {target}: {cause}")]
pub struct AttachError {
    /// The program.
    pub program: &'static str,
    /// A device or a cgroup.
    pub target: String,
    /// Why.
    pub cause: String,
}

/// What a device carries now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// XDP as well as tcx.
    pub xdp: bool,
    /// Why XDP was wanted but is not there.
    pub degraded: Option<String>,
}

/// Where a program is attached on a device.
#[derive(Clone, Copy)]
struct Point {
    program: &'static str,
    pin: &'static str,
    attach_type: TcAttachType,
}

/// First of the chain: others see packets with the backend's address (design.md section 2.4).
const INGRESS: Point = Point { program: "lb_ingress", pin: "ingress", attach_type: TcAttachType::Ingress };
/// Last of the chain: others see the backend's address on the way back as well.
const EGRESS: Point = Point { program: "lb_egress", pin: "egress", attach_type: TcAttachType::Egress };
const HOST: Point = Point { program: "lb_host", pin: "host", attach_type: TcAttachType::Egress };

impl Datapath {
    /// Attaches to a device at both tcx hooks, and at XDP if wanted. XDP that is refused is no error: tcx does all.
    pub fn attach_device(&mut self, name: &str, ifindex: u32, xdp: bool) -> Result<Attached, AttachError> {
        // Answers are known before questions are asked.
        self.attach_tcx(EGRESS, name, ifindex)?;
        self.attach_tcx(INGRESS, name, ifindex)?;
        if !xdp {
            self.remove_pin(&format!("xdp-{ifindex}"));
            return Ok(Attached::default());
        }
        Ok(self.retry_xdp(name, ifindex))
    }

    /// Attaches XDP to a device that has the rest.
    pub fn retry_xdp(&mut self, name: &str, ifindex: u32) -> Attached {
        match self.attach_xdp(name, ifindex) {
            Ok(()) => Attached { xdp: true, degraded: None },
            Err(error) => Attached { xdp: false, degraded: Some(error.cause) },
        }
    }

    /// Attaches to `ballast0`.
    pub fn attach_host(&mut self, name: &str, ifindex: u32) -> Result<(), AttachError> {
        self.attach_tcx(HOST, name, ifindex)
    }

    /// Attaches the socket hooks to a cgroup2.
    pub fn attach_cgroup(&mut self, cgroup: &Path) -> Result<(), AttachError> {
        let target = cgroup.display().to_string();
        let failed = |program, cause: String| AttachError { program, target: format!("cgroup {target}"), cause };
        let file = File::open(cgroup).map_err(|error| failed("the socket hooks", error.to_string()))?;
        // The kernel would only say EBADF.
        let is_cgroup2 = rustix::fs::fstatfs(&file).is_ok_and(|found| found.f_type.cast_unsigned() == CGROUP2_MAGIC);
        if !is_cgroup2 {
            return Err(failed("the socket hooks", "it is no directory of a cgroup2 file system".to_owned()));
        }
        let id = file.metadata().map_err(|error| failed("the socket hooks", error.to_string()))?.ino();
        for name in SOCKET_PROGRAMS {
            let pin = self.pins.links().join(format!("cgroup-{id}-{name}"));
            let program: &mut CgroupSockAddr = program(&mut self.ebpf, name).map_err(|cause| failed(name, cause))?;
            if adopt(&pin, program.fd()) {
                continue;
            }
            // A link always allows others beside it; the kernel refuses a flag that says so.
            let result = program.attach(&file, CgroupAttachMode::Single).and_then(|id| program.take_link(id));
            let link = result.map_err(|error| failed(name, chain(&error)))?;
            keep(link, &pin).map_err(|cause| failed(name, cause))?;
        }
        Ok(())
    }

    /// Detaches the socket hooks of every cgroup, or of every other one than `keep`.
    pub fn detach_cgroups(&mut self, keep: Option<&Path>) -> io::Result<()> {
        let keep = keep.and_then(|path| fs::metadata(path).ok()).map(|metadata| format!("cgroup-{}-", metadata.ino()));
        for name in self.pins.link_names()? {
            let kept = keep.as_ref().is_some_and(|keep| name.starts_with(keep));
            if name.starts_with("cgroup-") && !kept {
                self.remove_pin(&name);
            }
        }
        Ok(())
    }

    /// Interface indexes that have links of ours pinned.
    pub fn attached_devices(&self) -> io::Result<Vec<u32>> {
        Ok(self.pins.devices()?.into_keys().collect())
    }

    /// Forgets a device: detaches what is still attached.
    pub fn forget_device(&mut self, ifindex: u32) {
        for kind in ["ingress", "egress", "xdp", "host"] {
            self.remove_pin(&format!("{kind}-{ifindex}"));
        }
    }

    fn remove_pin(&self, name: &str) {
        let path = self.pins.links().join(name);
        match pins::remove_link(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove the pin {}: {error}; `ballast cleanup` will", path.display());
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn attach_tcx(&mut self, point: Point, name: &str, ifindex: u32) -> Result<(), AttachError> {
        let failed = |cause: String| AttachError { program: point.program, target: format!("device {name}"), cause };
        let pin = self.pins.links().join(format!("{}-{ifindex}", point.pin));
        let program: &mut SchedClassifier = program(&mut self.ebpf, point.program).map_err(failed)?;
        if adopt(&pin, program.fd()) {
            return Ok(());
        }
        let order = match point.attach_type {
            TcAttachType::Ingress => LinkOrder::first(),
            TcAttachType::Egress | TcAttachType::Custom(_) => LinkOrder::last(),
        };
        let options = TcAttachOptions::TcxOrder(order);
        let result = program.attach_with_options(name, point.attach_type, options).and_then(|id| program.take_link(id));
        keep(result.map_err(|error| failed(chain(&error)))?, &pin).map_err(failed)
    }

    fn attach_xdp(&mut self, name: &str, ifindex: u32) -> Result<(), AttachError> {
        let failed = |cause: String| AttachError { program: "lb_xdp", target: format!("device {name}"), cause };
        let pin = self.pins.links().join(format!("xdp-{ifindex}"));
        let program: &mut Xdp = program(&mut self.ebpf, "lb_xdp").map_err(failed)?;
        if adopt(&pin, program.fd()) {
            return Ok(());
        }
        let result = program.attach_to_if_index(ifindex, XdpMode::Driver).and_then(|id| program.take_link(id));
        keep(result.map_err(|error| failed(explain_xdp(&error)))?, &pin).map_err(failed)
    }
}

/// Pins a new link, so that it outlives the agent.
fn keep(link: impl TryInto<FdLink>, pin: &Path) -> Result<(), String> {
    let link = link.try_into().map_err(|_| "the kernel made no link".to_owned())?;
    link.pin(pin).map(drop).map_err(|error| chain(&error))
}

/// Puts the program behind a pinned link. A link whose device or cgroup is gone is forgotten.
fn adopt(pin: &Path, program: Result<&aya::programs::ProgramFd, ProgramError>) -> bool {
    let (Ok(link), Ok(program)) = (sys::open(pin, Access::ReadWrite), program) else { return false };
    if let Err(error) = sys::update_link(link.as_fd(), program.as_fd()) {
        tracing::info!("the link {} cannot be adopted ({error}); making a new one", pin.display());
        if let Err(error) = pins::remove_link(pin) {
            tracing::warn!("cannot remove the pin {}: {error}", pin.display());
        }
        return false;
    }
    true
}

fn explain_xdp(error: &ProgramError) -> String {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut errno = None;
    while let Some(cause) = source {
        errno = errno.or_else(|| cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error));
        source = cause.source();
    }
    let meaning = match errno {
        Some(libc::EBUSY) => "another XDP program is there",
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP",
        Some(libc::EINVAL) => "the driver refuses (MTU too large without multi-buffer support?)",
        _ => "see the error",
    };
    format!("{meaning}: {}", chain(error))
}
