//! The shared libraries that a program names, as its loader finds them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::step;

/// The loader and the libraries of a program, where they are on this machine; none of a static one.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    let output = command.arg(program).output().with_context(|| format!("cannot start `{}`", step::show(&command)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        if (text.to_string() + &error).contains("not a dynamic executable") {
            return Ok(Vec::new());
        }
        bail!("`{}`: {}", step::show(&command), error.trim());
    }
    parse(&text).with_context(|| format!("{} cannot run here", program.display()))
}

/// Lines such as `libc.so.6 => /lib/libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)` and `linux-vdso.so.1 (0x...)`.
fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{}", line.trim());
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        found.extend(path.map(PathBuf::from));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux.so.2 (0x3)\n";
        let found: Vec<_> = ["/lib/x/libc.so.6", "/lib64/ld-linux.so.2"].map(PathBuf::from).into();
        assert_eq!(parse(text).ok(), Some(found));
        assert!(parse("\tlibbpf.so.1 => not found\n").is_err());
        assert_eq!(parse("\tstatically linked\n").ok(), Some(Vec::new()));
    }
}
