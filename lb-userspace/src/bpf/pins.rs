//! Where maps and links are pinned, and what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use super::{
    SCHEMA,
    sys::{self, Access},
};

/// Where everything is pinned.
#[derive(Clone, Debug)]
pub struct Pins {
    base: PathBuf,
    root: PathBuf,
}

impl Pins {
    /// The pins in a bpffs.
    pub fn new(bpffs: &Path) -> Self {
        let base = bpffs.join("ballast");
        Self { root: base.join(format!("v{SCHEMA}")), base }
    }

    /// Where all versions' pins are.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Where the maps are.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Removes every pin and says which; a dry run only says.
    pub fn remove(&self, dry_run: bool) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        // Links first: no program runs when its maps go.
        for directory in [self.links(), self.maps(), self.root.clone(), self.base.clone()] {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() {
                    continue;
                }
                if !dry_run {
                    if directory == self.links() { remove_link(&path) } else { fs::remove_file(&path) }?;
                }
                removed.push(path);
            }
            if !dry_run {
                match fs::remove_dir(&directory) {
                    Ok(()) => removed.push(directory),
                    // Another version's.
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(removed)
    }

    /// Names of the pinned links.
    pub(super) fn link_names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.links())?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Devices that have links of ours pinned, by interface index.
    pub fn devices(&self) -> io::Result<BTreeMap<u32, Hooks>> {
        let mut devices: BTreeMap<u32, Hooks> = BTreeMap::new();
        for name in self.link_names()? {
            let Some((kind, index)) = name.split_once('-') else { continue };
            let Ok(index) = index.parse() else { continue };
            let hooks = devices.entry(index).or_default();
            match kind {
                "xdp" => hooks.xdp = true,
                "host" => hooks.host = true,
                _ => hooks.tcx = true,
            }
        }
        Ok(devices)
    }

    /// Cgroups that have socket hooks of ours pinned, by id.
    pub fn cgroups(&self) -> io::Result<BTreeSet<u64>> {
        let names = self.link_names()?;
        let ids = names.iter().filter_map(|name| name.strip_prefix("cgroup-")?.split('-').next()?.parse().ok());
        Ok(ids.collect())
    }
}

/// Removes the pin of a link and takes its program from its place at once: the kernel would do so a while after the last
/// descriptor and pin of the link are gone.
pub(super) fn remove_link(pin: &Path) -> io::Result<()> {
    match sys::open(pin, Access::ReadWrite).and_then(|link| sys::detach_link(link.as_fd())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // Its device or cgroup is gone.
            tracing::debug!("cannot detach {}: {error}", pin.display());
        }
        Ok(()) | Err(_) => {}
    }
    fs::remove_file(pin)
}

/// What is pinned for a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// XDP.
    pub xdp: bool,
    /// tcx, for traffic of others.
    pub tcx: bool,
    /// tcx, for this node's own packets: `ballast0`.
    pub host: bool,
}
