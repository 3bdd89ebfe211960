//! The programs of a control plane and of nodes: folders with a go.mod under tests/cluster, and where what is built of
//! them is kept. A folder with one `tool` line is called as its program; several are called by the ends of their packages.

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
    /// Reads `tests/cluster/FOLDER/go.mod`.
    fn read(name: &str) -> Result<Vec<Self>> {
        let folder = modules().join(name);
        let text = |file: &str| {
            let path = folder.join(file);
            fs::read_to_string(&path).with_context(|| format!("{name}: cannot read {}", root::display(&path)))
        };
        let (module, sums) = (text("go.mod")?, text("go.sum")?);
        let found = described(&module).with_context(|| {
            format!("{}: it needs a line `tool PACKAGE` and a version of its module", folder.join("go.mod").display())
        })?;
        let recipe = format!("{module}{sums}");
        let alone = found.len() == 1;
        let programs = found.into_iter().map(|(package, version)| {
            let name = if alone { name } else { end(&package) };
            Self { name: name.to_owned(), package, version, folder: folder.clone(), recipe: recipe.clone() }
        });
        Ok(programs.collect())
    }

    /// Whether its package is one of tests, which are built into a program of their own.
    pub(crate) fn is_test(&self) -> bool {
        self.name.strip_suffix(".test").is_some()
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
        let programs = names.iter().map(|name| Self::read(name)).collect::<Result<Vec<_>>>()?;
        Ok(programs.into_iter().flatten().collect())
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

/// What a package's program is called. Kubernetes' end-to-end suite is a package of tests.
fn end(package: &str) -> &str {
    match package.rsplit('/').next() {
        Some("e2e") => "e2e.test",
        Some(end) => end,
        None => package,
    }
}

/// The packages that a go.mod builds, and the versions of the modules that they are in; none without any.
fn described(module: &str) -> Option<Vec<(String, String)>> {
    let mut packages = Vec::new();
    let mut in_block = false;
    for line in module.lines().map(str::trim) {
        match line.strip_prefix("tool ") {
            Some("(") => in_block = true,
            Some(package) => packages.push(package),
            None if line == ")" => in_block = false,
            None if in_block && !line.is_empty() => packages.push(line),
            None => {}
        }
    }
    let all: Option<Vec<_>> = packages.iter().map(|package| version_of(module, package)).collect();
    all.filter(|all| !all.is_empty())
}

fn version_of(module: &str, package: &str) -> Option<(String, String)> {
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
        let one = |package: &str, version: &str| Some(vec![(package.to_owned(), version.to_owned())]);
        let block = "go 1.26.0\n\ntool k8s.io/kubernetes/cmd/kubectl\n\nrequire (\n\tk8s.io/kube v0.1.0\n\tk8s.io/kubernetes v1.2.3 // indirect\n)\n";
        assert_eq!(described(block), one("k8s.io/kubernetes/cmd/kubectl", "v1.2.3"));
        let alone = "tool go.etcd.io/etcd/server/v3\nrequire go.etcd.io/etcd/server/v3 v3.4.5\n";
        assert_eq!(described(alone), one("go.etcd.io/etcd/server/v3", "v3.4.5"));
        assert_eq!(described("require k8s.io/kubernetes v1.2.3\n"), None);
        let several = "tool (\n\ta.b/c/cmd/x\n\ta.b/c/e2e\n)\nrequire (\n\ta.b/c v1.0.0\n)\n";
        let names =
            described(several).map(|all| all.iter().map(|(package, _)| end(package).to_owned()).collect::<Vec<_>>());
        assert_eq!(names, Some(vec!["x".to_owned(), "e2e.test".to_owned()]));
        assert_eq!(described("tool (\n\tx.y/z\n)\n"), None, "of no version");
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
