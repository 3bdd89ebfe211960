//! The takeover: after a first start beside kube-proxy's rules, TCP connections that they opened go on by them.

use lb_common::settings::takeover;

use crate::{gc::Clock, kube_proxy, report::Problem};

/// The takeover as the agent has it.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    /// [`lb_common::settings::Setting::Takeover`]
    pub(super) word: u64,
    /// What could not be seen.
    pub(super) warning: Option<Problem>,
}

impl Takeover {
    /// `kept`: the word that the maps hold. `first`: they are new.
    pub(super) async fn begin(kept: u64, first: bool, clock: Clock, seconds: u32) -> Self {
        if seconds == 0 {
            return Self::default();
        }
        if !first {
            return Self { word: kept, warning: None };
        }
        let mut warning = None;
        for (program, chains) in kube_proxy::chains().await {
            match chains {
                Ok(chains) if chains.is_empty() => {}
                Ok(chains) => {
                    tracing::info!(
                        "{} chains of kube-proxy are in netfilter ({program}): for {seconds} s TCP without state is left to \
                         them",
                        chains.len()
                    );
                    let word = takeover(clock.now, seconds.saturating_mul(clock.ticks_per_second));
                    return Self { word, warning: None };
                }
                Err(error) => {
                    warning = Some(Problem {
                        object: "takeover".to_owned(),
                        cause: format!("cannot see whether kube-proxy left rules here: {error}"),
                        fix: "TCP connections that they opened are reset: install the command before the first start, or \
                              ignore this where kube-proxy never ran"
                            .to_owned(),
                    });
                }
            }
        }
        Self { word: 0, warning }
    }

    /// Whether it has just ended: the word is cleared then, for the clock of 32 bits comes round again.
    pub(super) fn ends(&mut self, clock: Clock) -> bool {
        let ended = self.word != 0 && clock.takeover_seconds(self.word).is_none();
        if ended {
            tracing::info!("the takeover is over: TCP without state is refused from now on");
            self.word = 0;
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_takeover_outlives_a_restart_and_ends_once() {
        let at = |now| Clock { now, ticks_per_second: 100, timeouts: lb_common::state::Timeouts::DEFAULT };
        let word = takeover(u32::MAX - 9, 100);
        let mut kept = Takeover::begin(word, false, at(0), 600).await;
        assert_eq!(kept.word, word);
        assert_eq!(at(0).takeover_seconds(kept.word), Some(1));
        assert!(!kept.ends(at(89)));
        assert!(kept.ends(at(90)));
        assert_eq!((kept.word, at(90).takeover_seconds(kept.word)), (0, None));
        assert!(!kept.ends(at(91)));
        assert_eq!(Takeover::begin(word, false, at(0), 0).await.word, 0, "switched off");
    }
}
