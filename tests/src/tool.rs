//! Running the system's own tools (`ip`, `nft`, `ethtool`) to completion.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

/// Runs `command` with `input` on its standard input; its standard output, or an error that quotes its complaint.
pub(crate) fn run(mut command: Command, input: &str) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    // A group of its own: Ctrl-C at a terminal must not end a tool that takes a world down.
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{name}`: install it (Debian: iproute2, nftables, ethtool)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that fails early closes its input: its exit status tells more than our EPIPE.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for `{name}`"))?;
    if !output.status.success() {
        bail!(
            "`{name}` failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            if input.is_empty() { String::new() } else { format!("\ninput was:\n{input}") }
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
