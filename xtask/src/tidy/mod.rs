//! The house rules that no compiler checks. Each rule is a function from sources to findings.

mod code;
mod counters;
mod dependencies;
mod files;
mod installs;
mod modules;

use std::{fmt, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::step;

pub(crate) use counters::write as write_counters;

/// The folders of our crates, relative to the workspace.
const CRATES: &[&str] = &["lb-common", "lb-ebpf", "lb-userspace", "tests", "xtask"];

/// One Rust file of ours.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the workspace, with `/`.
    path: String,
    text: String,
    /// The text with comments and literals blanked, line for line.
    code: String,
}

impl Source {
    fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { path: path.into(), code: code::blank(&text), text }
    }
}

/// What a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    place: String,
    line: usize,
    message: String,
}

/// Whether a finding fails the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    Error,
    Warning,
}

impl Finding {
    fn error(place: &str, line: usize, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place: place.to_owned(), line, message: message.into() }
    }

    fn warning(place: &str, line: usize, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, line, message) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{word}: {}:{}: {}", self.place, self.line, self.message)
    }
}

/// Every finding of every rule in the workspace at `root`.
pub(crate) fn findings(root: &Path) -> Result<Vec<Finding>> {
    let sources = sources(root)?;
    let metadata = metadata()?;
    let roots = modules::crate_roots(&metadata, root);
    let mut findings = dependencies::manifests(&metadata);
    findings.extend(modules::reachable(&sources, &roots));
    findings.extend(counters::documented(root, &sources)?);
    findings.extend(installs::current(root)?);
    for source in &sources {
        findings.extend(dependencies::imports(source));
        findings.extend(files::size(source));
        findings.extend(files::unsafe_home(source));
        findings.extend(files::module_docs(source));
        findings.extend(modules::names(source));
    }
    Ok(findings)
}

fn metadata() -> Result<Value> {
    let mut command = step::cargo();
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let text = step::ask(&mut command).with_context(|| format!("`{}` failed", step::show(&command)))?;
    serde_json::from_str(&text).context("cargo metadata printed no JSON")
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for name in CRATES {
        walk(root, &root.join(name), &mut found)?;
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                walk(root, &path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            found.push(Source::new(relative, text));
        }
    }
    Ok(())
}
