//! Who plays which Pod: each gets a namespace on its node and echo servers on its ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_tests::{Echo, World};
use lb_userspace::model::{Model, ObjectName, Pod, Protocol};

/// What the namespaces themselves use, and what leads to Services.
const TAKEN: [&str; 7] = [
    "192.168.0.0/20",
    "192.168.100.0/24",
    "10.96.0.0/16",
    "203.0.113.0/24",
    "fd00:192:168::/48",
    "fd00:10:96::/112",
    "fd00:203:0:113::/64",
];
/// More nodes than a world has.
const NODES: usize = 9;

/// The Pods with a namespace.
#[derive(Default)]
pub(crate) struct Cast {
    placed: BTreeMap<ObjectName, Placed>,
    told: BTreeSet<String>,
    servers: Vec<Echo>,
}

/// A Pod's namespace.
struct Placed {
    /// Its name in the world.
    name: String,
    ips: Vec<IpAddr>,
    open: BTreeSet<(Protocol, u16)>,
}

/// The nodes the documents speak of, filled up to two: they keep their names.
pub(crate) fn node_names(model: &Model) -> Vec<String> {
    let of_pods = model.pods.values().filter_map(|pod| pod.node.clone());
    let mut names: BTreeSet<String> = model.nodes.keys().cloned().chain(of_pods).collect();
    for spare in ["node1", "node2"] {
        if names.len() < 2 {
            names.insert(spare.to_owned());
        }
    }
    names.into_iter().take(NODES).collect()
}

/// An object's name as people of one namespace write it.
pub(crate) fn short(name: &ObjectName) -> String {
    if name.namespace == "default" { name.name.clone() } else { name.to_string() }
}

impl Cast {
    /// Gives every Pod that can have one a namespace, and every port a server; the new names. What is in the way of that
    /// is told once.
    pub(crate) fn place(
        &mut self,
        world: &mut World,
        model: &Model,
        tell: impl Fn(&str),
    ) -> anyhow::Result<Vec<String>> {
        let mut new = Vec::new();
        for (name, pod) in &model.pods {
            if self.placed.contains_key(name) {
                continue;
            }
            let result = suitable(world, pod).and_then(|node| {
                let shown = short(name);
                world.add_pod(node, &shown, &pod.ips).map_err(|error| format!("{error:#}"))?;
                Ok(Placed { name: shown, ips: pod.ips.clone(), open: BTreeSet::new() })
            });
            match result {
                Ok(placed) => {
                    new.push(placed.name.clone());
                    self.placed.insert(name.clone(), placed);
                }
                Err(why) => {
                    let line = format!("Pod {name}: not placed: {why}");
                    if self.told.insert(line.clone()) {
                        tell(&line);
                    }
                }
            }
        }
        if !new.is_empty() {
            world.settle()?;
        }
        self.serve(world, model)?;
        Ok(new)
    }

    /// Opens the ports that a Pod has by its containers, or by the slices that name it.
    fn serve(&mut self, world: &World, model: &Model) -> anyhow::Result<()> {
        for (name, placed) in &mut self.placed {
            let mut wanted = BTreeSet::new();
            if let Some(pod) = model.pods.get(name) {
                wanted.extend(pod.ports.iter().map(|(_, protocol, port)| (*protocol, port.get())));
            }
            for slice in model.slices.values() {
                if slice.endpoints.iter().any(|endpoint| placed.ips.contains(&endpoint.address)) {
                    wanted.extend(slice.ports.iter().map(|port| (port.protocol, port.port.get())));
                }
            }
            let new: BTreeSet<_> = wanted.difference(&placed.open).copied().collect();
            let Some(pod) = world.pods().find(|pod| pod.name() == placed.name).filter(|_| !new.is_empty()) else {
                continue;
            };
            let ports = |of| new.iter().filter(|(protocol, _)| *protocol == of).map(|(_, port)| *port).collect();
            let (tcp, udp): (Vec<u16>, Vec<u16>) = (ports(Protocol::Tcp), ports(Protocol::Udp));
            self.servers.push(Echo::start_page(pod, &tcp, &udp)?);
            placed.open.extend(new);
        }
        Ok(())
    }

    /// The first Pod of the namespace that has a place, by its name in the world.
    pub(crate) fn first_of(&self, namespace: &str) -> Option<&str> {
        let mut placed = self.placed.iter();
        placed.find(|(name, _)| name.namespace == namespace).map(|(_, placed)| &*placed.name)
    }

    /// The first Pod of all, and its namespace.
    pub(crate) fn with_namespace(&self) -> Option<(&str, &str)> {
        self.placed.first_key_value().map(|(name, placed)| (&*placed.name, &*name.namespace))
    }

    /// A Pod of another namespace, and that namespace.
    pub(crate) fn outside_of(&self, namespace: &str) -> Option<(&str, &str)> {
        let mut placed = self.placed.iter();
        placed.find(|(name, _)| name.namespace != namespace).map(|(name, placed)| (&*placed.name, &*name.namespace))
    }

    /// Who has this address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<&str> {
        self.placed.values().find(|placed| placed.ips.contains(&address)).map(|placed| &*placed.name)
    }
}

/// The node that a Pod is on; or why it cannot have a namespace.
fn suitable(world: &World, pod: &Pod) -> Result<usize, String> {
    if pod.finished {
        return Err("it has ended".to_owned());
    }
    if pod.host_network {
        return Err("hostNetwork: its address is its node's".to_owned());
    }
    let Some(node) = &pod.node else {
        let names: Vec<_> = world.nodes().iter().map(|node| node.name()).collect();
        return Err(format!("spec.nodeName is not set: nobody schedules here; write {}", names.join(" or ")));
    };
    if pod.ips.is_empty() {
        return Err("status.podIPs is not set: nobody gives out addresses here; write one".to_owned());
    }
    for ip in &pod.ips {
        let taken = TAKEN.iter().find(|net| net.parse().is_ok_and(|net: IpNet| net.contains(ip)));
        if let Some(net) = taken {
            return Err(format!("its address {ip} is in {net}, which the namespaces use themselves; write another"));
        }
        if world.pods().any(|other| other.ips().contains(ip)) {
            return Err(format!("its address {ip} is another Pod's"));
        }
    }
    let index = world.nodes().iter().position(|known| known.name() == node);
    index.ok_or_else(|| {
        let names: Vec<_> = world.nodes().iter().map(|node| node.name()).collect();
        format!("its node {node} is none of {}; nodes are made at the start, {NODES} at most", names.join(", "))
    })
}
