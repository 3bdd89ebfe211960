//! The log lines of a debug build of the object (`cargo xtask build --bpf-log`).

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use lb_common::verdict::Counter;

/// Hands the lines to `tracing`, with the counter's name behind its number.
struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        let counter = text.rsplit(' ').next().and_then(|number| number.parse::<usize>().ok());
        let name = counter.and_then(|number| Counter::ALL.get(number)).map(|counter| format!(" ({counter:?})"));
        tracing::info!(target: "bpf", "{text}{}", name.unwrap_or_default());
    }

    fn flush(&self) {}
}

/// How often lines are fetched.
const EVERY: Duration = Duration::from_millis(100);

/// Reads them in the background for as long as the runtime lives.
pub(super) fn follow(ebpf: &mut Ebpf) {
    let mut logger = match EbpfLogger::init_with_logger(ebpf, Lines) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(
                "no log lines of the programs: {error}; build both sides with `cargo xtask build --bpf-log`"
            );
            return;
        }
    };
    tokio::spawn(async move {
        let mut timer = tokio::time::interval(EVERY);
        loop {
            timer.tick().await;
            logger.flush();
        }
    });
}
