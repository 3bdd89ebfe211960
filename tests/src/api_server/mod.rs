//! A Kubernetes API server that lists, watches, takes what is written, and misbehaves on request.
//!
//! Faithful where a client can tell: lists are consistent over their pages, events come in order, what a selector no
//! longer matches is `DELETED`, versions grow over all kinds, and a version that is too old is answered with 410.

mod connection;
mod store;

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring},
};

use self::store::Store;
use crate::{Identity, World, kube};

/// What goes wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This answer, with this `Retry-After` in seconds.
    Answer(u16, Option<u32>),
    /// What was asked for, after so many milliseconds.
    Slow(u32),
    /// The connection is closed without an answer.
    Close,
    /// Half of the list.
    Truncated,
    /// A list without items, as of the first version.
    Empty,
    /// Nothing: the request goes well, and one that comes later does not.
    None,
}

/// A server in a thread of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    scheme: &'static str,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    /// Goes up with everything a watch may want to look at.
    news: watch::Sender<u64>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.store());
        self.news.send_modify(|news| *news += 1);
        result
    }
}

impl ApiServer {
    /// At the world's client, with its nodes and the Service ranges of the usual documents.
    pub fn of_world(world: &World) -> anyhow::Result<Self> {
        let at = SocketAddr::new(world.client().ipv4().into(), 8080);
        let api = Self::start(world.client().namespace().run(|| TcpListener::bind(at))??)?;
        for node in world.nodes() {
            api.put(kube::node_document(node));
        }
        api.put(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/112"]},
        }));
        Ok(api)
    }

    /// Serves on a listener, which may be of another network namespace.
    pub fn start(listener: TcpListener) -> anyhow::Result<Self> {
        Self::serve(listener, None)
    }

    /// The same with TLS, as `identity`.
    pub fn start_tls(listener: TcpListener, identity: &Identity) -> anyhow::Result<Self> {
        let (certificates, key) = identity.read()?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("no TLS")?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .context("certificate and key do not fit")?;
        Self::serve(listener, Some(Arc::new(config).into()))
    }

    fn serve(listener: TcpListener, tls: Option<TlsAcceptor>) -> anyhow::Result<Self> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared { store: Mutex::default(), news: watch::channel(0).0 });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let of_thread = shared.clone();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    result = connection::accept(listener, of_thread, tls) => {
                        if let Err(error) = result {
                            eprintln!("API server: {error}");
                        }
                    }
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::Builder::new().name("api-server".to_owned()).spawn(serve).context("no thread")?;
        Ok(Self { shared, scheme, address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Its address and port.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Creates or replaces an object; its kind says where it belongs.
    pub fn put(&self, object: Value) {
        self.shared.change(|store| store.put(object));
    }

    /// Deletes an object of a resource such as `services`; no namespace for a cluster-wide one.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.shared.change(|store| store.delete(resource, namespace, name));
    }

    /// Sends every watch a bookmark.
    pub fn bookmark(&self) {
        self.shared.change(Store::bookmark);
    }

    /// Forgets what was: watches and pages that go on from before are answered with 410.
    pub fn compact(&self) {
        self.shared.change(Store::compact);
    }

    /// Ends the watches of a resource; `in_a_line`: in the midst of an event.
    pub fn cut(&self, resource: &str, in_a_line: bool) {
        self.shared.change(|store| store.cut(resource, in_a_line));
    }

    /// Holds the events of a resource back, or lets them go.
    pub fn hold(&self, resource: &str, held: bool) {
        self.shared.change(|store| store.hold(resource, held));
    }

    /// Sends every event twice, the second time after those that came with it and in the reverse order.
    pub fn duplicate(&self, duplicated: bool) {
        self.shared.change(|store| store.duplicated = duplicated);
    }

    /// Sends events in the reverse order, those that come together; one alone waits for another. No server does so.
    pub fn reorder(&self, reordered: bool) {
        self.shared.change(|store| store.reordered = reordered);
    }

    /// Lists come in pages of so many, whatever larger limit is asked for.
    pub fn page(&self, size: usize) {
        self.shared.change(|store| store.page = size);
    }

    /// What goes wrong with the next requests for a resource, one after another.
    pub fn fail(&self, resource: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shared.change(|store| store.fail(resource, faults));
    }

    /// What goes wrong with every request with this verb (`get`, `list`, `watch`, `create`, `update` or `patch`) for a resource such as `services` or
    /// `services/status`, or no more.
    pub fn refuse(&self, verb: &str, resource: &str, fault: Option<Fault>) {
        self.shared.change(|store| store.refuse(verb, resource, fault));
    }

    /// An object is deleted and made again as it was before, each of the next so many times that somebody patches it: before
    /// that is answered.
    pub fn undo_patches(&self, resource: &str, name: &str, times: usize) {
        self.shared.change(|store| store.undo_patches(resource, name, times));
    }

    /// Away: connections are closed, and new ones are too.
    pub fn away(&self, away: bool) {
        self.shared.change(|store| store.set_away(away));
    }

    /// Only requests with this bearer token are accepted.
    pub fn require_token(&self, token: &str) {
        self.shared.change(|store| store.token = Some(token.to_owned()));
    }

    /// The objects of a resource.
    pub fn objects(&self, resource: &str) -> Vec<Value> {
        self.shared.store().all(resource)
    }

    /// The requests so far: `list services`, `watch nodes`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.store().requests.clone()
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.shared.store().version
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take()
            && stop.send(()).is_err()
        {
            eprintln!("API server: it had ended by itself");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("API server: its thread panicked");
        }
    }
}
