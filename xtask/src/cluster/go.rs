//! Go: finding one that is new enough, and building a program with it.

use std::{
    fmt,
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::program::Program;
use crate::{step, tools};

/// What the go.mod files ask for.
const OLDEST: (u32, u32) = (1, 26);
/// The release that the hint installs.
const RELEASE: &str = "1.26.8";

/// There is no Go that is new enough; says how to install one.
#[derive(Debug)]
pub(crate) struct NoGo(String);

impl fmt::Display for NoGo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoGo {}

/// A Go command that is new enough.
#[derive(Debug)]
pub(crate) struct Go {
    pub(super) program: PathBuf,
}

impl Go {
    /// The first of PATH or `/usr/local/go/bin` that is new enough; an error says how to install one.
    pub(crate) fn find() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/local/go/bin".into(), "/usr/lib/go/bin".into()]);
        let programs = folders.map(|folder| folder.join("go")).filter(|program| program.is_file());
        Self::choose(programs.map(|program| {
            let version = step::ask(Command::new(&program).args(["env", "GOVERSION"])).unwrap_or_default();
            (program, version.trim().to_owned())
        }))
    }

    fn choose(candidates: impl Iterator<Item = (PathBuf, String)>) -> Result<Self> {
        let mut older = Vec::new();
        for (program, version) in candidates {
            match parse(&version) {
                Some(found) if found >= OLDEST => return Ok(Self { program }),
                Some(_) => older.push(format!("{} is {version}", program.display())),
                None => older.push(format!("{} does not say its version", program.display())),
            }
        }
        let (major, minor) = OLDEST;
        let older = if older.is_empty() { String::new() } else { format!(" ({})", older.join(", ")) };
        Err(NoGo(format!("no Go {major}.{minor} or newer{older}; to install it: `{}`", hint())).into())
    }

    /// Builds `program` and puts it into the cache at once; what was there stays in use until then.
    fn build(&self, program: &Program, cache: &Path) -> Result<()> {
        let target = program.path(cache);
        // Nobody else writes it, as the cache is locked; what an interrupted build left is replaced.
        let partial = target.with_extension("partial");
        let mut command = Command::new(&self.program);
        command.current_dir(&program.folder).env("CGO_ENABLED", "0").env("GOWORK", "off").env("GOFLAGS", "");
        command.args(if program.is_test() { &["test", "-c"][..] } else { &["build"] });
        command.args(["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &linker_flags(program)]);
        command.arg("-o").arg(&partial).arg(&program.package);
        let built = step::must(&format!("build {} {}", program.name, program.version), &mut command);
        let installed = built.and_then(|_| {
            // First without a stamp: interrupted here, the next build starts again.
            remove(&program.stamp(cache))?;
            fs::rename(&partial, &target).with_context(|| format!("cannot replace {}", target.display()))?;
            let stamp = program.stamp(cache);
            fs::write(&stamp, stamp_of(program)).with_context(|| format!("cannot write {}", stamp.display()))
        });
        if installed.is_err() {
            remove(&partial)?;
        }
        installed
    }
}

/// Builds those of `programs` that are missing or were built of something else, one after the other. Go is looked for
/// only when there is something to build.
pub(crate) fn ensure(programs: &[Program], cache: &Path) -> Result<()> {
    if programs.iter().all(|program| is_built(program, cache)) {
        return Ok(());
    }
    let go = Go::find()?;
    let _lock = lock(cache)?;
    for program in programs {
        // Asked again: another clone may have built it while this one waited for the lock.
        if !is_built(program, cache) {
            let folder = cache.join(&program.version);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            go.build(program, cache)?;
        }
    }
    Ok(())
}

/// Whether what is in the cache was built of just this.
pub(crate) fn is_built(program: &Program, cache: &Path) -> bool {
    program.path(cache).is_file()
        && fs::read_to_string(program.stamp(cache)).is_ok_and(|stamp| stamp == stamp_of(program))
}

/// The command that installs Go.
fn hint() -> String {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let sudo = if tools::is_root() { "" } else { "sudo " };
    format!("curl -fsSL https://go.dev/dl/go{RELEASE}.linux-{arch}.tar.gz | {sudo}tar -C /usr/local -xz")
}

/// One build at a time: two would want the memory of the machine twice.
fn lock(cache: &Path) -> Result<File> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        step::print_line(step::Mark::Note, &format!("another build holds {}: waiting for it", path.display()), None);
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Kubernetes takes its version from variables that the linker sets; a server of version v0.0.0 is refused by clients.
fn linker_flags(program: &Program) -> String {
    let mut flags = "-s -w".to_owned();
    if program.package.starts_with("k8s.io/kubernetes/") {
        let version = &program.version;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
            flags.push_str(&format!(
                " -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} -X {package}.gitTreeState=clean"
            ));
        }
    }
    flags
}

fn stamp_of(program: &Program) -> String {
    format!("{} {}\n{}", program.package, linker_flags(program), program.recipe)
}

/// `go1.26.8` and `go1.27rc1` to major and minor.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix("go")?.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor.get(..digits)?.parse().ok()?))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(package: &str, recipe: &str) -> Program {
        Program {
            name: "it".to_owned(),
            package: package.to_owned(),
            version: "v1.37.2".to_owned(),
            folder: PathBuf::new(),
            recipe: recipe.to_owned(),
        }
    }

    #[test]
    fn versions_of_go_are_read() {
        assert_eq!(parse("go1.26.8"), Some((1, 26)));
        assert_eq!(parse("go1.27rc1"), Some((1, 27)));
        assert_eq!(parse("devel +abc"), None);
        assert!(parse("go1.9.7") < Some(OLDEST));
    }

    #[test]
    fn an_old_go_is_passed_by_and_named() {
        let candidate = |path: &str, version: &str| (PathBuf::from(path), version.to_owned());
        let (old, broken, new) =
            (candidate("/a/go", "go1.25.9"), candidate("/b/go", ""), candidate("/c/go", "go1.26.0"));
        let found = Go::choose([old.clone(), broken.clone(), new].into_iter());
        assert_eq!(found.map(|go| go.program).ok(), Some("/c/go".into()));
        let error = Go::choose([old, broken].into_iter()).unwrap_err();
        assert!(error.is::<NoGo>(), "a skip and not a failure");
        let text = error.to_string();
        assert!(text.starts_with("no Go 1.26 or newer (/a/go is go1.25.9, /b/go does not say its version)"), "{text}");
        assert!(text.contains("curl -fsSL https://go.dev/dl/go1.26"), "{text}");
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let flags = linker_flags(&program("k8s.io/kubernetes/cmd/kubectl", ""));
        assert!(flags.contains("component-base/version.gitVersion=v1.37.2"), "{flags}");
        assert!(flags.contains("client-go/pkg/version.gitMinor=37"), "{flags}");
        assert_eq!(linker_flags(&program("go.etcd.io/etcd/server/v3", "")), "-s -w");
    }

    #[test]
    fn what_was_built_of_something_else_is_built_again() -> Result<()> {
        let cache = std::env::temp_dir().join(format!("ballast-xtask-{}", std::process::id()));
        let now = program("p", "go.mod as it is");
        fs::create_dir_all(cache.join(&now.version))?;
        assert!(!is_built(&now, &cache), "nothing is there");
        fs::write(now.path(&cache), "")?;
        assert!(!is_built(&now, &cache), "interrupted before the stamp");
        fs::write(now.stamp(&cache), stamp_of(&now))?;
        assert!(is_built(&now, &cache));
        assert!(!is_built(&program("p", "go.mod changed"), &cache));
        assert!(ensure(&[now], &cache).is_ok(), "needs no Go");
        fs::remove_dir_all(&cache)?;
        Ok(())
    }
}
