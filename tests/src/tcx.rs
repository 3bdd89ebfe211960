//! tcx chains: who is in them, and a program of somebody else's to put there.
//!
//! Not every kernel has tc's own actions, so the foreign program is written here, instruction by instruction: it counts
//! the packets with an address and drops them or passes them on.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use anyhow::Context;
use aya::programs::{SchedClassifier, TcAttachType};

use crate::Namespace;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_MAP_FREEZE: libc::c_long = 22;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Without a relative they mean first and last.
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

const TCX_NEXT: i32 = -1;
const TC_ACT_SHOT: i32 = 2;

/// A hook of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcxHook {
    /// What the device receives.
    Ingress,
    /// What it sends.
    Egress,
}

/// Where in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Before all that are there.
    First,
    /// After all that are there.
    Last,
}

/// The packets a foreign program looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matching {
    /// From this address.
    Source(IpAddr),
    /// To this address.
    Destination(IpAddr),
}

/// What it does with them, beside counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Ends them.
    Drop,
    /// Hands them to the next program.
    Next,
}

/// A program that is not ours in the chain of a device; detached on drop.
#[derive(Debug)]
pub struct ForeignProgram {
    counter: OwnedFd,
    _link: Link,
}

impl ForeignProgram {
    /// Loads and attaches it.
    pub fn attach(
        namespace: &Namespace,
        interface: &str,
        (hook, position): (TcxHook, Position),
        matching: Matching,
        fate: Fate,
    ) -> anyhow::Result<Self> {
        let counter = create_counter().context("cannot make the foreign program's map")?;
        let instructions = instructions(matching, fate, counter.as_raw_fd());
        let program = load(BPF_PROG_TYPE_SCHED_CLS, &instructions).context("cannot load the foreign program")?;
        let kind = if hook == TcxHook::Ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS };
        let flags = if position == Position::First { BPF_F_BEFORE } else { BPF_F_AFTER };
        let link = link(namespace, interface, &program, kind, flags)?;
        Ok(Self { counter, _link: link })
    }

    /// How many packets it matched.
    pub fn packets(&self) -> anyhow::Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attr = Attr::default();
        attr.set_u32(0, descriptor(&self.counter));
        attr.set_u64(8, (&raw const key) as u64);
        attr.set_u64(16, (&raw mut value) as u64);
        call(BPF_MAP_LOOKUP_ELEM, &attr).context("cannot read the foreign program's counter")?;
        Ok(value)
    }
}

/// A link; detached on drop, also where somebody else has the descriptor: a child that another thread starts has a copy of
/// it until it becomes its program.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

impl Drop for Link {
    fn drop(&mut self) {
        let mut attr = Attr::default();
        attr.set_u32(0, descriptor(&self.0));
        if let Err(error) = call(BPF_LINK_DETACH, &attr) {
            eprintln!("cannot detach a foreign program: {error}");
        }
    }
}

/// Makes a map one that no process can write to any more, for as long as it is there; programs can.
pub fn freeze(map: BorrowedFd<'_>) -> anyhow::Result<()> {
    let mut attr = Attr::default();
    attr.set_u32(0, map.as_raw_fd().cast_unsigned());
    call(BPF_MAP_FREEZE, &attr).context("cannot freeze a map")?;
    Ok(())
}

/// The names of the programs at a hook of a device, in their order.
pub fn tcx_chain(namespace: &Namespace, interface: &str, hook: TcxHook) -> anyhow::Result<Vec<String>> {
    namespace.run(|| tcx_chain_here(interface, hook))?
}

/// The same for a device of the calling thread's namespace.
pub fn tcx_chain_here(interface: &str, hook: TcxHook) -> anyhow::Result<Vec<String>> {
    let attach_type = match hook {
        TcxHook::Ingress => TcAttachType::Ingress,
        TcxHook::Egress => TcAttachType::Egress,
    };
    let (_, programs) =
        SchedClassifier::query_tcx(interface, attach_type).with_context(|| format!("the chain of {interface}"))?;
    Ok(programs.iter().map(|program| program.name_as_str().unwrap_or("?").to_owned()).collect())
}

/// `struct bpf_insn` of a little-endian machine: opcode, registers (source above destination), offset, immediate.
pub(crate) type Instruction = (u8, u8, i16, i32);

fn instructions(matching: Matching, fate: Fate, counter: i32) -> Vec<Instruction> {
    // From the Ethernet header on.
    let (offset, address) = match matching {
        Matching::Source(ip) => (if ip.is_ipv4() { 26 } else { 22 }, ip),
        Matching::Destination(ip) => (if ip.is_ipv4() { 30 } else { 38 }, ip),
    };
    let bytes = match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words: Vec<[u8; 4]> = bytes.as_chunks().0.to_vec();
    let verdict = match fate {
        Fate::Drop => TC_ACT_SHOT,
        Fate::Next => TCX_NEXT,
    };
    let found = [
        (0x62, 0x0a, -8, 0),      // *(u32 *)(r10 - 8) = 0
        (0xbf, 0xa2, 0, 0),       // r2 = r10
        (0x07, 0x02, 0, -8),      // r2 -= 8
        (0x18, 0x11, 0, counter), // r1 = the map
        (0, 0, 0, 0),             // (upper half of the above)
        (0x85, 0, 0, 1),          // r0 = bpf_map_lookup_elem
        (0x15, 0x00, 2, 0),       // if r0 == 0 skip two
        (0xb7, 0x01, 0, 1),       // r1 = 1
        (0xdb, 0x10, 0, 0),       // lock *(u64 *)r0 += r1
        (0xb7, 0x00, 0, verdict), // r0 = verdict
        (0x95, 0, 0, 0),          // exit
    ];
    let mut program = vec![(0xbf, 0x16, 0, 0)]; // r6 = r1, the context
    for (word, at) in words.iter().zip((offset..).step_by(4)) {
        program.extend([
            (0xbf, 0x61, 0, 0),                            // r1 = r6
            (0xb7, 0x02, 0, at),                           // r2 = where in the frame
            (0xbf, 0xa3, 0, 0),                            // r3 = r10
            (0x07, 0x03, 0, -8),                           // r3 -= 8
            (0xb7, 0x04, 0, 4),                            // r4 = four bytes
            (0x85, 0, 0, 26),                              // r0 = bpf_skb_load_bytes
            (0x55, 0x00, MISS, 0),                         // if r0 != 0 goto miss
            (0x61, 0xa0, -8, 0),                           // r0 = *(u32 *)(r10 - 8)
            (0x56, 0x00, MISS, i32::from_ne_bytes(*word)), // if w0 != the word goto miss
        ]);
    }
    program.extend(found);
    let miss = program.len();
    for (index, instruction) in program.iter_mut().enumerate() {
        if instruction.2 == MISS {
            instruction.2 = i16::try_from(miss - index - 1).unwrap_or(0);
        }
    }
    program.extend([(0xb7, 0x00, 0, TCX_NEXT), (0x95, 0, 0, 0)]); // r0 = next; exit
    program
}

/// An offset to be filled in: no jump of the program is as long.
const MISS: i16 = i16::MAX;

/// `union bpf_attr` by its byte offsets.
#[derive(Default)]
struct Attr([u64; 18]);

impl Attr {
    fn set_u32(&mut self, offset: usize, value: u32) {
        let shift = offset % 8 * 8;
        self.0[offset / 8] |= u64::from(value) << shift;
    }

    fn set_u64(&mut self, offset: usize, value: u64) {
        self.0[offset / 8] = value;
    }
}

fn create_counter() -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    // Type, key size, value size, entries.
    for (field, value) in [BPF_MAP_TYPE_ARRAY, 4, 8, 1].into_iter().enumerate() {
        attr.set_u32(field * 4, value);
    }
    owned(call(BPF_MAP_CREATE, &attr)?)
}

/// `kind` is a `BPF_PROG_TYPE_*`.
pub(crate) fn load(kind: u32, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let words: Vec<u64> = instructions
        .iter()
        .map(|&(code, registers, offset, immediate)| {
            let [low, high] = offset.to_le_bytes();
            let [a, b, c, d] = immediate.to_le_bytes();
            u64::from_le_bytes([code, registers, low, high, a, b, c, d])
        })
        .collect();
    let licence = c"GPL";
    let mut attr = Attr::default();
    attr.set_u32(0, kind);
    attr.set_u32(4, u32::try_from(words.len()).map_err(io::Error::other)?);
    attr.set_u64(8, words.as_ptr() as u64);
    attr.set_u64(16, licence.as_ptr() as u64);
    // prog_name.
    attr.set_u64(48, u64::from_le_bytes(*b"foreign\0"));
    owned(call(BPF_PROG_LOAD, &attr)?)
}

/// Attaches to a device of `namespace`; `kind` is a `BPF_*` attach type.
pub(crate) fn link(
    namespace: &Namespace,
    interface: &str,
    program: &OwnedFd,
    kind: u32,
    flags: u32,
) -> anyhow::Result<Link> {
    // The kernel looks an index up in the namespace of the thread that asks.
    let link = namespace.run(|| {
        let any = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
        let mut attr = Attr::default();
        attr.set_u32(0, descriptor(program));
        attr.set_u32(4, rustix::net::netdevice::name_to_index(&any, interface)?);
        attr.set_u32(8, kind);
        attr.set_u32(12, flags);
        owned(call(BPF_LINK_CREATE, &attr)?).map(Link)
    })?;
    link.with_context(|| format!("cannot attach the foreign program to {interface}"))
}

fn call(command: libc::c_long, attr: &Attr) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is as large as we say; its pointers are to live buffers of the sizes the command reads or writes:
    // instructions as many as counted, a string with its end, a key and a value of the counter's sizes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn descriptor(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}
