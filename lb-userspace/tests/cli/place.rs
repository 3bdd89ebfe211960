//! A folder of its own for each test, and the binary run in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const BALLAST: &str = env!("CARGO_BIN_EXE_ballast");

/// Removed when dropped.
#[derive(Debug)]
pub(crate) struct Place(tempfile::TempDir);

/// What a command answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    /// Fails the test unless the command ended with `code` and its standard error holds all of `parts`.
    #[track_caller]
    pub(crate) fn expect_error(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:#?}");
        }
    }

    /// Fails the test unless the command ended with `code` and its standard output holds all of `parts`.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for part in parts {
            assert!(self.stdout.contains(part), "{part:?} is not in {self:#?}");
        }
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, text).expect("written");
        path
    }

    /// `ballast` with these arguments. State and pins are this place's; nothing of the machine's is touched.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(BALLAST), "state", arguments)
    }

    pub(crate) fn command_of(&self, program: &Path, state: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("NO_COLOR", "1").current_dir(self.0.path());
        command.arg("--state-dir").arg(self.path(state)).arg("--bpffs").arg(self.path("bpf"));
        // Processes of the machine must not be captured: this is no cgroup2, and the agent says so.
        command.arg("--cgroup").arg(self.path("no-cgroup"));
        command
    }

    /// The same in a network namespace of its own: for commands that change devices or settings of theirs.
    pub(crate) fn isolated(&self, state: &str, arguments: &[&str]) -> Command {
        let inner = self.command_of(Path::new(BALLAST), state, arguments);
        let mut command = Command::new("unshare");
        command.arg("--net").arg(inner.get_program()).args(inner.get_args()).current_dir(self.0.path());
        command.env("NO_COLOR", "1");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Answer {
        self.command(arguments).output().expect("ballast runs").into()
    }

    pub(crate) fn run_isolated(&self, state: &str, arguments: &[&str]) -> Answer {
        self.isolated(state, arguments).output().expect("unshare runs").into()
    }
}

/// Says why a test does nothing, in the form that `cargo xtask test` counts.
pub(crate) fn skip(reason: &str) {
    println!("SKIP {}: {reason}", std::thread::current().name().unwrap_or("test"));
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
