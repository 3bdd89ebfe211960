//! Documents and allocations that change while names are answered.

use std::{fs, path::Path, time::Duration};

use super::*;
use crate::dns::zone::{Answer, Data, Kind, Record};

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

/// Until the name has an address that begins with this.
async fn until_answered(zones: &Zones, start: &str) {
    let has = |zone: &Zone| match zone.answer(NAME, Kind::A) {
        Answer::Records(records) => {
            matches!(records.as_slice(), [Record { data: Data::A(ip), .. }] if ip.to_string().starts_with(start))
        }
        _ => false,
    };
    let answered = async {
        while zones.with(has) != Some(true) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), answered).await;
    in_time.unwrap_or_else(|_| panic!("no address {start} of {NAME}"));
}

/// Does all this while the zone follows the documents.
async fn following(zones: &Zones, documents: Documents, steps: impl Future<Output = ()>) {
    let options = zone::Options::new("cluster.local".to_owned(), 5);
    tokio::select! {
        ended = documents.run(zones, &options, "answering") => panic!("{ended:?}"),
        () = steps => {}
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
            until_answered(&zones, "").await;
        };
        following(&zones, documents, allocating).await;
        fs::remove_dir_all(state).expect("removed");
    }
}

/// The ways by which another folder comes in the place of one: the kernel goes on to watch the old one, if there is any.
const REPLACE: [fn(&Path); 4] = [
    |folder| {
        fs::remove_dir_all(folder).expect("removed");
        fs::create_dir(folder).expect("made");
    },
    |folder| {
        fs::rename(folder, folder.with_extension("old")).expect("renamed");
        fs::create_dir(folder).expect("made");
    },
    // The folder above it.
    |folder| {
        let above = folder.parent().expect("a folder");
        fs::rename(above, above.with_extension("old")).expect("renamed");
        fs::create_dir_all(folder).expect("made");
    },
    // As a link that is set to another folder.
    |folder| {
        let (old, new) = (folder.with_extension("first"), folder.with_extension("second"));
        fs::rename(folder, &old).expect("renamed");
        std::os::unix::fs::symlink(&old, folder).expect("linked");
        fs::create_dir(&new).expect("made");
        fs::remove_file(folder).expect("removed");
        std::os::unix::fs::symlink(&new, folder).expect("linked");
    },
];

#[tokio::test]
async fn allocations_in_a_folder_that_is_made_again_are_followed() {
    for replace in REPLACE {
        let folder = tempfile::tempdir().expect("a folder");
        let options = options(folder.path());
        fs::create_dir_all(&options.path).expect("a folder");
        fs::write(options.path.join("late.yaml"), SERVICE).expect("written");
        allocate(&options);
        let zones = Zones::default();
        let steps = async {
            until_answered(&zones, "10.96.").await;
            replace(options.allocation_path().parent().expect("a folder"));
            let service_cidrs = vec!["10.97.0.0/16".parse().expect("a range")];
            allocate(&file_source::Options { service_cidrs, ..options.clone() });
            until_answered(&zones, "10.97.").await;
        };
        following(&zones, Documents::open(&options).expect("documents"), steps).await;
    }
}

#[tokio::test]
async fn documents_in_a_folder_that_is_made_again_are_followed() {
    for replace in REPLACE {
        let folder = tempfile::tempdir().expect("a folder");
        let options = options(folder.path());
        let options = file_source::Options { path: options.path.join("these"), ..options };
        fs::create_dir_all(&options.path).expect("a folder");
        let with = |ip: &str| SERVICE.replace("spec: {", &format!("spec: {{clusterIP: {ip}, "));
        fs::write(options.path.join("late.yaml"), with("10.96.0.7")).expect("written");
        let zones = Zones::default();
        let steps = async {
            until_answered(&zones, "10.96.0.7").await;
            replace(&options.path);
            fs::write(options.path.join("late.yaml"), with("10.96.0.8")).expect("written");
            until_answered(&zones, "10.96.0.8").await;
        };
        following(&zones, Documents::open(&options).expect("documents"), steps).await;
    }
}

#[tokio::test]
async fn without_documents_to_begin_with_there_is_no_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = options(folder.path());
    fs::create_dir_all(&options.path).expect("a folder");
    fs::write(options.path.join("wrong.yaml"), "kind: [").expect("written");
    let zones = Zones::default();
    let documents = Documents::open(&options).expect("documents");
    let zone = zone::Options::new("cluster.local".to_owned(), 5);
    let running = documents.run(&zones, &zone, "answering");
    let ended =
        tokio::time::timeout(Duration::from_secs(20), running).await.expect("an end").expect_err("no documents");
    assert!(format!("{ended:#}").starts_with("no documents to begin with: no document can be read"), "{ended:#}");
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
