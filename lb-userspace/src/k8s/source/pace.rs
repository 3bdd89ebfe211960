//! How long is waited before the next try.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

use super::failure::Failure;

/// How long is waited for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Before the second try; it doubles with each.
    pub first: Duration,
    /// At most, while the server is away: asking it costs little, and it is to be found soon when it is back.
    pub away: Duration,
    /// At most, while it answers with errors.
    pub answers: Duration,
    /// Before an empty list of what is never empty is believed.
    pub second_look: Duration,
    /// At least, from the begin of a watch to that of the next one.
    pub between: Duration,
    /// For so long the right to list what can be done without must be missing before that is believed: a server that has
    /// just started refuses everybody until it has read its roles.
    pub lasting: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            away: Duration::from_secs(4),
            answers: Duration::from_secs(30),
            second_look: Duration::from_millis(500),
            between: Duration::from_secs(1),
            lasting: Duration::from_secs(8),
        }
    }
}

/// A server that asks for more than this is asked anyway.
const LONGEST: Duration = Duration::from_mins(5);

/// Doubles the wait with every failure in a row. A server that is away and one that answers with errors are counted apart: one
/// that comes back after hours may refuse its first questions, and is asked again at once.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    timing: Timing,
    away: u32,
    answers: u32,
}

impl Pace {
    pub(super) const fn new(timing: Timing) -> Self {
        Self { timing, away: 0, answers: 0 }
    }

    pub(super) const fn success(&mut self) {
        self.away = 0;
        self.answers = 0;
    }

    /// Whether nothing failed since the last success.
    pub(super) const fn is_fresh(&self) -> bool {
        self.away == 0 && self.answers == 0
    }

    /// The wait after a failure, spread so that nodes do not come back all at once.
    pub(super) fn after(&mut self, failure: &Failure) -> Duration {
        let (failures, longest) = if failure.is_away() {
            (&mut self.away, self.timing.away)
        } else {
            (&mut self.answers, self.timing.answers)
        };
        let wait = self.timing.first.saturating_mul(1 << (*failures).min(16)).min(longest);
        *failures = failures.saturating_add(1);
        let wait = wait / 2 + spread(wait / 2);
        match failure.retry_after.map(|asked| asked.min(LONGEST)) {
            // Never earlier than it asks for.
            Some(asked) => wait.max(asked + spread(asked / 4)),
            None => wait,
        }
    }
}

/// Anything from nothing to `most`.
pub fn spread(most: Duration) -> Duration {
    // Keyed anew with every call.
    let random = RandomState::new().build_hasher().finish();
    let nanoseconds = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random % nanoseconds.saturating_add(1).max(1))
}

#[cfg(test)]
mod tests {
    use super::{super::failure::Cause, *};

    #[test]
    fn waits_grow_to_their_limit_and_begin_anew() {
        let Timing { first, away: longest, .. } = Timing::default();
        let mut pace = Pace::new(Timing::default());
        let away = Failure::of(Cause::Unreachable(String::new()));
        let waits: Vec<Duration> = (0..40).map(|_| pace.after(&away)).collect();
        assert!(waits[0] <= first && waits[0] >= first / 2);
        assert!(waits[39] <= longest && waits[39] >= longest / 2);
        pace.success();
        assert!(pace.after(&away) <= first);
        let asked = Failure { cause: Cause::Busy(429, String::new()), retry_after: Some(Duration::from_secs(7)) };
        assert!(pace.after(&asked) >= Duration::from_secs(7));
    }

    #[test]
    fn a_server_that_is_back_is_not_made_to_wait_for_its_absence() {
        let Timing { first, away, answers, .. } = Timing::default();
        let mut pace = Pace::new(Timing::default());
        let (gone, busy) = (Cause::Unreachable(String::new()), Cause::Busy(503, String::new()));
        let (gone, busy) = (Failure::of(gone), Failure::of(busy));
        for _ in 0..40 {
            assert!(pace.after(&gone) <= away);
        }
        assert!(pace.after(&busy) <= first);
        // Nor is one that is now away and now busy asked without a pause.
        let waits: Vec<Duration> =
            (0..40).map(|index| pace.after(if index % 2 == 0 { &busy } else { &gone })).collect();
        assert!(waits[38] >= answers / 2 && waits[39] >= away / 2, "{waits:?}");
    }
}
