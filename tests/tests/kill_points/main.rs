//! R1: an agent killed after any write of a sync leaves tables that are right, and the next agent finishes.

mod changes;
mod reader;
mod run;
mod states;

use lb_tests::scoreboard;
use lb_userspace::{image::Capacity, store::testing::FakeStore};

/// A change of endpoints looks at what changed alone.
#[test]
fn changes_of_endpoints_lead_where_looking_at_everything_does() {
    let mut seen = changes::Changes::default();
    for seed in 0..100 {
        changes::changes(seed, &mut seen);
    }
    // A tenth of the changes is of everything, and a Service may tell of another one's addresses.
    assert!(seen.partly > 2 * seen.whole && seen.died > 10, "{seen:?}");
}

#[test]
fn r1_500_kill_points_in_a_sync() {
    let some = |first| -> u64 {
        (first..500).step_by(2).map(|seed| run::one(seed, &mut FakeStore::new(Capacity::uniform(1024)))).sum()
    };
    let died = std::thread::scope(|scope| {
        let half = scope.spawn(|| some(0));
        some(1) + half.join().expect("a half")
    });
    scoreboard(
        "R1",
        &format!(
            "kill_points: 500 seeded syncs of tables in memory, {died} agents killed in them; read after each write as a \
             program reads: every frontend whole, of the old state or the new; the next agent finished each"
        ),
    );
}
