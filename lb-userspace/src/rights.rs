//! The capabilities of this process.

use std::{fs, io};

use crate::report::Problem;

/// What an agent cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capability {
    bit: u32,
    /// As capabilities(7) has it.
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) why: &'static str,
}

/// All of them; each is taken away in a test, and the kernel refuses something.
pub(crate) const NEEDED: [Capability; 3] = [
    Capability { bit: NET_ADMIN, name: "CAP_NET_ADMIN", why: "attach programs, make routes and ballast0" },
    Capability { bit: 38, name: "CAP_PERFMON", why: "have its programs verified" },
    Capability { bit: 39, name: "CAP_BPF", why: "load programs and make maps" },
];

const NET_ADMIN: u32 = 12;
/// `CAP_SYS_ADMIN`: stands in for `CAP_BPF` and `CAP_PERFMON`, and alone may look programs up by their ids.
const SYS_ADMIN: u32 = 21;

/// A bit for each effective capability.
pub(crate) fn effective() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    mask.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff in /proc/self/status"))
}

/// Those of [`NEEDED`] that are not there.
pub(crate) fn missing(mask: u64) -> impl Iterator<Item = Capability> {
    let has = move |bit: u32| mask >> bit & 1 != 0;
    NEEDED.into_iter().filter(move |it| !has(it.bit) && (it.bit == NET_ADMIN || !has(SYS_ADMIN)))
}

/// The error of something the kernel refused, with the capabilities that are missing.
pub(crate) fn explain(error: impl Into<anyhow::Error>) -> anyhow::Error {
    let error: anyhow::Error = error.into();
    let missing: Vec<_> = effective().map(|mask| missing(mask).collect()).unwrap_or_default();
    if missing.is_empty() {
        return error;
    }
    let lines = missing.iter().map(|it| format!("{} is missing: without it an agent cannot {}", it.name, it.why));
    let fix = "give the agent all three of CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or run it as root";
    error.context(format!("{} ({fix})", lines.collect::<Vec<_>>().join("; ")))
}

/// What a process with no more than it needs does not see.
pub(crate) fn unseen(mask: u64) -> Option<Problem> {
    (mask >> SYS_ADMIN & 1 == 0).then(|| Problem {
        object: "rights".to_owned(),
        cause:
            "without CAP_SYS_ADMIN other programs cannot be looked up by their ids: which of them run at this node's \
                devices is not seen here"
                .to_owned(),
        fix: "nothing, if that is meant; `bpftool net` or `ballast check` on the node itself shows them".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_do_all_sees_all() {
        assert_eq!(unseen(u64::MAX), None);
        assert_eq!(missing(u64::MAX).count(), 0);
        assert_eq!(missing(1 << SYS_ADMIN | 1 << NET_ADMIN).count(), 0, "it stands in for the others");
        let names: Vec<_> = missing(1 << SYS_ADMIN).map(|it| it.name).collect();
        assert_eq!(names, ["CAP_NET_ADMIN"]);
        assert_eq!(missing(0).count(), 3);
        let least = 1 << 12 | 1 << 38 | 1 << 39;
        assert!(unseen(least).is_some_and(|problem| problem.cause.contains("CAP_SYS_ADMIN")));
    }
}
