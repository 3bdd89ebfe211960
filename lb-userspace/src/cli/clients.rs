//! What a client needs to find Services: `env`, `exec`, `resolv`. Neither root nor a node is needed.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::ExitCode,
};

use super::{
    Output,
    client_args::{Env, Exec, Reading, Resolv},
    render, say,
};
use crate::{
    file_source::{self, Options, Severity},
    model::Model,
    resolv,
    service_env::{ServiceEnv, expand},
};

/// As shells and `env` have it: the command is there, but cannot be started.
const CANNOT_START: u8 = 126;
/// There is no such command.
const NO_COMMAND: u8 = 127;

/// `ballast env`.
pub(super) fn env(env: &Env, output: Output) -> anyhow::Result<ExitCode> {
    let variables = service_env(env)?.variables;
    let text = render::print(&variables, output, |variables| {
        variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    })?;
    if !text.is_empty() {
        say(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `ballast exec`: this process becomes the command.
pub(super) fn exec(exec: Exec) -> anyhow::Result<ExitCode> {
    let service_env = service_env(&exec.env)?;
    // The caller's variables are what a container's spec would set: they win here too.
    let value = |name: &OsStr| {
        let generated = || name.to_str().and_then(|name| service_env.variables.get(name)).map(OsString::from);
        std::env::var_os(name).or_else(generated)
    };
    let mut words = exec.command.iter().map(|word| expand(word, value));
    let Some(program) = words.next() else { anyhow::bail!("no command; write it after --") };
    let mut command = std::process::Command::new(&program);
    command.args(words).envs(service_env.absent(|name| std::env::var_os(name).is_some()));
    let error = command.exec();
    eprintln!("error: {}: {error}; give a program that can be run", program.display());
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NO_COMMAND } else { CANNOT_START }))
}

/// `ballast resolv`.
pub(super) fn resolv(resolv: Resolv) -> anyhow::Result<ExitCode> {
    let Resolv { namespace, file, reading, zone, mut nameserver } = resolv;
    if nameserver.is_empty() {
        let found = match &file {
            Some(path) => {
                let found = resolv::nameserver(&read(path, &reading)?);
                if let Err(why) = found {
                    eprintln!("{why}: {} is taken (give --nameserver IP for another one)", resolv::NAMESERVER);
                }
                found.ok()
            }
            None => None,
        };
        nameserver.push(found.unwrap_or(resolv::NAMESERVER));
    }
    say(&resolv::file(&namespace, &zone, &nameserver))?;
    Ok(ExitCode::SUCCESS)
}

fn service_env(Env { namespace, file, reading, no_service_links }: &Env) -> anyhow::Result<ServiceEnv> {
    let env = ServiceEnv::of(&read(file, reading)?, namespace, !no_service_links);
    for service in &env.without_address {
        eprintln!(
            "Service {service}: no cluster IP yet: no variables (write spec.clusterIP, or start `ballast run -f`)"
        );
    }
    Ok(env)
}

fn read(path: &Path, reading: &Reading) -> anyhow::Result<Model> {
    let mut options = Options { allocations: reading.allocations.clone(), ..Options::new(path) };
    if !reading.service_cidr.is_empty() {
        options.service_cidrs = reading.service_cidr.iter().map(ipnet::IpNet::trunc).collect();
    }
    let loaded = file_source::load(&options)?;
    // What is only unusual is the agent's to tell.
    for finding in loaded.findings.iter().filter(|finding| finding.severity == Severity::Error) {
        eprintln!("{finding}");
    }
    Ok(loaded.model)
}
