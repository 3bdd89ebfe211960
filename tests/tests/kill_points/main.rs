//! R1: an agent killed after any write of a sync leaves tables that are right, and the next agent finishes.

mod reader;
mod run;
mod states;

use lb_userspace::{image::Capacity, store::testing::FakeStore};

#[test]
fn r1_500_kill_points_in_a_sync() {
    let some =
        |first| (first..500).step_by(2).for_each(|seed| run::one(seed, &mut FakeStore::new(Capacity::uniform(1024))));
    std::thread::scope(|scope| {
        scope.spawn(|| some(0));
        some(1);
    });
}
