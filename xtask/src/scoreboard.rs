//! docs/reliability.md: what the tests showed of each promise, taken from their output.
//!
//! A test prints `SCOREBOARD <row> <what it showed>` (`lb_tests::scoreboard`). `cargo xtask test --scoreboard` collects these
//! lines and writes them with kernel, commit and date. A row that this run showed nothing of keeps what it had.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{root, step};

const FILE: &str = "docs/reliability.md";
const NOT_RUN: &str = "not run";

/// Rows with their goals, in order.
const ROWS: [(&str, &str); 24] = [
    ("R1", "The agent is killed anywhere in a sync: established flows go on, programs stay, the next agent finishes"),
    ("R2", "The agent is restarted under load: no reset, no other backend, no lost datagram, always a program"),
    ("R3", "Pins of another layout or owner: migrated, or refused with nothing touched"),
    ("R4", "The API server is away for an hour, the agent restarted meanwhile: forwarding as before"),
    ("R5", "Faults of watches: the end state is the server's; nothing is deleted before a complete list"),
    ("R6", "Hostile objects: no panic, bounded memory, one bad object leaves the others"),
    ("R7", "Hostile packets: no abort, no wrong checksum, no other decision than the pipeline in memory"),
    ("R8", "Any map full: what is served goes on, what does not fit is told at once, room is used without a restart"),
    ("R9", "Endpoints change a thousand times a second: flows to those that stay go on"),
    ("R10", "Floods of SYNs and of pairs of packets: established flows stay, others still connect"),
    ("R11", "Conntrack and SNAT ports run out: refused and counted; room again within timeout and 1 s"),
    (
        "R12",
        "UDP whose endpoint is gone: another one or a refusal within 1 s, one-way senders and scale to zero included",
    ),
    ("R13", "A node boots without API: the last good state forwards within 3 s"),
    ("R14", "Links, interfaces, MTUs, neighbours and routes change: resolved anew within 1 s, nothing to an old MAC"),
    ("R15", "Clock steps, suspend, CPU hotplug: nothing expires at once, no size is wrong"),
    ("R16", "System calls fail or are slow: told, tried again, state consistent"),
    ("R17", "Soak: memory, descriptors and map entries back to where they were"),
    ("R18", "10,000 Services with 100,000 endpoints: time of a sync and of a change, memory"),
    ("R19", "Every kernel that is claimed loads the programs and decides alike"),
    ("R20", "Exactly the listed capabilities suffice; without one the message says which"),
    ("R21", "Cleanup: listings of programs, maps, links, qdiscs, routes, sysctls, rules and files as before"),
    ("R22", "What strangers send: each known attack one test, IPv4 and IPv6"),
    ("R23", "The agent is frozen or out of memory: traffic goes on, health tells it"),
    ("R24", "Saved state or configuration is corrupted: refused, the last good one is used"),
];

/// What a test showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Score {
    row: String,
    text: String,
}

/// The lines `SCOREBOARD <row> <text>` of a test's output.
pub(crate) fn scores(lines: &[String]) -> impl Iterator<Item = Score> {
    lines.iter().filter_map(|line| {
        let (row, text) = line.trim().strip_prefix("SCOREBOARD ")?.split_once(' ')?;
        Some(Score { row: row.to_owned(), text: text.trim().to_owned() })
    })
}

/// Where a run was made.
#[derive(Debug)]
pub(crate) struct Stamp {
    kernel: String,
    commit: String,
    date: String,
}

impl Stamp {
    /// Of this work tree, which must be as it was committed but for the page itself, which names the commit: runs of some
    /// suites can follow each other.
    pub(crate) fn here() -> Result<Self> {
        let ask = |program: &str, args: &[&str]| {
            let answer = step::ask(Command::new(program).args(args).current_dir(root::workspace()));
            answer.map(|text| text.trim().to_owned()).with_context(|| format!("`{program} {}` failed", args.join(" ")))
        };
        let changes = ask("git", &["status", "--porcelain", "--", ".", &format!(":!{FILE}")])?;
        if !changes.is_empty() {
            bail!(
                "{FILE} names the commit it was made of, and there are changes beside it; commit them first:\n{changes}"
            );
        }
        Ok(Self {
            kernel: ask("uname", &["-r"])?,
            commit: ask("git", &["rev-parse", "--short=10", "HEAD"])?,
            date: ask("date", &["-u", "+%F"])?,
        })
    }
}

/// Writes the page.
pub(crate) fn write(scores: &[Score], stamp: &Stamp) -> Result<()> {
    let path = root::workspace().join(FILE);
    let old = if path.exists() {
        fs::read_to_string(&path).with_context(|| format!("cannot read {FILE}"))?
    } else {
        String::new()
    };
    if let Some(score) = scores.iter().find(|score| ROWS.iter().all(|(row, _)| *row != score.row)) {
        bail!("a test tells of row {}, which the scoreboard has not: {}", score.row, score.text);
    }
    fs::write(&path, page(&old, scores, stamp)).with_context(|| format!("cannot write {FILE}"))
}

fn page(old: &str, scores: &[Score], stamp: &Stamp) -> String {
    let kept = rows_of(old);
    let mut page = "# What was shown\n\n\
        Written by `cargo xtask test --scoreboard` (with `--all`: in full) from what the tests print; change it there. Rows\n\
        are those of `xtask/src/scoreboard.rs`. A row no run told anything of says \"not run\".\n\n\
        | Row | Promise | Shown | Kernel | Commit | Date |\n| --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (row, goal) in ROWS {
        let mut texts: Vec<String> = Vec::new();
        for score in scores.iter().filter(|score| score.row == row) {
            let text = score.text.replace('|', "/");
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let told = if texts.is_empty() {
            kept.get(row).cloned().unwrap_or_else(|| format!("{NOT_RUN} | | |"))
        } else {
            // One test may print before or after another.
            texts.sort();
            format!("{} | {} | {} | {} |", texts.join("<br>"), stamp.kernel, stamp.commit, stamp.date)
        };
        page.push_str(&format!("| {row} | {goal} | {told}\n"));
    }
    page
}

/// What a page says behind row and goal.
fn rows_of(page: &str) -> BTreeMap<&str, String> {
    let row = |line: &'_ str| -> Option<(&'static str, String)> {
        let (row, rest) = ROWS.iter().find_map(|(row, _)| Some((*row, line.strip_prefix(&format!("| {row} |"))?)))?;
        Some((row, rest.split_once(" | ")?.1.to_owned()))
    };
    page.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(commit: &str) -> Stamp {
        Stamp { kernel: "6.18".to_owned(), commit: commit.to_owned(), date: "2026-11-26".to_owned() }
    }

    fn told(lines: &[&str]) -> Vec<Score> {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        scores(&lines).collect()
    }

    #[test]
    fn lines_of_the_scoreboard_are_found_among_others() {
        let found = told(&["running 3 tests", "SCOREBOARD R7 4 packets: 0 differences", "NOTE SCOREBOARD R1 no"]);
        assert_eq!(found, [Score { row: "R7".to_owned(), text: "4 packets: 0 differences".to_owned() }]);
    }

    #[test]
    fn a_row_has_what_its_tests_said_and_the_others_were_not_run() {
        let page = page("", &told(&["SCOREBOARD R2 b", "SCOREBOARD R2 a | c", "SCOREBOARD R2 b"]), &stamp("abc"));
        assert!(page.contains("| R2 | The agent is restarted"), "{page}");
        assert!(page.contains(" | a / c<br>b | 6.18 | abc | 2026-11-26 |\n"), "{page}");
        assert_eq!(page.matches("| not run | | |\n").count(), ROWS.len() - 1);
    }

    #[test]
    fn a_later_run_of_other_tests_leaves_a_row_as_it_is() {
        let first = page("", &told(&["SCOREBOARD R1 x, y", "SCOREBOARD R2 former"]), &stamp("abc"));
        let second = page(&first, &told(&["SCOREBOARD R2 new"]), &stamp("def"));
        assert!(second.contains(" | x, y | 6.18 | abc | 2026-11-26 |\n"), "{second}");
        assert!(second.contains(" | new | 6.18 | def | 2026-11-26 |\n") && !second.contains("former"), "{second}");
        assert_eq!(page(&second, &[], &stamp("ghi")), second);
    }
}
