//! Signals wait while the verifier works.

use std::{marker::PhantomData, mem::MaybeUninit, ptr};

/// The calling thread, and those that it starts meanwhile, take no signal as long as this lives; what comes for the process goes
/// to another thread, or waits. The kernel gives a verification up (`EAGAIN`) when its thread has a signal to take
/// (`do_check()` of `kernel/bpf/verifier.c`).
#[derive(Debug)]
pub(super) struct Blocked {
    before: libc::sigset_t,
    /// It is about one thread.
    _here: PhantomData<*const ()>,
}

impl Blocked {
    /// From here on; nothing where the kernel refuses, which it has no reason to.
    pub(super) fn here() -> Option<Self> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the pointer is to a set.
        if unsafe { libc::sigfillset(all.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: both pointers are to sets, the first of which was filled above.
        if unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call above wrote it.
        Some(Self { before: unsafe { before.assume_init() }, _here: PhantomData })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the pointer is to a set; none is wanted back.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
        debug_assert_eq!(result, 0, "a mask that was read before is taken");
    }
}
