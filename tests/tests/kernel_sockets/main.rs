//! Real sockets against the decisions in memory: what `connect`, `sendmsg`, `recvmsg` and `getpeername` do in a cgroup with
//! the hooks must be what `lb_common` decides on the same tables; what it leaves alone, what happens without hooks.

mod twin;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use lb_common::{
    protocol::Protocol,
    socket::{self, Socket},
    tables::{Tables, World as _},
    testing::{Memory, SocketStorage},
    udp_socket,
    verdict::{Counter, SocketAction, SocketVerdict},
};
use lb_tests::{
    Bpffs, Namespace, Process, World, binary, needs_root,
    talk::{Met, Talk},
};
use lb_userspace::{
    bpf::{Datapath, MapSizes},
    net::netns_cookie,
};

use self::twin::{BACKENDS, Family, NODE_PORT, OWN, SERVICES, TARGET, Twin};

/// Sockets; each asks up to four times.
const SOCKETS: usize = 400;

/// xorshift64*
struct Random(u64);

impl Random {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let word = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        from[usize::try_from(word).expect("31 bits") % from.len()]
    }
}

/// A socket of the process that the hooks see, beside the same without hooks, and beside what is remembered in memory.
struct Pair<'a> {
    twin: &'a Twin,
    seen: &'a mut Talk,
    plain: &'a mut Talk,
    protocol: Protocol,
    /// An IPv6 socket, which speaks IPv4 as well.
    v6: bool,
    connected: bool,
    last: Met,
    storage4: SocketStorage<[u8; 4]>,
    storage6: SocketStorage<[u8; 16]>,
}

/// A verdict whose address is of any family.
type Decided = (SocketAction, Counter, SocketAddr);

fn decided<A: Family>(verdict: SocketVerdict<A>) -> Decided {
    (verdict.action, verdict.counter, A::socket(verdict.backend))
}

impl Pair<'_> {
    fn socket<A: Family>(&self) -> Socket<A> {
        let bound = self.last.local.and_then(|at| A::from_ip(at.ip())).unwrap_or(A::UNSPECIFIED);
        let netns = self.twin.memory.settings[&lb_common::settings::Setting::NetnsCookie];
        let Self { protocol, connected, .. } = *self;
        Socket { cookie: self.last.cookie, netns, protocol, connected, bound }
    }

    fn decide<A: Family>(&self, storage: &SocketStorage<A>, connect: bool, to: SocketAddr) -> Option<Decided>
    where
        Memory: Tables<A>,
    {
        let (memory, socket, to) = (&self.twin.memory, self.socket(), A::l4(to)?);
        let verdict = match (self.protocol, connect) {
            (Protocol::TCP, _) => socket::connect(memory, socket, to),
            (_, true) => udp_socket::connect(memory, storage, socket, to),
            (_, false) => udp_socket::send(memory, storage, socket, to),
        };
        memory.count(verdict.counter);
        Some(decided(verdict))
    }

    fn received<A: Family>(&self, storage: &SocketStorage<A>, from: SocketAddr) -> Option<SocketAddr> {
        udp_socket::received(storage, self.socket(), A::l4(from)?).map(A::socket)
    }

    /// Connects or sends, and hears what comes back; the reason.
    fn ask(&mut self, connect: bool, to: SocketAddr) -> Counter {
        let verdict = self.decide(&self.storage4, connect, to).or_else(|| self.decide(&self.storage6, connect, to));
        let (action, counter, backend) = verdict.expect("one of the families");
        let step = |talk: &mut Talk| if connect { talk.connect(to) } else { talk.send(to) };
        let met = step(self.seen).expect("a step");
        self.last = met.clone();
        self.connected |= connect && met.error.is_none();
        match action {
            SocketAction::Refuse => {
                let expected = if counter == Counter::SocketBoundLoopback { "EADDRNOTAVAIL" } else { "ECONNREFUSED" };
                assert_eq!(met.error.as_deref(), Some(expected), "{to}: {counter:?}");
            }
            SocketAction::Rewrite => {
                assert_eq!(met.error, None, "{to}: {counter:?}");
                assert!(!connect || met.peer == Some(to), "{to}: getpeername shows {:?}", met.peer);
                self.hear(connect, backend, Some(to), &format!("{to} by {backend}"));
            }
            SocketAction::Leave => {
                let plain = step(self.plain).expect("a step");
                assert_eq!((&met.error, met.peer), (&plain.error, plain.peer), "{to}: {counter:?}");
                let listens = to.port() == TARGET && met.error.is_none();
                if listens {
                    let heard = self.hear(connect, to, None, &to.to_string());
                    let also = hear(self.plain, connect && self.protocol == Protocol::UDP);
                    assert_eq!(heard.backend, also.backend, "{to}");
                }
            }
        }
        counter
    }

    /// What comes from `backend` must be shown as decided, and as `shown` where that is known here.
    fn hear(&mut self, connected: bool, backend: SocketAddr, shown: Option<SocketAddr>, what: &str) -> Met {
        let writes = connected && self.protocol == Protocol::UDP;
        if writes && self.v6 && backend.is_ipv4() {
            // The kernel sends for such a socket as if its process had named the address, and so runs the hook.
            let verdict = self.decide(&self.storage4, false, backend).expect("IPv4");
            assert_eq!((verdict.0, verdict.1), (SocketAction::Leave, Counter::SocketOther), "{what}");
        }
        let met = hear(self.seen, writes);
        assert_eq!(met.error, None, "{what}");
        assert_eq!(met.backend.as_deref(), Some(&*name(backend.ip())), "{what}");
        if self.protocol == Protocol::UDP {
            let from = self.received(&self.storage4, backend).or_else(|| self.received(&self.storage6, backend));
            if from.is_some() {
                self.twin.memory.count(Counter::SocketReceive);
            }
            assert_eq!(met.peer, Some(from.unwrap_or(backend)), "{what}");
            assert!(shown.is_none() || met.peer == shown, "{what}: shown as {:?}", met.peer);
        }
        met
    }
}

fn hear(talk: &mut Talk, write_first: bool) -> Met {
    if write_first {
        assert_eq!(talk.write().expect("a step").error, None);
    }
    talk.receive().expect("a step")
}

/// What the server at an address calls itself.
fn name(ip: IpAddr) -> String {
    let bytes = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let is_backend = <[u8; 4]>::from_ip(ip).is_some_and(|addr| addr[..2] == [10, BACKENDS])
        || <[u8; 16]>::from_ip(ip).is_some_and(|addr| addr[..4] == [0xfd, 0, 0, BACKENDS]);
    if is_backend { format!("b{}", bytes.last().expect("an address")) } else { "plain".to_owned() }
}

fn serve(namespace: &Namespace, name: &str, addresses: &[IpAddr]) -> Process {
    let mut command = Command::new(binary("ballast-peer").expect("the peer"));
    let port = TARGET.to_string();
    command.args(["server", "--name", name, "--tcp", &port, "--udp", &port]);
    for address in addresses {
        command.arg("--bind").arg(address.to_string());
    }
    let mut process = namespace.run(|| Process::spawn(name, command)).expect("a run").expect("a server");
    process.first_line(Duration::from_secs(10)).expect("ready");
    process
}

/// Addresses of a family on `lo`, and no way to a Service by packets.
fn addresses<A: Family>(bits: u32) -> String {
    let mut batch = format!("route add unreachable {}/{}\n", A::addr(SERVICES, 0).ip(), A::BITS);
    for (net, hosts) in [(BACKENDS, 1..=4), (OWN, 1..=1)] {
        for host in hosts {
            batch.push_str(&format!("address add {}/{bits} dev lo\n", A::addr(net, host).ip()));
        }
    }
    batch
}

fn destinations<A: Family>() -> Vec<SocketAddr> {
    let at = |addr: A, port: u16| SocketAddr::new(addr.ip(), port);
    let vips = (1..=6).filter(|host| *host != 4).map(|host| at(A::addr(SERVICES, host), 80));
    let own = A::addr(OWN, 1);
    let others = [
        at(A::addr(SERVICES, 1), 80),
        at(A::addr(SERVICES, 1), 81),
        at(A::addr(SERVICES, 99), 80),
        at(own, NODE_PORT),
        at(own, NODE_PORT + 1),
        at(own, TARGET),
        at(A::loopback(), NODE_PORT),
        at(A::loopback(), NODE_PORT),
        at(A::loopback(), NODE_PORT + 1),
        at(A::loopback(), TARGET),
        at(A::addr(BACKENDS, 1), TARGET),
    ];
    vips.chain(others).collect()
}

#[test]
fn sockets_do_what_is_decided_in_memory() {
    needs_root!();
    let world = World::builder().nodes(1).pods(1).build().expect("a world");
    let node = world.node(0);
    let batch = addresses::<[u8; 4]>(32) + &addresses::<[u8; 16]>(128);
    node.namespace().ip(&batch).expect("addresses");
    world.settle().expect("usable addresses");
    let v4 = |net, host| <[u8; 4]>::addr(net, host).ip();
    let v6 = |net, host| <[u8; 16]>::addr(net, host).ip();
    let loopback = [<[u8; 4]>::loopback().ip(), <[u8; 16]>::loopback().ip()];
    let mut servers: Vec<Process> = (1..=4)
        .map(|host| serve(node.namespace(), &format!("b{host}"), &[v4(BACKENDS, host), v6(BACKENDS, host)]))
        .collect();
    servers.push(serve(node.namespace(), "plain", &[v4(OWN, 1), v6(OWN, 1), loopback[0], loopback[1]]));

    let bpffs = Bpffs::new().expect("a bpffs");
    let sizes = MapSizes { services: 64, frontends: 64, backends: 64, rings: 256, conntrack: 256 };
    let mut datapath = Datapath::open(bpffs.path(), &sizes).expect("the datapath");
    datapath.attach_cgroup(node.cgroup()).expect("attached");
    let netns = node.namespace().run(netns_cookie).expect("a run").expect("a cookie");
    let twin = Twin::new(datapath, netns);
    let (mut seen, mut plain) =
        (Talk::start(node.place()).expect("a peer"), Talk::unseen(node.namespace()).expect("a peer"));

    let mut random = Random(0x0b57_ac1e_5eed_0002);
    let (to4, to6) = (destinations::<[u8; 4]>(), destinations::<[u8; 16]>());
    let both: Vec<SocketAddr> = to4.iter().chain(&to6).copied().collect();
    let mut met: BTreeMap<(Counter, &str), u32> = BTreeMap::new();
    for _ in 0..SOCKETS {
        let (protocol, connect) = random.pick(&[(Protocol::TCP, true), (Protocol::UDP, true), (Protocol::UDP, false)]);
        let tcp = protocol == Protocol::TCP;
        let (kind, to) = match (tcp, random.pick(&[false, true])) {
            (true, false) => ("tcp4", &to4),
            (true, true) => ("tcp6", &both),
            (false, false) => ("udp4", &to4),
            (false, true) => ("udp6", &both),
        };
        // A socket that is bound to a loopback address speaks that family alone.
        let bind = random.pick(&[None, None, None, None, Some(loopback[usize::from(kind.ends_with('6'))])]);
        let to = if bind.is_some_and(|ip| ip.is_ipv6()) { &to6 } else { to };
        let bind = bind.map(|ip| SocketAddr::new(ip, 0));
        plain.new_socket(kind, bind).expect("a socket");
        let last = seen.new_socket(kind, bind).expect("a socket");
        let storage4 = SocketStorage { record: None.into(), no_memory: false };
        let storage6 = SocketStorage { record: None.into(), no_memory: false };
        let (seen, plain, twin) = (&mut seen, &mut plain, &twin);
        let v6 = kind.ends_with('6');
        let mut pair = Pair { twin, seen, plain, protocol, v6, connected: false, last, storage4, storage6 };
        // A connection is made once, an unconnected socket asks this and that.
        for _ in 0..if connect { 1 } else { 4 } {
            *met.entry((pair.ask(connect, random.pick(to)), kind)).or_default() += 1;
        }
    }
    let mut kernel = twin.datapath.maps.counters().expect("counters");
    kernel.retain(|_, count| *count > 0);
    assert_eq!(&kernel, &*twin.memory.counters.borrow());
    println!("{kernel:?}; {met:?}");
    // Sockets that ask little would prove little.
    for counter in [
        Counter::SocketConnect,
        Counter::SocketSend,
        Counter::SocketReceive,
        Counter::SocketOther,
        Counter::SocketLeft,
        Counter::SocketNoEndpoint,
        Counter::SocketNoSuchPort,
        Counter::SocketBoundLoopback,
        Counter::SocketAmbiguous,
    ] {
        assert!(kernel.get(&counter).is_some_and(|count| *count > 3), "{counter:?}: {:?}", kernel.get(&counter));
    }
}
