//! `cargo xtask run`: a small cluster in network namespaces, a folder of documents, and every access path tried.

mod paths;
mod stage;

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    process::{ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use self::stage::Stage;

/// A client outside, a router, and two nodes with their pods, in network namespaces of their own; each node runs
/// `ballast run` on a folder of Kubernetes documents.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask run", version)]
struct Options {
    /// Your own folder or file: its Pods (of nodeName node1 and node2) become namespaces with echo servers
    #[arg(short, long = "filename", value_name = "PATH")]
    file: Option<PathBuf>,
    /// Try every access path once and end; exit code 0 only if all of them work
    #[arg(long)]
    once: bool,
    /// Command to run in the client's namespace instead of waiting for Ctrl-C
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says what is going on: a moving line on a terminal, a plain one elsewhere.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self(terminal.then(|| {
            let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        }))
    }

    fn say(&self, what: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("{what}"),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // From here on Ctrl-C only ends the waiting: the world is always taken down.
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(guard);
    let progress = Progress::new();
    let begin = Instant::now();
    let stage = Stage::build(options.file.as_deref(), |what| progress.say(what))?;
    progress.say("trying the access paths");
    let rows = paths::try_all(&stage)?;
    progress.end();
    let failed = rows.iter().filter(|row| row.result.is_err()).count();
    println!("{}", paths::table(&rows));
    println!("{} access paths, {failed} failed, {:.1} s", rows.len(), begin.elapsed().as_secs_f64());
    if failed > 0 {
        stage.explain();
    }
    if !options.command.is_empty() {
        return stage.run_at_client(&options.command).map(code_of);
    }
    if options.once {
        return Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    println!("\n{}", stage.manual());
    runtime.block_on(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    eprintln!("taking everything down");
    Ok(ExitCode::SUCCESS)
}

fn code_of(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The demo's own folder.
fn demo_folder() -> anyhow::Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("demo");
    folder.canonicalize().with_context(|| format!("{} is missing", folder.display()))
}
