//! What tests share.

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

/// What `attempt` gives once it succeeds, soon after the drop of what was in its way. A child that another test starts
/// meanwhile has a copy of every file and socket until it becomes its program, so a lock or a port is not free at once.
#[track_caller]
pub(crate) fn soon<T, E: Debug>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match attempt() {
            Ok(got) => return got,
            Err(error) => assert!(Instant::now() < end, "{error:?}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}
