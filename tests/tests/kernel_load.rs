//! The object in the kernel: it loads, the verifier's work stays small, pins of another layout are refused.

use std::{fs, path::PathBuf, thread, time::Duration};

use lb_tests::{Bpffs, Interrupter, needs_root};
use lb_userspace::{
    bpf::{Datapath, MapSizes, OpenError, Pins},
    image::Table,
    store::MapStore as _,
};
use tokio::time::timeout;

/// Issue: each program under this many processed instructions.
const LIMIT: u32 = 250_000;

fn small() -> MapSizes {
    MapSizes { services: 64, frontends: 64, backends: 64, rings: 128, conntrack: 256 }
}

#[test]
fn every_program_loads_within_its_budget() {
    needs_root!();
    let bpffs = Bpffs::new().expect("a bpffs");
    let datapath = Datapath::open(bpffs.path(), &small()).expect("the datapath");
    let programs = datapath.verified_instructions();
    assert_eq!(programs.len(), 13, "{programs:?}");
    for (name, instructions) in programs {
        println!("{name}: {instructions} instructions processed by the verifier");
        assert!(instructions > 0 && instructions < LIMIT, "{name}: {instructions}");
    }
}

/// Signals to the thread that loads, every few milliseconds: the kernel gives a verification up for each that it may take.
#[tokio::test]
async fn no_signal_ends_a_verification() {
    needs_root!();
    let mut interrupter = Interrupter::new().expect("a handler");
    let bpffs = Bpffs::new().expect("a bpffs");
    let path = bpffs.path().to_owned();
    let loading = thread::spawn(move || Datapath::open(&path, &small()).map(drop).map_err(|error| error.to_string()));
    let mut sent = 0;
    while !loading.is_finished() {
        interrupter.interrupt(&loading).expect("sent");
        sent += 1;
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(loading.join().expect("no panic"), Ok(()));
    assert!(sent > 10, "{sent} signals");
    timeout(Duration::from_secs(5), interrupter.taken()).await.expect("they came after all");
}

#[test]
fn maps_keep_what_was_written_over_a_restart() {
    needs_root!();
    let bpffs = Bpffs::new().expect("a bpffs");
    let mut datapath = Datapath::open(bpffs.path(), &small()).expect("the datapath");
    for (table, key, value) in [
        (Table::Vips4, &[10, 96, 0, 1][..], &1_u64.to_ne_bytes()[..]),
        (Table::Settings, &3_u32.to_ne_bytes(), &7_u64.to_ne_bytes()),
        (Table::Prefixes4, &[16, 0, 0, 0, 10, 96, 0, 0], &1_u32.to_ne_bytes()),
    ] {
        datapath.maps.update(table, key, value).expect("an update");
    }
    datapath.maps.grace_period().expect("a grace period");
    drop(datapath);
    let mut datapath = Datapath::open(bpffs.path(), &small()).expect("the datapath again");
    for table in [Table::Vips4, Table::Settings, Table::Prefixes4] {
        assert_eq!(datapath.maps.dump(table).expect("a dump").len(), 1, "{table:?}");
    }
    let word = datapath.maps.word("LB_SETTINGS", 3).expect("a word");
    assert_eq!(word, 7);
    datapath.maps.delete(Table::Vips4, &[10, 96, 0, 1]).expect("a deletion");
    assert!(datapath.maps.dump(Table::Vips4).expect("a dump").is_empty());
}

#[test]
fn a_pin_of_another_size_is_refused_and_left_alone() {
    needs_root!();
    let bpffs = Bpffs::new().expect("a bpffs");
    drop(Datapath::open(bpffs.path(), &small()).expect("the datapath"));
    let before = listing(bpffs.path());
    let other = MapSizes { backends: 65, ..small() };
    let error = Datapath::open(bpffs.path(), &other).expect_err("refused");
    assert!(matches!(error, OpenError::Pin(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("LB4_BACKENDS") && text.contains("max entries 64") && text.contains("needs 65"), "{text}");
    assert_eq!(listing(bpffs.path()), before);
}

#[test]
fn no_bpffs_is_said_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let error = Datapath::open(directory.path(), &small()).expect_err("refused");
    assert!(matches!(error, OpenError::NoBpffs(_)), "{error}");
    assert!(error.to_string().contains("mount -t bpf"), "{error}");
}

#[test]
fn cleanup_removes_every_pin_and_a_dry_run_none() {
    needs_root!();
    let bpffs = Bpffs::new().expect("a bpffs");
    let before = listing(bpffs.path());
    drop(Datapath::open(bpffs.path(), &small()).expect("the datapath"));
    let pins = Pins::new(bpffs.path());
    let said = pins.remove(true).expect("a dry run");
    assert!(!said.is_empty() && said.iter().all(|path| path.exists()));
    let removed = pins.remove(false).expect("a removal");
    assert!(said.iter().all(|path| removed.contains(path)));
    assert_eq!(listing(bpffs.path()), before);
}

fn listing(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(listing(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}
