//! What was written and is not in the model yet; pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::decide::Wanted;
use crate::model::{Model, ObjectName, Service};

/// Statuses that were written, by Service. What they say counts until the model shows it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Underway(BTreeMap<ObjectName, Sent>);

#[derive(Debug, PartialEq, Eq)]
struct Sent {
    decided_for: Service,
    wanted: Wanted,
    /// The server told of the Service since then, and the model shows the same as before: it may have been deleted and made
    /// again, or its status put back.
    is_doubtful: bool,
}

impl Underway {
    /// A status was written, for the Service as it was then.
    pub fn sent(&mut self, name: &ObjectName, decided_for: &Service, wanted: &Wanted) {
        let sent = Sent { decided_for: decided_for.clone(), wanted: wanted.clone(), is_doubtful: false };
        self.0.insert(name.clone(), sent);
    }

    /// The server told of these Services; whether one of them is to be looked at again.
    pub fn doubt(&mut self, told: &BTreeSet<ObjectName>) -> bool {
        let mut some = false;
        for (_, sent) in self.0.iter_mut().filter(|(name, _)| told.contains(*name)) {
            sent.is_doubtful = true;
            some = true;
        }
        some
    }

    /// Drops what the model shows by now, or what was decided for a Service that is another one.
    pub fn settle(&mut self, model: &Model) {
        self.0.retain(|name, sent| model.services.get(name) == Some(&sent.decided_for));
    }

    /// The addresses a Service has by what was written.
    pub fn ips(&self, name: &ObjectName) -> Option<&[IpAddr]> {
        let sent = self.0.get(name)?;
        Some(sent.wanted.ingress.as_deref().unwrap_or(&sent.decided_for.load_balancer_ips))
    }

    /// Whether just this was written, so that it need not be written again. What is doubtful is: a write reads the Service
    /// first, and keeps away from one that is not as it was.
    pub fn has(&self, name: &ObjectName, wanted: &Wanted) -> bool {
        self.0.get(name).is_some_and(|sent| !sent.is_doubtful && sent.wanted == *wanted)
    }
}
