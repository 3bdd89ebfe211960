//! What packets tell about a connection.

use lb_common::{
    conntrack::Phase,
    protocol::Protocol,
    state::{Stand, Told, backend_told, client_told, flow_phase},
    wire::l4::TcpFlags,
};

use crate::segment::{ACK, FIN_ACK, SYN};

const PHASES: [Phase; 5] = [Phase::OPENING, Phase::ANSWERED, Phase::OPEN, Phase::CLOSING, Phase::CLOSED];

#[test]
fn tcp_phases_by_every_flag() {
    for client in [Phase::OPENING, Phase::OPEN, Phase::CLOSING, Phase::CLOSED] {
        for backend in PHASES {
            for bits in 0..=u8::MAX {
                let flags = TcpFlags(bits);
                let (ours, theirs) = (Stand { phase: client, mark: 700 }, Stand { phase: backend, mark: 500 });
                // It acknowledges all of the SYN-ACK, and comes next in the stream.
                let told = Told { flags, sequence: 500, acknowledgment: 500, end: 500 };
                let (after, answer) = client_told(Protocol::TCP, ours, theirs, &told);
                let proves =
                    backend == Phase::ANSWERED && flags.has(ACK) && !flags.has(TcpFlags(SYN.0 | TcpFlags::RST.0));
                let base = if proves { Phase::OPEN } else { client };
                let expected = if flags.has(TcpFlags::RST) {
                    Phase::CLOSED
                } else if backend > Phase::ANSWERED || proves {
                    if flags.has(TcpFlags::FIN) { base.max(Phase::CLOSING) } else { base }
                } else {
                    base
                };
                assert_eq!(answer.phase, if proves { Phase::OPEN } else { backend });
                assert_eq!(after.phase, expected, "{client:?} {backend:?} {bits:#x}");

                let told = Told { flags, sequence: 700, acknowledgment: 0, end: 701 };
                let after = backend_told(Protocol::TCP, ours, theirs, &told);
                let expected = if flags.has(TcpFlags::RST) {
                    Phase::CLOSED
                } else if backend <= Phase::ANSWERED {
                    if flags.has(SYN) { Phase::ANSWERED } else { backend }
                } else if flags.has(TcpFlags::FIN) {
                    backend.max(Phase::CLOSING)
                } else {
                    backend
                };
                assert_eq!(after.phase, expected, "{client:?} {backend:?} {bits:#x}");
            }
        }
    }
}

/// One who does not see the SYN-ACK guesses its number with one try in a hundred million.
#[test]
fn a_half_open_flow_is_proved_by_the_number_of_its_syn_ack_alone() {
    let client = Stand::NONE;
    for mark in [0, 7, 0x8000_0000, u32::MAX] {
        let backend = Stand { phase: Phase::ANSWERED, mark };
        let proves = |acknowledgment: u32| {
            let told = Told { flags: ACK, sequence: 9, acknowledgment, end: 9 };
            client_told(Protocol::TCP, client, backend, &told).0.phase == Phase::OPEN
        };
        // Its options count as payload.
        for options in 0..=40 {
            assert!(proves(mark.wrapping_sub(options)), "{mark} - {options}");
        }
        assert!(
            !proves(mark.wrapping_sub(41)) && !proves(mark.wrapping_add(1)) && !proves(mark.wrapping_add(0x8000_0000))
        );
        let told = Told { flags: ACK, sequence: 9, acknowledgment: mark.wrapping_sub(1), end: 9 };
        assert_eq!(client_told(Protocol::SCTP, client, backend, &told).0.phase, Phase::OPENING, "a tag has no options");
        assert_eq!(client_told(Protocol::TCP, client, Stand { phase: Phase::OPENING, mark }, &told).0, client);
    }
}

/// RFC 5961 section 3.2: a number near the right one is a guess.
#[test]
fn only_the_rst_that_the_other_end_waits_for_ends_a_connection() {
    for (phase, guessed) in
        [(Phase::OPEN, Phase::CLOSING), (Phase::CLOSING, Phase::CLOSING), (Phase::CLOSED, Phase::CLOSED)]
    {
        for acknowledged in [0, 100, u32::MAX] {
            let (ours, theirs) = (Stand { phase, mark: 77 }, Stand { phase, mark: acknowledged });
            for (distance, expected) in
                [(0, Phase::CLOSED), (1, guessed), (-1, guessed), (1000, guessed), (1 << 20, phase)]
            {
                let sequence = acknowledged.wrapping_add_signed(distance);
                let told = Told { flags: TcpFlags::RST_ACK, sequence, acknowledgment: 0, end: sequence };
                assert_eq!(client_told(Protocol::TCP, ours, theirs, &told).0.phase, expected, "{phase:?} {distance}");
                assert_eq!(backend_told(Protocol::TCP, theirs, ours, &told).phase, expected, "{phase:?} {distance}");
            }
        }
    }
}

/// Each end's FIN and RST must fit what the other acknowledged.
#[test]
fn what_ends_a_connection_fits_its_stream() {
    for acknowledged in [0, 100, u32::MAX - 5] {
        let (ours, theirs) = (Stand { phase: Phase::OPEN, mark: acknowledged }, Stand { phase: Phase::OPEN, mark: 77 });
        for flags in [TcpFlags::RST, TcpFlags::RST_ACK, FIN_ACK] {
            let ends = |distance: i32| {
                let sequence = acknowledged.wrapping_add_signed(distance);
                let told = Told { flags, sequence, acknowledgment: 0, end: sequence };
                let swapped = client_told(Protocol::TCP, theirs, ours, &told).0.phase != Phase::OPEN;
                let after = backend_told(Protocol::TCP, ours, theirs, &told).phase != Phase::OPEN;
                assert_eq!(swapped, after);
                after
            };
            for near in [0, 1, -1, -65_536, 1_048_575] {
                assert!(ends(near), "{near}");
            }
            for far in [-65_537, 1_048_576, i32::MAX, i32::MIN] {
                assert!(!ends(far), "{far}");
            }
        }
    }
}

#[test]
fn a_flow_is_open_once_its_client_proved_it_and_closed_by_either_side() {
    use Phase as P;
    for (protocol, original, answer, expected) in [
        (Protocol::TCP, P::OPENING, P::ANSWERED, P::OPENING),
        (Protocol::TCP, P::OPENING, P::OPEN, P::OPENING),
        (Protocol::TCP, P::OPENING, P::CLOSED, P::CLOSED),
        (Protocol::TCP, P::OPEN, P::OPEN, P::OPEN),
        (Protocol::TCP, P::OPEN, P::CLOSING, P::HALF_CLOSED),
        (Protocol::TCP, P::CLOSING, P::OPEN, P::HALF_CLOSED),
        (Protocol::TCP, P::CLOSING, P::CLOSING, P::CLOSING),
        (Protocol::TCP, P::CLOSING, P::CLOSED, P::CLOSED),
        (Protocol::SCTP, P::CLOSING, P::OPEN, P::CLOSING),
        (Protocol::SCTP, P::OPEN, P::CLOSING, P::CLOSING),
        (Protocol::TCP, P::CLOSED, P::OPEN, P::CLOSED),
        (Protocol::UDP, P::OPENING, P::OPENING, P::OPENING),
        (Protocol::UDP, P::OPENING, P::OPEN, P::OPEN),
    ] {
        assert_eq!(flow_phase(protocol, original, answer), expected, "{original:?} {answer:?}");
    }
}
