//! Installing in a cluster: deploy/install.yaml out of the overlays, and the container image.

pub(crate) mod elf;
mod image;
mod kustomize;
pub(crate) mod oci;

use std::{fs, path::Path};

use anyhow::{Context, Result};

pub(crate) use self::image::{Options as ImageOptions, of as image_of, run as image};

/// The files that are written, and the overlay of each.
pub(crate) const INSTALLS: [(&str, &str); 4] = [
    ("deploy/install.yaml", "deploy/overlays/privileged"),
    ("deploy/install-least.yaml", "deploy/overlays/least"),
    ("deploy/install-dns.yaml", DNS),
    ("deploy/install-controller.yaml", CONTROLLER),
];
/// What stands in for another name service.
pub(crate) const DNS: &str = "deploy/dns";
/// What stands in for a cloud's load balancers.
pub(crate) const CONTROLLER: &str = "deploy/controller";

/// What the file is to hold.
pub(crate) fn render(root: &Path, overlay: &str) -> Result<String> {
    let documents = kustomize::build(&root.join(overlay))?;
    let place = match overlay {
        DNS => "CoreDNS",
        CONTROLLER => "a cloud controller",
        _ => "kube-proxy",
    };
    let mut text = format!(
        "# `kubectl apply -f` this in {place}'s place: docs/install.md. Written by `cargo xtask tidy --write` from\n\
         # {overlay}; change it there.\n"
    );
    for document in documents {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&document).context("cannot write YAML")?);
    }
    Ok(text)
}

/// Writes all of them.
pub(crate) fn write(root: &Path) -> Result<()> {
    for (file, overlay) in INSTALLS {
        fs::write(root.join(file), render(root, overlay)?).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

/// The image that the manifests run.
pub(crate) fn image_name(root: &Path) -> Result<String> {
    let documents = kustomize::build(&root.join("deploy/base"))?;
    let image = documents.iter().find_map(|it| it.pointer("/spec/template/spec/containers/0/image")?.as_str());
    Ok(image.context("deploy/base: its DaemonSet names no image")?.to_owned())
}
