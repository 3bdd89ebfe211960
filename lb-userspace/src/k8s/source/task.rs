//! Tasks that are to run for as long as they are wanted.

use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};

use super::{
    failure::{Cause, Failure},
    pace::{Pace, Timing},
};

/// A task that ran for so long is begun anew as if it were the first.
const STEADY: Duration = Duration::from_mins(1);

/// Runs a task to its end. One that panics is told to `tell`, which says whether anybody still wants it, and begun anew.
pub(super) async fn keep_running<T, F>(timing: Timing, begin: impl Fn() -> T, tell: impl Fn(Failure) -> F)
where
    T: Future<Output = ()> + Send + 'static,
    F: Future<Output = bool>,
{
    let mut pace = Pace::new(timing);
    loop {
        let since = Instant::now();
        let mut task = JoinSet::new();
        task.spawn(begin());
        let Some(Err(ended)) = task.join_next().await else { return };
        if !ended.is_panic() {
            return;
        }
        let failure = Failure::of(Cause::Defect(words(ended)));
        if since.elapsed() >= STEADY {
            pace.success();
        }
        let wait = pace.after(&failure);
        if !tell(failure).await {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

/// What a panic said.
pub(super) fn words(ended: JoinError) -> String {
    let Ok(panic) = ended.try_into_panic() else { return "it was ended".to_owned() };
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_told_and_begun_anew() {
        let timing = Timing { first: Duration::from_millis(1), ..Timing::default() };
        let begun = Arc::new(AtomicU32::new(0));
        let told = Mutex::new(Vec::new());
        let begin = || {
            let begun = Arc::clone(&begun);
            async move { assert!(begun.fetch_add(1, Ordering::Relaxed) >= 2, "wrong") }
        };
        let tell = |failure: Failure| {
            told.lock().expect("unpoisoned").push(failure.cause);
            std::future::ready(true)
        };
        keep_running(timing, begin, tell).await;
        assert_eq!(begun.load(Ordering::Relaxed), 3);
        assert_eq!(
            *told.lock().expect("unpoisoned"),
            [Cause::Defect("wrong".to_owned()), Cause::Defect("wrong".to_owned())]
        );
        let unwanted = keep_running(timing, || async { panic!("for ever") }, |_| std::future::ready(false));
        unwanted.await;
    }
}
