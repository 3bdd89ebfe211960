//! The takeover: after a first start beside kube-proxy's rules, TCP connections that they opened go on by them.

use lb_common::settings::{takeover, takeover_left};

use crate::{kube_proxy, report::Problem};

/// The takeover as the agent has it.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    /// [`lb_common::settings::Setting::Takeover`]
    pub(super) word: u64,
    /// What could not be seen.
    pub(super) warning: Option<Problem>,
}

impl Takeover {
    /// `kept`: the word that the maps hold. `first`: they are new. The clock is [`crate::gc::Clock`]'s.
    pub(super) fn begin(kept: u64, first: bool, now: u32, ticks_per_second: u32, seconds: u32) -> Self {
        if seconds == 0 {
            return Self::default();
        }
        if !first {
            return Self { word: kept, warning: None };
        }
        let mut begun = Self::default();
        for (program, chains) in kube_proxy::chains() {
            match chains {
                Ok(chains) if chains.is_empty() => {}
                Ok(chains) => {
                    begun.word = takeover(now, seconds.saturating_mul(ticks_per_second));
                    tracing::info!(
                        "{} chains of kube-proxy are in netfilter ({program}): for {seconds} s TCP without state is left to \
                         them",
                        chains.len()
                    );
                    return Self { warning: None, ..begun };
                }
                Err(error) => {
                    begun.warning = Some(Problem {
                        object: "takeover".to_owned(),
                        cause: format!("cannot see whether kube-proxy left rules here: {error}"),
                        fix: "TCP connections that they opened are reset: install the command before the first start, or \
                              ignore this where kube-proxy never ran"
                            .to_owned(),
                    });
                }
            }
        }
        begun
    }

    /// Whether it has just ended: the word is cleared then, for the clock of 32 bits comes round again.
    pub(super) fn ends(&mut self, now: u32) -> bool {
        let ended = self.word != 0 && takeover_left(self.word, now) == 0;
        if ended {
            tracing::info!("the takeover is over: TCP without state is refused from now on");
            self.word = 0;
        }
        ended
    }

    /// Seconds that it lasts.
    pub(super) fn seconds_left(&self, now: u32, ticks_per_second: u32) -> Option<u32> {
        let left = takeover_left(self.word, now);
        (left != 0).then(|| left.div_ceil(ticks_per_second.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_outlives_a_restart_and_ends_once() {
        let word = takeover(u32::MAX - 9, 100);
        let mut kept = Takeover::begin(word, false, 0, 100, 600);
        assert_eq!(kept.word, word);
        assert_eq!(kept.seconds_left(0, 100), Some(1));
        assert!(!kept.ends(89));
        assert!(kept.ends(90));
        assert_eq!((kept.word, kept.seconds_left(90, 100)), (0, None));
        assert!(!kept.ends(91));
        assert_eq!(Takeover::begin(word, false, 0, 100, 0).word, 0, "switched off");
    }
}
