//! The programs of the control plane, as `cargo xtask cluster build` leaves them.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// The go.mod of each program says which version is meant.
const MODULES: [(&str, &str); 6] = [
    ("coredns", include_str!("../../cluster/coredns/go.mod")),
    ("etcd", include_str!("../../cluster/etcd/go.mod")),
    ("kube-apiserver", include_str!("../../cluster/kube-apiserver/go.mod")),
    ("kube-controller-manager", include_str!("../../cluster/kube-controller-manager/go.mod")),
    ("kube-proxy", include_str!("../../cluster/kube-proxy/go.mod")),
    ("kubectl", include_str!("../../cluster/kubectl/go.mod")),
];

/// Where `name` is; an error names the command that builds it.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let module = MODULES.iter().find(|(known, _)| *known == name).map(|(_, module)| *module);
    let version = version(module.with_context(|| format!("{name} is no program of the control plane"))?);
    let version = version.with_context(|| format!("tests/cluster/{name}/go.mod names no version"))?;
    let path = cache()?.join(version).join(name);
    ensure!(path.is_file(), "no {name} {version} ({}): cargo xtask cluster build", path.display());
    Ok(path)
}

/// The same folder as xtask's, which may not be depended on.
fn cache() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("BALLAST_CLUSTER_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|home| home.join("ballast/cluster")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/ballast/cluster")))
        .context("HOME is not set: set BALLAST_CLUSTER_CACHE to the folder of `cargo xtask cluster build`")
}

/// The version of the module that has the package of the `tool` line.
fn version(module: &str) -> Option<&str> {
    let package = module.lines().find_map(|line| line.strip_prefix("tool "))?;
    module.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        let (path, version) = (words.next()?, words.next()?);
        (version.starts_with('v') && format!("{package}/").starts_with(&format!("{path}/"))).then_some(version)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_a_version() {
        for (name, module) in MODULES {
            assert!(
                version(module).is_some_and(|version| version.starts_with("v1.") || version.starts_with("v3.")),
                "{name}"
            );
        }
    }

    #[test]
    fn a_missing_program_is_told_how_to_build() {
        let error = program("kubelet").unwrap_err().to_string();
        assert_eq!(error, "kubelet is no program of the control plane");
    }
}
