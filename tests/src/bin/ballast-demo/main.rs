//! `cargo xtask run`: a small cluster in network namespaces, a folder of documents, and every access path tried.

mod away;
mod cast;
mod names;
mod paths;
mod picks;
mod progress;
mod sheet;
mod signals;
mod stage;
mod table;
mod targets;
mod ways;

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    process::{Child, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use lb_tests::Network;

use self::{
    progress::Progress,
    signals::{Ending, Signals},
    stage::Stage,
};

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// A client outside, a router, and two nodes with their pods, in network namespaces of their own; each node runs
/// `ballast run` on a folder of Kubernetes documents.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask run", version)]
struct Options {
    /// Your own folder or file, also straight out of `kubectl get -o yaml`: its nodes keep their names, its Pods become
    /// namespaces with echo servers
    #[arg(short, long = "filename", value_name = "PATH")]
    file: Option<PathBuf>,
    /// How pods hang on their node, and how their packets come to other nodes
    #[arg(long, value_enum, default_value_t)]
    network: Network,
    /// Try every access path once and end; exit code 0 only if all of them work
    #[arg(long)]
    once: bool,
    /// Command to run in the client's namespace instead of waiting for Ctrl-C
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut signals = match Signals::watch() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match run(&options, &mut signals) {
        Ok(code) => code,
        // What failed after a signal failed because of it.
        Err(_) if signals.has_come() => {
            eprintln!("interrupted; everything is taken down");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, signals: &mut Signals) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let begin = Instant::now();
    let mut stage = Stage::build(options.file.as_deref(), options.network, &progress, signals)?;
    let failed = try_all(&stage, &progress, signals, begin)?;
    if failed > 0 {
        stage.explain();
    }
    if !options.command.is_empty() {
        return run_at_client(&stage, &options.command, signals);
    }
    if options.once {
        return Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    println!("\n{}", stage.manual());
    stay(&mut stage, &progress, signals)?;
    eprintln!("taking everything down");
    Ok(ExitCode::SUCCESS)
}

/// Prints the table; how many paths failed.
fn try_all(stage: &Stage, progress: &Progress, signals: &Signals, begin: Instant) -> anyhow::Result<usize> {
    progress.say("trying the access paths");
    let paths = paths::all(stage);
    let mut rows = Vec::new();
    for path in &paths {
        progress.count(rows.len() + 1, paths.len());
        rows.push(table::attempt(path)?);
        signals.check()?;
    }
    progress.end();
    let failed = rows.iter().filter(|row| row.result.is_err()).count();
    println!("{}", table::show(&rows, &stage.targets));
    let (commands, failed_commands) = ways::try_all(stage, signals)?;
    let (count, failed) = (rows.len() + commands, failed + failed_commands);
    println!("\n{count} access paths, {failed} failed, {:.1} s", begin.elapsed().as_secs_f64());
    Ok(failed)
}

/// Until a signal; what changes in the documents meanwhile gets its namespaces.
fn stay(stage: &mut Stage, progress: &Progress, signals: &mut Signals) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (_watch, mut changes) = stage.watch()?;
    loop {
        let changed = runtime.block_on(async {
            tokio::select! {
                Some(()) = changes.recv() => true,
                _ = signals.endings.recv() => false,
            }
        });
        if !changed {
            return Ok(());
        }
        stage.follow(progress)?;
    }
}

fn run_at_client(stage: &Stage, command: &[String], signals: &mut Signals) -> anyhow::Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut child = stage.client().command(program)?;
    let mut child = child.args(arguments).spawn().with_context(|| format!("cannot run {program}"))?;
    let result = wait(&mut child, signals);
    if result.is_err() {
        // It may have ended by the same signal already.
        drop(child.kill());
        drop(child.wait());
    }
    result
}

/// The command's own exit code; an error when a signal asks for the end.
fn wait(child: &mut Child, signals: &mut Signals) -> anyhow::Result<ExitCode> {
    loop {
        if let Some(status) = child.try_wait()? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
        match signals.endings.try_recv() {
            // At a terminal the command has got Ctrl-C too, and decides.
            Ok(Ending::Interrupt) if std::io::stdin().is_terminal() => {}
            Ok(_) => anyhow::bail!("interrupted"),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The demo's own folder.
fn demo_folder() -> anyhow::Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("demo");
    folder.canonicalize().with_context(|| format!("{} is missing", folder.display()))
}
