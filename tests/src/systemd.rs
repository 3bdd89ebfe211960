//! A node whose first process is a real systemd, by `systemd-nspawn`: it starts the unit of deploy/ as a machine would.
//!
//! The machine has the world's network namespace, BPF file system and cgroup of its node. Its root is empty but for this
//! system's `/usr`, which it cannot write; users and devices are its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::Signal;

use crate::{Node, Process, World, netns, process::binary, wait_until};

/// As it is installed.
const UNIT: &str = include_str!("../../deploy/systemd/ballast.service");
const NSPAWN: &str = "systemd-nspawn";
/// Where systemd is, on a system that has it.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";
/// How long a machine that is asked to end may take, and what is asked of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A booted machine; ended on drop.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    /// Its first process, as this system sees it.
    leader: u32,
    name: String,
}

/// What the unit is given.
#[derive(Clone, Debug, Default)]
pub struct UnitSetup {
    /// `/etc/ballast`.
    pub configuration: PathBuf,
    /// Settings of a section, as a drop-in has them, besides those of the unit.
    pub drop_in: String,
}

impl Machine {
    /// Whether `node` can have one here; if not, why.
    pub fn possible(node: &Node) -> Result<(), String> {
        if !Path::new(SYSTEMD).exists() {
            return Err(format!("no {SYSTEMD}: install systemd (Debian: systemd-container)"));
        }
        let output = nspawn(node).map_err(|error| format!("{error:#}"))?.arg("/usr/bin/true").output();
        let output = output.map_err(|error| format!("{NSPAWN}: {error} (Debian: systemd-container)"))?;
        remove_folder(node.namespace().name());
        if output.status.success() {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        Err(format!("{NSPAWN} cannot start a container here ({}): {told}", output.status))
    }

    /// Boots the machine of `node`, with the unit as all that is to be started.
    pub fn boot(world: &World, node: &Node, setup: &UnitSetup) -> anyhow::Result<Self> {
        let folder = world.directory().join(format!("{}-systemd", node.name()));
        let [units, programs] = ["ballast.service.d", "bin"].map(|name| folder.join(name));
        for folder in [&units, &programs] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let unit = folder.join("ballast.service");
        // The last one is what the program is mounted on: `/usr` itself cannot be written.
        for (file, text) in
            [(&unit, UNIT), (&units.join("test.conf"), setup.drop_in.as_str()), (&programs.join("ballast"), "")]
        {
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let mut command = nspawn(node)?;
        let bind = |command: &mut Command, kind: &str, from: &Path, to: &str| {
            command.arg(format!("--{kind}={}:{to}", from.display()));
        };
        bind(&mut command, "bind", &node.bpffs(), "/sys/fs/bpf");
        bind(&mut command, "bind-ro", &setup.configuration, "/etc/ballast");
        bind(&mut command, "bind-ro", &programs, "/usr/local/bin");
        bind(&mut command, "bind-ro", &binary("ballast")?, "/usr/local/bin/ballast");
        bind(&mut command, "bind-ro", &unit, "/etc/systemd/system/ballast.service");
        bind(&mut command, "bind-ro", &units, "/etc/systemd/system/ballast.service.d");
        command.args(["--boot", "systemd.firstboot=no", "systemd.unit=ballast.service"]);
        let mut process = Process::spawn(&format!("systemd of {}", node.name()), command)?;
        let leader = leader(&mut process)?;
        let machine = Self { process, leader, name: node.namespace().name().to_owned() };
        wait_until("systemd: an answer", PATIENCE, || machine.systemctl(&["show", "--property=Version"]))?;
        Ok(machine)
    }

    /// What a command in the machine prints; an error with its complaint if it fails.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.leader.to_string(), "--all"]).args(words);
        let process = Process::spawn(&words.join(" "), command).map_err(|error| format!("{error:#}"))?;
        process.output(Duration::from_mins(1)).map_err(|error| format!("{error:#}"))
    }

    /// `systemctl ARGUMENTS`.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<String, String> {
        self.run(&[&["systemctl", "--no-pager"][..], arguments].concat())
    }

    /// The unit's properties.
    pub fn properties(&self) -> Result<BTreeMap<String, String>, String> {
        let text = self.systemctl(&["show", "ballast.service"])?;
        Ok(text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect())
    }

    /// What the unit and systemd wrote about it to the journal.
    pub fn journal(&self) -> Result<String, String> {
        self.run(&["journalctl", "--no-pager", "--output=cat", "--unit=ballast.service"])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- journal ---\n{}", self.journal().unwrap_or_else(|error| error));
        }
        // In order; what is left then ends with its process and the node's cgroup.
        if let Err(error) = self.process.signal(Signal::TERM).and_then(|()| self.process.wait(PATIENCE).map(drop)) {
            eprintln!("machine {}: {error:#}", self.name);
        }
        remove_folder(&self.name);
    }
}

/// systemd-nspawn takes it away itself only where `/run` is no disk.
fn remove_folder(machine: &str) {
    let folder = Path::new("/run/systemd/nspawn/propagate").join(machine);
    if let Err(error) = fs::remove_dir(&folder)
        && folder.exists()
    {
        eprintln!("cannot remove {}: {error}", folder.display());
    }
}

/// What all machines of a node have: it runs in the node's cgroup, so that the world ends what is in it whatever becomes of
/// this process.
fn nspawn(node: &Node) -> anyhow::Result<Command> {
    let mut command = node.place().command(NSPAWN)?;
    // `/` cannot be locked, and nothing of it is written. A machine may change the settings of its network.
    for (variable, value) in [("LOCK", "0"), ("UNIFIED_HIERARCHY", "1"), ("API_VFS_WRITABLE", "network")] {
        command.env(format!("SYSTEMD_NSPAWN_{variable}"), value);
    }
    command.args(["--quiet", "--directory=/", "--volatile=yes", "--register=no", "--keep-unit", "--link-journal=no"]);
    command.args(["--capability=all", "--system-call-filter=bpf perf_event_open", "--console=pipe"]);
    let name = node.namespace().name();
    command.args([format!("--machine={name}"), format!("--hostname={}", node.name())]);
    command.arg(format!("--network-namespace-path={}", Path::new(netns::NAMES).join(name).display()));
    Ok(command)
}

/// The child of `nspawn` that is the first of its process namespace.
fn leader(nspawn: &mut Process) -> anyhow::Result<u32> {
    let parent = nspawn.id().to_string();
    let found = wait_until("the machine's first process", PATIENCE, || {
        if !nspawn.is_running() {
            return Ok(None);
        }
        let processes = fs::read_dir("/proc").map_err(|error| error.to_string())?;
        let mut pids = processes.flatten().filter_map(|process| process.file_name().to_str()?.parse().ok());
        pids.find(|pid| is_first(*pid, &parent)).map(Some).ok_or_else(|| "none yet".to_owned())
    })?;
    found.with_context(|| format!("systemd-nspawn ended: {}", nspawn.stderr().trim()))
}

fn is_first(pid: u32, parent: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    field("PPid:") == parent && field("NSpid:").split_whitespace().nth(1) == Some("1")
}
