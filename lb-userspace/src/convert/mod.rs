//! Kubernetes objects into model values: checked as the API server checks them, whoever gives them.
//!
//! The file source reads them from documents, the Kubernetes source from the API; what is wrong is told in the same words.

mod addresses;
mod families;
mod issue;
mod objects;
mod service;

use ipnet::IpNet;

pub use self::issue::Severity;
pub(crate) use self::{
    addresses::{is_label, is_subdomain},
    issue::Issue,
    objects::{mirrored, node, pod, service_cidr, slice},
    service::{Draft, service},
};

/// Who has filled in what an object leaves out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin<'a> {
    /// Nobody: a document written by hand. Families come from these ranges, addresses are allocated later.
    Document {
        /// The first one's family is the default family.
        service_cidrs: &'a [IpNet],
    },
    /// The API server: what is absent is absent.
    Server,
}
