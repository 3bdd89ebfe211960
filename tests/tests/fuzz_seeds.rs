//! Every committed seed and every past finding of the fuzzers, through the bodies of their targets (`lb_tests::fuzz`):
//! `cargo xtask fuzz` looks for more.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

use lb_tests::fuzz::{TARGETS, corpus, dns};

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

/// Questions that are nearly right, the same ones each time: `cargo xtask fuzz dns` makes others.
#[test]
fn mutated_questions_keep_what_the_name_service_promises() {
    const COUNT: usize = 1_000_000;
    let seeds: Vec<_> = fs::read_dir(corpus().join("dns"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|path| fs::read(path).expect("a seed"))
        .collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut chance = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below.max(1)).expect("small")).expect("small")
    };
    for number in 0..COUNT {
        let mut bytes = seeds[number % seeds.len()].clone();
        for _ in 0..=chance(4) {
            let (at, other) = (chance(bytes.len()), &seeds[chance(seeds.len())]);
            match chance(5) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_slice(&other[chance(other.len())..]),
                2 => bytes.insert(at, 0xc0),
                _ if bytes.is_empty() => bytes.push(1),
                3 => bytes[at] ^= 1 << chance(8),
                _ => bytes[at] = u8::try_from(chance(256)).expect("an octet"),
            }
        }
        assert!(catch_unwind(|| dns(&bytes)).is_ok(), "question {number}, the panic is above: {bytes:02x?}");
    }
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
