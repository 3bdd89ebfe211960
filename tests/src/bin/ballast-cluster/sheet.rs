//! What is up, as a file and as text for a person.

use std::{
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use lb_tests::{ControlPlane, World, program};
use serde::{Deserialize, Serialize};

/// What runs and how it is reached.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Sheet {
    world: String,
    server: String,
    namespace: String,
    kubectl: PathBuf,
    admin: PathBuf,
    agent: PathBuf,
    directory: PathBuf,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Node {
    name: String,
    namespace: String,
    bpffs: PathBuf,
    cgroup: PathBuf,
    state_dir: PathBuf,
    pods: Vec<String>,
}

impl Sheet {
    pub(crate) fn of(world: &World, plane: &ControlPlane) -> anyhow::Result<Self> {
        let nodes = world.nodes().iter().map(|node| Node {
            name: node.name().to_owned(),
            namespace: node.namespace().name().to_owned(),
            bpffs: node.bpffs(),
            cgroup: node.cgroup().to_owned(),
            state_dir: node.state_dir(),
            pods: node.pods().iter().map(|pod| format!("{} in {}", pod.name(), pod.namespace().name())).collect(),
        });
        Ok(Self {
            world: world.id().to_owned(),
            server: format!("https://{}", plane.address()),
            namespace: plane.place().namespace().name().to_owned(),
            kubectl: program("kubectl")?,
            admin: plane.admin_kubeconfig().to_owned(),
            agent: plane.agent_kubeconfig().to_owned(),
            directory: plane.directory().to_owned(),
            nodes: nodes.collect(),
        })
    }

    /// What was written last, whether it still runs or not.
    pub(crate) fn read(run_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = file(run_dir);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not of this version: end what it names, and remove it", path.display()))
            .map(Some)
    }

    /// Replaces the file at once.
    pub(crate) fn write(&self, run_dir: &Path) -> anyhow::Result<()> {
        let (path, temporary) = (file(run_dir), run_dir.join("up.json.tmp"));
        let text = serde_json::to_string_pretty(self).context("cannot write JSON")?;
        fs::write(&temporary, text).with_context(|| format!("cannot write {}", temporary.display()))?;
        fs::rename(&temporary, &path).with_context(|| format!("cannot replace {}", path.display()))
    }

    pub(crate) fn remove(run_dir: &Path) -> anyhow::Result<()> {
        let path = file(run_dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The id of the world.
    pub(crate) fn world(&self) -> &str {
        &self.world
    }

    /// kubectl as administrator, where the API can be reached.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(&self.kubectl).arg("--kubeconfig").arg(&self.admin);
        command.args(arguments);
        command
    }
}

impl fmt::Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, namespace, kubectl, admin, agent, directory, nodes, .. } = self;
        writeln!(f, "{server}, reached from the namespaces below, not from the machine itself")?;
        writeln!(f, "    administrator  {}", admin.display())?;
        writeln!(f, "    agent          {} (reads Services, EndpointSlices, Nodes, ServiceCIDRs)", agent.display())?;
        writeln!(f, "    logs           {}/*.log", directory.display())?;
        for node in nodes {
            writeln!(f, "{} in {}", node.name, node.namespace)?;
            for (what, path) in [("bpffs", &node.bpffs), ("cgroup", &node.cgroup), ("state dir", &node.state_dir)] {
                writeln!(f, "    {what:<9}  {}", path.display())?;
            }
            node.pods.iter().try_for_each(|pod| writeln!(f, "    pod        {pod}"))?;
        }
        writeln!(f, "\nkubectl:")?;
        let (kubectl, admin) = (kubectl.display(), admin.display());
        writeln!(f, "    ip netns exec {namespace} {kubectl} --kubeconfig {admin} get nodes,pods,services")?;
        write!(f, "To end it:\n    cargo xtask cluster down")
    }
}

fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("up.json")
}
