//! deploy/install*.yaml are what their overlays say.

use std::{fs, path::Path};

use anyhow::Result;

use super::Finding;
use crate::deploy;

pub(super) fn current(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (file, overlay) in deploy::INSTALLS {
        let wanted = deploy::render(root, overlay)?;
        findings.extend(compare(file, overlay, &wanted, &fs::read_to_string(root.join(file)).unwrap_or_default()));
    }
    Ok(findings)
}

fn compare(file: &str, overlay: &str, wanted: &str, found: &str) -> Option<Finding> {
    let line = wanted.lines().zip(found.lines()).take_while(|(wanted, found)| wanted == found).count();
    (wanted != found)
        .then(|| Finding::error(file, line + 1, format!("differs from {overlay}: `cargo xtask tidy --write`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_is_found_with_its_line() {
        assert_eq!(compare("f", "o", "a\nb\n", "a\nb\n"), None);
        for (found, line) in [("a\nc\n", 2), ("", 1), ("a\nb\nc\n", 3)] {
            assert_eq!(compare("f", "o", "a\nb\n", found).map(|finding| finding.line), Some(line), "{found}");
        }
    }
}
