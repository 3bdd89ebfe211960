//! Waiting for a condition.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Polls `condition` until it yields a value; an error naming `what` and the last reason once `limit` has passed.
///
/// The condition says why it does not hold yet, which is what a failing test needs to print.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(reason) if start.elapsed() >= limit => {
                anyhow::bail!("{what}: not after {} ms: {reason}", limit.as_millis());
            }
            Err(_) => {}
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
