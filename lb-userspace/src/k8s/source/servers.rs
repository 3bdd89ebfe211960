//! The addresses of the API servers, kept for a start at which the Service `kubernetes` does not work yet.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::model::Model;

/// Where they are kept.
pub(crate) fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("api-servers.json")
}

/// What was kept; nothing if that cannot be read, for it is only a second way.
pub(super) fn read(file: &Path) -> BTreeSet<SocketAddr> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeSet::new(),
        Err(error) => {
            tracing::warn!("cannot read the API servers in {}: {error}; they are learnt anew", file.display());
            return BTreeSet::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!("{}: {error}; the API servers are learnt anew", file.display());
        BTreeSet::new()
    })
}

/// Keeps what is not empty and not kept already.
pub(super) fn keep(file: &Path, servers: &BTreeSet<SocketAddr>) -> io::Result<()> {
    let text = serde_json::to_vec(servers)?;
    if servers.is_empty() || fs::read(file).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    let new = file.with_extension("json.new");
    let mut out = File::create(&new)?;
    out.write_all(&text)?;
    out.sync_all()?;
    fs::rename(&new, file)
}

/// The endpoints of Service `default/kubernetes`.
pub(super) fn of(model: &Model) -> BTreeSet<SocketAddr> {
    let slices =
        model.slices.iter().filter(|(name, slice)| name.namespace == "default" && slice.service == "kubernetes");
    let mut found = BTreeSet::new();
    for (_, slice) in slices {
        for port in slice.ports.iter().filter(|port| port.name == "https") {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
            found.extend(ready.map(|endpoint| SocketAddr::new(endpoint.address, port.port.get())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_kept_and_a_damaged_file_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = file(directory.path());
        assert!(read(&path).is_empty());
        let servers =
            BTreeSet::from(["192.0.2.1:6443".parse().expect("an address"), "[2001:db8::1]:6443".parse().expect("one")]);
        keep(&path, &servers).expect("written");
        keep(&path, &BTreeSet::new()).expect("an empty list is no news");
        assert_eq!(read(&path), servers);
        fs::write(&path, "[").expect("written");
        assert!(read(&path).is_empty());
    }
}
