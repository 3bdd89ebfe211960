//! What the kernel can do, by trying it: versions say little where distributions backport. Everything made here is gone
//! when its descriptor is closed, which is before these functions return.

use std::{fs::File, io, os::fd::AsFd as _, os::fd::AsRawFd as _, path::Path, thread};

use aya::{
    EbpfLoader, VerifierLogLevel,
    programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs},
};

use super::{MapSizes, OBJECT, OpenError, SCHED_CLS, chain, load_all, spec, sys};

/// `BPF_PROG_TYPE_XDP`
const XDP: u32 = 6;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`
const CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_F_XDP_HAS_FRAGS`
const XDP_HAS_FRAGS: u32 = 1 << 5;
/// `BPF_TCX_INGRESS`
const TCX_INGRESS: u32 = 46;
/// `BPF_CGROUP_INET4_CONNECT`, `BPF_CGROUP_INET6_CONNECT`, `BPF_CGROUP_UDP4_SENDMSG`, `BPF_CGROUP_UDP6_SENDMSG`,
/// `BPF_CGROUP_UDP4_RECVMSG`, `BPF_CGROUP_UDP6_RECVMSG`, `BPF_CGROUP_INET4_GETPEERNAME`, `BPF_CGROUP_INET6_GETPEERNAME`
const SOCKET_HOOKS: [u32; 8] = [10, 11, 14, 15, 19, 20, 29, 30];
/// `lo` is the first device of every network namespace.
const LOOPBACK: u32 = 1;

/// `r0 = value; exit`
const fn returning(value: u8) -> [sys::Instruction; 2] {
    [[0xb7, 0, 0, 0, value, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]]
}

/// Whether tcx links can be made: one on the loopback of a network namespace of its own, gone with its thread.
pub fn tcx() -> io::Result<()> {
    let probe = || {
        sys::leave_network()?;
        let instructions = returning(0);
        let small = sys::Small { kind: SCHED_CLS, attach_type: 0, flags: 0, instructions: &instructions };
        let program = sys::load_small(&small)?;
        sys::create_link(program.as_fd(), LOOPBACK, TCX_INGRESS).map(drop)
    };
    thread::spawn(probe).join().map_err(|_| io::Error::other("the probe panicked; please file a bug"))?
}

/// Whether XDP programs may see packets of several buffers.
pub fn xdp_frags() -> io::Result<()> {
    let instructions = returning(2);
    let small = sys::Small { kind: XDP, attach_type: 0, flags: XDP_HAS_FRAGS, instructions: &instructions };
    sys::load_small(&small).map(drop)
}

/// Whether programs that let everything pass can be attached to a cgroup's socket hooks, beside whoever is there.
pub fn socket_hooks(cgroup: &Path) -> io::Result<()> {
    let cgroup = File::open(cgroup)?;
    let instructions = returning(1);
    for attach_type in SOCKET_HOOKS {
        let small = sys::Small { kind: CGROUP_SOCK_ADDR, attach_type, flags: 0, instructions: &instructions };
        let program = sys::load_small(&small)?;
        drop(sys::create_link(program.as_fd(), cgroup.as_raw_fd().cast_unsigned(), attach_type)?);
    }
    Ok(())
}

/// Whether the kernel waits for running programs when asked.
pub fn grace_period() -> io::Result<()> {
    sys::grace_period()
}

/// Whether the kernel takes every program of ours, with the smallest maps and nothing pinned.
pub fn object() -> Result<(), OpenError> {
    if OBJECT.is_empty() {
        return Err(OpenError::NoObject);
    }
    let sizes = MapSizes { services: 16, frontends: 16, backends: 16, rings: 16, conntrack: 16 };
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for spec in &spec::MAPS {
        loader.map_max_entries(spec.name, sizes.of(spec));
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| OpenError::Maps(chain(&error)))?;
    load_all(&mut ebpf)
}

/// Names of the programs in a device's tcx chains that are not ours, with the direction.
pub fn foreign_tcx(device: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for (attach_type, direction) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
        let (_, programs) =
            SchedClassifier::query_tcx(device, attach_type).map_err(|error| io::Error::other(chain(&error)))?;
        let foreign = programs.iter().filter(|program| !is_ours(program));
        found.extend(foreign.map(|program| format!("{} ({direction})", name(program))));
    }
    Ok(found)
}

/// Name of a loaded program, unless it is ours.
pub fn foreign_program(id: u32) -> io::Result<Option<String>> {
    for program in loaded_programs() {
        let program = program.map_err(|error| io::Error::other(chain(&error)))?;
        if program.id() == id {
            return Ok((!is_ours(&program)).then(|| name(&program)));
        }
    }
    Ok(None)
}

fn name(program: &ProgramInfo) -> String {
    match program.name_as_str() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => format!("program {}", program.id()),
    }
}

/// Ours are recognised by their names, whichever agent loaded them.
fn is_ours(program: &ProgramInfo) -> bool {
    program.name_as_str().is_some_and(|name| super::PROGRAMS.contains(&name))
}
