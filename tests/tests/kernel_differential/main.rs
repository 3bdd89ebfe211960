//! The same packets through the programs in the kernel and through the pipeline in memory: verdicts, bytes, conntrack and
//! counters must agree.

mod frames;
mod twin;

use lb_common::{pipeline::Hook, verdict::Counter};
use lb_tests::{Bpffs, needs_root};

use self::{
    frames::{Random, dress, error, ethertype, fragment, frame, mutate},
    twin::{Plan, Twin},
};

/// Mutated packets for each program, a little more than the issue asks for.
const PACKETS: usize = 120_000;
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

#[test]
fn the_kernel_decides_as_the_pipeline_in_memory() {
    needs_root!();
    let bpffs = Bpffs::new().expect("a bpffs");
    let mut twin = Twin::new(&bpffs);
    let mut random = Random(0x0b57_ac1e_5eed_0001);
    let mut last = Vec::new();
    let mut mutated = 0;
    // As many whole ones, mutated ones among them, so that there are flows for all to meet.
    for _ in 0..2 * PACKETS {
        for program in PROGRAMS {
            let mut frame = if random.chance(50) {
                whole::<[u8; 4]>(&mut random, &last)
            } else {
                whole::<[u8; 16]>(&mut random, &last)
            };
            let broken = random.chance(50);
            if broken {
                mutate(&mut random, &mut frame);
            }
            if frame.len() < 14 {
                continue;
            }
            mutated += usize::from(broken);
            last = twin.run(program, &frame);
        }
    }
    let run = 2 * PACKETS * PROGRAMS.len();
    assert!(mutated - twin.refused > 100_000 * PROGRAMS.len(), "{mutated} mutated frames, {} not run", twin.refused);
    assert!(twin.refused < run / 10, "{} frames were not run", twin.refused);
    let flows = twin.compare_flows::<[u8; 4]>() + twin.compare_flows::<[u8; 16]>();
    let mut kernel = twin.datapath.maps.counters().expect("counters");
    kernel.retain(|_, count| *count > 0);
    assert_eq!(&kernel, &*twin.memory.counters.borrow());
    println!("{run} packets, {mutated} of them mutated, {flows} conntrack entries; {kernel:?}");
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
    ] {
        assert!(kernel.get(&counter).is_some_and(|count| *count > 15), "{counter:?}: {:?}", kernel.get(&counter));
    }
}
