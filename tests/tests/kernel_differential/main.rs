//! The same packets through the programs in the kernel and through the pipeline in memory: verdicts, bytes and all
//! tables must agree.

mod frames;
mod twin;

use std::{collections::BTreeMap, time::Instant};

use lb_common::{pipeline::Hook, verdict::Counter};
use lb_tests::{Bpffs, needs_root};

use self::{
    frames::{Random, dress, error, ethertype, fragment, frame, mutate},
    twin::{Plan, Twin},
};

/// Random packets for each program and round, and as many mutated ones; a test run does not take one in twenty of those.
const ROUND: usize = 67_000;
/// Of them, those that must have run: sixteen rounds are a million for each program.
const WANTED: usize = 62_500;
/// Rounds of each thread.
const ROUNDS: u64 = 8;
const PROGRAMS: [(&str, Option<Hook>); 4] =
    [("lb_xdp", Some(Hook::Xdp)), ("lb_ingress", Some(Hook::Tc)), ("lb_host", Some(Hook::Host)), ("lb_egress", None)];

/// A frame of one of the flows or an error about the last one; some are fragments, some dressed.
fn whole<A: Plan>(random: &mut Random, last: &[u8]) -> Vec<u8> {
    let mut whole = if random.chance(10) && last.len() > 14 && last.get(12..14) == Some(&ethertype::<A>()) {
        error::<A>(random, last)
    } else {
        frame::<A>(random, last)
    };
    let plain = whole.len() >= 54 && whole.get(12..14) == Some(&ethertype::<A>());
    if plain && random.chance(12) {
        fragment::<A>(random, &mut whole);
    } else if plain && random.chance(16) {
        dress::<A>(random, &mut whole);
    }
    whole
}

/// What a number of rounds met.
#[derive(Default)]
struct Met {
    run: usize,
    mutated: usize,
    refused: usize,
    flows: usize,
    counters: BTreeMap<Counter, u64>,
}

impl Met {
    fn add(&mut self, other: Self) {
        self.run += other.run;
        self.mutated += other.mutated;
        self.refused += other.refused;
        self.flows += other.flows;
        for (counter, count) in other.counters {
            *self.counters.entry(counter).or_default() += count;
        }
    }
}

/// New tables, and `packets` random and as many mutated packets for each program. No entry gets old within a round: a clock
/// that moves between the two sides could let it end on one of them only.
fn round(seed: u64, packets: usize, every: usize) -> Met {
    let bpffs = Bpffs::new().expect("a bpffs");
    let mut twin = Twin::new(&bpffs);
    let mut random = Random(seed);
    let mut met = Met::default();
    let mut last = Vec::new();
    for number in 0..2 * packets {
        let broken = number % 2 == 1;
        for program in PROGRAMS {
            let mut frame = if random.chance(50) {
                whole::<[u8; 4]>(&mut random, &last)
            } else {
                whole::<[u8; 16]>(&mut random, &last)
            };
            if broken {
                mutate(&mut random, &mut frame);
            }
            last = twin.run(program, &frame);
            met.run += 1;
            met.mutated += usize::from(broken);
            if met.run % every == 0 {
                twin.compare();
            }
        }
    }
    met.flows = twin.compare();
    met.refused = twin.refused;
    met.counters = twin.memory.counters.take();
    met
}

#[test]
fn the_kernel_decides_as_the_pipeline_in_memory() {
    needs_root!();
    let Met { run: _, mutated, refused, flows: _, counters: kernel } = agree(ROUND, 1000);
    let wanted = WANTED * PROGRAMS.len() * 2 * usize::try_from(ROUNDS).expect("few");
    assert!(mutated - refused >= wanted, "{mutated} mutated frames, {refused} not run");
    // A generator that reaches little would prove little.
    for counter in [
        Counter::NewFlow,
        Counter::ToBackend,
        Counter::SourceNat,
        Counter::ToClient,
        Counter::FromFrontend,
        Counter::HostReply,
        Counter::NoEndpoint,
        Counter::NoLocalEndpoint,
        Counter::NoSuchPort,
        Counter::Unallocated,
        Counter::NoState,
        Counter::StrayReset,
        Counter::FlowReplaced,
        Counter::Malformed,
        Counter::Vlan,
        Counter::Fragment,
        Counter::FragmentOverlap,
        Counter::FragmentRefused,
        Counter::ExtensionHeader,
        Counter::Icmp,
        Counter::IcmpError,
        Counter::OtherProtocol,
        Counter::Sctp,
        Counter::HostUntranslated,
        Counter::Deferred,
        Counter::PortChanged,
        Counter::SourceRange,
    ] {
        assert!(kernel.get(&counter).is_some_and(|count| *count > 15), "{counter:?}: {:?}", kernel.get(&counter));
    }
}

#[test]
#[ignore = "compares every table after each packet"]
fn every_table_agrees_after_each_packet() {
    needs_root!();
    let met = agree(250, 1);
    assert!(met.flows > 0, "no flow to compare");
}

/// `ROUNDS` on each of two threads, with programs and maps of their own; the tables are compared `every` so many packets.
fn agree(packets: usize, every: usize) -> Met {
    let began = Instant::now();
    let mut met = Met::default();
    std::thread::scope(|scope| {
        let halves = [0_u64, 1].map(|half| {
            scope.spawn(move || {
                let mut met = Met::default();
                for number in 0..ROUNDS {
                    met.add(round(0x0b57_ac1e_5eed_0001 + (number * 2 + half) * 0x9e37_79b9, packets, every));
                }
                met
            })
        });
        for half in halves {
            met.add(half.join().expect("both sides to agree"));
        }
    });
    let Met { run, mutated, refused, flows, .. } = &met;
    let seconds = began.elapsed().as_secs_f64();
    println!("NOTE {run} packets, {mutated} of them mutated, {refused} not run, in {seconds:.1} s; {flows} flows");
    println!("{:?}", met.counters);
    met
}
