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
    use crate::{convert, k8s::EndpointSlice, model::ObjectName};

    #[test]
    fn servers_are_the_ready_endpoints_of_the_service_kubernetes() {
        let mut model = Model::default();
        let mut put = |namespace: &str, name: &str, service: &str, endpoints: serde_json::Value| {
            let labels = serde_json::json!({"kubernetes.io/service-name": service});
            let metadata = serde_json::json!({"name": name, "namespace": namespace, "labels": labels});
            let family = if name.ends_with('6') { "IPv6" } else { "IPv4" };
            let raw: EndpointSlice = serde_json::from_value(serde_json::json!({
                "metadata": metadata, "addressType": family, "endpoints": endpoints,
                "ports": [{"name": "https", "port": 6443}, {"name": "other", "port": 1}],
            }))
            .expect("a slice");
            let (slice, _) = convert::slice(&raw).expect("good");
            let object = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
            model.slices.insert(object, slice.expect("of a Service"));
        };
        let one = |address: &str| serde_json::json!({"addresses": [address]});
        let down = serde_json::json!({"addresses": ["192.0.2.2"], "conditions": {"ready": false}});
        put("default", "kubernetes", "kubernetes", serde_json::json!([one("192.0.2.1"), down]));
        put("default", "kubernetes6", "kubernetes", serde_json::json!([one("2001:db8::1")]));
        put("default", "web", "web", serde_json::json!([one("192.0.2.3")]));
        put("other", "kubernetes", "kubernetes", serde_json::json!([one("192.0.2.4")]));
        let found: Vec<String> = of(&model).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:6443", "[2001:db8::1]:6443"]);
        assert!(of(&Model::default()).is_empty());
    }

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
