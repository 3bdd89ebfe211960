//! The allocator's habits, for a process that reads much and keeps little, and what the kernel does where there is none left.

use std::{fs, path::Path};

use crate::report::Problem;

/// Where a process says how soon it is to be killed for want of memory (proc(5)).
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
/// What kube-proxy asks for where its configuration says nothing.
pub const OOM_SCORE_DEFAULT: i16 = -999;

/// Does what `oomScoreAdj` says. Less than it was takes `CAP_SYS_RESOURCE`; a problem where that is missing.
pub fn set_oom_score(score: i16) -> Option<Problem> {
    set_oom_score_at(Path::new(OOM_SCORE_ADJ), score)
}

fn set_oom_score_at(path: &Path, score: i16) -> Option<Problem> {
    let error = fs::write(path, score.to_string()).err()?;
    Some(Problem {
        object: "oomScoreAdj".to_owned(),
        cause: format!("{score} cannot be written to {}: {error}", path.display()),
        fix: "give the agent CAP_SYS_RESOURCE, or remove the field".to_owned(),
    })
}

/// One heap for all threads: each of glibc's arenas keeps what its thread once used, and ours never work at once. Call it
/// before the first thread starts.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no precondition; a refusal leaves the default.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what a reload took: reading documents takes several times the memory of what they say, and glibc keeps it
/// for a next time that may never come. Other C libraries give it back by themselves.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no precondition; only memory that is free already is given back.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_written_as_a_number_or_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("oom_score_adj");
        assert_eq!(set_oom_score_at(&path, -999), None);
        assert_eq!(fs::read_to_string(&path).expect("the file"), "-999");
        let problem = set_oom_score_at(&folder.path().join("none/there"), 5).expect("told");
        assert!(problem.cause.starts_with("5 cannot be written to") && problem.fix.contains("CAP_SYS_RESOURCE"));
    }
}
