//! The allocator's habits, for a process that reads much and keeps little.

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
