//! Which Services of the documents show a way: the first one that can.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_tests::Place;
use lb_userspace::model::{Endpoint, ObjectName, Protocol};

use crate::{
    cast::short,
    stage::Stage,
    targets::{Port, Target},
};

/// A Service, one of its ports and addresses, and who asks.
pub(crate) struct Pick<'a> {
    pub(crate) target: &'a Target,
    pub(crate) port: &'a Port,
    pub(crate) address: IpAddr,
    /// A pod of its namespace.
    pub(crate) client: &'a Place,
    /// Those that may answer.
    pub(crate) backends: BTreeSet<String>,
}

impl<'a> Pick<'a> {
    pub(crate) fn namespace(&self) -> &'a str {
        &self.target.object.namespace
    }

    pub(crate) fn to(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port.number)
    }
}

/// The first TCP port with backends of a family for which `address` names one, in a namespace with a pod.
pub(crate) fn pick(stage: &Stage, v6: bool, address: impl Fn(&Target, &Port) -> Option<IpAddr>) -> Option<Pick<'_>> {
    stage.targets.iter().find_map(|target| {
        let client = stage.first_of(&target.object.namespace)?;
        target.ports.iter().filter(|port| port.protocol == Protocol::Tcp).find_map(|port| {
            let family = port.backends.iter().filter(|backend| backend.address.is_ipv6() == v6);
            let backends: BTreeSet<_> = family.map(|backend| backend.name.clone()).collect();
            let address = address(target, port).filter(|_| !backends.is_empty())?;
            Some(Pick { target, port, address, client, backends })
        })
    })
}

/// A headless Service in one family.
pub(crate) struct Headless<'a> {
    pub(crate) object: &'a ObjectName,
    pub(crate) v6: bool,
    pub(crate) client: &'a Place,
    /// What its name stands for.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// A Pod that can go: another one stays.
    pub(crate) leaving: Option<ObjectName>,
}

impl<'a> Headless<'a> {
    /// The first one with ready endpoints and a pod in its namespace, rather one of several pods.
    pub(crate) fn find(stage: &'a Stage, v6: bool) -> Option<Self> {
        let all = stage.model.services.iter().filter(|(_, service)| service.headless);
        let mut found: Vec<_> = all.filter_map(|(object, _)| Self::of(stage, object, v6)).collect();
        let several = found.iter().position(|headless| headless.leaving.is_some()).unwrap_or(0);
        (several < found.len()).then(|| found.swap_remove(several))
    }

    fn of(stage: &'a Stage, object: &'a ObjectName, v6: bool) -> Option<Self> {
        let client = stage.first_of(&object.namespace)?;
        let ready: Vec<&Endpoint> =
            endpoints(stage, object).filter(|endpoint| endpoint.address.is_ipv6() == v6).collect();
        let addresses: BTreeSet<_> = ready.iter().map(|endpoint| endpoint.address).collect();
        // Who asks stays.
        let pods = ready.iter().rev().filter_map(|endpoint| endpoint.pod.clone());
        let mut pods = pods.map(|name| ObjectName { namespace: object.namespace.clone(), name });
        let leaving = pods.find(|pod| short(pod) != client.name()).filter(|_| addresses.len() > 1);
        (!addresses.is_empty()).then_some(Self { object, v6, client, addresses, leaving })
    }

    /// The addresses when a Pod is gone.
    pub(crate) fn without(&self, stage: &Stage, pod: &ObjectName) -> BTreeSet<IpAddr> {
        let stays = |endpoint: &&Endpoint| endpoint.pod.as_ref() != Some(&pod.name);
        let left = endpoints(stage, self.object).filter(|endpoint| endpoint.address.is_ipv6() == self.v6);
        left.filter(stays).map(|endpoint| endpoint.address).collect()
    }
}

fn endpoints<'a>(stage: &'a Stage, object: &'a ObjectName) -> impl Iterator<Item = &'a Endpoint> {
    let own = stage
        .model
        .slices
        .iter()
        .filter(|(name, slice)| name.namespace == object.namespace && slice.service == object.name);
    own.flat_map(|(_, slice)| &slice.endpoints).filter(|endpoint| endpoint.ready)
}
