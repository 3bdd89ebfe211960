//! The unit of deploy/ under a real systemd, from its first start to its stop.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_tests::{
    Echo, Machine, NODE_PORT, Node, TARGET, UnitSetup, World, api_server::ApiServer, client::Call, needs_root,
    wait_until,
};
use serde_json::{Value, json};

const VIP: &str = "10.96.0.10";
const CONFIG: &str = "apiVersion: ballast.dev/v1alpha1\nkind: BallastConfiguration\nxdp: \"off\"\nsocketHooks: true\n";
/// The unit's own minute is more than a test may take.
const WATCHDOG: &str = "[Service]\nWatchdogSec=4\n";
/// A machine that is busy with other tests takes its time.
const LIMIT: Duration = Duration::from_mins(1);
/// What `systemctl` may take: less than the unit's own limits.
const PROMPT: Duration = Duration::from_secs(30);

/// A machine with the unit, and an API server outside.
struct Kube {
    machine: Machine,
    configuration: PathBuf,
    api: ApiServer,
    _server: Echo,
    world: World,
}

impl Kube {
    /// Boots while the API server is away.
    fn boot(world: World) -> Self {
        let api = ApiServer::of_world(&world).expect("an API server");
        api.away(true);
        let pod = world.node(0).pod(0);
        api.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "type": "NodePort", "clusterIP": VIP, "clusterIPs": [VIP], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": NODE_PORT}],
            },
        }));
        api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "protocol": "TCP", "port": TARGET}],
            "endpoints": [{"addresses": [pod.ipv4()], "nodeName": pod.node(), "conditions": {}}],
        }));
        let server = Echo::start(pod.place(), &[TARGET], &[]).expect("a server");
        let configuration = world.directory().join("etc-ballast");
        fs::create_dir(&configuration).expect("a folder");
        fs::write(configuration.join("config.yaml"), CONFIG).expect("written");
        fs::write(configuration.join("kubeconfig"), kubeconfig(&api.url(), &json!({"token": "a"}))).expect("written");
        let setup = UnitSetup { configuration: configuration.clone(), drop_in: WATCHDOG.to_owned() };
        let machine = Machine::boot(&world, world.node(0), &setup).expect("a machine");
        Self { machine, configuration, api, _server: server, world }
    }

    fn node(&self) -> &Node {
        self.world.node(0)
    }

    fn unit(&self) -> Unit {
        Unit(self.machine.properties().expect("properties"))
    }

    /// Waits until the unit is as `done` has it.
    #[track_caller]
    fn until(&self, what: &str, done: impl Fn(&Unit) -> bool) -> Unit {
        let found = wait_until(what, LIMIT, || {
            let unit = Unit(self.machine.properties()?);
            if done(&unit) { Ok(unit) } else { Err(unit.words()) }
        });
        found.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Its Service by the nodePort, from outside.
    #[track_caller]
    fn served(&self) {
        let to = SocketAddr::new(self.node().ipv4().into(), NODE_PORT);
        let wanted = self.node().pod(0).name();
        wait_until("the nodePort", Duration::from_secs(10), || {
            let answer = Call::tcp(to).timeout(Duration::from_secs(2)).run_one(self.world.client());
            match answer.and_then(|answer| Ok(answer.reached()?.0.to_owned())) {
                Ok(name) if name == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .expect("served");
    }

    /// What is pinned: its name, and the number that another object of that name would not have.
    fn pins(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.node().bpffs()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder").flatten() {
                let metadata = entry.metadata().expect("metadata");
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else {
                    found.insert(entry.path(), metadata.ino());
                }
            }
        }
        found
    }

    /// How long `systemctl WORDS` takes, and what it says if it fails.
    fn systemctl(&self, words: &[&str]) -> (Duration, Result<String, String>) {
        let begin = Instant::now();
        let result = self.machine.systemctl(words);
        (begin.elapsed(), result)
    }

    fn configure(&self, text: &str) {
        fs::write(self.configuration.join("config.yaml"), text).expect("written");
    }
}

fn kubeconfig(server: &str, user: &Value) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "u", "user": user}],
    })
    .to_string()
}

/// Properties of the unit.
struct Unit(BTreeMap<String, String>);

impl Unit {
    fn of(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    /// A time or another number; microseconds of the machine's clock.
    fn number(&self, name: &str) -> u64 {
        self.of(name).parse().unwrap_or_else(|_| panic!("{name}: {:?}", self.of(name)))
    }

    fn is_active(&self, status: &str) -> bool {
        (self.of("ActiveState"), self.of("StatusText")) == ("active", status)
    }

    fn words(&self) -> String {
        ["ActiveState", "SubState", "Result", "StatusText", "NRestarts", "MainPID"]
            .map(|name| format!("{name}={}", self.of(name)))
            .join(" ")
    }
}

const NOTHING: &str = "nothing to serve yet: the cluster's objects have not all been listed";
const AS_LEFT: &str = "forwarding as an earlier agent left it, until the cluster's objects are listed";
const SERVING: &str = "serving";

#[test]
fn the_unit_lives_under_systemd() {
    needs_root!();
    let world = World::builder().rp_filter(1).nodes(1).pods(1).build().expect("a world");
    if let Err(missing) = Machine::possible(world.node(0)) {
        println!("SKIP the_unit_lives_under_systemd: {missing}");
        return;
    }
    let kube = Kube::boot(world);
    starts_without_an_api_server(&kube);
    restarts_on_what_is_pinned(&kube);
    is_watched(&kube);
    says_what_is_wrong_with_its_configuration(&kube);
    stops(&kube);
    stops_while_a_plugin_hangs(&kube);
}

/// On nothing, and before the API server is there: active comes with READY=1 and not with the process.
fn starts_without_an_api_server(kube: &Kube) {
    let unit = kube.until("active", |unit| unit.of("ActiveState") == "active");
    assert_eq!((unit.of("Type"), unit.of("SubState")), ("notify", "running"));
    assert_eq!(unit.of("StatusText"), NOTHING, "{}", unit.words());
    let micros = unit.number("ActiveEnterTimestampMonotonic") - unit.number("ExecMainStartTimestampMonotonic");
    assert!(micros >= 2_900_000, "ready after {micros} µs");
    println!("NOTE the unit with nothing to serve: active after {} ms", micros / 1000);
    assert_eq!(unit.of("NRestarts"), "0");
    kube.api.away(false);
    kube.until(SERVING, |unit| unit.is_active(SERVING));
    kube.served();
}

fn restarts_on_what_is_pinned(kube: &Kube) {
    let (before, pins) = (kube.unit(), kube.pins());
    assert!(pins.len() > 10, "{pins:?}");
    // There is nothing to reload: it says so, and goes on.
    let (took, told) = kube.systemctl(&["reload", "ballast.service"]);
    let told = told.expect_err("reloaded");
    assert!(told.contains("not applicable") && took < PROMPT, "{took:?}: {told}");
    assert_eq!(kube.unit().of("MainPID"), before.of("MainPID"));
    for away in [false, true] {
        kube.api.away(away);
        let before = kube.unit();
        let (took, told) = kube.systemctl(&["restart", "ballast.service"]);
        assert!(told.is_ok() && took < PROMPT, "{took:?}: {told:?}");
        println!("NOTE systemctl restart, API server {}: {} ms", if away { "away" } else { "there" }, took.as_millis());
        let status = if away { AS_LEFT } else { SERVING };
        let unit = kube.until(status, |unit| unit.is_active(status));
        assert_ne!(unit.of("MainPID"), before.of("MainPID"));
        assert_eq!(unit.of("NRestarts"), "0", "systemd was asked, and had no reason of its own");
        assert_eq!(kube.pins(), pins, "{status}");
        kube.served();
    }
    kube.api.away(false);
    kube.until(SERVING, |unit| unit.is_active(SERVING));
}

/// It is told again and again that the loop goes round, and a loop that does not is ended.
fn is_watched(kube: &Kube) {
    let unit = kube.unit();
    let [period, told] = ["WatchdogUSec", "WatchdogTimestampMonotonic"].map(|name| unit.of(name).to_owned());
    assert_eq!(period, "4s", "of the drop-in");
    let told: u64 = told.parse().expect("a time");
    let later = kube.until("signs of life", |unit| unit.number("WatchdogTimestampMonotonic") > told + 6_000_000);
    assert_eq!((later.of("MainPID"), later.of("NRestarts")), (unit.of("MainPID"), "0"), "{}", later.words());
    kube.machine.systemctl(&["kill", "--signal=STOP", "ballast.service"]).expect("stopped");
    let again = kube.until("another agent", |unit| unit.of("NRestarts") == "1" && unit.is_active(SERVING));
    assert_ne!(again.of("MainPID"), unit.of("MainPID"));
    let journal = kube.machine.journal().expect("a journal");
    assert!(journal.contains("Watchdog timeout (limit 4s)!"), "{journal}");
    kube.served();
}

fn says_what_is_wrong_with_its_configuration(kube: &Kube) {
    kube.configure(&CONFIG.replace("\"off\"", "sideways"));
    let (took, told) = kube.systemctl(&["restart", "ballast.service"]);
    let told = told.expect_err("started");
    assert!(took < PROMPT && told.contains("ballast.service"), "{took:?}: {told}");
    let unit = kube.until("failed", |unit| unit.of("Result") == "exit-code");
    assert_ne!(unit.of("ActiveState"), "active", "{}", unit.words());
    let journal = kube.machine.journal().expect("a journal");
    let named =
        |line: &&str| line.contains("/etc/ballast/config.yaml") && line.contains("xdp") && line.contains("sideways");
    assert!(journal.lines().any(|line| named(&line)), "{journal}");
    kube.served();
    // It is tried for ever: a file that is mended needs nobody to start the unit.
    kube.configure(CONFIG);
    kube.until(SERVING, |unit| unit.is_active(SERVING));
}

/// In order and soon, and what is pinned forwards on.
fn stops(kube: &Kube) {
    let pins = kube.pins();
    let (took, told) = kube.systemctl(&["stop", "ballast.service"]);
    // Later it would have been killed.
    assert!(told.is_ok() && took < Duration::from_secs(10), "{took:?}: {told:?}");
    println!("NOTE systemctl stop: {} ms", took.as_millis());
    let unit = kube.unit();
    assert_eq!((unit.of("ActiveState"), unit.of("Result")), ("inactive", "success"), "{}", unit.words());
    assert_eq!((unit.of("ExecMainStatus"), unit.of("MainPID")), ("0", "0"));
    assert_eq!(kube.pins(), pins);
    kube.served();
}

/// It waits for a plugin for 10 seconds, but not when it is to end.
fn stops_while_a_plugin_hangs(kube: &Kube) {
    let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "sleep", "args": ["40"]});
    let text = kubeconfig(&kube.api.url(), &json!({"exec": exec}));
    fs::write(kube.configuration.join("kubeconfig"), text).expect("written");
    kube.systemctl(&["start", "--no-block", "ballast.service"]).1.expect("begun");
    wait_until("agent and plugin", LIMIT, || {
        let processes = kube.machine.run(&["cat", "/sys/fs/cgroup/system.slice/ballast.service/cgroup.procs"])?;
        if processes.lines().count() == 2 { Ok(()) } else { Err(processes) }
    })
    .expect("a plugin");
    assert_eq!(kube.unit().of("ActiveState"), "activating");
    let (took, told) = kube.systemctl(&["stop", "ballast.service"]);
    assert!(told.is_ok() && took < Duration::from_secs(5), "{took:?}: {told:?}");
    let unit = kube.unit();
    assert_eq!((unit.of("ActiveState"), unit.of("Result")), ("inactive", "success"), "{}", unit.words());
}
