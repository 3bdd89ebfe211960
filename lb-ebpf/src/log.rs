//! A log line for every packet that did not take its normal course. Only in a build with the feature `log`
//! (`cargo xtask build --bpf-log`): a flood of such packets would otherwise be a flood of lines.

use aya_ebpf::EbpfContext;
use lb_common::verdict::{Counter, Verdict};

/// Says what was decided, unless that is what happens to most packets.
#[inline(always)]
pub(crate) fn verdict<C: EbpfContext>(context: &C, verdict: Verdict) {
    if cfg!(feature = "log") && !is_routine(verdict.counter) {
        line(context, verdict);
    }
}

/// Its stack must not lie under the pipeline's.
#[cfg(feature = "log")]
#[inline(never)]
fn line<C: EbpfContext>(context: &C, verdict: Verdict) {
    aya_log_ebpf::debug!(context, "action {}, counter {}", verdict.action as u8, verdict.counter as u8);
}

#[cfg(not(feature = "log"))]
#[inline(always)]
fn line<C: EbpfContext>(_context: &C, _verdict: Verdict) {}

#[inline(always)]
fn is_routine(counter: Counter) -> bool {
    matches!(
        counter,
        Counter::OtherLink
            | Counter::NotAService
            | Counter::Deferred
            | Counter::ToBackend
            | Counter::SourceNat
            | Counter::ToClient
            | Counter::FromFrontend
            | Counter::HostReply
    )
}
