//! As much of Kustomize as our overlays use: resources, and strategic merge patches of what has the same kind and name
//! (<https://kubectl.docs.kubernetes.io/references/kustomize/kustomization/>). `cluster_deploy` compares it with kubectl's.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::Value;

const FILE: &str = "kustomization.yaml";

/// The documents of a kustomization, in order.
pub(super) fn build(folder: &Path) -> Result<Vec<Value>> {
    let file = folder.join(FILE);
    let documents = read(&file)?;
    let [kustomization] = &documents[..] else { bail!("{}: not one document", file.display()) };
    let known = ["apiVersion", "kind", "resources", "patches"];
    let fields = kustomization.as_object().with_context(|| format!("{}: no object", file.display()))?;
    if let Some(field) = fields.keys().find(|field| !known.contains(&field.as_str())) {
        bail!("{}: {field} is not understood here: teach it to xtask/src/deploy/kustomize.rs", file.display());
    }
    let list = |field: &str| fields.get(field).and_then(Value::as_array).into_iter().flatten();
    let mut built = Vec::new();
    for resource in list("resources") {
        let path = folder.join(resource.as_str().with_context(|| format!("{}: resources", file.display()))?);
        built.extend(if path.is_dir() { build(&path)? } else { read(&path)? });
    }
    for patch in list("patches") {
        let name = patch.get("path").and_then(Value::as_str);
        let path = folder.join(name.with_context(|| format!("{}: a patch without path", file.display()))?);
        for patch in read(&path)? {
            let target = built.iter_mut().find(|document| identity(document) == identity(&patch));
            merge("", target.with_context(|| format!("{}: patches nothing", path.display()))?, patch);
        }
    }
    Ok(built)
}

fn read(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("{}: not YAML", path.display()))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

fn identity(document: &Value) -> [Option<&str>; 3] {
    ["/kind", "/metadata/namespace", "/metadata/name"].map(|at| document.pointer(at).and_then(Value::as_str))
}

/// Objects are merged, lists of named things by their names; all else is replaced.
fn merge(field: &str, base: &mut Value, patch: Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (name, value) in patch {
                match base.get_mut(&name) {
                    Some(known) => merge(&name, known, value),
                    None => drop(base.insert(name, value)),
                }
            }
        }
        (Value::Array(base), Value::Array(patch)) if key(field).is_some() => {
            let key = key(field).unwrap_or_default();
            for item in patch {
                match base.iter_mut().find(|known| known.get(key) == item.get(key)) {
                    Some(known) => merge("", known, item),
                    None => base.push(item),
                }
            }
        }
        (base, patch) => *base = patch,
    }
}

/// What tells the items of a list apart (the `patchMergeKey` of the API's types); none where a patch replaces all.
fn key(list: &str) -> Option<&'static str> {
    match list {
        "containers" | "initContainers" | "volumes" | "env" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_changes_what_it_names_and_leaves_the_rest() {
        let mut base = json!({"containers": [
            {"name": "a", "args": ["x", "y"], "volumeMounts": [{"mountPath": "/m", "name": "v"}]},
            {"name": "b"},
        ], "replicas": 1});
        let patch = json!({"containers": [{
            "name": "a",
            "args": ["z"],
            "volumeMounts": [{"mountPath": "/m", "readOnly": true}, {"mountPath": "/n", "name": "w"}],
        }]});
        merge("", &mut base, patch);
        let expected = json!({"containers": [
            {"name": "a", "args": ["z"], "volumeMounts": [
                {"mountPath": "/m", "name": "v", "readOnly": true},
                {"mountPath": "/n", "name": "w"},
            ]},
            {"name": "b"},
        ], "replicas": 1});
        assert_eq!(base, expected);
    }

    #[test]
    fn our_overlays_are_whole() -> Result<()> {
        for (_, overlay) in crate::deploy::INSTALLS {
            let documents = build(&crate::root::workspace().join(overlay))?;
            let kinds: Vec<_> = documents.iter().filter_map(|document| document.get("kind")?.as_str()).collect();
            let (rights, own) = kinds.split_at_checked(3).context("three documents of rights")?;
            assert_eq!(rights, ["ServiceAccount", "ClusterRole", "ClusterRoleBinding"], "{overlay}");
            let expected: &[&str] = match overlay {
                crate::deploy::DNS => &["Service", "Deployment"],
                crate::deploy::CONTROLLER => &["Role", "RoleBinding", "Deployment"],
                _ => &["ConfigMap", "DaemonSet"],
            };
            assert_eq!(own, expected, "{overlay}");
        }
        Ok(())
    }

    #[test]
    fn what_is_not_understood_is_refused() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("ballast-kustomize-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let refused = |kustomization: &str, part: &str| -> Result<()> {
            fs::write(folder.join(FILE), kustomization)?;
            let error = build(&folder).expect_err("refused").to_string();
            assert!(error.contains(part), "{error}");
            Ok(())
        };
        refused("kind: Kustomization\nnamePrefix: x\n", "namePrefix")?;
        fs::write(folder.join("patch.yaml"), "kind: DaemonSet\nmetadata: {name: x}\n")?;
        refused("kind: Kustomization\npatches:\n- path: patch.yaml\n", "patches nothing")?;
        fs::remove_dir_all(&folder)?;
        Ok(())
    }
}
