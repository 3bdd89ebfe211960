//! The Ballast agent and command line.
//!
//! ```text
//! file_source -> model -> topology -> desired -> image --+
//!                         mirror of the BPF maps --------+-> plan -> apply -> BPF maps
//! ```
//! `model`, `topology`, `desired`, `ids`, `image`, `plan`, `pools`, `verify` and `orphans` are pure: no clock, no log, no I/O. `bpf` is the only
//! module that knows aya, `k8s` the only one that knows Kubernetes' wire types, `net` the only one that speaks netlink.

pub mod agent;
pub mod bpf;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod controller;
mod convert;
pub mod describe;
pub mod desired;
pub mod dns;
pub mod engine;
pub mod events;
pub mod file_source;
pub mod gc;
pub mod ids;
pub mod image;
pub mod k8s;
pub mod kube_proxy;
pub mod listing;
pub mod lock;
pub mod logs;
pub mod memory;
pub mod model;
pub mod net;
pub mod numbers;
pub mod offline;
mod orphans;
pub mod plan;
pub mod pools;
pub mod report;
pub mod resolv;
mod rights;
pub mod service_env;
mod service_manager;
pub mod store;
mod suggest;
#[cfg(test)]
mod testing;
pub mod topology;
pub mod verify;
pub mod web;
