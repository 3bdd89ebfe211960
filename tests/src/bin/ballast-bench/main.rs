//! `cargo xtask bench packet | control`: measurements, beside a peer or a floor in one run.

mod control;
mod frames;
mod packet;
mod programs;
mod tables;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "ballast-bench", version, about = "Measurements of the datapath and of what fills it")]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Nanoseconds the pipeline adds to a packet of an established flow
    Packet(packet::Packet),
    /// From the API server to the first correct packet, memory and idle CPU, beside kube-proxy
    Control(control::Control),
}

fn main() -> ExitCode {
    let done = match Options::parse().what {
        What::Packet(options) => packet::packet(&options),
        What::Control(options) => control::control(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
