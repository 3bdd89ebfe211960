//! A Pod whose document is taken out of the folder that the agents read, and put back.

use std::fs;

use anyhow::Context;
use lb_tests::World;
use lb_userspace::model::ObjectName;
use serde_json::Value;

/// A file without a Pod that was in it.
pub(crate) struct Away {
    file: String,
    text: String,
}

impl Away {
    /// Takes it out; `None` if no document of the folder is it.
    pub(crate) fn take(world: &World, pod: &ObjectName) -> anyhow::Result<Option<Self>> {
        let folder = world.manifests();
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            let Some(file) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            // What cannot be read is the agents' to tell.
            let Ok(documents) = serde_saphyr::from_multiple::<Value>(&text) else { continue };
            match without(documents, pod) {
                None => continue,
                Some(rest) if rest.is_empty() => world.remove(&file)?,
                Some(rest) => world.apply_documents(&file, &rest)?,
            }
            return Ok(Some(Self { file, text }));
        }
        Ok(None)
    }

    /// Writes the file as it was.
    pub(crate) fn put_back(self, world: &World) -> anyhow::Result<()> {
        world.apply(&self.file, &self.text)
    }
}

/// The documents without a Pod, also one in a List; `None` if it is not in them.
fn without(documents: Vec<Value>, pod: &ObjectName) -> Option<Vec<Value>> {
    let count = documents.len();
    let mut rest: Vec<Value> = documents.into_iter().filter(|document| !is(document, pod)).collect();
    let mut found = rest.len() < count;
    for document in &mut rest {
        if let Some(items) = document.get_mut("items").and_then(Value::as_array_mut) {
            let count = items.len();
            items.retain(|item| !is(item, pod));
            found |= items.len() < count;
        }
    }
    found.then_some(rest)
}

fn is(document: &Value, pod: &ObjectName) -> bool {
    let word = |at: &str| document.pointer(at).and_then(Value::as_str);
    word("/kind") == Some("Pod")
        && word("/metadata/name") == Some(&pod.name)
        && word("/metadata/namespace").unwrap_or("default") == pod.namespace
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_pod_goes_and_all_else_stays() {
        let pod = |namespace: Option<&str>, name: &str| json!({"kind": "Pod", "metadata": {"name": name, "namespace": namespace}});
        let service = json!({"kind": "Service", "metadata": {"name": "a"}});
        let name = ObjectName { namespace: "default".to_owned(), name: "a".to_owned() };
        let others = vec![service.clone(), pod(Some("shop"), "a"), pod(None, "b")];
        assert_eq!(without(others.clone(), &name), None);
        for written in [None, Some("default")] {
            let all = [others.clone(), vec![pod(written, "a")]].concat();
            assert_eq!(without(all.clone(), &name), Some(others.clone()));
            let list = |items: &[Value]| json!({"kind": "List", "items": items});
            assert_eq!(without(vec![list(&all), service.clone()], &name), Some(vec![list(&others), service.clone()]));
        }
    }
}
