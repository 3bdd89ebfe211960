//! The objects: thousands of Services like a cluster's, and one that is measured.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kube::Client;
use lb_tests::{ControlPlane, Place, TARGET};
use serde_json::{Value, json};

/// The Service that is measured, and its slice.
const PROBED: &str = "probed";
/// Requests at a time.
const AT_A_TIME: usize = 16;
/// Addresses of backends that nobody asks: of other nodes' pods.
const ELSEWHERE: u32 = u32::from_be_bytes([10, 128, 0, 0]);

/// How many there are.
pub(super) struct Size {
    pub(super) services: u32,
    pub(super) endpoints: u32,
}

impl Size {
    pub(super) const fn new(services: u32, endpoints: u32) -> Self {
        Self { services, endpoints }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Services with {} endpoints", self.services, self.endpoints)
    }
}

/// Makes them all; where the measured one is reached.
pub(super) fn fill(plane: &ControlPlane, size: &Size, pod: &Place) -> anyhow::Result<SocketAddr> {
    let Size { services, endpoints } = *size;
    plane.with_client(move |client| async move {
        stream::iter(0..services.saturating_sub(1))
            .map(|number| one(client.clone(), number, services, endpoints))
            .buffer_unordered(AT_A_TIME)
            .try_for_each(|()| async { Ok(()) })
            .await
    })?;
    plane.create(service(PROBED)).context("the measured Service")?;
    plane.create(slice(PROBED, &[pod.ipv4()])).context("its slice")?;
    let made = plane.get("services", "default", PROBED)?.context("the measured Service is gone")?;
    let ip = made["spec"]["clusterIP"].as_str().context("no cluster IP")?;
    Ok(SocketAddr::new(ip.parse().context("the cluster IP")?, 80))
}

/// Makes this pod the one endpoint of the measured Service.
pub(super) fn point_at(plane: &ControlPlane, pod: &Place) -> anyhow::Result<()> {
    let patch = json!({"endpoints": [endpoint(pod.ipv4())]});
    plane.patch("endpointslices", "default", PROBED, patch).map(drop)
}

/// The Service of this number with its share of the endpoints.
async fn one(client: Client, number: u32, services: u32, endpoints: u32) -> anyhow::Result<()> {
    let name = format!("service-{number}");
    let share = |number: u32| u64::from(endpoints) * u64::from(number) / u64::from(services);
    let addresses: Vec<Ipv4Addr> = (share(number)..share(number + 1))
        .filter_map(|offset| Some(Ipv4Addr::from(ELSEWHERE + u32::try_from(offset).ok()? + 1)))
        .collect();
    post(&client, "/api/v1/namespaces/default/services", &service(&name)).await?;
    // No slice has more than 100, as the endpoint controller keeps it.
    for (index, part) in addresses.chunks(100).enumerate() {
        let slice = slice_of(&name, &format!("{name}-{index}"), part);
        post(&client, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await?;
    }
    Ok(())
}

async fn post(client: &Client, path: &str, document: &Value) -> anyhow::Result<()> {
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(serde_json::to_vec(document)?)?;
    client.request::<Value>(request).await.with_context(|| format!("POST {path}"))?;
    Ok(())
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"ports": [{"name": "dns", "port": 80, "protocol": "UDP", "targetPort": TARGET}]},
    })
}

fn slice(name: &str, addresses: &[Ipv4Addr]) -> Value {
    slice_of(name, name, addresses)
}

fn slice_of(service: &str, name: &str, addresses: &[Ipv4Addr]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "dns", "port": TARGET, "protocol": "UDP"}],
        "endpoints": addresses.iter().map(|address| endpoint(*address)).collect::<Vec<_>>(),
    })
}

/// As the controller writes one.
fn endpoint(address: Ipv4Addr) -> Value {
    json!({
        "addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": "elsewhere", "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("pod-{address}").replace('.', "-")},
    })
}
