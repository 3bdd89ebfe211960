//! `cargo xtask cluster up | status | down`, without the building.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, ensure};
use lb_tests::{needs_control_plane, owner, program, traces, wait_until};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// What is left is taken down when the test fails.
struct Dir(tempfile::TempDir);

impl Dir {
    fn run(&self, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast-cluster"));
        let output = command.args(arguments).arg("--run-dir").arg(self.0.path()).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    fn sheet(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.0.path().join("up.json"))?)?)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(self.run(&["down"]));
    }
}

#[test]
fn up_stays_until_down() {
    needs_control_plane!();
    stays().expect("up and down");
}

#[test]
fn down_removes_what_a_killed_keeper_left() {
    needs_control_plane!();
    sweeps().expect("up, kill and down");
}

fn sweeps() -> anyhow::Result<()> {
    let dir = Dir(tempfile::tempdir()?);
    let (ok, said) = dir.run(&["up", "--nodes", "1", "--pods", "0"])?;
    ensure!(ok, "{said}");
    let world = dir.sheet()?.get("world").and_then(Value::as_str).map(str::to_owned).context("no world")?;
    let pid = owner(&world).and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).context("no keeper")?;
    rustix::process::kill_process(pid, Signal::KILL)?;
    wait_until("the end of the keeper", Duration::from_secs(10), || {
        if owner(&world).is_none() { Ok(()) } else { Err("it runs".to_owned()) }
    })?;
    ensure!(!traces(&world).is_empty(), "who cleaned up?");
    let (up, said) = dir.run(&["status"])?;
    ensure!(!up, "{said}");
    let (ok, said) = dir.run(&["down"])?;
    ensure!(ok && said.contains(&world), "{said}");
    ensure!(traces(&world).is_empty(), "{:?}", traces(&world));
    Ok(())
}

fn stays() -> anyhow::Result<()> {
    let dir = Dir(tempfile::tempdir()?);
    ensure!(!dir.run(&["status"])?.0, "nothing is up yet");
    let (ok, said) = dir.run(&["up", "--nodes", "1", "--pods", "1"])?;
    ensure!(ok, "{said}");
    let sheet = dir.sheet()?;
    let text = |key: &str| sheet.get(key).and_then(Value::as_str).map(str::to_owned).context("no such key");
    let world = text("world")?;
    ensure!(owner(&world).is_some_and(|pid| pid != std::process::id()), "the keeper of {world}");

    // The command that it prints works.
    let printed = said.lines().find(|line| line.trim_start().starts_with("ip netns exec")).context("no command")?;
    let output = Command::new("sh").args(["-c", &format!("{printed} -o name")]).output()?;
    let objects = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<_> = objects.lines().collect();
    lines.sort_unstable();
    ensure!(lines == ["node/node1", "pod/pod-1-1", "service/kubernetes"], "{objects}{output:?}");

    // The agent may not read Secrets.
    let agent = text("agent")?;
    let kubectl = program("kubectl")?;
    let as_agent = |what: &str| -> anyhow::Result<bool> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &text("namespace")?]).arg(&kubectl).args(["--kubeconfig", &agent, "get", what]);
        Ok(command.output()?.status.success())
    };
    ensure!(as_agent("services")? && !as_agent("secrets")?, "the rights of the agent");

    let (ok, said) = dir.run(&["status"])?;
    ensure!(ok && said.contains("The API server is ready"), "{said}");
    let (ok, again) = dir.run(&["up"])?;
    ensure!(ok && again.contains("up already"), "{again}");
    ensure!(dir.sheet()? == sheet, "it was started twice");

    let pid = owner(&world).context("it has ended by itself")?;
    let (ok, said) = dir.run(&["down"])?;
    ensure!(ok, "{said}");
    ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} still runs");
    ensure!(traces(&world).is_empty(), "{:?}", traces(&world));
    let (ok, said) = dir.run(&["down"])?;
    ensure!(ok && said.contains("nothing is up"), "{said}");
    Ok(())
}
