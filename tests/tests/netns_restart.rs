//! R2: the agent is stopped and killed under many flows, and none of them notices.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use lb_tests::{Cluster, Setup, client::Crowd, needs_root, scoreboard};

/// How often programs were looked for on a device, and for how long at a time there were none.
#[derive(Debug, Default)]
struct Watched {
    looks: u64,
    without: u64,
    longest_between: Duration,
}

/// Looks every millisecond until told to stop.
fn watch(device: &str, stop: &AtomicBool) -> Watched {
    let mut watched = Watched::default();
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for point in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = SchedClassifier::query_tcx(device, point).expect("the programs of a device");
            let ours = programs.iter().any(|program| program.name_as_str().is_some_and(|name| name.starts_with("lb_")));
            watched.without += u64::from(!ours);
        }
        watched.looks += 1;
        watched.longest_between = watched.longest_between.max(last.elapsed());
        last = Instant::now();
        std::thread::sleep(Duration::from_millis(1));
    }
    watched
}

fn conn_disrupt_restart(restarts: u32, tcp: u32, udp: u32) {
    for setup in [Setup::tcx(false), Setup::xdp(false)] {
        let mut cluster = Cluster::start(&setup).expect("a cluster");
        let to = [cluster.node_ports().to_vec(), Cluster::node_ports_of(cluster.world.node(1)).to_vec()].concat();
        let crowd = Crowd::start(cluster.world.client(), &to, tcp, udp).expect("a crowd");
        let place = cluster.world.node(0).place().clone();
        let stop = AtomicBool::new(false);
        let watched = std::thread::scope(|scope| {
            let watching = scope.spawn(|| place.namespace().run(|| watch("eth0", &stop)).expect("the node"));
            for restart in 0..restarts {
                let index = usize::from(restart % 4 == 3);
                let agent = &mut cluster.agents[index];
                if restart % 2 == 0 { agent.kill() } else { agent.stop() }.expect("ended");
                agent.launch().expect("launched");
            }
            stop.store(true, Ordering::Relaxed);
            watching.join().expect("a watch")
        });
        let report = crowd.stop().expect("a report");
        println!("{setup:?}: {report:?}, {watched:?}");
        scoreboard(
            "R2",
            &format!(
                "conn_disrupt_restart ({}): {restarts} restarts, every other one by SIGKILL, under {tcp} TCP and {udp} UDP \
                 flows: {} broken, {} moved to another backend, {} of {} echoes lost; no program at {} of {} looks at the \
                 device",
                if setup.xdp == "on" { "XDP" } else { "tcx" },
                report.broken,
                report.moved,
                report.lost,
                report.rounds,
                watched.without,
                watched.looks,
            ),
        );
        assert_eq!((report.broken, report.moved, report.lost), (0, 0, 0), "{report:?}");
        assert_eq!(report.flows, u64::from(tcp + udp));
        assert!(report.rounds >= u64::from(restarts * (tcp + udp)), "an echo a flow and restart: {report:?}");
        assert_eq!(watched.without, 0, "{watched:?}");
        assert!(watched.looks > u64::from(restarts) * 20, "{watched:?}");
    }
}

#[test]
fn r2_conn_disrupt_restart() {
    needs_root!();
    conn_disrupt_restart(10, 200, 50);
}

#[test]
#[ignore = "the full number"]
fn r2_conn_disrupt_restart_in_full() {
    needs_root!();
    conn_disrupt_restart(100, 1_000, 200);
}
