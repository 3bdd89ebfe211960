//! R1 on the kernel's own maps; `kill_points` runs more of them in memory.

#[path = "kill_points/reader.rs"]
mod reader;
#[path = "kill_points/run.rs"]
mod run;
#[path = "kill_points/states.rs"]
mod states;

use lb_tests::{Bpffs, needs_root, scoreboard};
use lb_userspace::bpf::{Datapath, MapSizes};

#[test]
fn r1_25_kill_points_in_a_sync_of_the_kernels_maps() {
    needs_root!();
    let sizes = MapSizes { services: 128, frontends: 128, backends: 256, rings: 1024, conntrack: 16 };
    let bpffs = Bpffs::new().expect("a bpffs");
    let mut datapath = Datapath::open(bpffs.path(), &sizes).expect("the datapath");
    let died: u64 = (1000..1025).map(|seed| run::one(seed, &mut datapath.maps)).sum();
    scoreboard("R1", &format!("the same with the kernel's maps: 25 syncs, {died} agents killed in them"));
}
