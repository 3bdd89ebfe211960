//! Every counter is documented: docs/counters.md is written from the doc comments of `enum Counter`.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{Finding, Source};

const ENUM: &str = "lb-common/src/verdict.rs";
const PAGE: &str = "docs/counters.md";

/// One variant of the enum.
#[derive(Debug, PartialEq, Eq)]
struct Counter {
    name: String,
    line: usize,
    doc: String,
}

/// Writes the page from the enum.
pub(crate) fn write(root: &Path) -> Result<()> {
    let text = fs::read_to_string(root.join(ENUM)).with_context(|| format!("cannot read {ENUM}"))?;
    let page = root.join(PAGE);
    if let Some(folder) = page.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(&page, render(&parse(&text))).with_context(|| format!("cannot write {PAGE}"))
}

pub(super) fn documented(root: &Path, sources: &[Source]) -> Result<Vec<Finding>> {
    let Some(source) = sources.iter().find(|source| source.path == ENUM) else { return Ok(Vec::new()) };
    let counters = parse(&source.text);
    if counters.is_empty() {
        return Ok(Vec::new());
    }
    let page = match fs::read_to_string(root.join(PAGE)) {
        Ok(page) => page,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {PAGE}")),
    };
    Ok(compare(&counters, &page))
}

fn compare(counters: &[Counter], page: &str) -> Vec<Finding> {
    let mut findings: Vec<Finding> = counters
        .iter()
        .filter(|counter| counter.doc.is_empty())
        .map(|counter| Finding::error(ENUM, counter.line, format!("{} has no doc comment", counter.name)))
        .collect();
    let missing = counters.iter().filter(|counter| !page.contains(&format!("| `{}` |", counter.name)));
    findings.extend(
        missing.map(|counter| Finding::error(ENUM, counter.line, format!("{} is not in {PAGE}", counter.name))),
    );
    if findings.is_empty() && page != render(counters) {
        findings.push(Finding::error(PAGE, 1, "differs from the doc comments: `cargo xtask tidy --write`"));
    }
    findings
}

fn parse(text: &str) -> Vec<Counter> {
    let mut counters = Vec::new();
    let mut doc = String::new();
    let mut lines = text.lines().enumerate().skip_while(|(_, line)| !is_opening(line)).skip(1);
    for (index, line) in lines.by_ref() {
        let line = line.trim();
        if line == "}" {
            break;
        }
        if let Some(words) = line.strip_prefix("///") {
            if !doc.is_empty() {
                doc.push(' ');
            }
            doc.push_str(words.trim());
            continue;
        }
        if line.is_empty() || line.starts_with("//") || line.starts_with("#[") {
            continue;
        }
        let name: String =
            line.chars().take_while(|&character| character.is_alphanumeric() || character == '_').collect();
        if !name.is_empty() {
            counters.push(Counter { name, line: index + 1, doc: std::mem::take(&mut doc) });
        }
    }
    counters
}

fn is_opening(line: &str) -> bool {
    line.contains("enum Counter ") && line.trim_end().ends_with('{')
}

fn render(counters: &[Counter]) -> String {
    let mut page = String::from(
        "# Counters\n\n\
         What each counter of the datapath means. This page is written by `cargo xtask tidy --write` from the doc\n\
         comments of `enum Counter` in `lb-common/src/verdict.rs`; change it there.\n\n\
         | Counter | Meaning |\n| --- | --- |\n",
    );
    for counter in counters {
        page.push_str("| `");
        page.push_str(&counter.name);
        page.push_str("` | ");
        page.push_str(&counter.doc.replace('|', "\\|"));
        page.push_str(" |\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "/// All.\n#[repr(u32)]\npub enum Counter {\n    /// Too short\n    /// to read.\n    \
                        Truncated = 0,\n    Silent,\n}\nenum Other {\n    A,\n}\n";

    #[test]
    fn variants_are_read_with_their_comments() {
        let counters = parse(TEXT);
        assert_eq!(counters.len(), 2);
        assert_eq!(
            counters[0],
            Counter { name: "Truncated".to_owned(), line: 6, doc: "Too short to read.".to_owned() }
        );
    }

    #[test]
    fn a_counter_without_words_is_found() {
        let counters = parse(TEXT);
        let findings = compare(&counters, &render(&counters));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 7);
    }

    #[test]
    fn a_counter_missing_on_the_page_is_found() {
        let counters = parse(&TEXT.replace("    Silent,\n", ""));
        assert_eq!(compare(&counters, "").len(), 1);
        assert_eq!(compare(&counters, &render(&counters)), []);
    }

    #[test]
    fn a_stale_page_is_found() {
        let counters = parse(&TEXT.replace("    Silent,\n", ""));
        assert_eq!(compare(&counters, "| `Truncated` | Something else. |\n").len(), 1);
    }
}
