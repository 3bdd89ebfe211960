//! What is going on, on standard error: a moving line on a terminal, plain lines elsewhere.

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

/// The display.
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self(terminal.then(|| {
            let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        }))
    }

    /// What is done now.
    pub(crate) fn say(&self, what: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("{what}"),
        }
    }

    /// Something that stays to be read.
    pub(crate) fn note(&self, what: &str) {
        match &self.0 {
            Some(bar) if !bar.is_finished() => bar.println(what),
            Some(_) | None => eprintln!("{what}"),
        }
    }

    /// How far: moves on a terminal only, where it does not fill a log.
    pub(crate) fn count(&self, done: usize, of: usize) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("trying access path {done} of {of}"));
        }
    }

    /// Clears the moving line.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
