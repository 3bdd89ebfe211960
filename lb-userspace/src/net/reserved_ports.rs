//! The SNAT port range is kept from the node's own sockets: `net.ipv4.ip_local_reserved_ports` (semantics.md 2.10.9),
//! a setting of the network namespace.
//!
//! Others reserve ports too. A file in the state directory remembers which ports are reserved because of us, so that
//! no more than those are given back.

use std::{
    collections::BTreeSet,
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// Below `/proc/sys/net`.
const SYSCTL: &str = "ipv4/ip_local_reserved_ports";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Reserves `range` beside what others reserved, and gives back what an earlier range had reserved. Nothing is written
/// when that is so already.
///
/// `sysctls` is `/proc/sys/net`, or where it is writable. Errors name the file; without the setting the kernel may give a
/// port of the range to a socket of this node.
pub fn reserve(range: &RangeInclusive<u16>, sysctls: &Path, state_dir: &Path) -> io::Result<()> {
    let (current, remembered) = (read_sysctl(sysctls)?, recall(state_dir)?);
    let change = reserving(&current, &remembered, range);
    if change.reserved != current {
        // Whatever we do to the kernel's list is remembered first: a crash in between forgets nothing.
        remember(state_dir, &remembered, &remembered.union(&change.ours).copied().collect())?;
        write_sysctl(sysctls, &change.reserved)?;
    }
    remember(state_dir, &recall(state_dir)?, &change.ours)
}

/// Gives back what [`reserve`] added, and nothing else, also when others changed the list meanwhile. Returns whether
/// there is anything to give back; with `dry_run` nothing is written.
pub fn restore(sysctls: &Path, state_dir: &Path, dry_run: bool) -> io::Result<bool> {
    let (current, remembered) = (read_sysctl(sysctls)?, recall(state_dir)?);
    let rest: BTreeSet<u16> = current.difference(&remembered).copied().collect();
    let changed = rest != current;
    if !dry_run {
        if changed {
            write_sysctl(sysctls, &rest)?;
        }
        for path in [memory(state_dir), fresh_memory(state_dir)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path, &error)),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(changed)
}

/// What to reserve in all, and which ports of it are reserved because of us.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    reserved: BTreeSet<u16>,
    ours: BTreeSet<u16>,
}

fn reserving(current: &BTreeSet<u16>, remembered: &BTreeSet<u16>, range: &RangeInclusive<u16>) -> Change {
    let theirs: BTreeSet<u16> = current.difference(remembered).copied().collect();
    let ours: BTreeSet<u16> = range.clone().filter(|port| !theirs.contains(port)).collect();
    Change { reserved: theirs.union(&ours).copied().collect(), ours }
}

fn memory(state_dir: &Path) -> PathBuf {
    state_dir.join("reserved-ports")
}

/// The next memory, until it is whole.
fn fresh_memory(state_dir: &Path) -> PathBuf {
    state_dir.join("reserved-ports.new")
}

/// What we reserved since this boot: a reboot empties the kernel's list, what stands there now is others'.
fn recall(state_dir: &Path) -> io::Result<BTreeSet<u16>> {
    let path = memory(state_dir);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(remembered_in(&text, &boot_id()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(at(&path, &error)),
    }
}

/// The ports in a memory file (the boot's id in the first line, the list in the second), if it is of this boot.
fn remembered_in(text: &str, boot_id: &str) -> BTreeSet<u16> {
    match text.split_once('\n') {
        Some((boot, list)) if boot == boot_id => parse(list),
        Some(_) | None => BTreeSet::new(),
    }
}

fn remember(state_dir: &Path, before: &BTreeSet<u16>, ports: &BTreeSet<u16>) -> io::Result<()> {
    if before == ports {
        return Ok(());
    }
    let (path, fresh) = (memory(state_dir), fresh_memory(state_dir));
    // A file cut short would make our ports others' for good.
    fs::write(&fresh, format!("{}\n{}\n", boot_id()?, format(ports))).map_err(|error| at(&fresh, &error))?;
    fs::rename(&fresh, &path).map_err(|error| at(&path, &error))
}

fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string(BOOT_ID).map_err(|error| at(Path::new(BOOT_ID), &error))?;
    Ok(text.trim().to_owned())
}

fn read_sysctl(sysctls: &Path) -> io::Result<BTreeSet<u16>> {
    let path = sysctls.join(SYSCTL);
    fs::read_to_string(&path).map(|text| parse(&text)).map_err(|error| at(&path, &error))
}

fn write_sysctl(sysctls: &Path, ports: &BTreeSet<u16>) -> io::Result<()> {
    let path = sysctls.join(SYSCTL);
    // A write of nothing is ignored by the kernel; a line end empties the list.
    fs::write(&path, format!("{}\n", format(ports))).map_err(|error| {
        let advice = "run as root of this network namespace, and name a writable /proc/sys/net with --proc-sys-net";
        io::Error::new(error.kind(), format!("{}: {error} ({advice})", path.display()))
    })
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Reads `1,5-7`; what is no port is no port of ours.
fn parse(text: &str) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            ports.extend(first..=last);
        }
    }
    ports
}

fn format(ports: &BTreeSet<u16>) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
            _ => runs.push((*port, *port)),
        }
    }
    let run = |(first, last): (u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.into_iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ports_are_read_and_written_as_the_kernel_does() {
        for text in ["", "80", "80,443", "1-3,80,65534-65535"] {
            assert_eq!(format(&parse(text)), text);
        }
        assert_eq!(format(&parse(" 1,2,3\n")), "1-3");
        assert_eq!(format(&parse("5-1,x,70000")), "");
    }

    /// What is reserved and what of it is ours.
    fn after(current: &str, remembered: &str, range: RangeInclusive<u16>) -> (String, String) {
        let change = reserving(&parse(current), &parse(remembered), &range);
        (format(&change.reserved), format(&change.ours))
    }

    fn lists(reserved: &str, ours: &str) -> (String, String) {
        (reserved.to_owned(), ours.to_owned())
    }

    #[test]
    fn what_others_reserved_is_never_ours() {
        assert_eq!(after("", "", 10..=20), lists("10-20", "10-20"));
        assert_eq!(after("15-30,80", "", 10..=20), lists("10-30,80", "10-14"));
        assert_eq!(after("10-20", "", 10..=20), lists("10-20", ""));
    }

    #[test]
    fn the_second_time_changes_nothing() {
        let (reserved, ours) = after("15-30,80", "", 10..=20);
        assert_eq!(after(&reserved, &ours, 10..=20), (reserved, ours));
    }

    #[test]
    fn a_changed_range_gives_the_old_one_back() {
        assert_eq!(after("10-30,80", "10-14", 40..=50), lists("15-30,40-50,80", "40-50"));
        assert_eq!(after("10-20", "10-20", 15..=25), lists("15-25", "15-25"));
    }

    #[test]
    fn what_somebody_took_from_the_list_is_reserved_again() {
        assert_eq!(after("80", "10-20", 10..=20), lists("10-20,80", "10-20"));
    }

    #[test]
    fn the_memory_of_another_boot_is_void() {
        assert_eq!(remembered_in("boot\n1-3\n", "boot"), parse("1-3"));
        for text in ["other\n1-3\n", "1-3", "", "boot"] {
            assert_eq!(remembered_in(text, "boot"), parse(""), "{text:?}");
        }
    }
}
