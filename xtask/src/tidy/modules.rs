//! Rules on modules: their names, and that every file is one.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use super::{Finding, Source, code};

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "misc"];

pub(super) fn names(source: &Source) -> Option<Finding> {
    let path = Path::new(&source.path);
    let mut parts = path.components().skip(1).filter_map(|part| Path::new(part.as_os_str()).file_stem()?.to_str());
    let name = parts.find(|part| EMPTY_NAMES.contains(part))?;
    Some(Finding::error(&source.path, 1, format!("a module named `{name}` says nothing: name it after what it does")))
}

/// The root file of every target, as cargo sees them.
pub(super) fn crate_roots(metadata: &Value, root: &Path) -> Vec<String> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    list(metadata, "packages")
        .iter()
        .flat_map(|package| list(package, "targets"))
        .filter_map(|target| {
            let path = Path::new(target["src_path"].as_str()?);
            Some(path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/"))
        })
        .collect()
}

/// Every file must be a root or be named by a `mod` line of a file that is reachable: others are never compiled.
pub(super) fn reachable(sources: &[Source], roots: &[String]) -> Vec<Finding> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<(String, bool)> = roots.iter().map(|root| (root.clone(), true)).collect();
    while let Some((path, is_root)) = open.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        if let Some(source) = sources.iter().find(|source| source.path == path) {
            open.extend(children(source, is_root).into_iter().map(|child| (child, false)));
        }
    }
    sources
        .iter()
        .filter(|source| !seen.contains(&source.path))
        .map(|source| Finding::error(&source.path, 1, "no `mod` line leads to this file: it is never compiled"))
        .collect()
}

/// The files that the `mod` lines of a file may mean.
fn children(source: &Source, is_root: bool) -> Vec<String> {
    let path = Path::new(&source.path);
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let own = if is_root || path.ends_with("mod.rs") { folder.to_path_buf() } else { path.with_extension("") };
    let tokens = code::tokens(&source.code);
    let mut found = Vec::new();
    for window in tokens.windows(3) {
        let [keyword, name, end] = window else { continue };
        if keyword.text == "mod" && end.text == ";" {
            found.push(own.join(format!("{}.rs", name.text)));
            found.push(own.join(name.text).join("mod.rs"));
        }
    }
    let attributes = source.text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \"")?.split_once('"'));
    found.extend(attributes.map(|(file, _)| folder.join(file)));
    found.into_iter().map(|child| child.to_string_lossy().replace('\\', "/")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_say_nothing_are_refused() {
        assert!(names(&Source::new("lb-userspace/src/utils.rs", "")).is_some());
        assert!(names(&Source::new("tests/tests/common/mod.rs", "")).is_some());
        // The crate's own folder is not a module.
        assert!(names(&Source::new("lb-common/src/lib.rs", "")).is_none());
    }

    #[test]
    fn a_file_without_a_mod_line_is_found() {
        let sources = [
            Source::new("a/src/lib.rs", "pub mod b;\n// mod lost;\n"),
            Source::new("a/src/b.rs", "mod c;"),
            Source::new("a/src/b/c.rs", "#[cfg(test)]\n#[path = \"c_tests.rs\"]\nmod tests;"),
            Source::new("a/src/b/c_tests.rs", ""),
            Source::new("a/src/lost.rs", ""),
        ];
        let lost: Vec<String> =
            reachable(&sources, &["a/src/lib.rs".to_owned()]).into_iter().map(|finding| finding.place).collect();
        assert_eq!(lost, ["a/src/lost.rs"]);
    }

    #[test]
    fn roots_come_from_cargo() {
        let metadata = serde_json::json!({"packages": [{"targets": [{"src_path": "/w/a/src/lib.rs"}]}]});
        assert_eq!(crate_roots(&metadata, Path::new("/w")), ["a/src/lib.rs"]);
    }
}
