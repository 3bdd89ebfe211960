//! What the agent tells about itself: the answer on its socket, and what the commands render.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::model::Protocol;

/// `ballast status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Node name.
    pub node: String,
    /// Pid of the running agent; absent when the state was read from the pins.
    pub agent_pid: Option<u32>,
    /// The source: a path, or the API server.
    pub source: String,
    /// The watches at the API server; none with documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<WatchStatus>,
    /// What is served was the cluster's so long ago and may not be now: it is of a snapshot or of an earlier agent until the
    /// objects are listed, or a watch has failed; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_seconds: Option<u64>,
    /// Local-traffic detector in words, for example `NodeCIDR 10.244.1.0/24,fd00:10:244:1::/64` or `none`.
    pub detector: String,
    /// Socket hooks: attached or why not.
    pub socket_hooks: HookStatus,
    /// Seconds for which TCP without state is still left to kube-proxy's rules; absent when it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover_seconds: Option<u32>,
    /// Devices.
    pub devices: Vec<DeviceStatus>,
    /// Map use: name -> entries used and capacity.
    pub maps: BTreeMap<String, MapStatus>,
    /// Bytes of BPF memory the maps take.
    pub bpf_memory_bytes: u64,
    /// Number of Services, frontends, backends programmed.
    pub services: u64,
    /// Frontends programmed.
    pub frontends: u64,
    /// Backends programmed.
    pub backends: u64,
    /// Conntrack entries.
    pub flows: u64,
    /// Counters that are not zero.
    pub counters: BTreeMap<String, u64>,
    /// How the maps were read back; absent when read from the pins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<VerifyStatus>,
    /// Everything that is degraded: each names the object, the cause and the mend. Non-empty means exit code 3.
    pub problems: Vec<Problem>,
    /// What means nothing here or may not be as meant: shown, but nothing is degraded by it.
    pub warnings: Vec<Problem>,
}

/// What reading the maps back has found since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyStatus {
    /// Entries compared.
    pub entries: u64,
    /// Passes over all tables.
    pub passes: u64,
    /// Age of the last one's end; absent before the first.
    pub last_pass_seconds: Option<u64>,
    /// When that was, in seconds since 1970.
    pub last_pass_at: Option<u64>,
    /// Entries that were not as programmed, by map.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drift: BTreeMap<String, u64>,
    /// Writes that mended them.
    pub repaired: u64,
}

/// The watch of one kind of objects at the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchStatus {
    /// As RBAC writes it: `services`.
    pub resource: String,
    /// Listed, and followed since.
    pub synced: bool,
    /// For so long.
    pub since_seconds: u64,
    /// Age of the last sign of the server: an event, a bookmark or a list; absent before the first.
    pub last_event_seconds: Option<u64>,
    /// The last error, also one that is over.
    pub last_error: Option<String>,
    /// Its age.
    pub last_error_seconds: Option<u64>,
}

/// A hook's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookStatus {
    /// Attached.
    pub attached: bool,
    /// The cgroup, or the error.
    pub detail: String,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// `uplink`, `overlay`, `pod`, `host` or `ignored`.
    pub role: String,
    /// Why it has this role.
    pub why: String,
    /// `xdp+tcx`, `tcx` or `none`.
    pub hooks: String,
    /// Set when something fell back or is gone: the errno and what it means.
    pub degraded: Option<String>,
}

/// Use of a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapStatus {
    /// Entries in use.
    pub used: u64,
    /// `max_entries`.
    pub capacity: u64,
}

/// Something that is not as asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `Service default/web`, `device eth1`, `cgroup`, `file a.yaml:12`.
    pub object: String,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

/// One row of `ballast service list`; its JSON is the documented schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// ClusterIP, NodePort, LoadBalancer, ExternalName.
    #[serde(rename = "type")]
    pub service_type: String,
    /// Cluster IPs; `["None"]` for a headless Service.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Load balancer addresses.
    #[serde(rename = "loadBalancerIPs")]
    pub load_balancer_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<PortRow>,
    /// Usable backends (distinct endpoint addresses).
    pub backends: u64,
    /// Selector; absent when read from the pins, and as an agent that is older than this command tells it.
    #[serde(default)]
    pub selector: Option<BTreeMap<String, String>>,
}

/// A port in [`ServiceRow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortRow {
    /// Name; empty when unnamed.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
    /// nodePort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

/// `ballast service describe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceDetail {
    /// The list row.
    #[serde(flatten)]
    pub row: ServiceRow,
    /// Labels; absent when read from the pins.
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations; absent when read from the pins.
    pub annotations: Option<BTreeMap<String, String>>,
    /// IP families.
    pub ip_families: Vec<String>,
    /// External traffic policy.
    pub external_traffic_policy: String,
    /// Internal traffic policy.
    pub internal_traffic_policy: String,
    /// Session affinity in words.
    pub session_affinity: String,
    /// Where load balancers probe each node for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u16>,
    /// Frontends in the maps with their service ids.
    pub frontends: Vec<FrontendRow>,
    /// Endpoints.
    pub endpoints: Vec<EndpointRow>,
    /// Events and problems of this Service.
    pub problems: Vec<Problem>,
}

/// A frontend of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRow {
    /// `ClusterIP`, `NodePort` or `LoadBalancer`.
    pub kind: String,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// New connections since the agent's maps exist (all frontends of the service port together).
    pub connections: u64,
    /// Packets of packet-path flows; absent where only socket-path connections were seen.
    pub packets: Option<u64>,
    /// Bytes of packet-path flows.
    pub bytes: Option<u64>,
}

/// An endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRow {
    /// Name of the Service port.
    pub port_name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Node.
    pub node: Option<String>,
    /// Pod.
    pub pod: Option<String>,
    /// `ready`, `terminating` (serving while terminating) or `not ready`; read from the pins, `in use` or `no new
    /// connections`.
    pub state: String,
    /// On this node; absent when read from the pins and not told by them.
    pub local: Option<bool>,
    /// New connections to it.
    pub connections: u64,
}

/// One row of `ballast backend list`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// Whose it is.
    #[serde(flatten)]
    pub service: ServicePortName,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Its number: index into `LB4_BACKENDS` or `LB6_BACKENDS`.
    pub slot: u32,
    /// How many owners the slot has had.
    pub generation: u32,
    /// Name of the device packets leave by, `#7` where only its index is known; absent without a route.
    pub device: Option<String>,
    /// The source address a masqueraded connection has.
    pub source: Option<IpAddr>,
    /// The largest packet that gets there in one piece, as far as the kernel knows; absent where the command runs in
    /// another network namespace than the agent, as the next hop.
    pub mtu: Option<u32>,
    /// Who gets the packets first; absent for an address of this node.
    pub next_hop: Option<NextHopRow>,
    /// New connections to it since the slot has it.
    pub connections: u64,
    /// `in use`, or `no new connections`: it keeps those it has.
    pub state: String,
}

/// The next hop of a backend, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NextHopRow {
    /// A router, or the backend itself where it is on the link.
    pub address: IpAddr,
    /// Its MAC, once the kernel knows it.
    pub mac: Option<String>,
    /// As `ip neigh` says it: `reachable`, `stale`, `permanent`, `failed`, ...; `none` where nobody asked for it yet.
    pub state: String,
}

/// A service port as the tables know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortName {
    /// Namespace; `unknown` for a number nobody names.
    pub namespace: String,
    /// Name; the number, as `#7`, where nobody names it.
    pub name: String,
    /// Name of the port; empty when unnamed.
    pub port_name: String,
}

/// `ballast conntrack list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowList {
    /// The flows, at most as many as were asked for.
    pub flows: Vec<FlowRow>,
    /// How many more there are.
    pub left_out: u64,
}

/// A flow of the packet path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// Whose it is.
    #[serde(flatten)]
    pub service: ServicePortName,
    /// Protocol; its number where Services do not know it.
    pub protocol: String,
    /// Who opened it.
    pub client: SocketAddr,
    /// The address the client uses.
    pub frontend: SocketAddr,
    /// Where it goes.
    pub backend: SocketAddr,
    /// The source the backend sees, where it is not the client.
    pub source: Option<SocketAddr>,
    /// `opening`, `open`, `closing` or `closed`.
    pub phase: String,
    /// Seconds since its last packet in either direction; absent where the kernel's clock cannot be read.
    pub age_seconds: Option<u64>,
    /// Packets of both directions.
    pub packets: u64,
    /// Bytes of both directions.
    pub bytes: u64,
}
