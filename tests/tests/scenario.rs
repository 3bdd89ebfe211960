//! Every file under `tests/scenarios` (semantics.md in data). `BALLAST_BLESS=1` rewrites what they expect: read the
//! difference before committing it.

use std::{fmt::Write, fs, path::PathBuf};

use lb_tests::scenario::{Scenario, bless};

#[test]
fn every_scenario_leads_to_the_tables_it_expects() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("a folder of scenarios")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let mut failures = String::new();
    for path in &files {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let scenario = match Scenario::read(path) {
            Ok(scenario) => scenario,
            Err(error) => {
                writeln!(failures, "{error:#}").expect("a string");
                continue;
            }
        };
        let outcomes = match scenario.run() {
            Ok(outcomes) => outcomes,
            Err(error) => {
                writeln!(failures, "{file}: {error:#}").expect("a string");
                continue;
            }
        };
        if std::env::var_os("BALLAST_BLESS").is_some() {
            let text = fs::read_to_string(path).expect("read before");
            fs::write(path, bless(&text, &outcomes)).expect("writable");
        }
        for ((step, outcome), number) in scenario.steps.iter().zip(&outcomes).zip(1..) {
            let head = format!("{file}, step {number} ({}; {})", scenario.name, step.change);
            if step.expect.trim_end() != outcome.dump.trim_end() {
                let (expected, found) = (&step.expect, &outcome.dump);
                writeln!(failures, "{head}\n--- expected\n{expected}+++ found\n{found}").expect("a string");
            }
            if step.writes.is_some_and(|writes| writes != outcome.writes) {
                writeln!(failures, "{head}: {} writes instead of {:?}", outcome.writes, step.writes).expect("a string");
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(files.len() >= 15, "scenarios are missing: only {} in {}", files.len(), folder.display());
}
