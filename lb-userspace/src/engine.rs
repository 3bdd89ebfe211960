//! From a model to the maps: compute, number, plan, apply. No clock and no network; the agent feeds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    num::NonZeroU16,
    path::{Path, PathBuf},
};

use lb_common::settings::Setting;

use crate::{
    desired::{self, Desired, Endpoints, NodeContext},
    ids::Ids,
    image::{self, Capacity, Image, NextHops},
    model::{Model, ObjectName, Protocol, Touched},
    plan::{self, ApplyError},
    report::Problem,
    store::MapStore,
};

/// What is in the maps and why.
#[derive(Debug)]
pub struct Engine {
    ids: Ids,
    mirror: Image,
    ids_file: PathBuf,
    adopted: bool,
    /// What [`Self::desired`] was computed of, beside the model.
    node: NodeContext,
    /// The settings of a sync of everything, which only syncs of changed Services followed; none: the next sync has to be
    /// about everything.
    base: Option<Vec<(Setting, u64)>>,
    /// Services with other backends than the tables have.
    changed: BTreeSet<ObjectName>,
    /// What the maps should hold.
    pub desired: Desired,
    /// What did not fit.
    pub refused: Vec<Problem>,
}

/// Backends whose next hops are needed for a sync.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// Their addresses.
    pub addrs: BTreeSet<IpAddr>,
    /// These are all there are; else those of the Services that changed.
    pub whole: bool,
}

impl Backends {
    /// These are all there are.
    pub const fn all(addrs: BTreeSet<IpAddr>) -> Self {
        Self { addrs, whole: true }
    }
}

/// A sync did not get through.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// A write failed.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The ids could not be saved.
    #[error("cannot save {path}: {cause}; free space or fix its permissions, the maps were not changed")]
    Save {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

impl Engine {
    /// Reads what the maps hold and the numbers that were saved with them. A damaged file is told and replaced by what
    /// the maps say.
    pub fn open(store: &mut dyn MapStore, state_dir: &Path) -> io::Result<(Self, Option<Problem>)> {
        let mirror = plan::read_mirror(store)?;
        let ids_file = ids_file(state_dir);
        let (ids, problem) = load_ids(&ids_file)?;
        let engine = Self {
            ids,
            mirror,
            ids_file,
            adopted: false,
            node: NodeContext::default(),
            base: None,
            changed: BTreeSet::new(),
            desired: Desired::default(),
            refused: Vec::new(),
        };
        Ok((engine, problem))
    }

    /// The tables as the kernel has them.
    pub const fn mirror(&self) -> &Image {
        &self.mirror
    }

    /// Whether the kernel's tables hold anything.
    pub fn is_filled(&self) -> bool {
        self.mirror != Image::default()
    }

    /// The numbers.
    pub const fn ids(&self) -> &Ids {
        &self.ids
    }

    /// Computes what should be there, of which `touched` may be another one than last time; returns the backends whose
    /// next hops are needed to build it.
    pub fn compute(&mut self, model: &Model, node: &NodeContext, touched: &Touched) -> Backends {
        if let Touched::Endpoints(names) = touched
            && self.base.is_some()
            && self.node == *node
            && let Some(endpoints) = desired::endpoints(&self.desired, model, node, names)
        {
            return self.change(endpoints);
        }
        self.base = None;
        self.node = node.clone();
        self.desired = desired::desired(model, node);
        self.backends()
    }

    /// All backends that were computed.
    pub fn backends(&self) -> Backends {
        let backends = self.desired.services.values().flat_map(|service| &service.backends);
        Backends::all(backends.map(|backend| backend.addr).collect())
    }

    /// For as long as an earlier agent's tables are served: a Service that they have nothing of had no room in them, and so
    /// has no endpoints here for the probes of load balancers.
    pub fn show_no_room(&mut self) {
        let Desired { services, health_checks, .. } = &mut self.desired;
        if health_checks.is_empty() {
            return;
        }
        let tables = image::programmed(&self.mirror);
        let served: BTreeSet<(IpAddr, NonZeroU16, Protocol)> =
            tables.values().flat_map(|it| &it.frontends).map(|it| (it.addr, it.port, it.protocol)).collect();
        let mut has_room: BTreeMap<&ObjectName, bool> = BTreeMap::new();
        for (key, service) in services.iter().filter(|(_, service)| !service.frontends.is_empty()) {
            let is_served = service.frontends.iter().any(|it| served.contains(&(it.addr, it.port, key.protocol)));
            *has_room.entry(&key.service).or_default() |= is_served;
        }
        let without = health_checks.iter_mut().filter(|(name, _)| has_room.get(name) == Some(&false));
        without.for_each(|(_, check)| check.local = 0);
    }

    /// Next hops are other ones than they were at the last sync: the next one is about everything.
    pub fn forget_next_hops(&mut self) {
        self.base = None;
    }

    fn change(&mut self, endpoints: Endpoints) -> Backends {
        let Endpoints { services, health_checks } = endpoints;
        for (key, new) in services {
            if self.desired.services.get(&key) != Some(&new) {
                self.changed.insert(key.service.clone());
                self.desired.services.insert(key, new);
            }
        }
        self.desired.health_checks.extend(health_checks);
        let ports = self.changed.iter().flat_map(|name| self.desired.of_service(name));
        let backends = ports.flat_map(|(_, service)| &service.backends);
        Backends { addrs: backends.map(|backend| backend.addr).collect(), whole: false }
    }

    /// Makes the maps what was computed; returns the number of writes. An unchanged state takes none.
    pub fn sync(
        &mut self,
        store: &mut dyn MapStore,
        next_hops: &dyn NextHops,
        settings: &[(Setting, u64)],
    ) -> Result<usize, SyncError> {
        // Until this is through, nothing is known of the tables as a whole.
        let base = self.base.take().filter(|base| base == settings);
        let done = base.and_then(|_| self.sync_changed(store, next_hops));
        let writes = match done {
            Some(done) => done?,
            None => self.sync_all(store, next_hops, settings)?,
        };
        self.changed.clear();
        // Where something was refused, any change may make room for it.
        self.base = self.refused.is_empty().then(|| settings.to_vec());
        Ok(writes)
    }

    /// Makes the entries of the changed Services what was computed. `None`: nothing was written, for everything has to be
    /// looked at.
    fn sync_changed(&mut self, store: &mut dyn MapStore, next_hops: &dyn NextHops) -> Option<Result<usize, SyncError>> {
        if self.changed.is_empty() {
            return Some(Ok(0));
        }
        let saved = self.ids.next_hops();
        let capacity = Capacity::of(store);
        let built = image::build_some(&self.desired, &self.changed, &mut self.ids, next_hops, &capacity)?;
        let plan = plan::diff_some(&built.entries, &built.cleared, &self.mirror);
        let mut write = || {
            // Of what is saved nothing else can have changed.
            if self.ids.next_hops() != saved {
                self.save()?;
            }
            let writes = plan::apply(&plan, store, &mut self.mirror)?.writes;
            self.ids.commit();
            Ok(writes)
        };
        Some(write())
    }

    fn sync_all(
        &mut self,
        store: &mut dyn MapStore,
        next_hops: &dyn NextHops,
        settings: &[(Setting, u64)],
    ) -> Result<usize, SyncError> {
        if !self.adopted {
            self.ids.adopt(&self.mirror, &self.desired);
            self.adopted = true;
        }
        let capacity = Capacity::of(store);
        let mut writes = 0;
        let mut refused_before = usize::MAX;
        loop {
            let built = image::build(&self.desired, &mut self.ids, next_hops, settings, &capacity);
            let plan = plan::diff(&built.image, &self.mirror);
            self.refused = built.refused;
            if !plan.is_empty() {
                // Before: the file is never older than the maps.
                self.save()?;
                writes += plan::apply(&plan, store, &mut self.mirror)?.writes;
            }
            let freed = self.ids.commit();
            if freed && !plan.is_empty() {
                self.save()?;
            }
            // What was refused may fit into what this plan freed. A round that admits nothing more is the last: what it
            // frees is what it gave to those it then refused.
            if !freed || self.refused.is_empty() || self.refused.len() >= refused_before {
                return Ok(writes);
            }
            refused_before = self.refused.len();
        }
    }

    /// Gives the tables of an earlier agent the ways to their backends that there are now, and nothing else; the number of
    /// writes. For as long as what they should hold is not known: before the first [`Self::sync`].
    pub fn reroute(
        &mut self,
        store: &mut dyn MapStore,
        next_hops: &dyn NextHops,
        settings: &[(Setting, u64)],
    ) -> Result<usize, SyncError> {
        let rerouted = image::reroute::reroute(&self.mirror, next_hops, settings, &Capacity::of(store));
        let plan = plan::diff(&rerouted, &self.mirror);
        if plan.is_empty() {
            return Ok(0);
        }
        Ok(plan::apply(&plan, store, &mut self.mirror)?.writes)
    }

    fn save(&self) -> Result<(), SyncError> {
        let failed = |cause| SyncError::Save { path: self.ids_file.clone(), cause };
        let json = self.ids.to_json().map_err(|error| failed(error.into()))?;
        if fs::read(&self.ids_file).is_ok_and(|old| old == json) {
            return Ok(());
        }
        let temporary = self.ids_file.with_extension("json.new");
        fs::write(&temporary, json).map_err(failed)?;
        fs::rename(&temporary, &self.ids_file).map_err(failed)
    }
}

/// Where the numbers are saved.
pub(crate) fn ids_file(state_dir: &Path) -> PathBuf {
    state_dir.join("ids.json")
}

/// The saved numbers: none without a file, and none with a problem where the file is damaged.
pub(crate) fn load_ids(file: &Path) -> io::Result<(Ids, Option<Problem>)> {
    let json = match fs::read(file) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Ids::default(), None)),
        Err(error) => return Err(error),
    };
    Ok(match Ids::from_json(&json) {
        Ok(ids) => (ids, None),
        Err(error) => {
            let problem = Problem {
                object: format!("file {}", file.display()),
                cause: error.to_string(),
                fix: "nothing: the numbers were recovered from the maps and the file is written anew".to_owned(),
            };
            (Ids::default(), Some(problem))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::{HealthCheck, fixture},
        image::NextHopInfo,
        model::{EndpointSlice, Service, ServicePort},
        store::testing::FakeStore,
    };

    #[test]
    fn a_service_that_the_tables_have_nothing_of_has_no_endpoints_for_probes() {
        let (mut model, node) = fixture::web();
        let probed = |number: u16| Some(fixture::port(number));
        let two =
            Service { cluster_ips: vec![[10, 96, 0, 20].into()], load_balancer_ips: vec![], ..fixture::service() };
        let two = Service {
            ports: two.ports.iter().map(|port| ServicePort { node_port: probed(30_081), ..port.clone() }).collect(),
            health_check_node_port: probed(31_002),
            ..two
        };
        if let Some(web) = model.services.get_mut(&fixture::name("web")) {
            web.health_check_node_port = probed(31_001);
        }
        let mut store = FakeStore::new(Capacity::uniform(64));
        let directory = tempfile::tempdir().expect("a directory");
        let (mut engine, _) = Engine::open(&mut store, directory.path()).expect("an engine");
        let _backends = engine.compute(&model, &node, &Touched::All);
        engine.sync(&mut store, &BTreeMap::<IpAddr, NextHopInfo>::new(), &[]).expect("synced");

        let slice = EndpointSlice { service: "two".into(), ..model.slices[&fixture::name("web-1")].clone() };
        model.slices.insert(fixture::name("two-1"), slice);
        model.services.insert(fixture::name("two"), two);
        let (mut engine, _) = Engine::open(&mut store, directory.path()).expect("an engine");
        let _backends = engine.compute(&model, &node, &Touched::All);
        let local = |engine: &Engine| {
            let checks = &engine.desired.health_checks;
            checks.iter().map(|(name, HealthCheck { local, .. })| (name.name.clone(), *local)).collect::<Vec<_>>()
        };
        assert_eq!(local(&engine), [("two".to_owned(), 1), ("web".to_owned(), 1)]);
        engine.show_no_room();
        assert_eq!(local(&engine), [("two".to_owned(), 0), ("web".to_owned(), 1)]);
    }
}
