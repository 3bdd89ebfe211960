//! Messages as bytes (RFC 1035 section 4): questions are read as far as an answer needs, answers are written in place.

mod read;
mod write;

pub(super) use self::{
    read::{Class, Head, Query, Read, Type, read},
    write::{Code, Flags, Writer},
};

/// Octets of a header.
const HEADER: usize = 12;
/// Longest name, its last zero octet included.
const NAME: usize = 255;
/// Longest label.
const LABEL: usize = 63;
/// Type of the EDNS record (RFC 6891).
const OPT: u16 = 41;
/// Octets of ours, which has no options.
const OPT_LENGTH: usize = 11;
/// What every client takes over UDP (RFC 1035 section 4.2.1).
const UDP_LEAST: u16 = 512;

#[cfg(test)]
mod tests;
