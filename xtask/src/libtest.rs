//! Reading what Rust's test harness prints.

use crate::report::{self, Skip, Tally};

/// Adds what a run of `cargo test` printed to the tally: its `test result:` lines, the failed tests by name, and the
/// lines `SKIP <name>: <reason>` of tests that could not do their work. `ok` is whether the command succeeded.
pub(crate) fn count(tally: &mut Tally, step: &str, ok: bool, lines: &[String]) {
    let (mut passed, mut failed, mut ignored, mut results) = (0, 0, 0, 0);
    for line in lines {
        if let Some(result) = Result::parse(line) {
            passed += result.passed;
            failed += result.failed;
            ignored += result.ignored;
            results += 1;
        }
    }
    let skips: Vec<(&str, &str)> = lines.iter().filter_map(|line| parse_skip(line)).collect();
    // libtest counts a test that returned early as passed; it did not pass anything.
    tally.passed += usize::saturating_sub(passed, skips.len());
    let names: Vec<&str> = lines.iter().filter_map(|line| parse_failed(line)).collect();
    for name in &names {
        tally.fail(name, step);
    }
    for _ in names.len()..failed {
        tally.fail(step, "a test failed without a name");
    }
    if !ok && failed == 0 {
        let why = if results == 0 { "it did not build or did not start" } else { "it ended without a result" };
        tally.fail(step, why);
    }
    for (name, reason) in skips {
        tally.skip(report::skip_kind(reason), name, reason);
    }
    if ignored > 0 {
        tally.skip(Skip::Choice, step, &format!("{ignored} slow: run with --all"));
        tally.skipped += ignored - 1;
    }
}

/// Lines that tests print for the reader, not the counter: `NOTE <text>`, as the verifier's numbers.
pub(crate) fn notes(lines: &[String]) -> impl Iterator<Item = &str> {
    lines.iter().filter_map(|line| line.trim_start().strip_prefix("NOTE "))
}

struct Result {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Result {
    fn parse(line: &str) -> Option<Self> {
        let rest = line.trim_start().strip_prefix("test result: ")?;
        let (_, counts) = rest.split_once(". ")?;
        let mut result = Self { passed: 0, failed: 0, ignored: 0 };
        for part in counts.split(';') {
            let Some((number, word)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse() else { continue };
            match word {
                "passed" => result.passed = number,
                "failed" => result.failed = number,
                "ignored" => result.ignored = number,
                _ => {}
            }
        }
        Some(result)
    }
}

fn parse_skip(line: &str) -> Option<(&str, &str)> {
    line.trim_start().strip_prefix("SKIP ")?.split_once(": ")
}

fn parse_failed(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(ok: bool, text: &str) -> String {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut tally = Tally::default();
        count(&mut tally, "step", ok, &lines);
        tally.to_string()
    }

    #[test]
    fn results_of_several_binaries_add_up() {
        let text = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: ok. 4 passed; 0 failed; 2 ignored; 0 measured; 1 filtered out; finished in 0.00s";
        assert_eq!(counted(true, text), "7 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let text = "SKIP soak: slow: run with --all\n\
                    test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(counted(true, text), "2 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_failed_test_is_counted_once() {
        let text = "test a::b ... FAILED\n\
                    test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s";
        assert_eq!(counted(false, text), "1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn what_does_not_build_has_failed() {
        assert_eq!(counted(false, "error: could not compile"), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn notes_reach_the_reader() {
        let lines = ["NOTE xdp_lb4: 12345 instructions".to_owned(), "else".to_owned()];
        assert_eq!(notes(&lines).collect::<Vec<_>>(), ["xdp_lb4: 12345 instructions"]);
    }
}
