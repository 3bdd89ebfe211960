//! Every committed seed and every past finding of the fuzzers, through the bodies of their targets (`lb_tests::fuzz`):
//! `cargo xtask fuzz` looks for more.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

use lb_tests::fuzz::{TARGETS, corpus};

#[test]
fn every_seed_keeps_what_its_target_promises() {
    let mut failed = Vec::new();
    for target in TARGETS {
        let folder = corpus().join(target.name);
        let mut seeds: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        seeds.sort();
        assert!(seeds.len() >= 4, "{}: {} seeds", folder.display(), seeds.len());
        for seed in seeds {
            let bytes = fs::read(&seed).expect("a seed");
            // All of them are told, not only the first.
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes))).is_err() {
                failed.push(format!("{}/{}", target.name, seed.file_name().unwrap_or_default().display()));
            }
        }
    }
    assert!(failed.is_empty(), "the panics above are of {failed:?}");
}

#[test]
fn every_target_has_seeds_and_a_program() {
    let names = |folder: &str, suffix: &str| -> BTreeSet<String> {
        fs::read_dir(corpus().join("..").join(folder))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().trim_end_matches(suffix).to_owned())
            .collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names("corpus", ""), targets);
    assert_eq!(names("fuzz_targets", ".rs"), targets);
}
