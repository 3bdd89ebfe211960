//! Where things are in the workspace.

use std::path::{Path, PathBuf};

/// The root of the workspace this xtask was built from.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The target directory. Fixed, whatever `CARGO_TARGET_DIR` says, because `target/debug/ballast` is a promise.
pub(crate) fn target() -> PathBuf {
    workspace().join("target")
}

/// The target directory of the BPF object: its own, because another toolchain writes it.
pub(crate) fn bpf_target() -> PathBuf {
    target().join("bpf")
}

/// The BPF object; `lb-userspace/build.rs` embeds it from the same place.
pub(crate) fn bpf_object() -> PathBuf {
    bpf_target().join("bpfel-unknown-none/bpf/lb-ebpf")
}

/// A path as a user at the root of the workspace would type it.
pub(crate) fn display(path: &Path) -> String {
    path.strip_prefix(workspace()).unwrap_or(path).display().to_string()
}
