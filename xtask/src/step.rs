//! Running one command as one step: one line with its time, its output only when it fails.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, IsTerminal, Read},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

use crate::root;

/// How long a silent step may take before a log without a terminal names it.
const HEARTBEAT: Duration = Duration::from_mins(1);

/// What a finished step left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ok: bool,
    pub(crate) code: Option<i32>,
    /// stdout and stderr together, in the order they came.
    pub(crate) lines: Vec<String>,
}

/// Runs `command` as the step `name` and prints one line: the mark, the name, the time. The output follows only
/// when the command failed.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<Outcome> {
    let started = Instant::now();
    let bar = spinner(name);
    let outcome = capture(name, command, started);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let outcome = outcome?;
    print_line(if outcome.ok { Mark::Ok } else { Mark::Failed }, name, Some(started.elapsed()));
    if !outcome.ok {
        for line in &outcome.lines {
            println!("    {line}");
        }
    }
    Ok(outcome)
}

/// As [`run`], for a step whose failure ends the command.
pub(crate) fn must(name: &str, command: &mut Command) -> Result<Outcome> {
    let outcome = run(name, command)?;
    if !outcome.ok {
        bail!("{name} failed{}: `{}`", exit(outcome.code), show(command));
    }
    Ok(outcome)
}

/// The output of a quick question, or None when the command is missing or fails.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The host's cargo, at the root of the workspace, without what cargo set for this process.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root::workspace());
    clean(&mut command);
    command.env("CARGO_TARGET_DIR", root::target());
    command
}

/// Removes what `cargo run` set for xtask itself and what would move the output or change the fingerprints.
pub(crate) fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if is_of_this_run(&name) {
            command.env_remove(name);
        }
    }
}

fn is_of_this_run(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_"].iter().any(|prefix| name.starts_with(prefix))
        || ["CARGO", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "CARGO_TARGET_DIR", "OUT_DIR"].contains(&name)
}

/// A line that is not a command: ok, failed, skipped, note.
pub(crate) fn print_line(mark: Mark, name: &str, time: Option<Duration>) {
    let word = mark.word();
    let word = if colour() { format!("\x1b[{}m{word:<4}\x1b[0m", mark.colour()) } else { format!("{word:<4}") };
    match time {
        Some(time) => println!("{word}  {name}  ({:.1} s)", time.as_secs_f64()),
        None => println!("{word}  {name}"),
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mark {
    Ok,
    Failed,
    Skipped,
    Note,
}

impl Mark {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "FAIL",
            Self::Skipped => "skip",
            Self::Note => "note",
        }
    }

    fn colour(self) -> u8 {
        match self {
            Self::Ok => 32,
            Self::Failed => 31,
            Self::Skipped => 33,
            Self::Note => 36,
        }
    }
}

/// Colour only on a terminal and never with `NO_COLOR`.
fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn spinner(name: &str) -> Option<ProgressBar> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new_spinner().with_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    Some(bar)
}

fn capture(name: &str, command: &mut Command, started: Instant) -> Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{name}: cannot start `{}`", show(command)))?;
    let (sender, lines) = mpsc::channel();
    let mut readers = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        readers.push(forward(stdout, sender.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        readers.push(forward(stderr, sender.clone()));
    }
    drop(sender);
    let mut collected = Vec::new();
    let mut next_word = HEARTBEAT;
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => collected.push(line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if started.elapsed() >= next_word {
            next_word += HEARTBEAT;
            if !std::io::stdout().is_terminal() {
                println!("      {name}: still running after {} s", started.elapsed().as_secs());
            }
        }
    }
    let status = child.wait().with_context(|| format!("{name}: cannot wait for `{}`", show(command)))?;
    for reader in readers {
        drop(reader.join());
    }
    Ok(Outcome { ok: status.success(), code: status.code(), lines: collected })
}

fn forward(source: impl Read + Send + 'static, sender: Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        // Bytes, not `lines()`: a test may print what is not UTF-8, and that must not end the reading.
        while matches!(source.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    })
}

/// The command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

fn exit(code: Option<i32>) -> String {
    code.map_or_else(|| " (killed by a signal)".to_owned(), |code| format!(" (exit code {code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_and_the_code_are_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let outcome = capture("sh", &mut command, Instant::now()).unwrap();
        let mut lines = outcome.lines;
        lines.sort();
        assert_eq!((outcome.ok, outcome.code, lines), (false, Some(3), vec!["err".to_owned(), "out".to_owned()]));
    }

    #[test]
    fn what_cargo_set_for_xtask_is_not_passed_on() {
        assert!(is_of_this_run(OsStr::new("CARGO_PKG_NAME")));
        assert!(is_of_this_run(OsStr::new("CARGO")));
        assert!(!is_of_this_run(OsStr::new("CARGO_HOME")));
        assert!(!is_of_this_run(OsStr::new("CARGO_NET_OFFLINE")));
    }
}
