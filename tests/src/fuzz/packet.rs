//! Bytes as frames, through the pipeline with Services loaded.

use lb_common::{
    pipeline::{self, Hook},
    testing::{Buffer, Memory, l4_checksum_is_right},
    verdict::{Action, Verdict},
};

use super::{
    frames::{Record, crc_is_right, header_is_right, may_be_fragment, records},
    tables::memory,
};

thread_local! {
    /// Loaded once: an input works on a copy.
    static WORLD: Memory = memory();
}

/// Two tags, a header with all the extensions that are read, and the longest answer behind them.
const LONGEST_ANSWER: usize = 14 + 8 + 255 + 8 + 40 + 8;

/// Runs the frames of an input (see [`records`]) one after the other through the hooks, on tables that remember. No frame
/// grows, a checksum that was right stays right, and no hook returns what it may not.
pub fn packet(bytes: &[u8]) {
    let mut world = WORLD.with(Memory::clone);
    for record in records(bytes) {
        world.now = world.now.wrapping_add(record.ticks);
        let mut after = Buffer(record.frame.clone());
        let verdict = match record.hook {
            Some(hook) => pipeline::ingress(&mut after, &world, hook, u32::from(!(hook == Hook::Host && record.own))),
            None => pipeline::egress(&mut after, &world),
        };
        check(&record, verdict, &after.0);
    }
}

#[track_caller]
fn check(record: &Record, verdict: Verdict, after: &[u8]) {
    let before = &record.frame[..];
    let told = || format!("{:?} {verdict:?}: {before:02x?} became {after:02x?}", record.hook);
    match (record.hook, verdict.action) {
        (_, Action::Undecided)
        | (Some(Hook::Xdp), Action::Reply | Action::ToHost | Action::Forward)
        // What nobody translated must not come round again.
        | (Some(Hook::Host), Action::Pass) => panic!("{}", told()),
        (_, Action::Drop) => {}
        (_, Action::Reply) => {
            assert!(after.len() <= before.len().max(LONGEST_ANSWER), "{}", told());
            assert_ne!(l4_checksum_is_right(after), Some(false), "{}", told());
            assert_ne!(header_is_right(after), Some(false), "{}", told());
        }
        (_, Action::Pass | Action::ToHost | Action::Forward) => {
            assert_eq!(after.len(), before.len(), "{}", told());
            if header_is_right(before) == Some(true) {
                assert_eq!(header_is_right(after), Some(true), "{}", told());
            }
            if l4_checksum_is_right(before) == Some(true) && !may_be_fragment(after) {
                assert_ne!(l4_checksum_is_right(after), Some(false), "{}", told());
            }
            // The checksum of zero is a sender's that a device fills in later: it stays.
            if crc_is_right(before) == Some(true) && !may_be_fragment(after) {
                assert_ne!(crc_is_right(after), Some(false), "{}", told());
            }
        }
    }
}
