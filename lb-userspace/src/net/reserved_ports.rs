//! The SNAT port range is kept from the node's own sockets: `net.ipv4.ip_local_reserved_ports` (semantics.md 2.10.9).

use std::{
    collections::BTreeSet,
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

const SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

fn memory(state_dir: &Path) -> PathBuf {
    state_dir.join("reserved-ports")
}

/// Reserves `range` beside what is reserved already, and remembers in the state directory what was not ours.
pub fn reserve(range: &RangeInclusive<u16>, state_dir: &Path) -> io::Result<()> {
    let current = parse(&fs::read_to_string(SYSCTL)?);
    let wanted: BTreeSet<u16> = range.clone().collect();
    let missing: BTreeSet<u16> = wanted.difference(&current).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    // What an earlier run added stays ours.
    let mut ours = read(state_dir)?;
    ours.extend(&missing);
    fs::write(memory(state_dir), format(&ours))?;
    fs::write(SYSCTL, format(&current.union(&missing).copied().collect()))
}

/// Gives back what [`reserve`] added; whether there was anything.
pub fn restore(state_dir: &Path, dry_run: bool) -> io::Result<bool> {
    let ours = read(state_dir)?;
    if ours.is_empty() || dry_run {
        return Ok(!ours.is_empty());
    }
    let current = parse(&fs::read_to_string(SYSCTL)?);
    let rest = current.difference(&ours).copied().collect();
    // An empty write is ignored by the kernel; a line end empties the list.
    fs::write(SYSCTL, format!("{}\n", format(&rest)))?;
    fs::remove_file(memory(state_dir))?;
    Ok(true)
}

fn read(state_dir: &Path) -> io::Result<BTreeSet<u16>> {
    match fs::read_to_string(memory(state_dir)) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Reads `1,5-7`.
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
}
