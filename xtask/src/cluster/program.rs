//! The programs of a control plane: one folder with a go.mod each under tests/cluster, and where what is built of them
//! is kept.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::root;

/// Overrides where what is built is kept.
pub(crate) const CACHE_VARIABLE: &str = "BALLAST_CLUSTER_CACHE";

/// A program, as its go.mod describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: String,
    /// The Go package that is built: the `tool` line.
    pub(crate) package: String,
    /// The version of the module that has the package, for example `v1.37.2`.
    pub(crate) version: String,
    /// The folder of its go.mod.
    pub(crate) folder: PathBuf,
    /// go.mod and go.sum: when they change, so does the program.
    pub(crate) recipe: String,
}

impl Program {
    /// Reads `tests/cluster/NAME/go.mod`.
    pub(crate) fn read(name: &str) -> Result<Self> {
        let folder = modules().join(name);
        let text = |file: &str| {
            let path = folder.join(file);
            fs::read_to_string(&path).with_context(|| format!("{name}: cannot read {}", root::display(&path)))
        };
        let (module, sums) = (text("go.mod")?, text("go.sum")?);
        let (package, version) = described(&module).with_context(|| {
            format!("{}: it needs a line `tool PACKAGE` and a version of its module", folder.join("go.mod").display())
        })?;
        let recipe = format!("{module}{sums}");
        Ok(Self { name: name.to_owned(), package, version, folder, recipe })
    }

    /// All of tests/cluster, by name.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let folder = modules();
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| folder.join(name).join("go.mod").is_file())
            .collect();
        names.sort();
        names.iter().map(|name| Self::read(name)).collect()
    }

    /// Where it is once built.
    pub(crate) fn path(&self, cache: &Path) -> PathBuf {
        cache.join(&self.version).join(&self.name)
    }

    /// Says of what the program beside it was built.
    pub(crate) fn stamp(&self, cache: &Path) -> PathBuf {
        cache.join(&self.version).join(format!("{}.built", self.name))
    }
}

/// Where what is built is kept: outside of the work tree, so that clones share it and `git clean` spares it.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(CACHE_VARIABLE)
        .or_else(|| set("XDG_CACHE_HOME").map(|home| home.join("ballast/cluster")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/ballast/cluster")))
        .with_context(|| format!("no folder to keep programs in: HOME is not set; set {CACHE_VARIABLE}"))
}

fn modules() -> PathBuf {
    root::workspace().join("tests/cluster")
}

/// The package that a go.mod builds, and the version of the module that the package is in.
fn described(module: &str) -> Option<(String, String)> {
    let package = module.lines().find_map(|line| line.strip_prefix("tool "))?.trim();
    let version = module.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        let (path, version) = (words.next()?, words.next()?);
        let inside = package.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (inside && version.starts_with('v')).then_some(version)
    })?;
    Some((package.to_owned(), version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_mod_names_package_and_version() {
        let block = "go 1.26.0\n\ntool k8s.io/kubernetes/cmd/kubectl\n\nrequire (\n\tk8s.io/kube v0.1.0\n\tk8s.io/kubernetes v1.2.3 // indirect\n)\n";
        assert_eq!(described(block), Some(("k8s.io/kubernetes/cmd/kubectl".to_owned(), "v1.2.3".to_owned())));
        let alone = "tool go.etcd.io/etcd/server/v3\nrequire go.etcd.io/etcd/server/v3 v3.4.5\n";
        assert_eq!(described(alone), Some(("go.etcd.io/etcd/server/v3".to_owned(), "v3.4.5".to_owned())));
        assert_eq!(described("require k8s.io/kubernetes v1.2.3\n"), None);
    }

    #[test]
    fn all_of_kubernetes_is_of_one_version() -> Result<()> {
        let programs = Program::all()?;
        let of = |prefix: &str| {
            let mut versions: Vec<_> =
                programs.iter().filter(|p| p.package.starts_with(prefix)).map(|p| p.version.clone()).collect();
            versions.dedup();
            versions.len()
        };
        assert_eq!((of("k8s.io/kubernetes"), of("go.etcd.io/etcd")), (1, 1));
        Ok(())
    }
}
