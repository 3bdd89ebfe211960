//! Rules on one file: its size, `unsafe`, its own doc comment.

use super::{Finding, Source, code};

/// Above this a file should be split when it is next touched.
const SOFT_LINES: usize = 400;
/// Above this the check fails.
const HARD_LINES: usize = 600;

/// The files where `unsafe` may stand. A new one is a decision: it belongs here with its reason in the commit.
const UNSAFE_HOMES: &[&str] = &[
    "lb-ebpf/src/bin/yardsticks.rs",
    "lb-ebpf/src/frame.rs",
    "lb-ebpf/src/main.rs",
    "lb-ebpf/src/maps.rs",
    "lb-ebpf/src/socket.rs",
    "lb-userspace/src/bpf/signals.rs",
    "lb-userspace/src/bpf/sys.rs",
    "lb-userspace/src/memory.rs",
    "lb-userspace/src/net/netns.rs",
    "tests/src/container.rs",
    "tests/src/netns.rs",
    "tests/src/signals.rs",
    "tests/src/sockets.rs",
    "tests/src/tcx.rs",
    "tests/src/tun.rs",
];

pub(super) fn size(source: &Source) -> Option<Finding> {
    let lines = source.text.lines().count();
    if lines > HARD_LINES {
        return Some(Finding::error(&source.path, lines, format!("{lines} lines, at most {HARD_LINES}: split it")));
    }
    (lines > SOFT_LINES)
        .then(|| Finding::warning(&source.path, lines, format!("{lines} lines, more than {SOFT_LINES}: split it soon")))
}

pub(super) fn unsafe_home(source: &Source) -> Option<Finding> {
    if UNSAFE_HOMES.contains(&source.path.as_str()) {
        return None;
    }
    let token = code::tokens(&source.code).into_iter().find(|token| token.text == "unsafe")?;
    Some(Finding::error(
        &source.path,
        token.line,
        "`unsafe` outside its homes (UNSAFE_HOMES in xtask/src/tidy/files.rs)",
    ))
}

pub(super) fn module_docs(source: &Source) -> Option<Finding> {
    let documented = source.text.lines().any(|line| line.starts_with("//!"));
    (!documented)
        .then(|| Finding::error(&source.path, 1, "no module documentation: say in a `//!` line what it is for"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::Severity;

    #[test]
    fn a_long_file_warns_and_a_longer_one_fails() {
        let severity = |lines| size(&Source::new("a.rs", "x\n".repeat(lines))).map(|finding| finding.severity);
        assert_eq!(severity(SOFT_LINES), None);
        assert_eq!(severity(SOFT_LINES + 1), Some(Severity::Warning));
        assert_eq!(severity(HARD_LINES + 1), Some(Severity::Error));
    }

    #[test]
    fn unsafe_has_homes() {
        let text = "// unsafe in a comment is none\nfn f() { unsafe { g() } }";
        assert_eq!(unsafe_home(&Source::new("lb-common/src/x.rs", text)).map(|finding| finding.line), Some(2));
        assert_eq!(unsafe_home(&Source::new("lb-ebpf/src/frame.rs", text)), None);
        assert_eq!(unsafe_home(&Source::new("lb-common/src/lib.rs", "#![forbid(unsafe_code)]")), None);
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        assert!(module_docs(&Source::new("a.rs", "fn f() {}")).is_some());
        assert!(module_docs(&Source::new("a.rs", "#![no_std]\n//! It does.\n")).is_none());
    }
}
