//! Child processes of the world: output captured, killed on drop, complaints shown when the test fails.

use std::{
    fs::{self, File},
    io::Write as _,
    net::IpAddr,
    os::unix::{fs::FileExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal};

use crate::{Place, wait_until};

/// How much of what a child wrote is shown when a test fails: servers of Kubernetes write thousands of lines.
const SHOWN: usize = 200;

/// A running child; killed on drop, and its stderr printed if the thread is panicking then.
#[derive(Debug)]
pub struct Process {
    label: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Process {
    /// Starts `command`; `label` names it in messages.
    pub fn spawn(label: &str, command: Command) -> anyhow::Result<Self> {
        Self::spawn_into(label, command, tempfile::tempfile().context("no temporary file for the output")?)
    }

    /// The same with its stderr in the file `log`, which is appended to.
    pub(crate) fn spawn_logged(label: &str, command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).read(true).append(true).open(log);
        Self::spawn_into(label, command, file.with_context(|| format!("cannot open {}", log.display()))?)
    }

    fn spawn_into(label: &str, mut command: Command, stderr: File) -> anyhow::Result<Self> {
        let stdout = tempfile::tempfile().context("no temporary file for the output")?;
        // A group of its own: Ctrl-C at a terminal is for whoever built the world, who then ends it in order.
        let child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {label}: {}", command.get_program().display()))?;
        Ok(Self { label: label.to_owned(), child, stdout, stderr })
    }

    /// What it is called in messages.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// Its pid.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Waits for its first whole line of output; an error if it ends or stays silent.
    pub fn first_line(&mut self, limit: Duration) -> anyhow::Result<String> {
        self.line(0, limit)
    }

    /// Waits for its whole line number `index`, counted from 0.
    pub fn line(&mut self, index: usize, limit: Duration) -> anyhow::Result<String> {
        let what = format!("{}: line {} of its output", self.label, index + 1);
        let line = wait_until(&what, limit, || {
            // Asked before the output is read: what it wrote before it ended is not missed.
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            let stdout = self.stdout();
            match (stdout.split_inclusive('\n').nth(index).and_then(|line| line.strip_suffix('\n')), ended) {
                (Some(line), _) => Ok(Ok(line.to_owned())),
                (None, Some(status)) => Ok(Err(status)),
                (None, None) => Err("nothing yet".to_owned()),
            }
        })?;
        line.map_err(|status| anyhow!("{} ended ({status}) without a word: {}", self.label, self.stderr().trim()))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.child.stdin.as_mut().with_context(|| format!("{} listens no more", self.label))?;
        writeln!(stdin, "{line}").with_context(|| format!("cannot tell {} to {line}", self.label))
    }

    /// Closes its standard input, which tells a peer to end.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no such pid")?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.label))
    }

    /// Asks a process that is no child of ours to end (SIGTERM).
    pub fn ask_to_end(pid: u32) -> anyhow::Result<()> {
        let target = i32::try_from(pid).ok().and_then(Pid::from_raw).with_context(|| format!("{pid} is no pid"))?;
        rustix::process::kill_process(target, Signal::TERM).with_context(|| format!("cannot end process {pid}"))
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.label))?;
        self.child.wait().with_context(|| format!("cannot wait for {}", self.label))?;
        Ok(())
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let child = &mut self.child;
        wait_until(&format!("{}: end", self.label), limit, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Waits for it to end well; what it printed.
    pub fn output(mut self, limit: Duration) -> anyhow::Result<String> {
        self.close_stdin();
        let status = self.wait(limit)?;
        if !status.success() {
            bail!("{} failed ({status}): {}", self.label, self.stderr().trim());
        }
        Ok(self.stdout())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended is as good.
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let stderr = self.stderr();
            if !stderr.trim().is_empty() {
                eprintln!("--- stderr of {} ---\n{}", self.label, last_lines(&stderr, SHOWN));
            }
        }
    }
}

/// The end of a text: at most `count` lines, and how many were left out.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    let skipped = lines.len().saturating_sub(count);
    let shown = lines.get(skipped..).unwrap_or_default().join("\n");
    if skipped == 0 { shown } else { format!("({skipped} lines before)\n{shown}") }
}

/// Reads by position: the child's descriptor shares the file's offset.
fn contents(file: &File) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0_u8; 8192];
    while let Ok(count) = file.read_at(&mut chunk, bytes.len() as u64) {
        let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else { break };
        bytes.extend_from_slice(read);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An echo server in a pod or on a node: the greeting names it and the client's address as it sees it.
#[derive(Debug)]
pub struct Echo {
    process: Process,
}

impl Echo {
    /// Starts a server at `place` on the given `tcp` and `udp` ports, both families; bound when this returns.
    ///
    /// It calls itself by the place's name.
    pub fn start(place: &Place, tcp: &[u16], udp: &[u16]) -> anyhow::Result<Self> {
        Self::start_on(place, tcp, udp, &[])
    }

    /// The same, whose greeting over TCP is an HTTP page: curl gets it, and so do the clients of [`crate::client`].
    pub fn start_page(place: &Place, tcp: &[u16], udp: &[u16]) -> anyhow::Result<Self> {
        Self::spawn(place, tcp, udp, &[], &["--page"])
    }

    /// The same, but only on these addresses of the place. Where it has several, datagrams are answered by the one that
    /// was asked.
    pub fn start_on(place: &Place, tcp: &[u16], udp: &[u16], addresses: &[IpAddr]) -> anyhow::Result<Self> {
        Self::spawn(place, tcp, udp, addresses, &[])
    }

    fn spawn(place: &Place, tcp: &[u16], udp: &[u16], addresses: &[IpAddr], options: &[&str]) -> anyhow::Result<Self> {
        let mut command = place.command(binary("ballast-peer")?)?;
        command.args(["server", "--name", place.name()]).args(options);
        for port in tcp {
            command.arg("--tcp").arg(port.to_string());
        }
        for port in udp {
            command.arg("--udp").arg(port.to_string());
        }
        for address in addresses {
            command.arg("--bind").arg(address.to_string());
        }
        let mut process = Process::spawn(&format!("echo server {}", place.name()), command)?;
        process.first_line(Duration::from_secs(10))?;
        Ok(Self { process })
    }

    /// Keeps all its threads on one CPU, and those it will start.
    pub fn pin(&self, cpu: usize) -> anyhow::Result<()> {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        let tasks = format!("/proc/{}/task", self.process.id());
        for entry in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
            let thread = entry?.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            rustix::thread::sched_setaffinity(thread, &set).with_context(|| format!("cannot stay on CPU {cpu}"))?;
        }
        Ok(())
    }

    /// The server's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Finds a binary of this workspace: by `BALLAST_BIN` or `BALLAST_PEER_BIN`, else beside the running test.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let variable = if name == "ballast" { "BALLAST_BIN" } else { "BALLAST_PEER_BIN" };
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    exe.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file()).with_context(|| {
        format!("no `{name}` beside {}: build it (cargo xtask build) or set {variable}", exe.display())
    })
}
