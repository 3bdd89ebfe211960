//! An image of one layer as a tar that `ctr images import`, `podman load`, `skopeo` and `docker load` read: an OCI image
//! layout (image-spec `image-layout.md`) with docker's `manifest.json` beside it. The same files give the same bytes.

use std::{collections::BTreeMap, io::Write, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What an image holds, by absolute path.
#[derive(Debug, Default)]
pub(crate) struct Files(BTreeMap<String, Entry>);

#[derive(Debug)]
enum Entry {
    Directory { mode: u32 },
    Link { target: String },
    File { bytes: Vec<u8>, mode: u32 },
}

impl Files {
    /// A folder, with those it is in.
    pub(crate) fn directory(&mut self, path: &str) {
        for end in path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]) {
            if let Some(folder) = path.get(..end) {
                self.0.entry(folder.to_owned()).or_insert(Entry::Directory { mode: 0o755 });
            }
        }
    }

    /// A folder that everybody may write to.
    pub(crate) fn open_directory(&mut self, path: &str) {
        self.directory(path);
        self.0.insert(path.to_owned(), Entry::Directory { mode: 0o1777 });
    }

    /// A symbolic link, with the folders it is in.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry::Link { target: target.to_owned() });
    }

    /// Whether something is there.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    fn parents(&mut self, path: &str) {
        if let Some((folder, _)) = path.rsplit_once('/').filter(|(folder, _)| !folder.is_empty()) {
            self.directory(folder);
        }
    }

    /// A file, with the folders it is in.
    pub(crate) fn file(&mut self, path: &str, bytes: Vec<u8>, mode: u32) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry::File { bytes, mode });
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            let name = Path::new(path.trim_start_matches('/'));
            match entry {
                Entry::Directory { mode } => append(&mut tar, name, tar::EntryType::Directory, &[], *mode)?,
                Entry::Link { target } => {
                    let mut header = header(tar::EntryType::Symlink, 0, 0o777);
                    tar.append_link(&mut header, name, target).with_context(|| format!("cannot link {path}"))?;
                }
                Entry::File { bytes, mode } => append(&mut tar, name, tar::EntryType::Regular, bytes, *mode)?,
            }
        }
        tar.into_inner().context("cannot finish the layer")
    }
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &Path,
    kind: tar::EntryType,
    bytes: &[u8],
    mode: u32,
) -> Result<()> {
    let mut header = header(kind, bytes.len() as u64, mode);
    tar.append_data(&mut header, name, bytes).with_context(|| format!("cannot write {}", name.display()))
}

/// Nobody's clock and nobody's name: the same files are the same image.
fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A blob: `blobs/sha256/<digest>`.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let digest = Sha256::digest(&bytes).iter().map(|octet| format!("{octet:02x}")).collect();
        Self { digest, bytes }
    }

    fn json(value: &Value) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value).context("cannot write JSON")?))
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len()})
    }
}

/// What an image runs: `ENTRYPOINT` and `CMD` of a Dockerfile, and where programs are looked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Start<'a> {
    pub(crate) entrypoint: &'a [&'a str],
    pub(crate) command: &'a [&'a str],
    pub(crate) path: &'a str,
}

/// The tar of an image called `name` (with its tag).
pub(crate) fn image(name: &str, files: &Files, start: Start<'_>) -> Result<Vec<u8>> {
    let layer = Blob::new(files.layer()?);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = Blob::json(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": start.entrypoint,
            "Cmd": start.command,
            "Env": [format!("PATH={}", start.path)],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
        "history": [{"created_by": "cargo xtask image"}],
    }))?;
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
    }))?;
    let mut described = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
    // containerd takes the name from the first, others from the second.
    described["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    let index = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    }))?;
    let docker = Blob::json(&json!([{"Config": config.path(), "RepoTags": [name], "Layers": [layer.path()]}]))?;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| append(&mut tar, Path::new(name), tar::EntryType::Regular, bytes, 0o644);
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", &index.bytes)?;
    add("manifest.json", &docker.bytes)?;
    for blob in [&layer, &config, &manifest] {
        add(&blob.path(), &blob.bytes)?;
    }
    tar.into_inner().context("cannot finish the image")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Files of a tar by name.
    fn listing(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut archive = tar::Archive::new(bytes);
        let mut files = BTreeMap::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(entry.path()?.display().to_string(), bytes);
        }
        Ok(files)
    }

    fn example() -> Files {
        let mut files = Files::default();
        files.file("/a/b/program", b"text".to_vec(), 0o755);
        files.directory("/var/lib");
        files
    }

    #[test]
    fn every_digest_is_that_of_its_blob_and_every_blob_is_there() -> Result<()> {
        let files = listing(&image(
            "example.com/x:v1",
            &example(),
            Start { entrypoint: &["/a/b/program"], ..Start::default() },
        )?)?;
        let parse = |name: &str| -> Result<Value> { Ok(serde_json::from_slice(&files[name])?) };
        let blob = |descriptor: &Value| -> Result<Vec<u8>> {
            let digest = descriptor["digest"].as_str().context("no digest")?.trim_start_matches("sha256:");
            let bytes = files.get(&format!("blobs/sha256/{digest}")).context("no such blob")?.clone();
            assert_eq!(Blob::new(bytes.clone()).digest, digest);
            assert_eq!(descriptor["size"], json!(bytes.len()));
            Ok(bytes)
        };
        let index = parse("index.json")?;
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "example.com/x:v1");
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])?)?;
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])?)?;
        let layer = blob(&manifest["layers"][0])?;
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"], "the layer is not compressed");
        let names: Vec<_> = listing(&layer)?.into_keys().collect();
        assert_eq!(names, ["a", "a/b", "a/b/program", "var", "var/lib"]);
        let docker = parse("manifest.json")?;
        assert!(files.contains_key(docker[0]["Config"].as_str().context("no config")?));
        assert!(files.contains_key(docker[0]["Layers"][0].as_str().context("no layer")?));
        Ok(())
    }

    #[test]
    fn the_same_files_are_the_same_image() -> Result<()> {
        let image = || image("x:v1", &example(), Start::default());
        assert_eq!(image()?, image()?);
        Ok(())
    }
}
