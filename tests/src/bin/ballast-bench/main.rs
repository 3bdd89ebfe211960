//! `cargo xtask bench packet | control | dns`: measurements, beside a peer or a floor in one run.

mod control;
mod dns;
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
    /// Answers a second, their time, start-up and memory of `ballast dns`, beside `CoreDNS`
    Dns(dns::Dns),
}

fn main() -> ExitCode {
    let done = match Options::parse().what {
        What::Packet(options) => packet::packet(&options),
        What::Control(options) => control::control(&options),
        What::Dns(options) => dns::dns(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
