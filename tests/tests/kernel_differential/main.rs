//! The same packets through the programs in the kernel and through the pipeline in memory: verdicts, bytes and all
//! tables must agree.
//!
//! # Packets
//! More than a million by chance and a million mutated ones for each packet program. A tenth of those by chance are bytes
//! without meaning, frames too short to be one among them; the kernel's test run refuses what has no room for its headers,
//! which is counted and not among the million.
//!
//! # What is compared
//! After each packet its bytes and the program's verdict. Every 1,000 packets, and after *each* in the slow variant, every
//! table that the packet programs write, whole and in both directions (an entry on one side only is a difference): conntrack,
//! first fragments, the half-open slots in use, connections by service and by backend, traffic, counters. When a round ends,
//! every 1,000 packets in the slow variant, also what no packet may write: all tables of the configuration, the half-open
//! slots that are not in use, what belongs to sockets. Socket storage cannot be listed; no packet program has it.
//!
//! # The clock
//! Stamps are compared as they are, and flows do get old. The kernel's clock (jiffies) is read before and after each packet;
//! if it stood still, memory decides with just that time. If it moved meanwhile, memory decides at every moment in question,
//! its move between two of the packet's readings of it included, until one explains the bytes, the verdict, what was counted
//! and all entries that changed. None is a failure. So nothing is normalised, and no threshold has to be kept away from.
//!
//! # Rounds
//! A round has tables of its own. In some a "second" has one or ten ticks, so that flows, fragments and slots time out within
//! it. A collector takes entries by chance from both sides where conntrack gets full.

mod frames;
mod sound;
mod tables;
mod twin;

use std::{collections::BTreeMap, time::Instant};

use lb_common::{pipeline::Hook, verdict::Counter};
use lb_tests::{Bpffs, needs_root};

use self::{
    frames::{Random, dress, error, ethertype, fragment, frame, mutate, noise},
    sound::Faults,
    twin::{Plan, Run, Setup, Twin},
};

/// Random packets for each program and round, and as many mutated ones; a test run does not take one in twelve of those.
const ROUND: usize = 68_500;
/// Packets of each kind that a program must have taken.
const WANTED: usize = 1_000_000;
/// Rounds of each thread.
const ROUNDS: u64 = 8;
/// Packets between two comparisons.
const BATCH: usize = 1000;
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

/// How a packet was made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Made {
    Whole,
    Noise,
    Mutated,
}

/// What a number of rounds met.
#[derive(Default)]
struct Met {
    /// Packets that a program took, by how they were made.
    taken: BTreeMap<(&'static str, Made), usize>,
    refused: usize,
    /// Comparisons of the tables.
    compared: usize,
    /// Packets during which the clock moved.
    moved: usize,
    agreed: usize,
    flows: usize,
    faults: Faults,
    counters: BTreeMap<Counter, u64>,
}

impl Met {
    fn add(&mut self, other: Self) {
        for (kind, count) in other.taken {
            *self.taken.entry(kind).or_default() += count;
        }
        self.refused += other.refused;
        self.compared += other.compared;
        self.moved += other.moved;
        self.agreed += other.agreed;
        self.flows += other.flows;
        self.faults.add(other.faults);
        for (counter, count) in other.counters {
            *self.counters.entry(counter).or_default() += count;
        }
    }

    fn count(&self, of: impl Fn(&'static str, Made) -> bool) -> usize {
        self.taken.iter().filter(|((program, made), _)| of(program, *made)).map(|(_, count)| count).sum()
    }
}

/// New tables, and `packets` random and as many mutated packets for each program.
fn round(seed: u64, packets: usize, setup: Setup, every: usize) -> Met {
    let bpffs = Bpffs::new().expect("a bpffs");
    let mut twin = Twin::new(&bpffs, setup);
    let mut random = Random(seed);
    let mut met = Met::default();
    let mut last = Vec::new();
    let mut run = 0;
    for number in 0..2 * packets {
        for program in PROGRAMS {
            let made = match number % 2 {
                1 => Made::Mutated,
                _ if random.chance(10) => Made::Noise,
                _ => Made::Whole,
            };
            let mut frame = if made == Made::Noise {
                noise(&mut random)
            } else if random.chance(50) {
                whole::<[u8; 4]>(&mut random, &last)
            } else {
                whole::<[u8; 16]>(&mut random, &last)
            };
            if made == Made::Mutated {
                mutate(&mut random, &mut frame);
            }
            let (taken, out) = twin.run(program, &frame);
            match taken {
                Run::Taken => *met.taken.entry((program.0, made)).or_default() += 1,
                Run::Refused => met.refused += 1,
            }
            if made != Made::Noise {
                last = out;
            }
            run += 1;
            if run % every == 0 {
                twin.compare();
                met.compared += 1;
            }
            if run % BATCH == 0 {
                if every < BATCH {
                    twin.compare_rest();
                }
                twin.collect::<[u8; 4]>(&mut random);
                twin.collect::<[u8; 16]>(&mut random);
            }
            if run % every == 0 {
                twin.look_at_clock();
            }
        }
    }
    met.flows = twin.compare();
    twin.compare_rest();
    met.moved = twin.moved;
    met.agreed = twin.agreed;
    met.faults = twin.faults;
    met.counters = twin.memory.counters.take();
    met
}

#[test]
fn the_kernel_decides_as_the_pipeline_in_memory() {
    needs_root!();
    let met = agree(ROUND, 8192, 128, BATCH);
    assert_million(&met);
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
        Counter::HalfOpenEvicted,
        Counter::Malformed,
        Counter::Vlan,
        Counter::OtherLink,
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
        let count = met.counters.get(&counter);
        assert!(count.is_some_and(|count| *count > 15), "{counter:?}: {count:?}");
    }
}

#[test]
#[ignore = "compares every table after each packet"]
fn every_table_agrees_after_each_packet() {
    needs_root!();
    // The smallest tables that do: they are read whole eight million times, and that takes as long as they are large.
    let met = agree(ROUND, 64, 16, 1);
    assert_million(&met);
    let full = met.counters.get(&Counter::ConntrackFull);
    assert!(full.is_some_and(|count| *count > 15), "conntrack was never full: {full:?}");
}

fn assert_million(met: &Met) {
    for (program, _) in PROGRAMS {
        let random = met.count(|of, made| of == program && made != Made::Mutated);
        let mutated = met.count(|of, made| of == program && made == Made::Mutated);
        assert!(random >= WANTED && mutated >= WANTED, "{program}: {random} random, {mutated} mutated packets");
    }
}

/// `ROUNDS` on each of two threads, with programs and maps of their own; the tables are compared `every` so many packets.
fn agree(packets: usize, conntrack: u32, half_open: u32, every: usize) -> Met {
    let began = Instant::now();
    let mut met = Met::default();
    std::thread::scope(|scope| {
        let halves = [0_u64, 1].map(|half| {
            scope.spawn(move || {
                let mut met = Met::default();
                for number in 0..ROUNDS {
                    let seed = 0x0b57_ac1e_5eed_0001 + (number * 2 + half) * 0x9e37_79b9;
                    let ticks_per_second = [250, 10, 250, 1][usize::try_from(number % 4).expect("few")];
                    met.add(round(seed, packets, Setup { conntrack, half_open, ticks_per_second }, every));
                }
                met
            })
        });
        for half in halves {
            met.add(half.join().expect("both sides to agree"));
        }
    });
    let Met { refused, compared, moved, flows, faults, .. } = &met;
    let (all, noise) = (met.count(|_, _| true), met.count(|_, made| made == Made::Noise));
    let mutated = met.count(|_, made| made == Made::Mutated);
    let Faults { aborted, failed, checksums, longer } = faults;
    let differences = all - met.agreed;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "NOTE {all} packets, {mutated} mutated, {noise} of noise, {refused} not taken, tables compared {compared} times, \
         {flows} entries at the end, {moved} packets met a tick, in {seconds:.1} s"
    );
    println!("{:?}", met.counters);
    // A difference ends the test before this: the sides would not be comparable afterwards.
    println!(
        "SCOREBOARD R7 {} programs, {all} packets ({mutated} mutated, {noise} of noise), tables compared {compared} times: \
         {differences} differences, {failed} failed test runs, {aborted} aborted, {checksums} wrong checksums, {longer} longer than their \
         frames",
        PROGRAMS.len()
    );
    assert_eq!(met.faults, Faults::default());
    met
}
