//! Documents and allocations that change while names are answered.

use std::{fs, path::Path, time::Duration};

use super::*;
use crate::dns::zone::{Answer, Kind};

const NAME: &str = "late.shop.svc.cluster.local";
const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

fn options(folder: &Path) -> file_source::Options {
    let allocations = Some(folder.join("state/allocations/these.json"));
    file_source::Options { allocations, ..file_source::Options::new(folder.join("documents")) }
}

/// What `run` does with the documents, apart from everything else.
fn allocate(options: &file_source::Options) {
    let writing = file_source::Options { write_allocations: true, ..options.clone() };
    file_source::load(&writing).expect("allocated");
}

async fn until_answered(zones: &Zones, documents: Documents) {
    let options = zone::Options::new("cluster.local".to_owned(), 5);
    let has = || zones.with(|zone| matches!(zone.answer(NAME, Kind::A), Answer::Records(_))) == Some(true);
    let answered = async {
        while !has() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        ended = documents.run(zones, &options, "answering") => panic!("{ended:?}"),
        found = tokio::time::timeout(Duration::from_secs(20), answered) => found.expect("an address"),
    }
}

#[tokio::test]
async fn addresses_that_run_allocates_later_are_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    for has_folder in [false, true] {
        let options = options(folder.path());
        fs::create_dir_all(&options.path).expect("a folder");
        fs::write(options.path.join("late.yaml"), SERVICE).expect("written");
        let state = options.allocation_path();
        let state = state.parent().expect("a folder");
        if has_folder {
            fs::create_dir_all(state).expect("a folder");
        }
        let zones = Zones::default();
        let documents = Documents::open(&options).expect("documents");
        let allocating = async {
            // Not before the documents have been read without.
            while !zones.is_set() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            allocate(&options);
        };
        tokio::join!(until_answered(&zones, documents), allocating);
        fs::remove_dir_all(state).expect("removed");
    }
}

#[test]
fn a_service_without_an_address_is_told_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = options(folder.path());
    fs::create_dir_all(&options.path).expect("a folder");
    let file = options.path.join("late.yaml");
    let findings = |text: &str| {
        fs::write(&file, text).expect("written");
        file_source::load(&options).expect("documents").findings
    };
    let first = findings(SERVICE);
    assert!(
        matches!(first.as_slice(), [told] if told.to_string().contains("shop/late: spec.clusterIP: it has no cluster IP")),
        "{first:?}"
    );
    let moved = findings(&format!("# A comment.\n\n{SERVICE}"));
    assert!(moved[0] != first[0] && moved[0].is_again(&first[0]), "{moved:?}");
    let other = findings(&SERVICE.replace("late", "later"));
    assert!(!other[0].is_again(&first[0]));
}
