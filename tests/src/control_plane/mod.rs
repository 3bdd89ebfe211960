//! A real control plane in a world: etcd, kube-apiserver and kube-controller-manager, without kubelets.
//!
//! Nobody renews the Leases of Nodes, so the controllers that would mark Nodes and end Pods for it are switched off; the
//! test plays the kubelet: it makes the Nodes and Pods and patches their status. EndpointSlices, tokens and addresses of
//! Services are then made by Kubernetes itself.

mod api;
mod objects;
mod programs;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use kube::Client;

use self::api::Api;
pub use self::{objects::Endpoint, programs::program};
use crate::{Pki, Place, Process, World, cgroup::Cgroup, process::last_lines, wait_until, wiring::SERVICE_CIDRS};

/// What is started, and kubectl for people.
const PROGRAMS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];
const ETCD: &str = "http://127.0.0.1:2379";
const API_PORT: u16 = 6443;
/// Of both Service ranges the first address, the one of the Service `kubernetes`.
const API_CLUSTER_IPS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1)),
];
/// Without kubelets these would find every Node dead.
const CONTROLLERS: &str = "*,-node-lifecycle-controller,-taint-eviction-controller,-pod-garbage-collector-controller";
/// How long a server may take until it answers, on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(90);
/// As whom an agent talks to the API server; `agent.yaml` gives it the rights of the `ServiceAccount` of deploy/.
const AGENT: &str = "ballast";

/// A running control plane; ended on drop, and with its world.
#[derive(Debug)]
pub struct ControlPlane {
    // Clients before servers, so that the end is not a flood of complaints.
    api: Api,
    controllers: Option<Process>,
    server: Option<Process>,
    etcd: Process,
    place: Place,
    address: SocketAddr,
    directory: PathBuf,
    admin: PathBuf,
    agent: PathBuf,
    _cgroup: Cgroup,
}

impl ControlPlane {
    /// Whether what it is made of is built; an error names the command that does it.
    pub fn programs() -> anyhow::Result<()> {
        PROGRAMS.into_iter().try_for_each(|name| program(name).map(drop))
    }

    /// Starts it in a namespace of its own, beside the nodes of `world`; ready for Pods when this returns.
    pub fn start(world: &World) -> anyhow::Result<Self> {
        let (place, cgroup) = world.add_control_plane()?;
        let directory = world.directory().join("control-plane");
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let address = SocketAddr::new(place.ipv4().into(), API_PORT);
        let pki = Pki::create(&directory)?;
        let [ipv4, ipv6] = place.ips();
        pki.server(&[ipv4, ipv6, API_CLUSTER_IPS[0], API_CLUSTER_IPS[1], IpAddr::from([127, 0, 0, 1])])?;
        let admin = pki.kubeconfig("admin", ("admin", Some("system:masters")), address)?;
        let agent = pki.kubeconfig("agent", (AGENT, None), address)?;
        pki.kubeconfig("controllers", ("system:kube-controller-manager", None), address)?;
        pki.kubeconfig("kube-proxy", ("system:kube-proxy", None), address)?;
        let etcd = start_etcd(&place, &directory)?;
        let api = Api::new(&place.namespace, &admin)?;
        let mut plane = Self {
            api,
            controllers: None,
            server: None,
            etcd,
            place,
            address,
            directory,
            admin,
            agent,
            _cgroup: cgroup,
        };
        plane.launch_server()?;
        plane.launch_controllers()?;
        plane.apply(include_str!("../../../deploy/base/rbac.yaml")).context("the rights of deploy/")?;
        plane.apply(include_str!("agent.yaml")).context("the rights of the agent")?;
        wait_until("the ServiceAccount without which no Pod is admitted", START, || {
            if let Err(dead) = plane.alive() {
                return Ok(Err(dead));
            }
            match plane.get("serviceaccounts", "default", "default") {
                Ok(Some(_)) => Ok(Ok(())),
                Ok(None) => Err("not there yet".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            }
        })??;
        Ok(plane)
    }

    /// Where its processes run, and from where its API can be reached: as from every node and pod.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where the API server listens. It does so on the IPv6 address of [`place`](Self::place) as well.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The kubeconfig of a cluster administrator, complete in one file.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// The kubeconfig of an agent: the user `ballast`, who may read Services, EndpointSlices, Nodes and `ServiceCIDRs`
    /// and write Events.
    pub fn agent_kubeconfig(&self) -> &Path {
        &self.agent
    }

    /// The kubeconfig of a kube-proxy, with the rights Kubernetes gives it.
    pub fn kube_proxy_kubeconfig(&self) -> PathBuf {
        self.directory.join("kube-proxy.kubeconfig")
    }

    /// Its folder: keys (`ca.crt`, `sa.key`, ...) and logs (`kube-apiserver.log`, ...).
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `kill -9` of the API server: connections break.
    pub fn kill_server(&mut self) -> anyhow::Result<()> {
        self.server.take().context("the API server is not running")?.kill()
    }

    /// Starts the API server (again, after [`kill_server`](Self::kill_server)) and waits until it is ready.
    pub fn launch_server(&mut self) -> anyhow::Result<()> {
        ensure!(self.server.is_none(), "the API server runs already");
        let mut command = self.place.command(program("kube-apiserver")?)?;
        let file = |name: &str| self.directory.join(name).display().to_string();
        let [ipv4, ipv6] = SERVICE_CIDRS;
        command.args([
            format!("--etcd-servers={ETCD}"),
            format!("--advertise-address={}", self.address.ip()),
            format!("--secure-port={API_PORT}"),
            format!("--service-cluster-ip-range={ipv4},{ipv6}"),
            "--allow-privileged".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
        ]);
        self.server = Some(self.spawn("kube-apiserver", command)?);
        wait_until("kube-apiserver: ready", START, || {
            if let Err(dead) = self.alive() {
                return Ok(Err(dead));
            }
            self.api.text("/readyz").map(|_| Ok(())).map_err(|error| format!("{error:#}"))
        })?
    }

    /// Ends the controller manager: EndpointSlices stay as they are.
    pub fn kill_controllers(&mut self) -> anyhow::Result<()> {
        self.controllers.take().context("the controller manager is not running")?.kill()
    }

    /// Starts the controller manager (again).
    pub fn launch_controllers(&mut self) -> anyhow::Result<()> {
        ensure!(self.controllers.is_none(), "the controller manager runs already");
        let mut command = self.place.command(program("kube-controller-manager")?)?;
        let file = |name: &str| self.directory.join(name).display().to_string();
        let [ipv4, ipv6] = SERVICE_CIDRS;
        command.args([
            format!("--kubeconfig={}", file("controllers.kubeconfig")),
            // No port of its own: whether it works is seen by what it makes.
            "--secure-port=0".to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials".to_owned(),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--service-account-private-key-file={}", file("sa.key")),
            format!("--service-cluster-ip-range={ipv4},{ipv6}"),
            format!("--controllers={CONTROLLERS}"),
        ]);
        self.controllers = Some(self.spawn("kube-controller-manager", command)?);
        Ok(())
    }

    /// Runs `body` with a client of the administrator whose connections start in the control plane's namespace.
    pub fn with_client<T, F>(&self, body: impl FnOnce(Client) -> F) -> anyhow::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        self.api.run(body)
    }

    fn spawn(&self, name: &str, command: std::process::Command) -> anyhow::Result<Process> {
        Process::spawn_logged(name, command, &self.directory.join(format!("{name}.log")))
    }

    /// Ends the waiting at once when a process that should run does not.
    fn alive(&mut self) -> anyhow::Result<()> {
        let running = [Some(&mut self.etcd), self.server.as_mut(), self.controllers.as_mut()];
        for process in running.into_iter().flatten() {
            ensure!(process.is_running(), "{} ended: {}", process.label(), last_lines(&process.stderr(), 10));
        }
        Ok(())
    }
}

fn start_etcd(place: &Place, directory: &Path) -> anyhow::Result<Process> {
    let mut command = place.command(program("etcd")?)?;
    command.arg("--data-dir").arg(directory.join("etcd")).args([
        // What a crash of the machine loses is lost with the world anyway.
        "--unsafe-no-fsync",
        "--log-level=warn",
        &format!("--listen-client-urls={ETCD}"),
        &format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:2380",
    ]);
    Process::spawn_logged("etcd", command, &directory.join("etcd.log"))
}
