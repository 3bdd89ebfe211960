//! Frames by chance, many of them broken.

use lb_common::{checksum::Sum, testing::crc32c};

use crate::twin::{NODE, OUTSIDE, POD, Plan, REMOTE, SERVICE};

/// xorshift64*: small, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).expect("48 bits") % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A frame of one of the flows there can be, or an answer to the last one.
pub(crate) fn frame<A: Plan>(random: &mut Random, last: &[u8]) -> Vec<u8> {
    let network = if A::IPV6 { 40 } else { 20 };
    let (a, p) = if A::IPV6 { (22, 16) } else { (26, 4) };
    let l4 = 14 + network;
    if random.chance(35) && last.len() >= l4 + 8 && last[12..14] == ethertype::<A>() {
        // An answer: ends swapped.
        let mut answer = last.to_vec();
        let (source, destination) = (last[a..a + p].to_vec(), last[a + p..a + 2 * p].to_vec());
        answer[a..a + p].copy_from_slice(&destination);
        answer[a + p..a + 2 * p].copy_from_slice(&source);
        let (source, destination) = (last[l4..l4 + 2].to_vec(), last[l4 + 2..l4 + 4].to_vec());
        answer[l4..l4 + 2].copy_from_slice(&destination);
        answer[l4 + 2..l4 + 4].copy_from_slice(&source);
        if answer.len() > l4 + 13 {
            answer[l4 + 13] = random.pick(&[0x12, 0x10, 0x18, 0x11, 0x04]);
        }
        return answer;
    }
    let clients = [A::addr(1, OUTSIDE), A::addr(2, OUTSIDE), A::addr(1, POD), A::addr(1, NODE), A::addr(1, REMOTE)];
    let servers = [
        A::addr(1, SERVICE),
        A::addr(1, SERVICE),
        A::addr(1, SERVICE),
        A::addr(2, SERVICE),
        A::addr(3, SERVICE),
        A::addr(9, SERVICE),
        A::addr(1, POD),
        A::addr(1, NODE),
    ];
    let (source, destination) = (random.pick(&clients), random.pick(&servers));
    let ports =
        (random.pick(&[1000_u16, 1001, 40_000, 40_001, 65_535]), random.pick(&[80_u16, 80, 80, 81, 8080, 40_000]));
    let protocol =
        random.pick(&[6_u8, 6, 6, 17, 17, 17, 132, if A::IPV6 { 58 } else { 1 }, 47, if A::IPV6 { 60 } else { 50 }]);
    let payload = random.below(64);
    let mut segment = vec![
        0_u8;
        payload
            + match protocol {
                6 => 20,
                132 => 16,
                _ => 12,
            }
    ];
    for byte in &mut segment {
        *byte = random.byte();
    }
    segment[..2].copy_from_slice(&ports.0.to_be_bytes());
    segment[2..4].copy_from_slice(&ports.1.to_be_bytes());
    let length = u16::try_from(segment.len()).expect("short");
    let field = match protocol {
        6 => {
            segment[12] = 5 << 4;
            segment[13] = random.pick(&[0x02, 0x02, 0x02, 0x10, 0x18, 0x11, 0x04, 0x14, 0x12]);
            Some(16)
        }
        17 => {
            segment[4..6].copy_from_slice(&length.to_be_bytes());
            Some(6)
        }
        132 => {
            // The first chunk: mostly one that opens.
            segment[12] = random.pick(&[1, 1, 1, 0, 2, 6, 7, 14]);
            segment[8..12].fill(0);
            let sum = crc32c(&segment);
            segment[8..12].copy_from_slice(&sum);
            None
        }
        _ => None,
    };
    if let Some(field) = field {
        segment[field..field + 2].fill(0);
        if protocol == 6 || A::IPV6 || random.chance(80) {
            let sum = Sum::default().add(source.as_ref()).add(destination.as_ref());
            let sum = sum.add(&[0, protocol]).add(&length.to_be_bytes()).add(&segment);
            segment[field..field + 2].copy_from_slice(&sum.checksum().0);
        }
    }
    packet::<A>(source.as_ref(), destination.as_ref(), protocol, &segment)
}

/// A payload behind Ethernet and a network header whose checksum is right.
fn packet<A: Plan>(source: &[u8], destination: &[u8], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("short");
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype::<A>());
    if A::IPV6 {
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([protocol, 64]);
    } else {
        let mut header = vec![0x45, 0];
        header.extend((length + 20).to_be_bytes());
        header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
        let sum = Sum::default().add(&header).add(source).add(destination);
        header[10..12].copy_from_slice(&sum.checksum().0);
        frame.extend(header);
    }
    frame.extend(source);
    frame.extend(destination);
    frame.extend(payload);
    frame
}

pub(crate) fn ethertype<A: Plan>() -> [u8; 2] {
    if A::IPV6 { [0x86, 0xdd] } else { [8, 0] }
}

/// Bytes by chance: of any kind, or as something that a parser begins to read; some too short for an Ethernet header.
pub(crate) fn noise(random: &mut Random) -> Vec<u8> {
    let limit = random.pick(&[14, 64, 64, 128, 400, 1500]);
    let mut frame: Vec<u8> = (0..random.below(limit)).map(|_| random.byte()).collect();
    let ipv6 = random.chance(50);
    let mut begin: Vec<u8> = Vec::new();
    for _ in 0..random.pick(&[0, 0, 0, 1, 2, 3]) {
        begin.extend([random.pick(&[0x81, 0x88]), random.pick(&[0, 0xa8]), random.byte(), random.byte()]);
    }
    match random.below(4) {
        // Even the ethertype.
        0 => return frame,
        // One that is not ours: ARP, MPLS, a length, none at all.
        1 => begin.extend(random.pick(&[[8, 6], [0x88, 0x47], [0, 60], [5, 0xff], [6, 0], [0xff, 0xff]])),
        kind => {
            begin.extend(if ipv6 { [0x86, 0xdd] } else { [8, 0] });
            if kind == 3 {
                // A version, and for IPv4 a header length.
                begin.push(if ipv6 { 0x60 | random.byte() & 15 } else { 0x40 | random.pick(&[4, 5, 5, 5, 6, 15]) });
                // A length that may fit.
                let length = u16::try_from(random.below(frame.len() + 1)).expect("short").to_be_bytes();
                if ipv6 {
                    begin.extend([0, 0, 0, length[0], length[1]]);
                } else {
                    begin.extend([0, length[0], length[1]]);
                }
            }
        }
    }
    let end = frame.len().min(12 + begin.len());
    if let Some(room) = frame.get_mut(12..end) {
        room.copy_from_slice(&begin[..room.len()]);
    }
    frame
}

/// Breaks a frame somewhere.
pub(crate) fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(5) {
        0 => {
            let at = 12 + random.below(frame.len() - 12);
            frame[at] = random.byte();
        }
        1 => {
            let at = 14 + random.below(20.min(frame.len() - 14));
            frame[at] ^= 1 << random.below(8);
        }
        2 => {
            let length = 14 + random.below(frame.len() - 13);
            frame.truncate(length);
        }
        3 => {
            let tag = [0x81, 0, 0, 5];
            frame.splice(12..12, tag);
        }
        _ => frame.extend(std::iter::repeat_n(0, random.below(20))),
    }
}

/// Puts tags, options or extension headers on a whole frame.
pub(crate) fn dress<A: Plan>(random: &mut Random, frame: &mut Vec<u8>) {
    if random.chance(60) {
        if A::IPV6 {
            let last = frame[20];
            let mut extensions: Vec<u8> = Vec::new();
            let kinds: Vec<u8> = (0..=random.below(7)).map(|_| random.pick(&[0, 60, 60, 43, 51])).collect();
            for (index, kind) in kinds.iter().enumerate() {
                let units = random.below(3);
                let length = if *kind == 51 { 4 + 4 * units } else { 8 + 8 * units };
                let begin = extensions.len();
                extensions.resize(begin + length, 0);
                extensions[begin] = kinds.get(index + 1).copied().unwrap_or(last);
                // An authentication header counts words without the first two: one of four bytes is too short.
                extensions[begin + 1] =
                    u8::try_from(if *kind == 51 { (length / 4).saturating_sub(2) } else { units }).expect("few");
                if *kind == 43 && length >= 4 && random.chance(10) {
                    extensions[begin + 3] = 1;
                }
            }
            frame[20] = kinds[0];
            let length =
                u16::from_be_bytes([frame[18], frame[19]]).wrapping_add(u16::try_from(extensions.len()).expect("few"));
            frame[18..20].copy_from_slice(&length.to_be_bytes());
            frame.splice(54..54, extensions);
        } else {
            let words = 1 + random.below(10);
            let length =
                u16::from_be_bytes([frame[16], frame[17]]).wrapping_add(u16::try_from(4 * words).expect("few"));
            frame[14] = frame[14].wrapping_add(u8::try_from(words).expect("few"));
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            frame.splice(34..34, std::iter::repeat_n(1, 4 * words));
        }
    }
    for _ in 0..random.pick(&[0, 0, 0, 1, 1, 2, 3]) {
        let kind = random.pick(&[[0x81, 0], [0x88, 0xa8]]);
        frame.splice(12..12, [kind[0], kind[1], 0, 5]);
    }
}

/// An ICMP error about a frame, from anywhere, with a right checksum.
pub(crate) fn error<A: Plan>(random: &mut Random, about: &[u8]) -> Vec<u8> {
    let (network, at, width) = if A::IPV6 { (40, 8, 16) } else { (20, 12, 4) };
    let behind = random.pick(&[0, 7, 8, 12, 18, 20, 100]);
    let quoted = &about[14..about.len().min(14 + network + behind)];
    let mut source = [random.byte(); 16];
    source[0] = 10;
    let (source, destination) = (&source[..width], quoted.get(at..at + width).unwrap_or(&source[..width]));
    let kind = if A::IPV6 { random.pick(&[1, 2, 2, 3, 4, 128]) } else { random.pick(&[3, 3, 3, 4, 11, 12, 8]) };
    let mut message = vec![kind, random.pick(&[0, 3, 4]), 0, 0, 0, 0, 5, 20];
    message.extend(quoted);
    let length = u16::try_from(message.len()).expect("short");
    let protocol = if A::IPV6 { 58 } else { 1 };
    let pseudo = Sum::default().add(source).add(destination).add(&[0, protocol]).add(&length.to_be_bytes());
    let sum = if A::IPV6 { pseudo } else { Sum::default() };
    let checksum = sum.add(&message).checksum();
    message[2..4].copy_from_slice(&checksum.0);
    packet::<A>(source, destination, protocol, &message)
}

/// Makes a whole frame one fragment of a few packets' fragments.
pub(crate) fn fragment<A: Plan>(random: &mut Random, frame: &mut Vec<u8>) {
    let id = u16::from(random.byte() & 3);
    let (offset, more) = random.pick(&[(0_u16, true), (0, true), (24, true), (64, false), (8, false), (0, false)]);
    if A::IPV6 {
        let next = std::mem::replace(&mut frame[20], 44);
        let length = u16::from_be_bytes([frame[18], frame[19]]).wrapping_add(8);
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        let [high, low] = (offset | u16::from(more)).to_be_bytes();
        let [id_high, id_low] = id.to_be_bytes();
        frame.splice(54..54, [next, 0, high, low, 0, 0, id_high, id_low]);
    } else {
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[20..22].copy_from_slice(&(offset >> 3 | u16::from(more) << 13).to_be_bytes());
    }
}
