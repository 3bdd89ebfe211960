//! Clock jumps: nothing that decides reads the wall clock, so that setting it changes nothing but the times that are shown.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Where it may be read, and what for.
const MAY: [(&str, &str); 10] = [
    ("agent/snapshot.rs", "the age of a snapshot, which is shown; a clock set back makes it zero"),
    ("agent/verify.rs", "the time of the last pass, a metric"),
    ("agent/web.rs", "network_programming_duration_seconds, against the controller's clock; set back it is zero"),
    (
        "k8s/source/plugin.rs",
        "when credentials end, which is told as a time; by a wrong clock they are asked for anew too often, or when refused",
    ),
    ("k8s/source/recorder.rs", "the times of an Event"),
    (
        "k8s/source/api.rs",
        "the times in a Lease and in conditions; whose Lease it is goes by how long ago it changed here",
    ),
    ("dns/zones.rs", "the serial of the zone, which grows with every change"),
    ("logs.rs", "the time of a line"),
    ("web/health.rs", "lastUpdated and currentTime of the answer; whether it is healthy is monotonic"),
    ("web/metrics.rs", "timestamps"),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn only_what_is_shown_reads_the_wall_clock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50, "{} files", files.len());
    let reads = |path: &&PathBuf| {
        let text = fs::read_to_string(path).expect("a source");
        ["SystemTime::now", "Timestamp::now", "Zoned::now", "ClockId::Realtime"].iter().any(|read| text.contains(read))
    };
    let found: BTreeSet<String> = files
        .iter()
        .filter(reads)
        .map(|path| path.strip_prefix(&root).expect("below it").display().to_string())
        .collect();
    let may: BTreeSet<String> = MAY.iter().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(
        found, may,
        "a deadline or an age that decides takes tokio's or std's Instant; else add the file with its reason"
    );
}
