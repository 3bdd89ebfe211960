//! What the fuzz targets do with bytes from outside: each function is the whole body of the target of its name, and
//! panics where a promise is broken. `tests/tests/fuzz_seeds.rs` runs every committed seed through the same functions.

#![expect(clippy::missing_panics_doc, reason = "a panic is how each target tells")]

mod config;
mod dns;
mod file_source;
mod frames;
mod packet;
mod saved;
mod tables;

use std::path::PathBuf;

pub use self::{
    config::config,
    dns::dns,
    file_source::file_source,
    frames::{Record, records},
    packet::packet,
    saved::{allocations, ids, request},
};

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder of seeds.
    pub name: &'static str,
    /// Its body.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 7] = [
    Target { name: "packet", run: packet },
    Target { name: "file_source", run: file_source },
    Target { name: "config", run: config },
    Target { name: "allocations", run: allocations },
    Target { name: "ids", run: ids },
    Target { name: "request", run: request },
    Target { name: "dns", run: dns },
];

/// The folder with one folder of seeds for each target.
pub fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}
