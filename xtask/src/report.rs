//! What was counted: passed, failed, skipped, and why.

use std::fmt;

use crate::scoreboard::Score;

/// The counts behind the closing line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// What tests told of rows of the scoreboard.
    pub(crate) scores: Vec<Score>,
    /// One line for each failure and each skip, in order.
    reasons: Vec<String>,
}

/// Why something was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skip {
    /// The machine lacks root, a tool or a kernel feature. CI has them all, so there it counts as a failure.
    Environment,
    /// Not asked for: a slow suite without `--all`, a suite that does not exist yet.
    Choice,
}

impl Tally {
    pub(crate) fn pass(&mut self) {
        self.passed += 1;
    }

    pub(crate) fn fail(&mut self, what: &str, why: &str) {
        self.failed += 1;
        self.reasons.push(format!("FAILED  {what}: {why}"));
    }

    /// Counts a skip; in CI one that the environment caused is a failure.
    pub(crate) fn skip(&mut self, kind: Skip, what: &str, why: &str) {
        self.skip_in(is_ci(), kind, what, why);
    }

    fn skip_in(&mut self, ci: bool, kind: Skip, what: &str, why: &str) {
        if ci && kind == Skip::Environment {
            self.fail(what, &format!("skipped in CI, where it must run: {why}"));
        } else {
            self.skipped += 1;
            self.reasons.push(format!("SKIPPED {what}: {why}"));
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.scores.extend_from_slice(&other.scores);
        self.reasons.extend_from_slice(&other.reasons);
    }

    /// Prints every failure and every skip with its reason.
    pub(crate) fn print_reasons(&self) {
        for reason in &self.reasons {
            println!("{reason}");
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// `CI=true`, as every CI system sets it.
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}

/// The kind of a skip that a test reported, from the words of its reason.
pub(crate) fn skip_kind(reason: &str) -> Skip {
    let reason = reason.to_lowercase();
    if ["slow", "--all", "not yet"].iter().any(|word| reason.contains(word)) { Skip::Choice } else { Skip::Environment }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_for_the_environment_is_a_failure_in_ci() {
        let mut tally = Tally::default();
        tally.skip_in(true, Skip::Environment, "kernel", "needs root");
        assert_eq!(tally.to_string(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_skip_by_choice_is_never_a_failure() {
        let mut tally = Tally::default();
        tally.skip_in(true, Skip::Choice, "soak", "slow: run with --all");
        tally.skip_in(false, Skip::Environment, "kernel", "needs root");
        assert_eq!(tally.to_string(), "0 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn sums_add_up() {
        let mut tally = Tally::default();
        tally.pass();
        let mut other = Tally::default();
        other.fail("fmt", "not formatted");
        tally.add(&other);
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(tally.reasons, ["FAILED  fmt: not formatted"]);
    }

    #[test]
    fn missing_tools_and_root_are_of_the_environment() {
        assert_eq!(skip_kind("needs root"), Skip::Environment);
        assert_eq!(skip_kind("tcpdump is missing"), Skip::Environment);
        assert_eq!(skip_kind("slow: run with --all"), Skip::Choice);
    }
}
