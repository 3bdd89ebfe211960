//! Random histories of a misbehaving API server: what the source makes of them is the server's state, always a whole one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, TcpListener},
    time::{Duration, Instant},
};

use lb_tests::{
    api_server::{ApiServer, Fault},
    scoreboard,
};
use lb_userspace::{
    k8s::source::{Access, Options, Selectors, Source, Timing},
    model::{Model, ObjectName, Touched},
};
use serde_json::{Value, json};

/// Histories in a usual run.
const FEW: u64 = 300;
/// Histories of the whole proof: `cargo test -p lb-tests --test watch_model -- --ignored`.
const MANY: u64 = 10_000;
const RESOURCES: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

/// A sequence of numbers that is the same for a seed everywhere (`SplitMix64`).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let index = self.below(items.len() as u64);
        &items[usize::try_from(index).expect("an index")]
    }
}

/// What the objects of one resource come to, in words.
type State = BTreeMap<String, String>;

/// What the server has had of each resource, oldest first.
#[derive(Default)]
struct Histories(BTreeMap<&'static str, Vec<State>>);

impl Histories {
    fn last(&self, resource: &str) -> State {
        self.0.get(resource).and_then(|states| states.last()).cloned().unwrap_or_default()
    }

    fn push(&mut self, resource: &'static str, state: State) {
        self.0.entry(resource).or_insert_with(|| vec![State::new()]).push(state);
    }
}

fn object(resource: &'static str, random: &mut Random) -> (String, String, Value) {
    let (number, variant) = (random.below(5), random.below(4));
    let name = format!("{}-{number}", resource.trim_end_matches('s'));
    match resource {
        "services" => {
            let (ip, port) = (format!("10.96.0.{}", number + 1), 80 + variant);
            let mut metadata = json!({"name": name, "namespace": "default"});
            // Another proxy's: the selector leaves it out.
            let foreign = variant == 3;
            if foreign {
                metadata["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
            }
            let spec = json!({"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ports": [{"port": port}]});
            let state = if foreign { String::new() } else { format!("{ip}:{port}") };
            (name, state, json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}))
        }
        "endpointslices" => {
            let addresses: BTreeSet<IpAddr> = (0..variant)
                .map(|host| {
                    IpAddr::from([
                        10,
                        244,
                        u8::try_from(number).expect("small"),
                        u8::try_from(host + 1).expect("small"),
                    ])
                })
                .collect();
            let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
            // An empty list is null on the wire.
            let endpoints = if endpoints.is_empty() { Value::Null } else { json!(endpoints) };
            // A slice may change its Service.
            let labels = json!({"kubernetes.io/service-name": format!("service-{}", number + variant)});
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": name, "namespace": "default", "labels": labels},
                "ports": [{"name": "", "protocol": "TCP", "port": 8080}], "endpoints": endpoints,
            });
            (name, format!("{addresses:?}"), slice)
        }
        "nodes" => {
            let name = format!("node{}", number % 2);
            let cidr = format!("10.244.{variant}.0/24");
            let state = if name == "node1" { cidr.clone() } else { String::new() };
            let node =
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": [cidr]}});
            (name, state, node)
        }
        _ => {
            let cidr = format!("10.{}.0.0/16", 96 + variant);
            let spec = json!({"cidrs": [cidr]});
            let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}, "spec": spec});
            (name, cidr, range)
        }
    }
}

/// The same words for what the source has.
fn states(model: &Model) -> BTreeMap<&'static str, State> {
    let named = |name: &ObjectName| name.name.clone();
    let services = model.services.iter().map(|(name, service)| {
        let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
        let ips: Vec<String> = service.cluster_ips.iter().map(ToString::to_string).collect();
        (named(name), format!("{}:{}", ips.join(","), ports.join(",")))
    });
    let slices = model.slices.iter().map(|(name, slice)| {
        let addresses: BTreeSet<IpAddr> = slice.endpoints.iter().map(|endpoint| endpoint.address).collect();
        (named(name), format!("{addresses:?}"))
    });
    let list = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let nodes = model.nodes.iter().map(|(name, node)| (name.clone(), list(&node.pod_cidrs)));
    let cidrs = model.service_cidrs.iter().map(|(name, nets)| (name.clone(), list(nets)));
    BTreeMap::from([
        ("services", services.collect()),
        ("endpointslices", slices.collect()),
        ("nodes", nodes.collect()),
        ("servicecidrs", cidrs.collect()),
    ])
}

fn change(api: &ApiServer, histories: &mut Histories, random: &mut Random) {
    let resource = *random.of(&RESOURCES);
    let (name, state, object) = object(resource, random);
    let mut now = histories.last(resource);
    if random.below(4) == 0 {
        let namespace = if matches!(resource, "services" | "endpointslices") { "default" } else { "" };
        api.delete(resource, namespace, &name);
        now.remove(&name);
    } else {
        api.put(object);
        if state.is_empty() {
            now.remove(&name);
        } else {
            now.insert(name, state);
        }
    }
    histories.push(resource, now);
}

fn misbehave(api: &ApiServer, random: &mut Random) {
    let resource = *random.of(&RESOURCES);
    match random.below(11) {
        0 => api.cut(resource, false),
        1 | 2 => api.cut(resource, true),
        3 => api.compact(),
        4 => api.bookmark(),
        5 => api.duplicate(random.below(2) == 0),
        6 => api.hold(resource, true),
        7 => api.hold(resource, false),
        8 => api.page(usize::try_from(1 + random.below(4)).expect("small")),
        9 => api.away(random.below(3) == 0),
        _ => {
            // Services and slices alone are looked at twice: a cluster is never without them.
            let empty = if matches!(resource, "services" | "endpointslices") { Fault::Empty } else { Fault::None };
            let faults = [
                Fault::Answer(500, None),
                Fault::Answer(429, Some(0)),
                Fault::Answer(401, None),
                Fault::Answer(403, None),
                Fault::Close,
                Fault::Truncated,
                Fault::None,
                empty,
            ];
            let fault = random.of(&faults).clone();
            // A page that fails, and what follows it.
            api.fail(resource, (0..random.below(3)).map(|_| Fault::None).chain([fault, Fault::None]));
        }
    }
}

/// Where the source may be in the histories.
struct Checker {
    seen: BTreeMap<&'static str, usize>,
    complete: bool,
    reordered: bool,
}

impl Checker {
    /// From what the server has now on. Lists of Services and slices may be those of a server that has not read its store.
    fn new(histories: &Histories, reordered: bool) -> Self {
        let last = |resource| (resource, histories.0.get(resource).map_or(0, |states| states.len() - 1));
        Self { seen: ["nodes", "servicecidrs"].map(last).into(), complete: false, reordered }
    }
}

impl Checker {
    /// Whether every kind is at one of the states the server has had, and not before the last one seen.
    fn check(&mut self, histories: &Histories, model: &Model, complete: bool, sentinel: &Model) -> Result<(), String> {
        if !complete {
            return if model == sentinel { Ok(()) } else { Err("touched before the lists were complete".to_owned()) };
        }
        self.complete = true;
        if self.reordered {
            // What came in another order may have been no state of the server's for a moment.
            return Ok(());
        }
        for (resource, state) in states(model) {
            let all = histories.0.get(resource).cloned().unwrap_or_else(|| vec![State::new()]);
            let from = self.seen.get(resource).copied().unwrap_or(0);
            let found = all.iter().enumerate().skip(from).find(|(_, had)| **had == state).map(|(index, _)| index);
            match found {
                Some(index) => self.seen.insert(resource, index),
                None => {
                    return Err(format!(
                        "{resource}: {state:?} is no state after number {from}, the one seen last, of {all:?}"
                    ));
                }
            };
        }
        Ok(())
    }
}

async fn history(seed: u64, reordered: bool) -> Result<(), String> {
    let mut random = Random(seed);
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let api = ApiServer::start(listener).map_err(|error| format!("{error:#}"))?;
    let mut histories = Histories::default();
    for _ in 0..random.below(12) {
        change(&api, &mut histories, &mut random);
    }
    if random.below(2) == 0 {
        misbehave(&api, &mut random);
    }
    let mut checker = Checker::new(&histories, reordered);
    let timing = Timing {
        first: Duration::from_millis(1),
        away: Duration::from_millis(4),
        answers: Duration::from_millis(4),
        second_look: Duration::from_millis(1),
        between: Duration::from_millis(1),
        // A 403 here is one answer.
        lasting: Duration::from_mins(1),
    };
    let options = Options {
        access: Access::Master(api.url()),
        selectors: Selectors::datapath("node1"),
        service_cidrs: true,
        timing,
    };
    let mut source = Source::start(options).await.map_err(|error| error.to_string())?;
    // What an earlier agent may have left: to stay until all is known.
    let sentinel = Model { namespaces: ["sentinel".to_owned()].into(), ..Model::default() };
    let mut model = sentinel.clone();
    api.reorder(reordered);
    for _ in 0..random.below(30) {
        if random.below(2) == 0 {
            change(&api, &mut histories, &mut random);
        } else {
            misbehave(&api, &mut random);
        }
        if random.below(3) == 0 {
            let pause = Duration::from_micros(random.below(4_000));
            // Whatever comes in that time, or nothing.
            if follow(&mut source, &mut model, pause).await? {
                checker.check(&histories, &model, source.is_complete(), &sentinel)?;
            }
        }
    }
    api.away(false);
    api.reorder(false);
    for resource in RESOURCES {
        api.hold(resource, false);
    }
    let expected: BTreeMap<_, _> = RESOURCES.iter().map(|resource| (*resource, histories.last(resource))).collect();
    let begin = Instant::now();
    while !source.is_complete() || states(&model) != expected {
        if begin.elapsed() > Duration::from_secs(20) {
            let (found, watches) = (states(&model), source.status());
            return Err(format!(
                "complete: {}, found {found:?}, expected {expected:?}, {watches:?}",
                source.is_complete()
            ));
        }
        if follow(&mut source, &mut model, Duration::from_secs(1)).await? {
            checker.check(&histories, &model, source.is_complete(), &sentinel)?;
        }
    }
    Ok(())
}

/// Waits for news; whether there were any. They tell of all that is another one in the model.
async fn follow(source: &mut Source, model: &mut Model, limit: Duration) -> Result<bool, String> {
    let before = model.clone();
    let Ok(touched) = tokio::time::timeout(limit, source.changed(model)).await else { return Ok(false) };
    let differs = Touched::between(&before, model);
    let is_told = match (&touched, &differs) {
        (Touched::All, _) => true,
        (Touched::Endpoints(told), Touched::Endpoints(differ)) => differ.is_subset(told),
        (Touched::Endpoints(_), Touched::All) => false,
    };
    if is_told { Ok(true) } else { Err(format!("{differs:?} differs, {touched:?} was told")) }
}

fn histories(count: u64, reordered: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let first = std::env::var("WATCH_MODEL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = first.map_or(0..count, |seed: u64| seed..seed + 1);
    for seed in seeds {
        if let Err(error) = runtime.block_on(history(seed, reordered)) {
            panic!("history {seed} (WATCH_MODEL_SEED={seed} repeats its choices): {error}");
        }
    }
    scoreboard(
        "R5",
        &format!(
            "{count} random histories of a misbehaving API server: each ends as the server, nothing before all is listed"
        ),
    );
}

#[test]
fn watch_model() {
    histories(FEW, false);
}

#[test]
fn watch_model_of_events_in_another_order() {
    histories(FEW / 3, true);
}

#[test]
#[ignore = "minutes; cargo xtask test --all runs it"]
fn watch_model_10_000() {
    histories(MANY, false);
}
