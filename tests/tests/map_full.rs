//! R8 on tables in memory: for each table of the control plane, what does not fit is refused whole with object, cause
//! and mend, what is there stays as it is, and room that comes is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
};

use lb_tests::scoreboard;
use lb_userspace::{
    desired::NodeContext,
    engine::Engine,
    file_source,
    image::{Capacity, Image, NextHopInfo, Table},
    model::{Model, Touched},
    report::Problem,
    store::testing::FakeStore,
};

/// A Service with two ports, two addresses of a balancer and two backends, in the tables of both families.
fn documents(name: &str, number: u8) -> String {
    format!(
        "\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIPs: [10.96.0.{number}, 'fd00:10:96::{number}']
  loadBalancerSourceRanges: [198.51.100.0/24, '2001:db8:5::/48']
  ports: [{{name: a, port: 80, targetPort: 8080}}, {{name: b, port: 81, targetPort: 8081}}]
status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.{number}}}, {{ip: '2001:db8::{number}'}}]}}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-4, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: a, port: 8080}}, {{name: b, port: 8081}}]
endpoints: [{{addresses: [10.244.{number}.1]}}, {{addresses: [10.244.{number}.2]}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-6, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv6
ports: [{{name: a, port: 8080}}, {{name: b, port: 8081}}]
endpoints: [{{addresses: ['fd00:10:244:{number}::1']}}, {{addresses: ['fd00:10:244:{number}::2']}}]
---
"
    )
}

fn model(documents: &[String]) -> Model {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("all.yaml"), documents.concat()).expect("written");
    let mut options = file_source::Options::new(folder.path());
    options.allocations = Some(folder.path().join("allocations.json"));
    file_source::Source::new(options).reload().expect("documents").model
}

/// An agent with tables of its own.
struct Node {
    store: FakeStore,
    engine: Engine,
    _directory: tempfile::TempDir,
}

impl Node {
    fn new(capacity: Capacity) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = FakeStore::new(capacity);
        let (engine, _) = Engine::open(&mut store, Path::new(directory.path())).expect("an engine");
        Self { store, engine, _directory: directory }
    }

    fn sync(&mut self, documents: &[String]) -> &[Problem] {
        let cidrs = ["10.96.0.0/16", "fd00:10:96::/112"].map(|cidr| cidr.parse().expect("a prefix"));
        let node = NodeContext { name: "node1".to_owned(), service_cidrs: cidrs.into(), ..NodeContext::default() };
        let backends = self.engine.compute(&model(documents), &node, &Touched::All).addrs;
        // Each backend by a device of its own: the table of next hops fills as well.
        let hops: BTreeMap<IpAddr, NextHopInfo> = backends
            .into_iter()
            .map(|addr| {
                let ifindex = match addr {
                    IpAddr::V4(addr) => u32::from(addr) & 0xffff,
                    IpAddr::V6(addr) => u32::from(addr.segments()[3]) * 256 + u32::from(addr.segments()[7]),
                };
                (addr, NextHopInfo { ifindex, prefsrc: None, local: false })
            })
            .collect();
        self.engine.sync(&mut self.store, &hops, &[]).expect("a sync");
        &self.engine.refused
    }

    fn image(&self) -> &Image {
        self.engine.mirror()
    }
}

/// What the tables of clients' addresses hold: whoever is in none of them is not programmed.
fn keys(image: &Image) -> BTreeSet<(Table, Box<[u8]>)> {
    let tables = [Table::Frontends4, Table::Frontends6, Table::Vips4, Table::Vips6];
    tables.into_iter().flat_map(|table| image.table(table).map(move |(key, _)| (table, Box::from(key)))).collect()
}

#[test]
fn r8_each_full_table_refuses_a_service_whole_and_takes_it_when_there_is_room() {
    let (one, two) = (documents("one", 1), documents("two", 2));
    let alone = |documents: &String| {
        let mut node = Node::new(Capacity::uniform(4096));
        assert_eq!(node.sync(std::slice::from_ref(documents)), []);
        node.image().clone()
    };
    let (image, other) = (alone(&one), alone(&two));
    let tables = [
        Table::Frontends4,
        Table::Frontends6,
        Table::Records4,
        Table::Records6,
        Table::Services,
        Table::Rings,
        Table::Backends4,
        Table::Backends6,
        Table::Vips4,
        Table::Vips6,
        Table::Sources4,
        Table::Sources6,
    ];
    for table in tables {
        // Number zero of what is numbered is never given out, and a service port has two words.
        let room = match table {
            Table::Services => 2 * 5,
            // Old and new ones are there at once.
            Table::Sources4 | Table::Sources6 => 2 * image.len(table),
            Table::Rings => image.len(table),
            _ if !table.is_array() => image.len(table),
            _ => image.len(table) + 1,
        };
        let room = u32::try_from(room).expect("small");
        let mut node = Node::new(Capacity::uniform(4096).with(table, room));
        assert_eq!(node.sync(std::slice::from_ref(&one)), [], "{table:?}");
        let before = node.image().clone();

        let refused = node.sync(&[one.clone(), two.clone()]).to_vec();
        let [problem] = &refused[..] else { panic!("{table:?}: {refused:?}") };
        let name = table.map_name();
        assert_eq!(problem.object, "Service default/two", "{table:?}");
        assert!(
            problem.cause.contains(&format!("map {name} ")) && problem.cause.contains("does not fit"),
            "{problem:?}"
        );
        assert!(problem.fix.contains(name), "{problem:?}");
        assert_eq!(keys(node.image()), keys(&before), "{table:?}: nothing of the refused Service, all of the other");
        assert_eq!(node.image(), &before, "{table:?}");
        assert_eq!(node.sync(&[one.clone(), two.clone()]), refused, "{table:?}: asked again, refused again");

        assert_eq!(node.sync(std::slice::from_ref(&two)), [], "{table:?}: there is room now");
        assert_eq!(keys(node.image()), keys(&other), "{table:?}");
    }
    let words =
        "a Service that does not fit is refused whole and told with map and mend, the others stay, room is used";
    scoreboard("R8", &format!("map_full, {} tables in memory: {words}", tables.len()));
}

#[test]
fn r8_without_room_for_a_next_hop_the_service_is_served_and_the_route_is_told() {
    for table in [Table::NextHops4, Table::NextHops6] {
        let mut node = Node::new(Capacity::uniform(4096).with(table, 3));
        let two = [documents("one", 1), documents("two", 2)];
        let refused = node.sync(&two).to_vec();
        assert_eq!(refused.len(), 2, "one for each address without a number: {refused:?}");
        for problem in &refused {
            assert!(problem.object.starts_with("route to ") && problem.cause.contains(table.map_name()), "{problem:?}");
        }
        let mut roomy = Node::new(Capacity::uniform(4096));
        roomy.sync(&two);
        assert_eq!(keys(node.image()), keys(roomy.image()));
        assert_eq!(node.sync(&two[..1]), []);
    }
    scoreboard("R8", "map_full, next hops: the Service is served, the route without a place is told");
}

#[test]
fn r8_without_room_for_a_prefix_it_is_told_and_services_work() {
    let mut node = Node::new(Capacity::uniform(4096).with(Table::Prefixes4, 0));
    let refused = node.sync(&[documents("one", 1)]).to_vec();
    let [problem] = &refused[..] else { panic!("{refused:?}") };
    assert!(problem.object == "prefix 10.96.0.0/16" && problem.cause.contains("LB4_PREFIXES"), "{problem:?}");
    assert!(node.image().len(Table::Frontends4) == 4 && node.image().len(Table::Prefixes6) == 1);
    scoreboard("R8", "map_full, prefixes: told, Services are served");
}
