//! R3, the matrix of mismatched pins: each is refused with object, cause and mend, and nothing is touched.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use aya_obj::{
    EbpfSectionKind,
    maps::{LegacyMap, bpf_map_def},
};
use lb_tests::{Bpffs, needs_root, scoreboard};
use lb_userspace::{
    bpf::{Datapath, MapSizes, OpenError, Pins},
    image::Table,
    store::MapStore as _,
};

const SIZES: MapSizes = MapSizes { services: 64, frontends: 64, backends: 64, rings: 128, conntrack: 256 };
const VIP: [u8; 4] = [10, 96, 0, 1];

const HASH: u32 = 1;
const ARRAY: u32 = 2;
/// `BPF_F_NO_PREALLOC`
const NO_PREALLOC: u32 = 1;

/// The pins of an agent that has written something.
fn pinned() -> (Bpffs, PathBuf) {
    let bpffs = Bpffs::new().expect("a bpffs");
    let mut datapath = Datapath::open(bpffs.path(), &SIZES).expect("the datapath");
    datapath.maps.update(Table::Vips4, &VIP, &1_u64.to_ne_bytes()).expect("an update");
    datapath.maps.set_word("LB_SETTINGS", 4, 7).expect("an update");
    let maps = Pins::new(bpffs.path()).maps();
    (bpffs, maps)
}

/// A map like ours of the name, with something changed.
fn odd(name: &str, like: &Path, change: impl FnOnce(&mut bpf_map_def)) -> MapData {
    let info = MapInfo::from_pin(like).expect("a map");
    let mut def = bpf_map_def {
        map_type: info.map_type().expect("a type") as u32,
        key_size: info.key_size(),
        value_size: info.value_size(),
        max_entries: info.max_entries(),
        map_flags: info.map_flags(),
        ..bpf_map_def::default()
    };
    change(&mut def);
    let (section_kind, data) = (EbpfSectionKind::Undefined, Vec::new());
    let map = LegacyMap { def, inner_def: None, section_index: 0, section_kind, symbol_index: None, data };
    MapData::create(aya_obj::Map::Legacy(map), name, None).expect("a map")
}

/// Every pin with what it is, and what the maps that were written hold.
fn snapshot(bpffs: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(bpffs, &mut lines);
    lines.sort();
    lines
}

fn walk(directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let metadata = fs::symlink_metadata(&path).expect("metadata");
        let (mode, owner) = (metadata.mode(), metadata.uid());
        lines.push(format!("{} {} {mode:o} {owner} {:?}", path.display(), metadata.ino(), metadata.modified().ok()));
        if metadata.is_dir() {
            walk(&path, lines);
        } else if let Ok(info) = MapInfo::from_pin(&path) {
            let content = contents(&path, &info);
            lines.push(format!("{} map {} {content}", path.display(), info.id()));
        }
    }
}

fn contents(path: &Path, info: &MapInfo) -> String {
    let data = MapData::from_pin(path).expect("a map");
    match (info.map_type().map_or(0, |kind| kind as u32), info.key_size(), info.value_size()) {
        (HASH, 4, 8) => {
            let map: HashMap<_, [u8; 4], u64> = Map::HashMap(data).try_into().expect("a hash");
            format!("{:?}", map.iter().collect::<Result<Vec<_>, _>>().expect("entries"))
        }
        (ARRAY, 4, 8) => {
            let map: Array<_, u64> = Map::Array(data).try_into().expect("an array");
            format!("{:?}", map.iter().collect::<Result<Vec<_>, _>>().expect("entries"))
        }
        _ => String::new(),
    }
}

#[track_caller]
fn assert_refused(bpffs: &Path, what: &str, parts: &[&str]) {
    let before = snapshot(bpffs);
    let error = Datapath::open(bpffs, &SIZES).expect_err("refused");
    assert!(matches!(error, OpenError::Pin(_)), "{what}: {error}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{what}: {part:?} is not in {text:?}");
    }
    assert_eq!(snapshot(bpffs), before, "{what}: something was touched");
}

#[test]
fn r3_pin_mismatch_matrix() {
    needs_root!();
    let cases: [(&str, &str, fn(&mut bpf_map_def), &[&str]); 9] = [
        ("type", "LB4_VIPS", |def| (def.map_type, def.key_size) = (ARRAY, 4), &["type 2", "needs 1"]),
        ("type", "LB_SETTINGS", |def| def.map_type = HASH, &["type 1", "needs 2"]),
        ("key", "LB4_VIPS", |def| def.key_size = 8, &["key size 8", "needs 4"]),
        ("key", "LB6_CONNTRACK", |def| def.key_size = 36, &["key size 36", "needs 40"]),
        ("larger value", "LB4_CONNTRACK", |def| def.value_size += 8, &["value size 80", "needs 72"]),
        ("smaller value", "LB4_BACKENDS", |def| def.value_size -= 4, &["value size 20", "needs 24"]),
        ("max entries", "LB_RINGS", |def| def.max_entries *= 2, &["max entries 256", "needs 128"]),
        ("flags", "LB4_VIPS", |def| def.map_flags = NO_PREALLOC, &["flags 1", "needs 0"]),
        ("read-only flag", "LB_SERVICES", |def| def.map_flags = 1 << 7, &["flags 128", "needs 0"]),
    ];
    let count = cases.len();
    for (what, name, change, parts) in cases {
        let (bpffs, maps) = pinned();
        let path = maps.join(name);
        let other = odd(name, &path, change);
        fs::remove_file(&path).expect("a pin");
        other.pin(&path).expect("pinned");
        let place = path.display().to_string();
        let all = [parts, &[name, &place, "left untouched", "ballast cleanup"]].concat();
        assert_refused(bpffs.path(), what, &all);
    }
    let words = "refused by name with the difference, nothing of bpffs touched";
    scoreboard(
        "R3",
        &format!("pin_mismatch_matrix: {count} mismatches of type, key, value, max entries and flags {words}"),
    );
}

#[test]
fn r3_a_foreign_object_under_a_pin_of_ours_is_refused() {
    needs_root!();
    // Another program's map of the same layout.
    let (bpffs, maps) = pinned();
    let path = maps.join("LB4_VIPS");
    let other = odd("cilium_lb", &path, |_| ());
    fs::remove_file(&path).expect("a pin");
    other.pin(&path).expect("pinned");
    let mut values: HashMap<_, [u8; 4], u64> = Map::HashMap(other).try_into().expect("a hash");
    values.insert([1, 2, 3, 4], 5, 0).expect("an entry");
    assert_refused(bpffs.path(), "name", &["LB4_VIPS", "the name cilium_lb", "left untouched"]);

    // One of our own maps under the name of another.
    let (bpffs, maps) = pinned();
    fs::rename(maps.join("LB4_VIPS"), maps.join("LB6_VIPS")).expect("renamed");
    assert_refused(bpffs.path(), "swapped", &["LB6_VIPS", "the name LB4_VIPS"]);

    // A program.
    let (bpffs, maps) = pinned();
    let mut datapath = Datapath::open(bpffs.path(), &SIZES).expect("the datapath");
    fs::remove_file(maps.join("LB_RINGS")).expect("a pin");
    datapath.program("lb_ingress").expect("a program").pin(maps.join("LB_RINGS")).expect("pinned");
    drop(datapath);
    assert_refused(bpffs.path(), "a program", &["LB_RINGS"]);

    // A directory.
    let (bpffs, maps) = pinned();
    fs::remove_file(maps.join("LB_RINGS")).expect("a pin");
    fs::create_dir(maps.join("LB_RINGS")).expect("a directory");
    assert_refused(bpffs.path(), "a directory", &["LB_RINGS", "cannot be read as a map", "remove it"]);
    scoreboard(
        "R3",
        "a foreign map, another map of ours, a program and a directory under a pin: refused, nothing touched",
    );
}

#[test]
fn r3_pins_of_another_schema_or_owner_are_refused() {
    needs_root!();
    let (bpffs, _) = pinned();
    let base = bpffs.path().join("ballast");
    fs::create_dir(base.join("v0")).expect("a directory");
    assert_refused(bpffs.path(), "schema", &["ballast/v0", "another version", "ballast cleanup"]);
    fs::remove_dir(base.join("v0")).expect("removed");

    fs::set_permissions(&base, fs::Permissions::from_mode(0o777)).expect("opened");
    assert_refused(bpffs.path(), "mode", &["mode 777", "chmod 700"]);
    fs::set_permissions(&base, fs::Permissions::from_mode(0o700)).expect("closed");

    std::os::unix::fs::chown(&base, Some(65_534), None).expect("given away");
    assert_refused(bpffs.path(), "owner", &["user 65534", "chown 0"]);
    std::os::unix::fs::chown(&base, Some(0), None).expect("taken back");
    drop(Datapath::open(bpffs.path(), &SIZES).expect("the same pins as before"));
    scoreboard(
        "R3",
        "another schema, mode or owner of the directory: refused, nothing touched (no layout is migrated yet)",
    );
}
