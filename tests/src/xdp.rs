//! An XDP program of somebody else's.

use anyhow::Context;

use crate::{Namespace, tcx};

const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// In the driver, as ours.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_PASS: i32 = 2;

/// A program that is not ours at the XDP hook of a device, and passes everything; detached on drop.
#[derive(Debug)]
pub struct ForeignXdp {
    _link: tcx::Link,
}

impl ForeignXdp {
    /// Loads and attaches it.
    pub fn attach(namespace: &Namespace, interface: &str) -> anyhow::Result<Self> {
        // r0 = pass; exit
        let instructions = [(0xb7, 0, 0, XDP_PASS), (0x95, 0, 0, 0)];
        let program = tcx::load(BPF_PROG_TYPE_XDP, &instructions).context("cannot load the foreign XDP program")?;
        Ok(Self { _link: tcx::link(namespace, interface, &program, BPF_XDP, XDP_FLAGS_DRV_MODE)? })
    }
}
