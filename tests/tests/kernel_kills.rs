//! R1 on the kernel's own maps; `kill_points` runs more of them in memory.

#[path = "kill_points/reader.rs"]
mod reader;
#[path = "kill_points/run.rs"]
mod run;
#[path = "kill_points/states.rs"]
mod states;

use lb_tests::{Bpffs, needs_root, scoreboard};
use lb_userspace::bpf::{Datapath, MapSizes};

fn kill_points(seeds: std::ops::Range<u64>) {
    needs_root!();
    let sizes = MapSizes { services: 128, frontends: 128, backends: 256, rings: 1024, conntrack: 16 };
    let bpffs = Bpffs::new().expect("a bpffs");
    let mut datapath = Datapath::open(bpffs.path(), &sizes).expect("the datapath");
    let syncs = seeds.end - seeds.start;
    let died: u64 = seeds.map(|seed| run::one(seed, &mut datapath.maps)).sum();
    scoreboard("R1", &format!("the same with the kernel's maps: {syncs} syncs, {died} agents killed in them"));
}

#[test]
fn r1_25_kill_points_in_a_sync_of_the_kernels_maps() {
    kill_points(1000..1025);
}

#[test]
#[ignore = "the full number"]
fn r1_500_kill_points_in_a_sync_of_the_kernels_maps() {
    kill_points(1000..1500);
}
