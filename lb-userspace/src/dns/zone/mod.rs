//! Names of the cluster zone and what they answer, from a [`Model`] (semantics.md 5a, rules D1 to D18).

mod answer;
mod objects;
mod reverse;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub(super) use self::objects::Differences;
use self::objects::Objects;
pub use self::reverse::reverse;
use crate::model::{Model, Touched};

/// TTL of the TXT record that names the version of the specification, in seconds (D1).
const VERSION_TTL: u32 = 28_800;
/// Aliases followed inside the zone: longer chains are loops.
const MAX_ALIASES: usize = 8;

/// Which names of Pods there are (D16).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Pods {
    /// None.
    #[default]
    Disabled,
    /// Every address in every namespace.
    Insecure,
    /// Those of Pods, in their own namespace.
    Verified,
}

/// What is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The zone, in lower case, without a dot at its end.
    pub zone: String,
    /// TTL of positive and negative answers, in seconds (D15).
    pub ttl: u32,
    /// Names of Pods.
    pub pods: Pods,
    /// Addresses whose names nobody else knows.
    pub ranges: Vec<IpNet>,
    /// Whether addresses outside of `ranges` that have no name here may have one elsewhere.
    pub upstream: bool,
}

impl Options {
    /// Without names of Pods, and every address ours.
    pub const fn new(zone: String, ttl: u32) -> Self {
        Self { zone, ttl, pods: Pods::Disabled, ranges: Vec::new(), upstream: false }
    }
}

/// Type of a question, as far as it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 address.
    A,
    /// IPv6 address.
    Aaaa,
    /// Port and host of a service (RFC 2782).
    Srv,
    /// Name of an address.
    Ptr,
    /// Alias.
    Cname,
    /// Text.
    Txt,
    /// Start of authority.
    Soa,
    /// Name server.
    Ns,
    /// A type no name of the zone has: NODATA or NXDOMAIN.
    Other,
}

/// Data of a record. Names are in lower case, without a dot at their end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// Service port and host.
    Srv {
        /// Port of the Service, or of the endpoint under a headless one.
        port: u16,
        /// Host.
        target: String,
    },
    /// Name of an address.
    Ptr(String),
    /// Alias.
    Cname(String),
    /// Text.
    Txt(String),
    /// Start of authority; its values are [`Zone::soa`]'s.
    Soa,
    /// Name server.
    Ns(String),
}

impl Data {
    fn kind(&self) -> Kind {
        match self {
            Self::A(_) => Kind::A,
            Self::Aaaa(_) => Kind::Aaaa,
            Self::Srv { .. } => Kind::Srv,
            Self::Ptr(_) => Kind::Ptr,
            Self::Cname(_) => Kind::Cname,
            Self::Txt(_) => Kind::Txt,
            Self::Soa => Kind::Soa,
            Self::Ns(_) => Kind::Ns,
        }
    }

    fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::A(address),
            IpAddr::V6(address) => Self::Aaaa(address),
        }
    }
}

/// A record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name, where it is not the one asked for: behind an alias.
    pub owner: Option<String>,
    /// Seconds.
    pub ttl: u32,
    /// Data.
    pub data: Data,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Records of the type asked for, or an alias.
    Records(Vec<Record>),
    /// The name exists, without records of that type (D3). The SOA has the name in `apex`.
    NoData {
        /// Apex of the zone.
        apex: String,
    },
    /// There is no such name.
    NxDomain {
        /// Apex of the zone.
        apex: String,
    },
    /// A name of a zone that is not ours.
    Foreign,
}

/// The zone of one state of the cluster. Answers are made when they are asked for: a change costs what it touches.
#[derive(Clone, Debug)]
pub struct Zone {
    options: Options,
    objects: Objects,
    serial: u32,
}

impl Zone {
    /// The zone of a state.
    pub fn new(model: &Model, options: Options) -> Self {
        let mut zone = Self { options, objects: Objects::default(), serial: 0 };
        zone.follow(model, &Touched::All, 1);
        zone
    }

    /// Makes it the zone of another state, where no more than `touched` is another; whether anything changed. `now` is in
    /// seconds since 1970.
    pub fn follow(&mut self, model: &Model, touched: &Touched, now: u32) -> bool {
        let differences = self.differences(model, touched);
        let changed = !differences.is_empty();
        self.apply(model, differences, now);
        changed
    }

    /// What another state has otherwise.
    pub(super) fn differences(&self, model: &Model, touched: &Touched) -> Differences {
        self.objects.differences(model, touched, self.options.pods == Pods::Verified)
    }

    /// Makes it the zone of another state, of which these are the differences. The serial grows with each, and is at least
    /// `now`, so that it grows over restarts too.
    pub(super) fn apply(&mut self, model: &Model, differences: Differences, now: u32) {
        if !differences.is_empty() || self.serial == 0 {
            // 0 is that of no state.
            self.serial = later(self.serial.wrapping_add(1).max(1), now);
        }
        self.objects.apply(model, differences);
    }

    /// Goes on from this serial.
    pub(super) fn set_serial(&mut self, serial: u32) {
        self.serial = serial.max(1);
    }

    /// Serial of the SOA: another state has a greater one.
    pub const fn serial(&self) -> u32 {
        self.serial
    }

    /// Services and endpoints that have names.
    pub fn sizes(&self) -> (usize, usize) {
        self.objects.sizes()
    }

    /// TTL of positive and negative answers, in seconds.
    pub const fn ttl(&self) -> u32 {
        self.options.ttl
    }

    /// Name of the server, as SOA and NS have it.
    pub fn server(&self) -> String {
        format!("ns.dns.{}", self.options.zone)
    }

    /// Mailbox of the SOA.
    pub fn mailbox(&self) -> String {
        format!("hostmaster.{}", self.options.zone)
    }
}

/// The later of two serials (RFC 1982): after the greatest comes the least again.
pub(super) const fn later(one: u32, other: u32) -> u32 {
    if other.wrapping_sub(one) < 1 << 31 { other } else { one }
}

#[cfg(test)]
mod tests;
