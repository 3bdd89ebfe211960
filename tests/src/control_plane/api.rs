//! Talking to an API server of a world from a test, which itself is outside of the world's networks.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use kube::{
    Client, Config, Discovery,
    api::{Api as KubeApi, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
    discovery::{ApiGroup, Scope},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::Namespace;

/// Who owns the fields that [`Api::apply`] sets.
const MANAGER: &str = "ballast-tests";
/// An answer that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client whose connections start in a namespace.
pub(super) struct Api {
    runtime: Runtime,
    client: Client,
    /// Before the first answer of the server it cannot be asked.
    discovery: std::sync::Mutex<Option<Arc<Discovery>>>,
}

impl Api {
    /// A client with the rights of a kubeconfig; nothing is sent yet.
    pub(super) fn new(namespace: &Arc<Namespace>, kubeconfig: &Path) -> anyhow::Result<Self> {
        let place = Arc::clone(namespace);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || {
                if let Err(error) = place.enter() {
                    eprintln!("world: {error:#}");
                }
            })
            .build()
            .context("cannot start a runtime")?;
        let document = Kubeconfig::read_from(kubeconfig).context("cannot read the kubeconfig just written")?;
        let client = on(&runtime, async move {
            let mut config = Config::from_custom_kubeconfig(document, &KubeConfigOptions::default()).await?;
            config.connect_timeout = Some(Duration::from_secs(2));
            Ok(Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client, discovery: std::sync::Mutex::default() })
    }

    /// Runs `body` with the client, on the runtime's thread, which is in the namespace; it may take its time.
    pub(super) fn run<T, F>(&self, body: impl FnOnce(Client) -> F) -> anyhow::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        on(&self.runtime, body(self.client.clone()))
    }

    /// The same for what is soon answered.
    fn call<T, F>(&self, body: impl FnOnce(Client) -> F) -> anyhow::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let answer = body(self.client.clone());
        on(&self.runtime, async move {
            let late = || format!("no answer in {} s", PATIENCE.as_secs());
            tokio::time::timeout(PATIENCE, answer).await.with_context(late)?
        })
    }

    /// The text at a path, for example `/readyz`.
    pub(super) fn text(&self, path: &str) -> anyhow::Result<String> {
        let request = http::Request::get(path).body(Vec::new()).with_context(|| format!("{path} is no path"))?;
        self.call(|client| async move { Ok(client.request_text(request).await?) })
    }

    /// Creates an object, which need not have a name; what the server answers, for example to a review.
    pub(super) fn create(&self, document: Value) -> anyhow::Result<Value> {
        let object: DynamicObject = serde_json::from_value(document).context("no object")?;
        let types = object.types.clone().context("no kind")?;
        let look = |discovery: &Discovery| discovery.resolve_typemeta(&types).map(|(r, c)| (r, c.scope));
        let resource = self.find(&types.kind, look)?;
        let api = self.of(resource, object.metadata.namespace.as_deref().unwrap_or("default"));
        let created =
            self.call(|_| async move { Ok(serde_json::to_value(api.create(&PostParams::default(), &object).await?)?) });
        created.with_context(|| format!("cannot create {}", types.kind))
    }

    /// Server-side apply of an object and, if it has one, of its status; what the server has then.
    pub(super) fn apply(&self, mut document: Value) -> anyhow::Result<Value> {
        let fields = document.as_object_mut().context("no object")?;
        let status = fields.remove("status");
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let kind = text(fields.get("kind")).context("no kind")?;
        let version = text(fields.get("apiVersion")).context("no apiVersion")?;
        let metadata = fields.get("metadata");
        let name = text(metadata.and_then(|m| m.get("name"))).context("no metadata.name")?;
        let namespace = text(metadata.and_then(|m| m.get("namespace"))).unwrap_or_else(|| "default".to_owned());
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let gvk = GroupVersionKind::gvk(group, version, &kind);
        let resource = self.find(&kind, |discovery| discovery.resolve_gvk(&gvk).map(|(r, c)| (r, c.scope)))?;
        let what = format!("{kind} {name}");
        let api = self.of(resource, &namespace);
        self.call(move |_| async move {
            let params = PatchParams::apply(MANAGER).force();
            let mut object = api.patch(&name, &params, &Patch::Apply(&document)).await?;
            if let Some(status) = status {
                let patch = Patch::Merge(json!({"status": status}));
                object = api.patch_status(&name, &PatchParams::default(), &patch).await?;
            }
            Ok(serde_json::to_value(object)?)
        })
        .with_context(|| format!("cannot apply {what}"))
    }

    /// The object, if there is one.
    pub(super) fn get(&self, plural: &str, namespace: &str, name: &str) -> anyhow::Result<Option<Value>> {
        let (api, name) = (self.resource(plural, namespace)?, name.to_owned());
        self.call(|_| async move { Ok(api.get_opt(&name).await?.map(serde_json::to_value).transpose()?) })
    }

    /// The objects that a label selector matches.
    pub(super) fn list(&self, plural: &str, namespace: &str, selector: &str) -> anyhow::Result<Vec<Value>> {
        let (api, params) = (self.resource(plural, namespace)?, ListParams::default().labels(selector));
        self.call(|_| async move {
            let list = api.list(&params).await?;
            Ok(list.items.into_iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
        })
    }

    /// A merge patch of the object, or of its status.
    pub(super) fn patch(
        &self,
        (plural, namespace, name): (&str, &str, &str),
        patch: Value,
        status: bool,
    ) -> anyhow::Result<Value> {
        let api = self.resource(plural, namespace)?;
        let owned = name.to_owned();
        self.call(move |_| async move {
            let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
            let object = if status {
                api.patch_status(&owned, &params, &patch).await?
            } else {
                api.patch(&owned, &params, &patch).await?
            };
            Ok(serde_json::to_value(object)?)
        })
        .with_context(|| format!("cannot patch {plural}/{name}"))
    }

    /// Deletes the object; with a `grace` of 0 it is gone at once, else it may stay, marked.
    pub(super) fn delete(
        &self,
        (plural, namespace, name): (&str, &str, &str),
        grace: Option<u32>,
    ) -> anyhow::Result<()> {
        let api = self.resource(plural, namespace)?;
        let owned = name.to_owned();
        self.call(move |_| async move {
            let params = DeleteParams { grace_period_seconds: grace, ..DeleteParams::default() };
            api.delete(&owned, &params).await?;
            Ok(())
        })
        .with_context(|| format!("cannot delete {plural}/{name}"))
    }

    /// The resource whose plural name is `plural`, as kubectl takes it.
    fn resource(&self, plural: &str, namespace: &str) -> anyhow::Result<KubeApi<DynamicObject>> {
        let found = self.find(plural, |discovery| {
            let recommended = discovery.groups_alphabetical().into_iter().flat_map(ApiGroup::recommended_resources);
            let mut named = recommended.filter(|(resource, _)| resource.plural == plural);
            // Alphabetical: the core group, which has no name, comes first.
            named.next().map(|(resource, capabilities)| (resource, capabilities.scope))
        })?;
        Ok(self.of(found, namespace))
    }

    fn of(&self, (resource, scope): (ApiResource, Scope), namespace: &str) -> KubeApi<DynamicObject> {
        match scope {
            Scope::Namespaced => KubeApi::namespaced_with(self.client.clone(), namespace, &resource),
            Scope::Cluster => KubeApi::all_with(self.client.clone(), &resource),
        }
    }

    /// Looks in what the server said it has; asks again when that may be out of date.
    fn find<T>(&self, what: &str, look: impl Fn(&Discovery) -> Option<T>) -> anyhow::Result<T> {
        let mut known = self.discovery.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(found) = known.as_ref().and_then(|discovery| look(discovery)) {
            return Ok(found);
        }
        let fresh = self.call(|client| async move { Ok(Discovery::new(client).run_aggregated().await?) });
        let fresh = known.insert(Arc::new(fresh.context("cannot ask the API server what it has")?));
        look(fresh).with_context(|| format!("the API server has no {what}"))
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

fn on<T: Send + 'static>(
    runtime: &Runtime,
    future: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> anyhow::Result<T> {
    // Spawned: what `block_on` runs itself stays on the calling thread, outside of the namespace.
    runtime.block_on(runtime.spawn(future)).context("the request panicked")?
}
